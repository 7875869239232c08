"""What kiln means to reach over the shapes of suite peers, in bf16 on an H100, and what it reaches."""
from .rows import VENDORS, geomean, is_peer, technique

LOWEST = 0.97  # no single row below it
# op and pass, which problems of it, against whom, the geometric mean wanted, the share of the limit wanted (%)
TARGETS = (
    ("conv2d_fwd", "", "cuDNN", 1.25, 80), ("conv2d_dgrad", "", "cuDNN", 1.35, 80), ("conv2d_wgrad", "", "cuDNN", 1.4, 80),
    ("depthwise_conv2d_fwd", "", "PyTorch", 1.35, 85), ("depthwise_conv2d_dgrad", "", "PyTorch", 2.5, 85),
    ("depthwise_conv2d_wgrad", "", "PyTorch", 2.25, 85),
    ("batchnorm_fwd_train", "", "PyTorch", 3.2, 85), ("batchnorm_fwd_train", "_relu", "PyTorch", 3.8, 85),
    ("batchnorm_bwd", "", "PyTorch", 1.6, 85), ("batchnorm_bwd", "_relu", "PyTorch", 1.6, 85),
    ("max_pool2d_fwd", "_arg8", "PyTorch", 2.9, 90), ("max_pool2d_bwd", "_arg8", "PyTorch", 6, 90),
    ("avg_pool2d_fwd", "", "PyTorch", 6, 90), ("global_avg_pool_fwd", "", "PyTorch", 1.1, 90),
    ("softmax_xent_fwd_bwd", "_c10_ls0.1", "PyTorch", 10, None), ("softmax_xent_fwd_bwd", "_c1000_ls0.1", "PyTorch", 6, None),
)
ENDS = ("_relu", "_arg8", "_c10_ls0.1", "_c1000_ls0.1")


def end_of(problem):
    return next((end for end in ENDS if problem.endswith(end)), "")


def targets(times, ceilings, copies):
    """A line a target: (op and pass, end, peer, shapes, wanted, reached, lowest, its problem, share wanted, share, share of a copy)."""
    for op_pass, end, peer, wanted, share_wanted in TARGETS:
        ratios, shares, of_copy = {}, [], []
        for (name, problem, dtype), row in times.items():
            if name != op_pass or dtype != "bf16" or end_of(problem) != end or "torch" not in row:  # PyTorch has suite peers alone
                continue
            own = {impl: us for impl, us in row.items() if not is_peer(impl)}
            others = [us for impl, us in row.items() if (technique(impl) in VENDORS if peer == "cuDNN" else impl == "torch")]
            if not own or not others:
                continue
            impl = min(own, key=own.get)
            ratios[problem] = min(others) / own[impl]
            shares.append(ceilings.get((name, problem, dtype, impl)))
            of_copy.append(copies.get((name, problem, dtype, impl)))
        if ratios:
            lowest = min(ratios, key=ratios.get)
            yield (op_pass, end, peer, len(ratios), wanted, geomean(ratios.values()), ratios[lowest], lowest, share_wanted,
                   geomean(shares), geomean(of_copy))

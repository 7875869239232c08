"""Times single passes in PyTorch eager, with bench_layers' row names and implementation `torch`.

    python3 bench/peers/torch_layers.py --out bench/results/h100/torch_layers.json
    python3 bench/peers/torch_layers.py --like bench/results/h100/layers.json   # the rows of that file
    python3 bench/peers/torch_layers.py --filter 'conv2d_.*/n512' --dtype bf16,fp32

Channels-last tensors, cudnn.benchmark on, TF32 off for fp32. Device time from replays of a CUDA graph; cold_us with
buffers rotated over more than 3x L2, warm_us on one set. wgrad gives dw in the layer's dtype, as PyTorch does.
"""

import argparse
import json
import math
import re
import sys

import torch
import torch.nn.functional as F

import common

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
VOID = {name: math.nan for name in ("pct_ceiling", "x_vendor_best", "x_vendor_default", "x_naive")}


class Maker:
    """Makes tensors on the device; nhwc() gives channels-last ones."""

    def __init__(self, device, dtype):
        self.device, self.dtype = device, dtype

    def nhwc(self, n, c, h, w, grad=False):
        x = torch.randn(n, c, h, w, device=self.device, dtype=self.dtype)
        return x.contiguous(memory_format=torch.channels_last).requires_grad_(grad)

    def flat(self, *shape, dtype=None, grad=False):
        return torch.randn(*shape, device=self.device, dtype=dtype or self.dtype).requires_grad_(grad)


def conv_pass(p, make, which, depthwise=False):
    n, c, (r, s) = p["n"], p["c"], p["r"]
    k, groups = (c, c) if depthwise else (p["k"], 1)
    stride = p.get("st", (1, 1))
    pad = p.get("p", (r // 2, s // 2))
    out_h = (p["h"] + 2 * pad[0] - r) // stride[0] + 1
    out_w = (p["w"] + 2 * pad[1] - s) // stride[1] + 1
    bias = bool(p.get("bias"))

    def make_set():
        x, w = make.nhwc(n, c, p["h"], p["w"]), make.nhwc(k, c // groups, r, s)
        b = make.flat(k) if bias else None
        return (x, w, b) if which == "fwd" else (x, w, make.nhwc(n, k, out_h, out_w))

    def forward(one):
        return F.conv2d(*one, stride=stride, padding=pad, groups=groups)

    def backward(one):
        x, w, dy = one
        mask = [which == "dgrad", which == "wgrad", which == "wgrad" and bias]
        grads = torch.ops.aten.convolution_backward(dy, x, w, [k], stride, pad, [1, 1], False, [0, 0], groups, mask)
        return [g for g in grads if g is not None]

    flops = 2 * n * out_h * out_w * k * r * s * c // groups
    return make_set, forward if which == "fwd" else backward, flops


def depthwise_pass(p, make, which):
    return conv_pass(p, make, which, depthwise=True)


def linear_pass(p, make, which):
    n, c, k = p["n"], p["c"], p["k"]
    bias = bool(p.get("bias"))

    def make_set():
        x, w = make.flat(n, c), make.flat(k, c)
        return (x, w, make.flat(k) if bias else None) if which == "fwd" else (x, w, make.flat(n, k))

    def run(one):
        x, w, last = one
        if which == "fwd":
            return F.linear(x, w, last)
        if which == "dgrad":
            return last @ w
        return [last.t() @ x, last.sum(0)] if bias else last.t() @ x

    return make_set, run, 2 * n * c * k


def autograd_pass(make_inputs, forward, make_dy):
    """The backward pass of `forward` to all its inputs that need gradients."""

    def make_set():
        inputs = make_inputs()
        y = forward(*inputs)
        return (y, make_dy(), *[t for t in inputs if isinstance(t, torch.Tensor) and t.requires_grad])

    def run(one):
        y, dy, *wanted = one
        return list(torch.autograd.grad(y, wanted, dy, retain_graph=True))

    return make_set, run


def batchnorm_pass(p, make, which):
    n, c, h, w = p["n"], p["c"], p["h"], p["w"]
    eps, momentum, relu = p.get("eps", 1e-5), p.get("mom", 0.1), bool(p.get("relu"))
    grad = which == "bwd"

    def inputs():
        wide = torch.float32  # parameters and statistics stay in fp32
        return (make.nhwc(n, c, h, w, grad=grad), make.flat(c, dtype=wide, grad=grad),
                make.flat(c, dtype=wide, grad=grad), torch.zeros(c, device=make.device),
                torch.ones(c, device=make.device))

    def forward(x, gamma, beta, mean, var):
        y = F.batch_norm(x, mean, var, gamma, beta, which != "fwd_infer", momentum, eps)
        return F.relu(y) if relu else y

    terms = {"fwd_train": 8, "fwd_infer": 3, "bwd": 11}[which]
    if grad:
        make_set, run = autograd_pass(inputs, forward, lambda: make.nhwc(n, c, h, w))
    else:
        make_set, run = inputs, lambda one: forward(*one)
    return make_set, run, terms * n * h * w * c


def map_pass(p, make, which, forward, out_shape, flops):
    """Passes of ops with one NHWC input."""

    def inputs():
        return (make.nhwc(p["n"], p["c"], p["h"], p["w"], grad=which == "bwd"),)

    if which == "fwd":
        return inputs, lambda one: forward(*one), flops
    make_set, run = autograd_pass(inputs, forward, lambda: make.nhwc(*out_shape))
    return make_set, run, flops


def max_pool_pass(p, make, which):
    r, stride, pad = p["r"], p.get("st", p["r"]), p.get("p", (0, 0))
    out_h = (p["h"] + 2 * pad[0] - r[0]) // stride[0] + 1
    out_w = (p["w"] + 2 * pad[1] - r[1]) // stride[1] + 1
    saved = bool(p.get("arg8")) or which == "bwd"
    count = p["n"] * out_h * out_w * p["c"]
    return map_pass(p, make, which, lambda x: F.max_pool2d(x, r, stride, pad, return_indices=saved)[0]
                    if saved else F.max_pool2d(x, r, stride, pad), (p["n"], p["c"], out_h, out_w),
                    count * (r[0] * r[1] - 1 if which == "fwd" else 1))


def softmax_xent_pass(p, make, which):
    smoothing = p.get("ls", 0.0)

    def make_set():
        labels = torch.randint(p["c"], (p["n"],), device=make.device)
        return make.flat(p["n"], p["c"], grad=which == "fwd_bwd"), labels

    def run(one):
        x, labels = one
        loss = F.cross_entropy(x, labels, label_smoothing=smoothing)
        return [loss.detach(), *torch.autograd.grad(loss, x)] if which == "fwd_bwd" else loss

    return make_set, run, (8 if which == "fwd_bwd" else 5) * p["n"] * p["c"]


def build(op_pass, p, make):
    """(make_set, run, flops) of a row, or None where PyTorch has no such pass."""
    count = p["n"] * p["h"] * p["w"] * p.get("c", 1)
    for op, passes, builder in (("conv2d", ("fwd", "dgrad", "wgrad"), conv_pass),
                                ("depthwise_conv2d", ("fwd", "dgrad", "wgrad"), depthwise_pass),
                                ("linear", ("fwd", "dgrad", "wgrad"), linear_pass),
                                ("batchnorm", ("fwd_train", "fwd_infer", "bwd"), batchnorm_pass),
                                ("max_pool2d", ("fwd", "bwd"), max_pool_pass),
                                ("softmax_xent", ("fwd", "fwd_bwd"), softmax_xent_pass)):
        which = op_pass[len(op) + 1:]
        if op_pass.startswith(op + "_") and which in passes:
            return builder(p, make, which)
    if op_pass in ("global_avg_pool_fwd", "global_avg_pool_bwd"):
        return map_pass(p, make, op_pass[-3:], lambda x: x.mean((2, 3), keepdim=True), (p["n"], p["c"], 1, 1), count)
    act = {"relu": F.relu, "relu6": F.relu6, "gelu": F.gelu, "silu": F.silu}.get(op_pass[:-4])
    if act and op_pass[-4:] in ("_fwd", "_bwd"):
        return map_pass(p, make, op_pass[-3:], act, (p["n"], p["c"], p["h"], p["w"]), count)
    if op_pass == "add_fwd":
        pair = lambda: (make.nhwc(p["n"], p["c"], p["h"], p["w"]), make.nhwc(p["n"], p["c"], p["h"], p["w"]))
        return pair, lambda one: one[0] + one[1], count
    return None


def default_rows():
    """The shapes of the peers suite that these ops cover, (op_pass, problem)."""
    rows = []
    for n, c, h, k, r, st in ((2000, 24, 31, 64, 3, 1), (2000, 64, 15, 64, 3, 1), (2000, 64, 15, 256, 3, 1),
                              (2000, 256, 7, 256, 3, 1), (2000, 256, 3, 256, 3, 1), (512, 3, 32, 64, 3, 1),
                              (512, 64, 32, 64, 3, 1), (512, 64, 32, 128, 3, 2), (512, 128, 16, 128, 3, 1),
                              (512, 128, 16, 256, 3, 2), (512, 256, 8, 256, 3, 1), (512, 256, 8, 512, 3, 2),
                              (512, 512, 4, 512, 3, 1), (512, 64, 32, 128, 1, 2), (512, 16, 32, 96, 1, 1),
                              (512, 96, 32, 24, 1, 1), (512, 384, 8, 64, 1, 1), (512, 64, 8, 384, 1, 1),
                              (512, 960, 4, 160, 1, 1)):
        text = f"n{n}_h{h}_w{h}_c{c}_k{k}_r{r}" + (f"_st{st}" if st > 1 else "")
        rows += [(f"conv2d_{which}", text) for which in ("fwd", "dgrad", "wgrad")]
    for c, h, r, st in ((32, 32, 3, 1), (96, 32, 3, 1), (144, 32, 3, 2), (192, 16, 3, 1), (384, 8, 3, 1),
                        (576, 8, 3, 2), (960, 4, 3, 1), (64, 16, 5, 1)):
        text = f"n512_h{h}_w{h}_c{c}_r{r}" + (f"_st{st}" if st > 1 else "")
        rows += [(f"depthwise_conv2d_{which}", text) for which in ("fwd", "dgrad", "wgrad")]
    for n, c, h in ((512, 64, 32), (512, 128, 16), (512, 256, 8), (512, 512, 4), (2000, 64, 15), (2000, 256, 7)):
        text = f"n{n}_h{h}_w{h}_c{c}"
        rows += [(f"batchnorm_{which}", text + relu) for which in ("fwd_train", "bwd") for relu in ("", "_relu")]
    for n, c, h in ((512, 64, 32), (2000, 64, 31), (2000, 256, 15), (512, 256, 8)):
        rows += [(f"max_pool2d_{which}", f"n{n}_h{h}_w{h}_c{c}_r2_st2_p0_arg8") for which in ("fwd", "bwd")]
        rows.append(("global_avg_pool_fwd", f"n{n}_h{h}_w{h}_c{c}"))
    for act, text in (("gelu", "n2000_h15_w15_c64"), ("silu", "n2000_h15_w15_c64"), ("relu6", "n512_h32_w32_c96")):
        rows += [(f"{act}_{which}", text) for which in ("fwd", "bwd")]
    for n, c in ((512, 10), (2000, 10), (65536, 10), (8192, 1000)):
        rows.append(("softmax_xent_fwd_bwd", f"n{n}_c{c}_ls0.1"))
    return rows


def rows_like(path):
    """(op_pass, problem, dtype) of every row of a layers.json, once each."""
    with open(path) as text:
        names = [entry["name"] for entry in json.load(text)["benchmarks"]]
    return list(dict.fromkeys(tuple(name.split("/")[:3]) for name in names))


def measure(op_pass, text, dtype, device):
    """One row, or None where PyTorch has no such pass or dtype."""
    if dtype not in DTYPES:
        return None
    built = build(op_pass, common.parse_problem(text), Maker(device, DTYPES[dtype]))
    if built is None:
        return None
    make_set, run, flops = built
    cold, warm, spread = common.time_call(make_set, run, device)
    one = make_set()
    moved = common.tensor_bytes(one) + common.tensor_bytes(common.flat_list(run(one)))
    return common.row(f"{op_pass}/{text}/{dtype}/torch", cold, "us", cold_us=cold * 1e6, warm_us=warm * 1e6,
                      spread_pct=spread, gbps=moved / cold * 1e-9, tflops=flops / cold * 1e-12, **VOID)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", help="layers.json whose rows to time (default: the peers suite)")
    parser.add_argument("--filter", default="", help="only rows whose name matches this regular expression")
    parser.add_argument("--dtype", default="bf16", help="of the default suite: bf16, fp32 or both with a comma")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", help="JSON file to write (default: standard output)")
    args = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    suite = [(op_pass, text, dtype) for dtype in args.dtype.split(",") for op_pass, text in default_rows()]
    wanted = rows_like(args.like) if args.like else suite
    rows = []
    for op_pass, text, dtype in wanted:
        if not re.search(args.filter, f"{op_pass}/{text}/{dtype}"):
            continue
        entry = measure(op_pass, text, dtype, args.device)
        if entry:
            rows.append(entry)
            print(f"{entry['name']:80s} cold {entry['cold_us']:9.1f} us  warm {entry['warm_us']:9.1f} us",
                  file=sys.stderr)
    common.write_results(args.out, common.context(args.device), rows)


if __name__ == "__main__":
    main()

"""kiln's passes as PyTorch calls on channels-last tensors: what torch_layers.py times.

    one = build("batchnorm_bwd", common.parse_problem("n512_h32_w32_c64_relu"), Maker("cuda", torch.bfloat16))
    make_set, run = one.bound(one.run)       # or of torch.compile(one.compiled)

Bytes are kiln's compulsory ones, so that `gbps` of a row compares with bench_layers'. A pass or field that PyTorch
has no counterpart of raises NoCounterpart with the reason.
"""

import torch
import torch.nn.functional as F

import torch_layers_steps as steps
from torch_layers_pass import NoCounterpart, Pass

ACTIVATIONS = {"relu": F.relu, "relu6": F.relu6, "gelu": F.gelu, "silu": F.silu}
ACTIVATION_FLOPS = {"relu": (1, 1), "relu6": (2, 2), "gelu": (5, 10), "silu": (4, 7)}  # fwd, bwd

# --- products ------------------------------------------------------------------------------------------------


def window_of(p, filter_padding=False):
    """(window, stride, padding, output height, output width) as (h, w) pairs."""
    r = p["r"]
    stride = p.get("st", (1, 1) if filter_padding else r)
    pad = p.get("p", (r[0] // 2, r[1] // 2) if filter_padding else (0, 0))
    return r, stride, pad, (p["h"] + 2 * pad[0] - r[0]) // stride[0] + 1, (p["w"] + 2 * pad[1] - r[1]) // stride[1] + 1


def conv_pass(p, make, which, depthwise=False):
    if p.get("cs"):
        raise NoCounterpart("a channel stride")
    if any(p.get(part) for part in ("scale", "res", "max2", "stats", "drelu", "drelu6", *ACTIVATIONS)):
        raise NoCounterpart("an epilogue beyond a bias")
    n, c = p["n"], p["c"]
    (r, s), stride, pad, out_h, out_w = window_of(p, filter_padding=True)
    k, groups = (c, c) if depthwise else (p["k"], 1)
    bias, accumulate = bool(p.get("bias")), bool(p.get("acc")) and which == "dgrad"
    x_count, y_count, w_count = n * p["h"] * p["w"] * c, n * out_h * out_w * k, k * r * s * c // groups
    image = (n, c, p["h"], p["w"])

    def inputs():
        x, w = make.nhwc(*image), make.nhwc(k, c // groups, r, s)
        if which == "fwd":
            return x, w, make.flat(k) if bias else None
        return x, w, make.nhwc(n, k, out_h, out_w), make.nhwc(*image) if accumulate else None

    def forward(x, w, b):
        return F.conv2d(x, w, b, stride=stride, padding=pad, groups=groups)

    def backward(x, w, dy, dx):
        mask = [which == "dgrad", which == "wgrad", which == "wgrad" and bias]
        grads = torch.ops.aten.convolution_backward(dy, x, w, [k], stride, pad, [1, 1], False, [0, 0], groups, mask)
        grads = [g for g in grads if g is not None]
        return [dx.add_(grads[0])] if accumulate else grads

    moved = {"fwd": (x_count + w_count + y_count) * make.size + 4 * k * bias,
             "dgrad": (y_count + w_count + x_count * (2 if accumulate else 1)) * make.size,
             "wgrad": (y_count + x_count) * make.size + 4 * w_count + 4 * k * bias}[which]
    return Pass(inputs, forward if which == "fwd" else backward, 2 * y_count * r * s * c // groups, moved, library=True)


def linear_pass(p, make, which):
    n, c, k = p["n"], p["c"], p["k"]
    bias = bool(p.get("bias"))

    def inputs():
        return make.flat(n, c), make.flat(k, c), make.flat(n, k) if which != "fwd" else make.flat(k) if bias else None

    def run(x, w, last):
        if which == "fwd":
            return F.linear(x, w, last)
        if which == "dgrad":
            return last @ w
        return [last.t() @ x, last.sum(0)] if bias else last.t() @ x

    moved = {"fwd": (n * c + k * c + n * k) * make.size + 4 * k * bias, "dgrad": (n * k + k * c + n * c) * make.size,
             "wgrad": (n * k + n * c) * make.size + 4 * k * c + 4 * k * bias}[which]
    return Pass(inputs, run, 2 * n * c * k, moved, library=True)


# --- batchnorm, elementwise ops, softmax ---------------------------------------------------------------------


def activation_of(p):
    return next((name for name in ACTIVATIONS if p.get(name)), None)


def batchnorm_pass(p, make, which):
    n, c, h, w = p["n"], p["c"], p["h"], p["w"]
    eps, momentum, residual = p.get("eps", 1e-5), p.get("mom", 0.1), bool(p.get("res"))
    act, pool = activation_of(p), bool(p.get("max2"))
    train = which in ("fwd_train", "bwd")
    outputs = n * c * ((h // 2) * (w // 2) if pool else h * w)

    def inputs():
        list_ = [make.nhwc(n, c, h, w), make.positive(c), make.flat(c, dtype=torch.float32),
                 make.flat(c, dtype=torch.float32), make.positive(c)]  # parameters and statistics stay in fp32
        list_ += [make.nhwc(n, c, h, w)] if residual else []
        dy = (n, c, h // 2, w // 2) if pool else (n, c, h, w)
        return (*list_, make.nhwc(*dy)) if which == "bwd" else tuple(list_)

    def forward(x, gamma, beta, mean, var, joined=None):
        y = F.batch_norm(x, mean, var, gamma, beta, train, momentum, eps)
        y = y + joined if residual else y
        y = ACTIVATIONS[act](y) if act else y
        return F.max_pool2d(y, 2) if pool else y

    masked = residual and act is not None
    images = {"fwd_train": 1 + residual, "bwd": 2 + masked}.get(which, 1 + residual)  # and y or dy
    channels = {"fwd_train": 32, "bwd": 24}.get(which, 16)
    mask = n * h * w * ((c + 7) // 8) if masked and train else 0
    mask += n * (h // 2) * (w // 2) * ((c + 3) // 4) if pool and train else 0  # positions
    return Pass(inputs, forward, {"fwd_train": 8, "bwd": 11}.get(which, 3) * n * h * w * c,
                (images * n * h * w * c + outputs) * make.size + channels * c + mask,
                kind={"fwd_train": "train", "bwd": "bwd"}.get(which, "fwd"),
                wanted=((0, 1, 2, 5) if masked else (0, 1, 2)) if train else (),
                mutated=(3, 4) if which == "fwd_train" else ())


def map_pass(p, make, which, forward, out_shape, flops, moved, *, saves=False, scale=1.0, **more):
    """Passes of ops with one NHWC input. `saves`: the forward is told that a backward follows."""

    def inputs():
        x = make.nhwc(p["n"], p["c"], p["h"], p["w"], scale)
        return (x, make.nhwc(*out_shape)) if which == "bwd" else (x,)

    kind = "bwd" if which == "bwd" else "train" if saves else "fwd"
    return Pass(inputs, forward, flops, moved, kind=kind, wanted=() if kind == "fwd" else (0,), **more)


def activation_pass(name, p, make, which):
    count = p["n"] * p["h"] * p["w"] * p["c"]
    flops = count * ACTIVATION_FLOPS[name][which == "bwd"]
    return map_pass(p, make, which, ACTIVATIONS[name], (p["n"], p["c"], p["h"], p["w"]), flops,
                    (2 if which == "fwd" else 3) * count * make.size, scale=4.0 if name == "relu6" else 1.0)


def add_pass(p, make, which):
    if which == "bwd":
        raise NoCounterpart("autograd hands the same gradient to both inputs")
    count = p["n"] * p["h"] * p["w"] * p["c"]
    pair = lambda: tuple(make.nhwc(p["n"], p["c"], p["h"], p["w"]) for _ in range(2))
    return Pass(pair, lambda a, b: a + b, count, 3 * count * make.size)


def softmax_xent_pass(p, make, which):
    smoothing, n, c = p.get("ls", 0.0), p["n"], p["c"]

    def inputs():
        pair = make.flat(n, c), torch.randint(c, (n,), device=make.device)
        return (*pair, torch.ones((), device=make.device, dtype=make.dtype)) if which == "fwd_bwd" else pair

    forward = lambda x, labels: F.cross_entropy(x, labels, label_smoothing=smoothing)
    both = which == "fwd_bwd"
    return Pass(inputs, forward, (8 if both else 5) * n * c, (2 if both else 1) * n * c * make.size + 8 * n + 8,
                kind=which, wanted=(0,) if both else ())


# --- pooling -------------------------------------------------------------------------------------------------


def _covered(size, outputs, window, stride, pad):
    """Rows (or columns) of the image that lie in some window."""
    return len({o * stride + t - pad for o in range(outputs) for t in range(window)} & set(range(size)))


def pool_pass(op, p, make, which):
    r, stride, pad, out_h, out_w = window_of(p)
    saved = op == "max_pool2d" and bool(p.get("arg8") or p.get("arg2"))
    if which == "bwd" and op == "max_pool2d" and not saved:
        raise NoCounterpart("no saved positions")
    count = p["n"] * out_h * out_w * p["c"]
    read = p["n"] * p["c"] * (_covered(p["h"], out_h, r[0], stride[0], pad[0]) *
                              _covered(p["w"], out_w, r[1], stride[1], pad[1]))
    moved = (count + (read if which == "fwd" else p["n"] * p["h"] * p["w"] * p["c"])) * make.size + saved * (
        count if p.get("arg8") else count // p["c"] * ((p["c"] + 3) // 4))
    window = r[0] * r[1]
    if op == "avg_pool2d":
        forward, flops = lambda x: F.avg_pool2d(x, r, stride, pad, count_include_pad=True), count * window
    else:
        forward = lambda x: F.max_pool2d(x, r, stride, pad)
        flops = count * (window - 1 if which == "fwd" else 1)
    return map_pass(p, make, which, forward, (p["n"], p["c"], out_h, out_w), flops, moved, saves=saved)


def global_avg_pool_pass(p, make, which):
    pixels, outputs = p["n"] * p["h"] * p["w"] * p["c"], p["n"] * p["c"]
    return map_pass(p, make, which, lambda x: x.mean((2, 3), keepdim=True), (p["n"], p["c"], 1, 1),
                    pixels if which == "fwd" else outputs, (pixels + outputs) * make.size)


def global_max_pool_pass(p, make, which):
    """The gradient goes to the first maximum alone, which amax's does not: it is for inference."""
    saved = bool(p.get("arg32"))
    if which == "bwd" and not saved:
        raise NoCounterpart("no saved positions")
    pixels, outputs = p["n"] * p["h"] * p["w"] * p["c"], p["n"] * p["c"]
    amax = lambda x: x.amax((2, 3), keepdim=True)
    flat = lambda x: x.flatten(2).max(-1).values[..., None, None]
    choices = {"max": flat, "max_pool2d": lambda x: F.max_pool2d(x, (p["h"], p["w"])),
               "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 1)} if saved else {"amax": amax, "max": flat}
    return map_pass(p, make, which, flat if saved else amax, (p["n"], p["c"], 1, 1), pixels,
                    (pixels + outputs) * make.size + 4 * outputs * saved, saves=saved, choices=choices)


# --- by name -------------------------------------------------------------------------------------------------

BUILDERS = {
    "conv2d": (("fwd", "dgrad", "wgrad"), conv_pass),
    "depthwise_conv2d": (("fwd", "dgrad", "wgrad"), lambda p, make, which: conv_pass(p, make, which, depthwise=True)),
    "linear": (("fwd", "dgrad", "wgrad"), linear_pass),
    "batchnorm": (("fwd_train", "fwd_apply", "fwd_infer", "bwd"), batchnorm_pass),
    "softmax_xent": (("fwd", "fwd_bwd"), softmax_xent_pass),
    "max_pool2d": (("fwd", "bwd"), lambda p, make, which: pool_pass("max_pool2d", p, make, which)),
    "avg_pool2d": (("fwd", "bwd"), lambda p, make, which: pool_pass("avg_pool2d", p, make, which)),
    "global_avg_pool": (("fwd", "bwd"), global_avg_pool_pass),
    "global_max_pool": (("fwd", "bwd"), global_max_pool_pass),
    "add": (("fwd", "bwd"), add_pass),
    "sgd": (("step",), lambda p, make, which: steps.optimizer_pass("sgd", p, make)),
    "adamw": (("step",), lambda p, make, which: steps.optimizer_pass("adamw", p, make)),
    "grad_norm": (("fwd",), lambda p, make, which: steps.grad_norm_pass(p, make)),
    "augment": (("fwd",), lambda p, make, which: steps.augment_pass(p, make)),
}
for _name in ACTIVATIONS:
    BUILDERS[_name] = (("fwd", "bwd"),
                       lambda p, make, which, name=_name: activation_pass(name, p, make, which))


def split_name(op_pass):
    """'softmax_xent_fwd_bwd' -> ('softmax_xent', 'fwd_bwd')."""
    for op, (passes, _) in BUILDERS.items():
        if op_pass.startswith(op + "_") and op_pass[len(op) + 1:] in passes:
            return op, op_pass[len(op) + 1:]
    raise NoCounterpart("no such pass")


def build(op_pass, p, make):
    op, which = split_name(op_pass)
    return BUILDERS[op][1](p, make, which)

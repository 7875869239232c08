"""kiln's passes as PyTorch calls on channels-last tensors: what torch_layers.py times.

    one = build("batchnorm_bwd", common.parse_problem("n512_h32_w32_c64_relu"), Maker("cuda", torch.bfloat16))
    make_set, run = one.bound(one.run)       # or of torch.compile(one.compiled)

Bytes are kiln's compulsory ones, so that `gbps` of a row compares with bench_layers'. A pass or field that PyTorch
has no counterpart of raises NoCounterpart with the reason.
"""

import dataclasses
import typing

import torch
import torch.nn.functional as F

LR, ADAM_STEP = 0.125, 6  # kiln's step state in the same rows
ACTIVATIONS = {"relu": F.relu, "relu6": F.relu6, "gelu": F.gelu, "silu": F.silu}
ACTIVATION_FLOPS = {"relu": (1, 1), "relu6": (2, 2), "gelu": (5, 10), "silu": (4, 7)}  # fwd, bwd


class NoCounterpart(Exception):
    pass


class Maker:
    """Makes tensors on the device; nhwc() gives channels-last ones."""

    def __init__(self, device, dtype):
        self.device, self.dtype = device, dtype
        self.size = torch.finfo(dtype).bits // 8

    def nhwc(self, n, c, h, w, scale=1.0):
        x = scale * torch.randn(n, c, h, w, device=self.device)
        return x.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def flat(self, *shape, dtype=None):
        return torch.randn(*shape, device=self.device).to(dtype or self.dtype)

    def positive(self, *shape):
        return 0.5 + torch.rand(*shape, device=self.device)


@dataclasses.dataclass
class Pass:
    """A pass on one problem. `run` of a backward pass is its forward: it gets all inputs but the last, dy."""
    inputs: typing.Callable  # () -> tuple of tensors (or None where one is absent)
    run: typing.Callable
    flops: float
    bytes: float
    kind: str = "fwd"  # fwd; train: a forward that keeps what backward needs; bwd; fwd_bwd
    wanted: tuple = ()  # positions of the inputs that need gradients: the outputs of a bwd, in this order
    mutated: tuple = ()  # positions of the inputs that are outputs as well
    compiled: typing.Callable = None  # what torch.compile gets, where it is not `run`
    library: bool = False  # a convolution or product: inductor calls the same library as eager
    choices: dict = None  # {name: run}: ways in eager, of which the fastest counts
    prepare: typing.Callable = None  # eager: inputs -> call, where an object holds state beside the inputs

    def call(self, function, inputs):
        """What is timed: () -> list of outputs."""
        for position in self.wanted:
            inputs[position].requires_grad_()
        leaves = [inputs[position] for position in self.wanted]
        if self.kind == "bwd":
            y = function(*inputs[:-1])
            return lambda: list(torch.autograd.grad(y, leaves, inputs[-1], retain_graph=True))
        if self.kind == "fwd_bwd":

            def both():
                y = function(*inputs[:-1])
                return [y.detach(), *torch.autograd.grad(y, leaves, inputs[-1])]

            return both
        if function is self.run and self.prepare:
            return self.prepare(inputs)
        return lambda: _outputs(function(*inputs))

    def bound(self, function):
        """(make_set, run) for common.time_call: a set is the inputs and, last, the call on them."""

        def make_set():
            inputs = self.inputs()
            return (*inputs, self.call(function, inputs))

        return make_set, lambda one: one[-1]()


def _outputs(result):
    if result is None:
        return []
    return list(result) if isinstance(result, (tuple, list)) else [result]


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
    act = activation_of(p)
    train = which in ("fwd_train", "bwd")

    def inputs():
        list_ = [make.nhwc(n, c, h, w), make.positive(c), make.flat(c, dtype=torch.float32),
                 make.flat(c, dtype=torch.float32), make.positive(c)]  # parameters and statistics stay in fp32
        list_ += [make.nhwc(n, c, h, w)] if residual else []
        return (*list_, make.nhwc(n, c, h, w)) if which == "bwd" else tuple(list_)

    def forward(x, gamma, beta, mean, var, joined=None):
        y = F.batch_norm(x, mean, var, gamma, beta, train, momentum, eps)
        y = y + joined if residual else y
        return ACTIVATIONS[act](y) if act else y

    masked = residual and act is not None
    images = {"fwd_train": 2 + residual, "bwd": 3 + masked}.get(which, 2 + residual)
    channels = {"fwd_train": 32, "bwd": 24}.get(which, 16)
    mask = n * h * w * ((c + 7) // 8) if masked and train else 0
    return Pass(inputs, forward, {"fwd_train": 8, "bwd": 11}.get(which, 3) * n * h * w * c,
                images * n * h * w * c * make.size + channels * c + mask,
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
    saved = op == "max_pool2d" and bool(p.get("arg8"))
    if which == "bwd" and op == "max_pool2d" and not saved:
        raise NoCounterpart("no saved positions")
    count = p["n"] * out_h * out_w * p["c"]
    read = p["n"] * p["c"] * (_covered(p["h"], out_h, r[0], stride[0], pad[0]) *
                              _covered(p["w"], out_w, r[1], stride[1], pad[1]))
    moved = (count + (read if which == "fwd" else p["n"] * p["h"] * p["w"] * p["c"])) * make.size + count * saved
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


# --- optimizers, augmentation --------------------------------------------------------------------------------


def _clip_factor(p, norm):
    return torch.clamp(p["clip"] / (norm + 1e-6), max=1.0)


def _optimizer_parts(p):
    """(begin, end, weight decay) of the slab's parameter groups: the decayed part and the rest."""
    cut = p.get("d", 0) if p.get("wd") else 0
    return [part for part in ((0, cut, p.get("wd", 0.0)), (cut, p["n"], 0.0)) if part[0] < part[1]]


def _decayed_gradient(p, grad, norm, param):
    grad = grad * _clip_factor(p, norm) if p.get("clip") else grad
    return grad, p.get("wd", 0.0), p.get("d", 0) if p.get("wd") else 0


def optimizer_pass(op, p, make):
    n, low, momentum = p["n"], make.dtype != torch.float32, p.get("m", 0.0)

    def inputs():
        grad, param, first = (torch.randn(n, device=make.device) for _ in range(3))
        norm = torch.linalg.vector_norm(grad).reshape(1) if p.get("clip") else None
        second = make.positive(n) if op == "adamw" else None
        step = torch.full((), float(ADAM_STEP), device=make.device)
        return grad, norm, param, first, second, step, param.to(make.dtype) if low else None

    def prepare(tensors):
        grad, norm, param, first, second, step, copy = tensors
        groups, states = [], []
        for begin, end, decay in _optimizer_parts(p):
            view = param[begin:end]
            view.grad = grad[begin:end]
            groups.append({"params": [view], "weight_decay": decay})
            states.append({"momentum_buffer": first[begin:end]} if op == "sgd" else {
                "step": step if begin == 0 else step.clone(), "exp_avg": first[begin:end],
                "exp_avg_sq": second[begin:end]})
        if op == "sgd":
            optimizer = torch.optim.SGD(groups, lr=LR, momentum=momentum, nesterov=bool(p.get("nesterov")), fused=True)
        else:
            optimizer = torch.optim.AdamW(groups, lr=LR, betas=(p.get("ba", 0.9), p.get("bb", 0.999)),
                                          eps=p.get("eps", 1e-8), fused=True, capturable=make.device == "cuda")
        for group, state in zip(groups, states):
            optimizer.state[group["params"][0]] = state

        def call():
            if p.get("clip"):
                grad.mul_(_clip_factor(p, norm))
            optimizer.step()
            if low:
                copy.copy_(param)
            return []

        return call

    def sgd(grad, norm, param, first, second, step, copy):
        grad, decay, cut = _decayed_gradient(p, grad, norm, param)
        if cut:
            grad = torch.cat([grad[:cut] + decay * param[:cut], grad[cut:]]) if cut < n else grad + decay * param
        if momentum:
            velocity = momentum * first + grad
            first.copy_(velocity)
            grad = grad + momentum * velocity if p.get("nesterov") else velocity
        param.sub_(LR * grad)
        if low:
            copy.copy_(param)

    def adamw(grad, norm, param, first, second, step, copy):
        grad, decay, cut = _decayed_gradient(p, grad, norm, param)
        (b1, b2), t = (p.get("ba", 0.9), p.get("bb", 0.999)), step + 1
        kept = 1 - LR * decay if cut else 1.0
        old = torch.cat([param[:cut] * kept, param[cut:]]) if 0 < cut < n else param * kept
        m, v = b1 * first + (1 - b1) * grad, b2 * second + (1 - b2) * grad * grad
        new = old - LR * (m / (1 - b1 ** t)) / ((v / (1 - b2 ** t)).sqrt() + p.get("eps", 1e-8))
        first.copy_(m), second.copy_(v), step.copy_(t), param.copy_(new)
        if low:
            copy.copy_(new)

    formula = sgd if op == "sgd" else adamw
    moved = 32 + 4 * n + 4 * bool(p.get("clip")) + 8 * n * (2 if op == "sgd" else 3) + n * make.size * low
    # Without momentum PyTorch's SGD keeps no velocity.
    outputs = (2,) + ((3, 4) if op == "adamw" else (3,) if momentum else ()) + ((6,) if low else ())
    return Pass(inputs, formula, (6 if op == "sgd" else 14) * n, moved, mutated=outputs, prepare=prepare)


def grad_norm_pass(p, make):
    if make.dtype != torch.float32:
        raise NoCounterpart("fp32 only")
    return Pass(lambda: (make.flat(p["n"]),), torch.linalg.vector_norm, 2 * p["n"], 4 * p["n"] + 4)


def augment_pass(p, make):
    """Draws, gathers, crops, flips, cuts, normalises and converts; the draws are outputs too, for the check."""
    n, h, w, c, pad, cut = p["n"], p["h"], p["w"], p["c"], p.get("pad", 0), p.get("cut", 0)
    padded, m, device = p.get("cs", c), p["m"], make.device

    def inputs():
        images = torch.randint(256, (m, h, w, c), device=device, dtype=torch.uint8)
        return (images, torch.randint(10, (m,), device=device, dtype=torch.int32), torch.randperm(m, device=device),
                0.4 + 0.1 * torch.rand(c, device=device), 0.2 + 0.1 * torch.rand(c, device=device))

    def run(images, labels, order, mean, std):
        index, draws = order[:n], []
        rows, columns = (torch.arange(size, device=device).expand(n, size) for size in (h, w))
        if p.get("flip"):
            flip = torch.rand(n, 1, device=device) < 0.5
            columns = torch.where(flip, w - 1 - columns, columns)
            draws.append(flip)
        if pad:
            offset = torch.randint(-pad, pad + 1, (2, n, 1), device=device)
            rows, columns = rows + offset[0], columns + offset[1]
            draws.append(offset)
        pixels = images[index[:, None, None], rows.clamp(0, h - 1)[:, :, None], columns.clamp(0, w - 1)[:, None, :]]
        y = (pixels - 255 * mean) * (1 / (255 * std))
        if pad:
            inside = ((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None, :]
            y = torch.where(inside[..., None], y, 0.0)
        if cut:
            first = torch.stack([torch.randint(size, (n,), device=device) for size in (h, w)]) - cut // 2
            in_rows, in_columns = ((torch.arange(size, device=device) - first[i][:, None]) for i, size in enumerate((h, w)))
            hole = ((in_rows >= 0) & (in_rows < cut))[:, :, None] & ((in_columns >= 0) & (in_columns < cut))[:, None, :]
            y = y.masked_fill(hole[..., None], 0.0)
            draws.append(first)
        y = y.to(make.dtype)
        return [F.pad(y, (0, padded - c)) if padded > c else y, labels[index], *draws]

    moved = n * h * w * c + n * h * w * padded * make.size + 12 * n + 8 * c + 32
    return Pass(inputs, run, 3 * n * h * w * c, moved)


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
    "sgd": (("step",), lambda p, make, which: optimizer_pass("sgd", p, make)),
    "adamw": (("step",), lambda p, make, which: optimizer_pass("adamw", p, make)),
    "grad_norm": (("fwd",), lambda p, make, which: grad_norm_pass(p, make)),
    "augment": (("fwd",), lambda p, make, which: augment_pass(p, make)),
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

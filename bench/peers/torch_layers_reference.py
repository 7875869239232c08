"""What the passes of torch_layers_ops.py must give, worked out in float64 on the CPU from kiln's formulas.

    wanted = reference("relu_bwd", problem, [t.double() ... of the inputs], got)

Plain NCHW tensors, no fused operation, gradients by autograd. The tensors are what the timed call was given; of `got`
only the random draws of augment are used.
"""

import math

import torch
import torch.nn.functional as F

import torch_layers_ops as ops
from torch_layers_steps import LR


def _activate(name, x):
    if name == "relu":
        return torch.where(x > 0, x, 0.0)
    if name == "relu6":
        return torch.where(x > 0, torch.where(x < 6, x, 6.0), 0.0)
    if name == "gelu":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return x / (1 + torch.exp(-x)) if name == "silu" else x


def _windows(x, p, fill):
    """[N,C,P,Q,R*S] values of each window, `fill` outside of the image."""
    (r, s), stride, pad, _, _ = ops.window_of(p)
    padded = F.pad(x, (pad[1], pad[1], pad[0], pad[0]), value=fill)
    return padded.unfold(2, r, stride[0]).unfold(3, s, stride[1]).flatten(-2)


def _batchnorm(p, train, x, gamma, beta, mean, var, residual=None):
    """(y, statistics that were used)"""
    if train:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    shape = (1, -1, 1, 1)
    y = (x - mean.view(shape)) / (var.view(shape) + p.get("eps", 1e-5)).sqrt() * gamma.view(shape) + beta.view(shape)
    return _activate(ops.activation_of(p), y if residual is None else y + residual), mean, var


def _conv(op, which, p, x, w, last, dx=None):
    _, stride, pad, _, _ = ops.window_of(p, filter_padding=True)
    groups = p["c"] if op == "depthwise_conv2d" else 1
    if which == "fwd":
        return [F.conv2d(x, w, last, stride, pad, 1, groups)]
    y = F.conv2d(x.requires_grad_(), w.requires_grad_(), None, stride, pad, 1, groups)
    grad_x, grad_w = torch.autograd.grad(y, (x, w), last)
    if which == "dgrad":
        return [grad_x if dx is None else grad_x + dx]
    return [grad_w] + [last.sum((0, 2, 3))] * bool(p.get("bias"))


def _linear(which, p, x, w, last):
    if which == "fwd":
        return [x @ w.t() + (0 if last is None else last)]
    return [last @ w] if which == "dgrad" else [last.t() @ x] + [last.sum(0)] * bool(p.get("bias"))


def _softmax_xent(which, p, x, labels, *_):
    n, c = x.shape
    share = p.get("ls", 0.0)
    target = torch.full((n, c), share / c, dtype=x.dtype)
    target[torch.arange(n), labels] += 1 - share
    log_softmax = x - torch.logsumexp(x, 1, keepdim=True)
    loss = -(target * log_softmax).sum(1).mean()
    return [loss, (log_softmax.exp() - target) / n] if which == "fwd_bwd" else [loss]


def _optimizer(op, p, grad, norm, param, first, second, step, copy):
    if norm is not None:
        grad = grad * min(1.0, p["clip"] / (norm.item() + 1e-6))
    decay = torch.zeros_like(param)
    decay[:p.get("d", 0)] = p.get("wd", 0.0)
    if op == "sgd":
        momentum = p.get("m", 0.0)
        grad = grad + decay * param
        first = momentum * first + grad
        param = param - LR * (grad + momentum * first if p.get("nesterov") else first)
        outputs = [param, first] if momentum else [param]
    else:
        b1, b2, t = p.get("ba", 0.9), p.get("bb", 0.999), step.item() + 1
        first, second = b1 * first + (1 - b1) * grad, b2 * second + (1 - b2) * grad * grad
        param = param * (1 - LR * decay)
        param = param - LR * (first / (1 - b1 ** t)) / ((second / (1 - b2 ** t)).sqrt() + p.get("eps", 1e-8))
        outputs = [param, first, second]
    return outputs + [param] * (copy is not None)


def _augment(p, got, images, labels, order, mean, std):
    """Image by image. A draw out of its range makes the result NaN."""
    n, h, w, pad, cut = p["n"], p["h"], p["w"], p.get("pad", 0), p.get("cut", 0)
    draws = [d.cpu() for d in got[2:]]
    flip = draws.pop(0) if p.get("flip") else torch.zeros(n, 1, dtype=torch.bool)
    offset = draws.pop(0) if pad else torch.zeros(2, n, 1, dtype=torch.int64)
    hole = draws.pop(0) if cut else torch.zeros(2, n, dtype=torch.int64)
    y = torch.zeros(n, h, w, p.get("cs", p["c"]), dtype=torch.float64)
    for i in range(n):
        normal = (images[order[i]].double() / 255 - mean) / std
        frame = F.pad(normal, (0, 0, pad, pad, pad, pad))
        dy, dx = (int(offset[a, i, 0]) + pad for a in (0, 1))
        crop = frame[dy:dy + h, dx:dx + w]
        y[i, :, :, :p["c"]] = crop.flip(1) if flip[i, 0] else crop
        top, left = int(hole[0, i]), int(hole[1, i])
        y[i, max(top, 0):max(top + cut, 0), max(left, 0):max(left + cut, 0)] = 0
    limits = torch.tensor([[h], [w]]) - cut // 2
    if offset.abs().max() > pad or cut and ((hole < -(cut // 2)) | (hole >= limits)).any():
        y.fill_(math.nan)
    return [y, labels[order[:n]], *got[2:]]


def reference(op_pass, p, inputs, got):
    """The outputs, in the order of the timed call's, then the inputs that it writes."""
    op, which = ops.split_name(op_pass)
    if op in ("conv2d", "depthwise_conv2d"):
        return _conv(op, which, p, *inputs)
    if op == "linear":
        return _linear(which, p, *inputs)
    if op == "softmax_xent":
        return _softmax_xent(which, p, *inputs)
    if op in ("sgd", "adamw"):
        return _optimizer(op, p, *inputs)
    if op == "augment":
        return _augment(p, got, *inputs)
    if op == "grad_norm":
        return [inputs[0].square().sum().sqrt()]
    if op == "add":
        return [inputs[0] + inputs[1]]
    if op == "batchnorm":
        return _batchnorm_outputs(p, which, inputs)
    forward = {"max_pool2d": lambda x: _windows(x, p, -math.inf).max(-1).values,
               "avg_pool2d": lambda x: _windows(x, p, 0.0).sum(-1) / math.prod(p["r"]),
               "global_max_pool": lambda x: x.flatten(2).max(-1).values[..., None, None],
               "global_avg_pool": lambda x: x.flatten(2).sum(-1)[..., None, None] / (p["h"] * p["w"])}
    forward = forward.get(op, lambda x: _activate(op, x))
    if which == "fwd":
        return [forward(inputs[0])]
    x = inputs[0].requires_grad_()
    return list(torch.autograd.grad(forward(x), x, inputs[1]))


def _batchnorm_outputs(p, which, inputs):
    if which == "bwd":
        *tensors, dy = inputs
        masked = len(tensors) > 5 and ops.activation_of(p)  # else the residual's gradient is dy
        leaves = [tensors[i].requires_grad_() for i in ((0, 1, 2, 5) if masked else (0, 1, 2))]
        y, _, _ = _batchnorm(p, True, *tensors)
        return list(torch.autograd.grad(y, leaves, dy))
    y, mean, var = _batchnorm(p, which == "fwd_train", *inputs)
    if which != "fwd_train":
        return [y]
    momentum, count = p.get("mom", 0.1), inputs[0].numel() // p["c"]
    unbiased = var * count / max(count - 1, 1)
    return [y, inputs[3] + momentum * (mean - inputs[3]), inputs[4] + momentum * (unbiased - inputs[4])]

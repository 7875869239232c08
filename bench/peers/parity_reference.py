"""The float64 reference behind the gradient checks, and the golden files that tests/test_nn_parity.cpp reads.

Weights, images and labels are drawn here with kiln's formulas (nn/parameters.h, tests/support/parity_inputs.h), so
that a golden file is PyTorch's word alone: torch_parity.py --write-goldens tests/goldens.
"""

import json
import math
import pathlib

import numpy
import torch
from torch import nn
import torch.nn.functional as F

import nets

GOLDEN_BATCH, GOLDEN_SEED = 4, 0
NEAR = 1e-4  # a kink so near may fall to the other side in fp32; golden files list these with float64's side
SIGN_SUMS = 16
STREAM_WEIGHTS, STREAM_TEST = 1, 5


def philox(seed, stream, counter, sub=0):
    """Philox4x32-10 of kernels/common/philox.h: `counter` [n] -> [n, 4] uint32."""
    low, word = numpy.uint64(0xFFFFFFFF), numpy.uint64(32)
    counter = numpy.asarray(counter, numpy.uint64)
    c0, c1 = counter & low, counter >> word
    c2, c3 = numpy.full_like(c0, stream), numpy.full_like(c0, sub)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = numpy.uint64(0xD2511F53) * c0, numpy.uint64(0xCD9E8D57) * c2
        c0, c1 = (p1 >> word) ^ c1 ^ numpy.uint64(k0), p1 & low
        c2, c3 = (p0 >> word) ^ c3 ^ numpy.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return numpy.stack([c0, c1, c2, c3], 1).astype(numpy.uint32)


def symmetric(seed, stream, first, count, sub=0):
    """2 u - 1 for the words [first, first + count) of a stream, float32; `first` is a multiple of 4."""
    words = philox(seed, stream, numpy.arange(first // 4, (first + count + 3) // 4), sub).reshape(-1)[:count]
    return 2 * ((words >> 8).astype(numpy.float32) * numpy.float32(2**-24)) - 1


def draw_batch(seed, batch, index=0):
    """(images [batch,32,32,3] float32, labels [batch])."""
    count = batch * 32 * 32 * 3
    images = numpy.float32(1.7) * symmetric(seed, STREAM_TEST, index * count, count)
    words = philox(seed, STREAM_TEST, numpy.arange(index * batch, (index + 1) * batch), 1)[:, 0]
    return images.reshape(batch, 32, 32, 3), ((words.astype(numpy.uint64) * 10) >> numpy.uint64(32)).astype(numpy.int64)


def draw_weights(net, seed):
    """Kiln's initial parameters, {name: float32 array}."""
    fan_in = {}
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fan_in[name] = module.weight[0].numel()
    weights = {}
    for index, (name, parameter) in enumerate(net.named_parameters()):
        layer, kind = name.rsplit(".", 1)
        if layer in fan_in:
            bound = numpy.float32(1 / math.sqrt(fan_in[layer]))
            values = bound * symmetric(seed, STREAM_WEIGHTS, 0, parameter.numel(), index)
        else:
            values = numpy.full(parameter.numel(), kind == "weight", numpy.float32)
        weights[name] = values.reshape(tuple(parameter.shape))
    return weights


class _Sided(nn.Module):
    """A layer with kinks. side: None for its own, else the side of every element [N,C,H,W]. With `watch` it lists
    [index in NHWC order, own side] of the elements nearer than NEAR to a kink."""

    def __init__(self):
        super().__init__()
        self.side, self.watch, self.near = None, False, []

    def note(self, near, side):
        index = torch.nonzero(near.permute(0, 2, 3, 1).flatten())[:, 0]
        sides = side.permute(0, 2, 3, 1).flatten()[index]
        self.near = [[int(i), int(s)] for i, s in zip(index, sides)]


class SidedRelu(_Sided):
    """y = x where the side is 1, else the nearer constant: 0, or `top` above it (side 2)."""

    top = math.inf

    def forward(self, x):
        own = (x > 0).long() + (x >= self.top).long()
        if self.watch:
            self.note((x.abs() < NEAR) | ((x - self.top).abs() < NEAR), own)
        side = own if self.side is None else self.side
        y = torch.where(side == 1, x, torch.zeros_like(x))
        return y if self.top == math.inf else torch.where(side == 2, torch.full_like(x, self.top), y)


class SidedRelu6(SidedRelu):
    top = 6.0


class SidedMaxPool(_Sided):
    """Square windows without overlap or padding. The side is the position r * S + s in the window."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        n, c, h, w = x.shape
        s = self.size
        windows = x.reshape(n, c, h // s, s, w // s, s).permute(0, 1, 2, 4, 3, 5).reshape(n, c, h // s, w // s, s * s)
        own = (windows == windows.amax(-1, keepdim=True)).long().argmax(-1)  # the first of equals
        if self.watch:
            best = windows.topk(2, -1).values  # of an all-zero window behind a ReLU no gradient comes
            self.note((best[..., 0] - best[..., 1] < NEAR) & (best[..., 0] > 0), own)
        side = own if self.side is None else self.side
        return windows.gather(-1, side[..., None])[..., 0]


class SidedKit:
    relu, relu6, max_pool = SidedRelu, SidedRelu6, SidedMaxPool


def reference_net(name, weights):
    """The float64 network in training mode, its kinks settable; `weights` {name: array}, statistics at their start."""
    net = nets.make(name, kit=None if name.endswith(nets.SMOOTH) else SidedKit).double()
    with torch.no_grad():
        for parameter_name, parameter in net.named_parameters():
            parameter.copy_(torch.from_numpy(numpy.array(weights[parameter_name])))
    return net


def nchw(images):
    return torch.from_numpy(numpy.array(images)).permute(0, 3, 1, 2)


def reference_step(net, images, labels):
    """One training step of `net`: {"loss", "logits", "gradients", "statistics"}, all float64 arrays."""
    logits = net(nchw(images).double())
    loss = F.cross_entropy(logits, torch.from_numpy(numpy.array(labels)).long())
    loss.backward()
    return {"loss": loss.item(), "logits": logits.detach().numpy(),
            "gradients": {n: p.grad.numpy() for n, p in net.named_parameters()},
            "statistics": {n: b.numpy().copy() for n, b in net.named_buffers() if ".running_" in n}}


def sign_sums(values):
    """SIGN_SUMS sums of all elements with pseudo-random signs: sum j takes element i with a minus where bit j of
    mix(i + 1) is set. The mean square of the differences of such sums estimates the squared norm of a difference."""
    flat = values.reshape(-1)
    h = numpy.arange(1, flat.size + 1, dtype=numpy.uint32)
    h ^= h >> 16
    h *= numpy.uint32(0x85EBCA6B)
    h ^= h >> 13
    h *= numpy.uint32(0xC2B2AE35)
    h ^= h >> 16
    return [float(flat.sum() - 2 * flat[(h >> j) & 1 == 1].sum()) for j in range(SIGN_SUMS)]


def rounded(value):
    return float(f"{value:.9g}")


def summary(values):
    return {"norm": rounded(numpy.linalg.norm(values)), "sums": [rounded(s) for s in sign_sums(values)]}


def golden(name):
    weights = draw_weights(nets.make(name), GOLDEN_SEED)
    net = reference_net(name, weights)
    kinks = {n: m for n, m in net.named_modules() if isinstance(m, _Sided)}
    for module in kinks.values():
        module.watch = True
    step = reference_step(net, *draw_batch(GOLDEN_SEED, GOLDEN_BATCH))
    return {"schema": 1, "network": name, "batch": GOLDEN_BATCH, "seed": GOLDEN_SEED, "loss": rounded(step["loss"]),
            "logits": [rounded(v) for v in step["logits"].reshape(-1)],
            "gradients": {n: summary(v) for n, v in step["gradients"].items()},
            "statistics": {n: summary(v) for n, v in step["statistics"].items()},
            "near_kinks": {n: m.near for n, m in kinks.items() if m.near}}


def as_text(value):
    """JSON with a line a tensor."""
    lines = []
    for key, entry in value.items():
        if isinstance(entry, dict):
            inner = ",\n".join(f"  {json.dumps(n)}: {json.dumps(v, separators=(',', ':'))}" for n, v in entry.items())
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}" if inner else f" {json.dumps(key)}: {{}}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(entry, separators=(',', ':'))}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_goldens(folder, names):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        value = golden(name)
        (folder / f"{name}.json").write_text(as_text(value))
        print(f"{folder / name}.json: loss {value['loss']:.6f}, "
              f"{sum(map(len, value['near_kinks'].values()))} elements near a kink", flush=True)

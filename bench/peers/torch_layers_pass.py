"""A pass in PyTorch: its inputs, the call that is timed, its work. torch_layers_ops.py lists the passes."""

import dataclasses
import typing

import torch


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

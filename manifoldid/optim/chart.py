"""Positive parameters, as an optimiser sees them: through their logarithm."""

import torch
from torch import Tensor

from manifoldid._memory import Memory
from manifoldid.distributed.dtensors import like, local_value
from manifoldid.groups._in_place import pieces


class LogChart:
    """Hands log x and x g to the optimiser during a step, and applies its displacement u as x exp(u).

    For one block of all points of a bucket: one parameter, or contiguous ones of one shape, dtype and device. Storage and `.grad`
    of the parameters are the same before and after a step. Where u is 0 a parameter keeps every bit. The memory that this takes
    is kept from step to step: fresh pages cost more than the logarithms.
    """

    def __init__(self) -> None:
        self.parameters: list[Tensor] = []
        self._values: list[Tensor] = []
        self._grads: list[Tensor | None] = []
        self._memory = Memory()
        self._strided: dict[str, Tensor] = {}
        self._inside: Tensor | None = None

    @torch.no_grad()
    def begin(self, parameters: list[Tensor]) -> None:
        """From x and g to log x and x g."""
        self.parameters, self._values = parameters, [local_value(p) for p in parameters]
        start, logs = self._buffer("start"), self._buffer("logs")
        if len(parameters) == 1:
            for value, piece, log in pieces(self._values[0], start, logs):
                value.copy_(torch.log(piece.copy_(value), out=log))
        else:
            torch.log(torch.stack(self._values, out=start), out=logs)
            torch._foreach_copy_(self._values, list(logs.unbind(0)))
        self._hand_over_gradients(start)

    @torch.no_grad()
    def leave(self) -> None:
        """Back to x and g in the middle of a step: for a closure, or for good."""
        self._inside = self._gathered(self._values, "inside")
        torch._foreach_copy_(self._values, self._each(self._value(self._inside)))
        self._give_back_gradients()

    @torch.no_grad()
    def enter_again(self) -> None:
        """After a closure: the parameters are where `leave` put them, and have new gradients."""
        assert self._inside is not None
        self._hand_over_gradients(self._value(self._inside))
        torch._foreach_copy_(self._values, self._each(self._inside))

    @torch.no_grad()
    def finish(self) -> None:
        """The end of a step: x exp(u), and the gradients that the user knows."""
        start, logs = self._buffer("start"), self._buffer("logs")
        if len(self._values) == 1:
            for value, log, piece in pieces(self._values[0], logs, start):
                value.sub_(log).exp_().mul_(piece)
        else:
            moved = self._gathered(self._values, "moved").sub_(logs).exp_().mul_(start)
            torch._foreach_copy_(self._values, list(moved.unbind(0)))
        self._give_back_gradients()
        self._inside = None

    # ------------------------------------------------------------------------------------------------ private

    def _value(self, inside: Tensor) -> Tensor:
        """x where the optimiser is at `inside`, which is log x; in memory of its own."""
        return torch.sub(inside, self._buffer("logs"), out=self._buffer("value")).exp_().mul_(self._buffer("start"))

    def _hand_over_gradients(self, value: Tensor) -> None:
        self._grads = [p.grad for p in self.parameters]
        dense = [gradient_value(g) for g in self._grads if g is not None and not g.is_sparse]
        if len(dense) == len(self._grads) and all(g.dtype == value.dtype for g in dense):
            scaled = self._buffer("scaled")
            if len(dense) == 1:
                torch.mul(dense[0], value, out=scaled)
            else:
                torch.stack(dense, out=scaled).mul_(value)
            products: list[Tensor | None] = list(self._each(scaled))
        else:
            pairs = zip(self._each(value), self._grads, strict=True)
            products = [None if g is None else v * gradient_value(g) for v, g in pairs]
        for p, product in zip(self.parameters, products, strict=True):
            p.grad = None if product is None else like(product, p)

    def _give_back_gradients(self) -> None:
        for p, grad in zip(self.parameters, self._grads, strict=True):
            p.grad = grad

    def _each(self, stacked: Tensor) -> list[Tensor]:
        """What belongs to every parameter, in its shape."""
        return list(stacked.unbind(0)) if len(self._values) > 1 else [stacked]

    def _gathered(self, tensors: list[Tensor], slot: str) -> Tensor:
        buffer = self._buffer(slot)
        return torch.stack(tensors, out=buffer) if len(tensors) > 1 else buffer.copy_(tensors[0])

    def _buffer(self, slot: str) -> Tensor:
        one, count = self._values[0], len(self._values)
        if count > 1 or one.is_contiguous():
            return self._memory.room(slot, tuple(one.shape) if count == 1 else (count, *one.shape), one)
        # The strides of a single parameter stay, since fused kernels walk through its memory and its gradient's.
        found = self._strided.get(slot)
        if found is None or _layout(found) != _layout(one):
            with torch.inference_mode(False):  # a buffer made in inference mode could not be written outside of it
                found = self._strided[slot] = torch.empty_like(one)
        return found


def _layout(t: Tensor) -> tuple:
    return t.shape, t.stride(), t.dtype, t.device


def gradient_value(grad: Tensor) -> Tensor:
    """The numbers of a gradient on this rank; a sparse one as it is, since its class cannot be changed."""
    return grad.detach() if grad.is_sparse else local_value(grad)

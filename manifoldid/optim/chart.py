"""Positive parameters, as an optimiser sees them: through their logarithm."""

import torch
from torch import Tensor

from manifoldid.distributed import like, local_value


class LogChart:
    """Hands log x and x g to the optimiser during a step, and applies its displacement u as x exp(u).

    Storage and `.grad` of the parameter are the same before and after a step. Where u is 0 the parameter keeps every bit.
    """

    def __init__(self, parameter: Tensor):
        self.parameter = parameter
        self.start = local_value(parameter).clone()
        self.log_start = self.start.log()
        self.grad: Tensor | None = None
        self.inside = self.log_start

    @torch.no_grad()
    def enter(self) -> None:
        """From x and g to log x and x g."""
        self.grad = self.parameter.grad
        if self.grad is not None:
            self.parameter.grad = like(self._value() * gradient_value(self.grad), self.parameter)
        local_value(self.parameter).copy_(self.inside)

    @torch.no_grad()
    def leave(self) -> None:
        """Back to x and g in the middle of a step, for a closure."""
        here = local_value(self.parameter)
        self.inside = here.clone()
        here.copy_(self._value())
        self.parameter.grad = self.grad

    def enter_again(self) -> None:
        """After a closure: the parameter is where `leave` put it, and has a new gradient."""
        self.enter()

    @torch.no_grad()
    def finish(self) -> None:
        """The end of a step: x exp(u), and the gradient that the user knows."""
        self.leave()

    def _value(self) -> Tensor:
        return self.start * (self.inside - self.log_start).exp()


def gradient_value(grad: Tensor) -> Tensor:
    """The numbers of a gradient on this rank; a sparse one as it is, since its class cannot be changed."""
    return grad.detach() if grad.is_sparse else local_value(grad)

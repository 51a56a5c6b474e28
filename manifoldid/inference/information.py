"""The inverse of the observed information, as a matrix or as something that solves with it."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from manifoldid.optim.local_model import derivative


@runtime_checkable
class InverseInformation(Protocol):
    """A symmetric generalised inverse G (N, N) of the information, beside `flatten(point)`.

    Only J G J' with rows J that vanish along the gauge mean anything: G itself depends on the gauge.
    """

    def times(self, rows: Tensor) -> Tensor:
        """The rows (k, N), each multiplied by G."""
        ...

    def dense(self) -> Tensor:
        """G as a matrix (N, N)."""
        ...


class DenseInverse:
    """G, held as a matrix.

    Args:
        matrix: (N, N), symmetric.
    """

    def __init__(self, matrix: Tensor):
        self._matrix = matrix

    def times(self, rows: Tensor) -> Tensor:
        return rows @ self._matrix

    def dense(self) -> Tensor:
        return self._matrix


def jacobian(fn: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Derivative (k, N) of a vector function, by reverse mode row by row: works for whatever torch can differentiate."""
    with torch.enable_grad():
        leaf = at.detach().clone().requires_grad_()
        return torch.stack([derivative(entry, leaf) for entry in fn(leaf)]).detach()

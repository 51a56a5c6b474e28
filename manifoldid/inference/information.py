"""The inverse of the observed information, as a matrix or as something that solves with it."""

import warnings
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from manifoldid.optim.local_model import derivative

_BATCHED = 2**22  # numbers of a Jacobian that is computed in one batch


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
        weak: Directions (m, N) that the data hardly identify; None for none.
    """

    def __init__(self, matrix: Tensor, weak: Tensor | None = None):
        self._matrix = matrix
        self.weak = matrix.new_zeros(0, len(matrix)) if weak is None else weak

    def times(self, rows: Tensor) -> Tensor:
        return rows @ self._matrix

    def dense(self) -> Tensor:
        return self._matrix


def jacobian(fn: Callable[[Tensor], Tensor], at: Tensor, who: str) -> Tensor:
    """Derivative (k, N) of a vector function, by reverse mode: all rows in one batch, row by row where torch cannot batch.

    Raises:
        ValueError: `who`, the name of the function, returns a value without a graph: its error would silently be 0.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = at.detach().clone().requires_grad_()
        value = fn(leaf)
        if not value.requires_grad:
            raise ValueError(
                f"{who} has no autograd graph to the point: it does not depend on it, has no derivative (a comparison, a rank), or "
                "detach(), .item(), numpy or no_grad() cuts it; an ensemble gives such functions a spread"
            )
        if len(value) * len(leaf) > _BATCHED:
            return torch.stack([derivative(entry, leaf) for entry in value]).detach()
        return products_of(value, leaf, torch.eye(len(value), dtype=value.dtype, device=value.device))


def products_of(value: Tensor, leaf: Tensor, rows: Tensor) -> Tensor:
    """The rows (m, k) times the derivative (k, N) of `value` by `leaf`: in one batch, or one by one where torch cannot batch."""
    if len(rows) > 1:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # torch warns where it batches by a loop of its own
                (found,) = torch.autograd.grad(
                    value, leaf, rows, is_grads_batched=True, retain_graph=True, allow_unused=True
                )
            return leaf.new_zeros(len(rows), len(leaf)) if found is None else found.detach()
        except (RuntimeError, UserWarning):
            pass  # some operation of a user has no batching rule
    found = [torch.autograd.grad(value, leaf, row, retain_graph=True, allow_unused=True)[0] for row in rows]
    return torch.stack([torch.zeros_like(leaf) if row is None else row for row in found]).detach()

"""S X + X T = R for batches of Gram matrices S and T: what a step attached to GL(r) solves, over and over, near one point."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from manifoldid._linalg import MOST_IN_SYSTEM, sylvester_by_system

_MOST_SWEEPS = 6  # more take as long as new eigenvectors
_FEWEST_ENTRIES = 1 << 11  # of S and T together; below, eigenvectors take no longer than the calls that spare them


class _Axes(NamedTuple):
    """Eigenvectors V and W of matrices S and T, all (k, r, r), scaled by the eigenvalues s and t."""

    narrow: Tensor
    """V s^-1/2 and W t^-1/2, one behind the other (2 k, r, r)."""
    values: Tensor
    """s and t (2 k, r, 1)."""
    into: tuple[Tensor, Tensor]
    """s^1/2 V' and W t^1/2, which R stands between."""
    back: tuple[Tensor, Tensor]
    """V s^-1/2 and t^-1/2 W', which bring the solution back."""
    inverse: Tensor
    """1 / (s_i + t_j)."""


class Sylvester:
    """Solves S X + X T = R by eigenvectors of S and T, and remembers them for the next matrices.

    While they nearly diagonalise those, a few sweeps of Jacobi's iteration lead to the same X. Whether they do is seen from S and T
    themselves, so that what is remembered changes the time that an answer takes and, beyond rounding, not the answer.

    Source: Golub & Van Loan (2013), Matrix Computations, 4th ed., 7.6.3 (the equation) and 11.2 (Jacobi's iteration).
    """

    def __init__(self) -> None:
        """Remembers nothing yet."""
        self._axes: _Axes | None = None

    def __call__(self, squares: Tensor, right: Tensor) -> Tensor:
        """The solution X of least norm: 0 in directions of which both matrices see nothing but rounding.

        Args:
            squares: S and T, symmetric and positive semidefinite, one behind the other: (2, *batch, r, r).
            right: R (*batch, r, r).

        Returns:
            X (*batch, r, r); not finite where the matrices are not.
        """
        size, count = right.shape[-1], right.shape[:-2].numel()
        if right.device.type != "cpu" and size <= MOST_IN_SYSTEM:
            return sylvester_by_system(squares[0], squares[1], right)
        gram, flat = squares.reshape(2 * count, size, size), right.reshape(count, size, size)
        solution = self._by_sweeps(gram, flat)
        if solution is None:
            solution = self._by_eigenvectors(gram, flat)
        return solution.view(right.shape)

    def _by_eigenvectors(self, squares: Tensor, right: Tensor) -> Tensor:
        count = right.shape[0]
        finite = torch.nan_to_num(squares, 0.0, 0.0, 0.0)  # eigh raises on what is not; `right` still has it
        values, axes = torch.linalg.eigh(finite)
        sums = values[:count, :, None] + values[count:, None, :]
        rounding = sums[:, -1:, -1:] * (squares.shape[-1] * torch.finfo(sums.dtype).eps)  # in ascending order
        inverse = sums.masked_fill(sums <= rounding, math.inf).reciprocal()
        if _worth_remembering(squares):
            roots = values.sqrt()[:, None, :]
            narrow, wide = axes / roots, axes * roots
            into, back = (wide[:count].mT, wide[count:]), (narrow[:count], narrow[count:].mT)
            self._axes = _Axes(narrow, values[:, :, None], into, back, inverse)
        left, other = axes[:count], axes[count:]
        return _between((left, other.mT), _between((left.mT, other), right).mul_(inverse))

    def _by_sweeps(self, squares: Tensor, right: Tensor) -> Tensor | None:
        """X by Jacobi's iteration along the remembered axes; None where that takes longer than new ones.

        With V' S V = s^1/2 (1 + E) s^1/2, and F for T, a sweep makes the error smaller by the larger of |E| and |F|, in the norm
        <X, s X + X t>: a number that the host has to know, which is why accelerators do without.
        """
        axes = self._axes
        if axes is None or _kind(axes.narrow) != _kind(squares):
            return None
        count, rounding = right.shape[0], torch.finfo(squares.dtype).eps
        rest = torch.bmm(axes.narrow.mT, torch.bmm(squares, axes.narrow))
        rest.diagonal(dim1=1, dim2=2).sub_(1)
        rate = float(torch.linalg.vector_norm(rest, dim=(1, 2)).amax())
        if not rate ** (1 + _MOST_SWEEPS) <= rounding:  # also where it is nan: without full rank, or not finite
            return None
        rest.mul_(axes.values)
        first, second = rest[:count], rest[count:].mT
        turned = _between(axes.into, right)
        solution, error = turned * axes.inverse, rate
        while error > rounding:
            known = torch.baddbmm(turned, first, solution, alpha=-1)
            solution, error = known.baddbmm_(solution, second, alpha=-1).mul_(axes.inverse), error * rate
        return _between(axes.back, solution)


def _between(sides: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    return torch.bmm(torch.bmm(sides[0], x), sides[1])


def _kind(x: Tensor) -> tuple:
    return x.shape, x.dtype, x.device


def _worth_remembering(squares: Tensor) -> bool:
    return squares.device.type == "cpu" and squares.numel() >= _FEWEST_ENTRIES

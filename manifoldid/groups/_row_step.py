"""The formulas of `_sphere_step.py` for one row: sums go to Python as numbers, and the rest is multiples of rows.

A step at 64 numbers is counted in calls of kernels; products of two rows and multiples of a row are the cheapest there are.
"""

import math

import torch
from torch import Tensor


class RowStep:
    """Gradient, squares and moves at one row of a quotient by one scale, or by a shift and a scale; equal weights, on a CPU.

    m is the mean of x (or 0), c = x - m, s the root mean square of c. Make one by `RowStep.at`.
    """

    def __init__(self, x: Tensor, shifts: bool, mean: float, square: float):
        self.x = x
        self.items = x.shape[0]
        self.shifts = shifts
        self.one = x.new_ones(())  # a multiple of it is added faster than a Python number is
        self.mean = mean
        self.square = square  # s^2

    @classmethod
    def at(cls, x: Tensor, shifts: bool) -> "RowStep | None":
        """The step geometry at `x` (n,), which is not written to; None where `SphereStep.at` is None."""
        mean = x.sum().item() / x.shape[0] if shifts else 0.0
        raw = torch.dot(x, x).item() / x.shape[0]
        kind = torch.finfo(x.dtype)
        # Squares by multiplication: `**` of a Python number raises where it overflows.
        if not (kind.tiny ** (2 / 3) < raw < kind.max ** (2 / 3) and mean * mean < 0.49 * raw):
            return None
        # On the section the rest is rounding, and there is less to do.
        if abs(mean) <= 8 * kind.eps * math.sqrt(raw):
            mean = 0.0
        square = raw - mean * mean
        return cls(x, shifts, mean, 1.0 if abs(square - 1) <= 8 * kind.eps else square)

    def gradient(self, derivative: Tensor) -> Tensor:
        """s^2 P g for a Euclidean derivative g."""
        result = self._horizontal(derivative)
        return result if self.square == 1 else result.mul_(self.square)

    def squares(self, u: Tensor) -> Tensor:
        """u^2 / s^2."""
        return u.square() if self.square == 1 else torch.mul(u, 1 / math.sqrt(self.square)).square_()

    def retract(self, u: Tensor) -> Tensor:
        """The end of the geodesic along the horizontal part of `u`."""
        step = self._horizontal(u)
        return self._moved(step, self._angle(step))

    def retract_and_carry(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`retract(u)`, and `v` carried there in parallel.

        With p = P u and th = |p| / s: P v + <v, p> / (n s^2) (-sinc(th / 2)^2 p / 2 - sinc(th) c).
        """
        step = self._horizontal(u)
        angle = self._angle(step)
        turn = torch.dot(v, step).item() / (self.items * self.square)
        carried = self._horizontal(v, less=turn * _sinc(angle))
        carried.add_(step, alpha=-0.5 * turn * _sinc(angle / 2) ** 2)
        return self._moved(step, angle), carried

    def _horizontal(self, u: Tensor, less: float = 0.0) -> Tensor:
        """P u - less c, a new tensor: u minus its mean and its multiple of c."""
        mean = u.sum().item() / self.items if self.shifts else 0.0
        along = (torch.dot(u, self.x).item() / self.items - mean * self.mean) / self.square + less
        result = torch.add(u, self.x, alpha=-along)
        return result.add_(self.one, alpha=along * self.mean - mean) if self.shifts else result

    def _angle(self, step: Tensor) -> float:
        """The length of the geodesic whose velocity is the horizontal `step`, in radians; nan where it is not finite."""
        square = torch.dot(step, step).item() / (self.items * self.square)
        return math.sqrt(square) if square < math.inf else math.nan

    def _moved(self, step: Tensor, angle: float) -> Tensor:
        """x + ((cos(th) - 1) c + sinc(th) p); `step` p is overwritten.

        The increment is summed before it is added to `x`: then items round at random, and mean and size do not drift.
        """
        less = -2 * math.sin(angle / 2) ** 2
        step.mul_(_sinc(angle)).add_(self.x, alpha=less)
        if self.mean:
            step.add_(self.one, alpha=-less * self.mean)
        return step.add_(self.x)


def _sinc(angle: float) -> float:
    return math.sin(angle) / angle if angle else 1.0

"""Geometry of groups that scale: metric sum w u v / s^2, the quotient is a product of spheres of radius sqrt(W), one per block.

Notation of every method: c is the point less its mean (Affine) or the point itself (Scaling), s its root mean square, per block or
over all blocks (`common_scale`). Vectors in units of s are invariant under the group.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from manifoldid._linalg import widened
from manifoldid.groups._euclidean import safe_root
from manifoldid.groups._items import ItemGroup, Measure
from manifoldid.groups._row_step import RowStep
from manifoldid.groups._sphere_step import SphereStep
from manifoldid.groups.geometry import Geometry, StepGeometry
from manifoldid.points import Weights


class _Frame(NamedTuple):
    """What all operations at one point share."""

    measure: Measure
    centre: Tensor
    """c / s, at every item."""
    size: Tensor
    """s at every item."""
    mean: Tensor
    """x - c at every item."""


class SphereGeometry(Geometry):
    """Invariant metric, great circles and alignment of `Scaling` and `Affine`.

    Args:
        group: The group.
        weights: Item weights.
        shifts: Whether the group shifts every block (Affine).
        together: Whether all blocks share one scale.
    """

    isometric = True

    def __init__(self, group: ItemGroup, weights: Weights, shifts: bool, together: bool = False):
        super().__init__(group, weights)
        self.items = group
        self.shifts = shifts
        self.together = together

    # ------------------------------------------------------------------------------------------------ at one point

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """See `Geometry.inner`."""
        frame = self._frame(x)
        product = (u / frame.size) * (v / frame.size)
        return self.group.across(
            (product if frame.measure.weights is None else product * frame.measure.weights).sum(-1)
        )

    def horizontal(self, x: Tensor, u: Tensor) -> Tensor:
        """See `Geometry.horizontal`."""
        return self._project(self._frame(x), u)

    def gradient(self, x: Tensor, derivative: Tensor) -> Tensor:
        """See `Geometry.gradient`: s^2 P(g / w)."""
        frame = self._frame(x)
        w = frame.measure.weights
        return frame.size**2 * self._project(frame, derivative if w is None else derivative / w)

    def components(self, x: Tensor, u: Tensor) -> Tensor:
        """See `Geometry.components`: sqrt(w) u / s."""
        frame = self._frame(x)
        w = frame.measure.weights
        return (u if w is None else u * w.sqrt()) / frame.size

    # ------------------------------------------------------------------------------------------------ motions

    def retract(self, x: Tensor, u: Tensor) -> Tensor:
        """See `Geometry.retract`: the geodesic."""
        return self.exp(x, u)

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """See `Geometry.exp`: (x - c) + cos(th) c + sinc(th) u, put back to the mean and size of `x` against rounding."""
        frame = self._frame(x)
        velocity = u / frame.size
        cosine, sinc = _cosine_and_sinc(self._average(frame.measure, velocity.square()))
        turned = cosine * frame.centre + sinc * velocity
        return frame.mean + frame.size * self._frame(turned).centre

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Geometry.log`: s th / sin(th) (b - a <a, b>) for unit representatives a, b."""
        start, end = self._frame(widened(x)), self._frame(widened(y))
        near, far = end.centre - start.centre, end.centre + start.centre
        q, p = self._average(start.measure, near.square()) / 4, self._average(start.measure, far.square()) / 4
        # b - a and b + a have the horizontal part of b; the shorter one has it without cancellation.
        direction = self._project(start, torch.where(q < p, near, far))
        return (start.size * _angle_over_sine(q, p) * direction).to(x.dtype)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Geometry.dist`: sqrt(sum over blocks of W th^2), th = 2 atan2(|a - b|, |a + b|), accurate near 0 and pi."""
        return safe_root(self.squared_dist(x, y))

    def squared_dist(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Geometry.squared_dist`."""
        start, end = self._frame(widened(x)), self._frame(widened(y))
        q = self._average(start.measure, (end.centre - start.centre).square(), at_items=False) / 4
        p = self._average(start.measure, (end.centre + start.centre).square(), at_items=False) / 4
        return (self._total(start.measure, start.centre) * _squared_angle(q, p)).sum(-1).to(x.dtype)

    def align(self, x: Tensor, to: Tensor) -> Tensor:
        """See `Geometry.align`: the representative with mean and size of `to`, the closest one in the invariant metric."""
        frame = self._frame(to)
        return frame.mean + frame.size * self._frame(x).centre

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """See `Geometry.transport`: parallel along the great circle from `x` to the orbit of `y`, then to the size of `y`.

        v - 2 <v, m> m / <m, m> with m = a + b for unit representatives a, b. At opposite points there is no shortest circle and
        `v` is only made horizontal.
        """
        start, end = self._frame(x), self._frame(y)
        middle = start.centre + end.centre
        square = self._average(start.measure, middle.square())
        safe = torch.where(square > 0, square, torch.ones_like(square))
        velocity = self._project(start, v) / start.size
        carried = velocity - middle * (2 * self._average(start.measure, velocity * middle) / safe)
        return end.size * self._project(end, carried)

    def step_at(self, x: Tensor) -> StepGeometry | None:
        """See `Geometry.step_at`: one sphere per point."""
        if self.items.partition is not None:
            return None
        if x.ndim == 1 and self.weights is None and x.device.type == "cpu":
            return RowStep.at(x, self.shifts)
        return SphereStep.at(x, self.items.measure(x, self.weights).weights, self.shifts)

    # ------------------------------------------------------------------------------------------------ private

    def _frame(self, x: Tensor) -> _Frame:
        measure = self.items.measure(x, self.weights)
        centred = measure.centre(x)[0] if self.shifts else x
        size = measure.size(centred, together=self.together)
        safe = self._spread(measure, torch.where(size > 0, size, torch.ones_like(size)))
        return _Frame(measure, centred / safe, safe, x - centred)

    def _project(self, frame: _Frame, u: Tensor) -> Tensor:
        """`u` less its mean and its component along c."""
        if self.shifts:
            u = frame.measure.centre(u)[0]
        return u - frame.centre * self._average(frame.measure, frame.centre * u)

    def _spread(self, measure: Measure, value: Tensor) -> Tensor:
        return value if self.together else measure.spread(value)

    def _average(self, measure: Measure, x: Tensor, at_items: bool = True) -> Tensor:
        """Mean per sphere, at every item."""
        value = measure.mean_over_all(x) if self.together else measure.mean(x)
        return self._spread(measure, value) if at_items else value

    def _total(self, measure: Measure, x: Tensor) -> Tensor:
        """W of every sphere; weights have mean 1, so that of all items together is n."""
        if self.together or measure.total is None:
            return torch.as_tensor(float(measure.items), dtype=x.dtype, device=x.device).reshape(1)
        return measure.total


_SERIES_BELOW = 0.01  # where q = sin^2(th / 2) is smaller, series in q replace formulas that divide by it
_SERIES = 10  # terms; the first one left out is below 1e-18


def _cosine_and_sinc(square: Tensor) -> tuple[Tensor, Tensor]:
    """cos(th) and sin(th) / th as functions of th^2: smooth at 0, where second-order methods differentiate `exp` twice."""
    small = square < 1e-3
    th = torch.where(small, torch.ones_like(square), square).sqrt()
    cosine = 1 - square / 2 * (1 - square / 12 * (1 - square / 30 * (1 - square / 56 * (1 - square / 90))))
    sinc = 1 - square / 6 * (1 - square / 20 * (1 - square / 42 * (1 - square / 72 * (1 - square / 110))))
    return torch.where(small, cosine, th.cos()), torch.where(small, sinc, th.sin() / th)


def _horner(q: Tensor, coefficients: list[float]) -> Tensor:
    value = torch.zeros_like(q)
    for coefficient in reversed(coefficients):
        value = value * q + coefficient
    return value


def _angle_over_sine(q: Tensor, p: Tensor) -> Tensor:
    """th / sin(th) from q = sin^2(th / 2) and p = cos^2(th / 2), with all derivatives at 0; 0 at opposite points, where p = 0.

    th / sin(th) = arcsin(sqrt q) / sqrt(q (1 - q)) = sum over k of (2 / 3)(4 / 5) ... (2k / (2k + 1)) q^k.
    """
    coefficients = [1.0]
    for k in range(1, _SERIES):
        coefficients.append(coefficients[-1] * 2 * k / (2 * k + 1))
    usable = (q >= _SERIES_BELOW) & (p > 0)
    far, other = torch.where(usable, q, 0.5).sqrt(), torch.where(usable, p, 0.5).sqrt()
    exact = torch.where(usable, torch.atan2(far, other) / (far * other), torch.zeros_like(q))
    return torch.where(q < _SERIES_BELOW, _horner(q, coefficients), exact)


def _squared_angle(q: Tensor, p: Tensor) -> Tensor:
    """th^2 from q = sin^2(th / 2) and p = cos^2(th / 2), with all derivatives at 0.

    th^2 = 4 arcsin(sqrt q)^2 = 4 q + (4 / 3) q^2 + ..., ratio of coefficients 2 k^2 / ((k + 1)(2k + 1)).
    """
    coefficients = [4.0]
    for k in range(1, _SERIES):
        coefficients.append(coefficients[-1] * 2 * k**2 / ((k + 1) * (2 * k + 1)))
    usable = q >= _SERIES_BELOW
    far = torch.where(usable, q, 0.5).sqrt()
    exact = 4 * torch.atan2(far, safe_root(torch.where(usable, p, 0.5))).square()
    return torch.where(usable, exact, q * _horner(q, coefficients))

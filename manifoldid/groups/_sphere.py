"""Geometry of groups that scale: metric sum w u v / s^2, the quotient is a product of spheres of radius sqrt(W), one per block.

Notation of every method: c is the point less its mean (Affine) or the point itself (Scaling), s its root mean square, per block or
over all blocks (`common_scale`). Vectors in units of s are invariant under the group.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from manifoldid.groups._euclidean import safe_root
from manifoldid.groups._items import ItemGroup, Measure
from manifoldid.groups.geometry import Geometry
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

    def __init__(self, group: ItemGroup, weights: Weights, shifts: bool, together: bool = False):
        super().__init__(group, weights)
        self.shifts = shifts
        self.together = together

    # ------------------------------------------------------------------------------------------------ at one point

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """See `Geometry.inner`."""
        frame = self._frame(x)
        product = (u / frame.size) * (v / frame.size)
        return (product if frame.measure.weights is None else product * frame.measure.weights).sum(-1)

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
        """See `Geometry.exp`: (x - c) + cos(th) c + sinc(th) u, which keeps mean and size."""
        frame = self._frame(x)
        cosine, sinc = _cosine_and_sinc(self._mean_square(frame.measure, u / frame.size))
        return frame.mean + frame.size * (cosine * frame.centre) + sinc * u

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Geometry.log`: s th / sin(th) (b - a <a, b>) for unit representatives a, b."""
        frame, b = self._frame(x), self._frame(y).centre
        tangent = self._project(frame, b)
        ratio = _angle_over_sine(
            self._mean_square(frame.measure, tangent), self._average(frame.measure, frame.centre * b)
        )
        return frame.size * ratio * tangent

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Geometry.dist`: sqrt(sum over blocks of W th^2), th = 2 atan2(|a - b|, |a + b|), accurate near 0 and pi."""
        frame, b = self._frame(x), self._frame(y).centre
        chord = safe_root(self._mean_square(frame.measure, frame.centre - b, at_items=False))
        other = safe_root(self._mean_square(frame.measure, frame.centre + b, at_items=False))
        angle = 2 * torch.atan2(chord, other)
        total = self._total(frame.measure, x)
        return safe_root((total * angle.square()).sum(-1)) if angle.shape[-1] > 1 else (total.sqrt() * angle)[..., 0]

    def align(self, x: Tensor, to: Tensor) -> Tensor:
        """See `Geometry.align`: the representative with mean and size of `to`."""
        frame = self._frame(to)
        return frame.mean + frame.size * self._frame(x).centre

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """See `Geometry.transport`: parallel along the great circle from `x` to the orbit of `y`, then to the size of `y`.

        v - <v, b> / (1 + <a, b>) (a + b) for unit representatives a, b; at opposite points, where there is no shortest circle,
        the horizontal component.
        """
        start, end = self._frame(x), self._frame(y)
        unit = v / start.size
        along = self._average(start.measure, unit * end.centre)
        cosine = self._average(start.measure, start.centre * end.centre)
        opposite = 1 + cosine <= torch.finfo(v.dtype).eps ** 0.5
        factor = torch.where(
            opposite, torch.zeros_like(along), along / torch.where(opposite, torch.ones_like(cosine), 1 + cosine)
        )
        carried = unit - factor * (start.centre + end.centre)
        return end.size * self._project(end, carried)

    # ------------------------------------------------------------------------------------------------ private

    def _frame(self, x: Tensor) -> _Frame:
        measure = self.group.measure(x, self.weights)
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

    def _mean_square(self, measure: Measure, x: Tensor, at_items: bool = True) -> Tensor:
        return self._average(measure, x.square(), at_items)

    def _total(self, measure: Measure, x: Tensor) -> Tensor:
        """W of every sphere."""
        if self.together or measure.total is None:
            return torch.full((1,), float(x.shape[-1]), dtype=x.dtype, device=x.device)
        return measure.total


def _cosine_and_sinc(square: Tensor) -> tuple[Tensor, Tensor]:
    """cos(th) and sin(th) / th as functions of th^2, with all derivatives at 0."""
    small = square < 1e-3
    th = torch.where(small, torch.ones_like(square), square).sqrt()
    cosine = 1 - square / 2 * (1 - square / 12 * (1 - square / 30 * (1 - square / 56 * (1 - square / 90))))
    sinc = 1 - square / 6 * (1 - square / 20 * (1 - square / 42 * (1 - square / 72 * (1 - square / 110))))
    return torch.where(small, cosine, th.cos()), torch.where(small, sinc, th.sin() / th)


def _angle_over_sine(square: Tensor, cosine: Tensor) -> Tensor:
    """th / sin(th) from sin(th)^2 and cos(th), with all derivatives at th = 0; 0 at th = pi, where no direction is shortest."""
    small = (square < 1e-3) & (cosine > 0)
    series = 1 + square * (
        1 / 6 + square * (3 / 40 + square * (15 / 336 + square * (105 / 3456 + square * 945 / 42240)))
    )
    usable = ~small & (square > 0)
    sine = torch.where(usable, square, torch.ones_like(square)).sqrt()
    exact = torch.atan2(sine, torch.where(usable, cosine, torch.ones_like(cosine))) / sine
    return torch.where(small, series, torch.where(usable, exact, torch.zeros_like(exact)))

"""Geometry of groups that shift: the total space is flat, horizontal vectors are the same everywhere, the quotient is Euclidean."""

import math

import torch
from torch import Tensor

from manifoldid._linalg import widened
from manifoldid.groups.base import GaugeGroup
from manifoldid.groups.geometry import Geometry, StepGeometry
from manifoldid.points import Point, Weights, cast_like, flat_shares, flat_weights, flatten, map_blocks, unflatten


class EuclideanGeometry(Geometry):
    """Metric sum w u v. The canonical section of the group is a linear projection, and that projection is the horizontal one."""

    isometric = True

    def __init__(self, group: GaugeGroup, weights: Weights = None, one_mean: bool = False):
        """The geometry.

        Args:
            group: The group.
            weights: Item weights.
            one_mean: Whether the group shifts all items of a tensor by one number.
        """
        super().__init__(group, weights)
        self.one_mean = one_mean

    def inner(self, x: Point, u: Point, v: Point) -> Tensor:
        """See `Geometry.inner`."""
        ndim = self.group.batch_ndim(x)
        product = flatten(u, ndim) * flatten(v, ndim)
        for factor in (self._item_weights(x), flat_shares(x, ndim, self.group.shards)):
            product = product if factor is None else product * factor
        return self.group.across(product.sum(-1))

    def horizontal(self, x: Point, u: Point) -> Point:
        """See `Geometry.horizontal`."""
        return self.group.canonical(u, self.weights).point

    def gradient(self, x: Point, derivative: Point) -> Point:
        """See `Geometry.gradient`."""
        return self.horizontal(x, self._weighted(derivative, x, -1.0))

    def components(self, x: Point, u: Point) -> Point:
        """See `Geometry.components`."""
        return self._weighted(u, x, 0.5)

    def retract(self, x: Point, u: Point) -> Point:
        """See `Geometry.retract`: the geodesic."""
        return map_blocks(torch.add, x, u)

    def exp(self, x: Point, u: Point) -> Point:
        """See `Geometry.exp`: x + u."""
        return map_blocks(torch.add, x, u)

    def log(self, x: Point, y: Point) -> Point:
        """See `Geometry.log`: the horizontal component of y - x."""
        return cast_like(self.horizontal(x, map_blocks(torch.sub, widened(y), widened(x))), x)

    def dist(self, x: Point, y: Point) -> Tensor:
        """See `Geometry.dist`."""
        return safe_root(self.squared_dist(x, y))

    def squared_dist(self, x: Point, y: Point) -> Tensor:
        """See `Geometry.squared_dist`."""
        u = self.log(x, y)
        return self.inner(x, u, u)

    def align(self, x: Point, to: Point) -> Point:
        """See `Geometry.align`."""
        return map_blocks(torch.add, to, self.log(to, x))

    def transport(self, x: Point, y: Point, v: Point) -> Point:
        """See `Geometry.transport`: horizontal vectors are the same at all points."""
        return self.horizontal(y, v)

    def step_at(self, x: Tensor) -> StepGeometry | None:
        """See `Geometry.step_at`: with equal weights and one shift per point."""
        if not self.one_mean or self.weights is not None or not math.isfinite(x.sum().item()):
            return None
        return _CentredStep(x)

    def _weighted(self, u: Point, x: Point, power: float) -> Point:
        ndim = self.group.batch_ndim(x)
        w = self._item_weights(x)
        return u if w is None else unflatten(flatten(u, ndim) * w**power, x, ndim)

    def _item_weights(self, x: Point) -> Tensor | None:
        return flat_weights(self.weights, x, self.group.batch_ndim(x), self.group.shards)


class _CentredStep:
    """What a step of an optimiser asks for at `x` (*batch, n), where horizontal vectors have mean 0; without derivatives."""

    def __init__(self, x: Tensor):
        self.x = x

    def gradient(self, derivative: Tensor) -> Tensor:
        return _centred(derivative)

    def squares(self, u: Tensor) -> Tensor:
        return u.square()

    def retract(self, u: Tensor) -> Tensor:
        return _centred(u).add_(self.x)

    def retract_and_carry(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.retract(u), _centred(v)


def _centred(u: Tensor) -> Tensor:
    return u - u.mean(-1, keepdim=True)


class LogGeometry(Geometry):
    """Geometry of positive points, pulled back from that of their logarithm: metric sum w (u / x) (v / x)."""

    isometric = True

    def __init__(self, group: GaugeGroup, weights: Weights, shifts: GaugeGroup):
        super().__init__(group, weights)
        self.chart = (shifts if group.shards is None else shifts.on_shards(group.shards)).geometry(weights)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """See `Geometry.inner`."""
        x = _positive(x)
        return self.chart.inner(x, u / x, v / x)

    def horizontal(self, x: Tensor, u: Tensor) -> Tensor:
        """See `Geometry.horizontal`."""
        x = _positive(x)
        return x * self.chart.horizontal(x, u / x)

    def gradient(self, x: Tensor, derivative: Tensor) -> Tensor:
        """See `Geometry.gradient`."""
        x = _positive(x)
        return x * self.chart.gradient(x, x * derivative)

    def components(self, x: Tensor, u: Tensor) -> Tensor:
        """See `Geometry.components`."""
        x = _positive(x)
        return self.chart.components(x, u / x)

    def retract(self, x: Tensor, u: Tensor) -> Tensor:
        """See `Geometry.retract`: the geodesic."""
        return self.exp(x, u)

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """See `Geometry.exp`: multiplication by the exponential of u / x."""
        x = _positive(x)
        return x * (u / x).exp()

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Geometry.log`."""
        return _positive(x) * self._ratio(x, y).to(x.dtype)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Geometry.dist`."""
        return safe_root(self.squared_dist(x, y))

    def squared_dist(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Geometry.squared_dist`."""
        ratio = self._ratio(x, y)
        return self.chart.inner(ratio, ratio, ratio).to(x.dtype)

    def _ratio(self, x: Tensor, y: Tensor) -> Tensor:
        """log y - log x less its mean, in at least double precision."""
        return self.chart.log(_positive(widened(x)).log(), _positive(widened(y)).log())

    def align(self, x: Tensor, to: Tensor) -> Tensor:
        """See `Geometry.align`."""
        return _positive(to) * self._ratio(to, x).exp().to(x.dtype)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """See `Geometry.transport`."""
        y = _positive(y)
        return y * self.chart.transport(x, y, v / _positive(x))

    def step_at(self, x: Tensor) -> StepGeometry | None:
        """See `Geometry.step_at`: with equal weights and one scale per point."""
        if self.chart.step_at(x) is None or not x.min().item() > 0:
            return None
        return _LogStep(x)


class _LogStep:
    """The same as `_CentredStep` in the logarithm of a positive `x` (*batch, n)."""

    def __init__(self, x: Tensor):
        self.x = x

    def gradient(self, derivative: Tensor) -> Tensor:
        return _centred(derivative * self.x).mul_(self.x)

    def squares(self, u: Tensor) -> Tensor:
        return (u / self.x).square_()

    def retract(self, u: Tensor) -> Tensor:
        return _centred(u / self.x).exp_().mul_(self.x)

    def retract_and_carry(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        y = self.retract(u)
        return y, _centred(v / self.x).mul_(y)


def _positive(x: Tensor) -> Tensor:
    """`x` with 1 in place of entries outside of the domain, which the checked front refuses where values can be looked at."""
    return torch.where(x > 0, x, torch.ones_like(x))


def safe_root(square: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0."""
    positive = square > 0
    return torch.where(
        positive, torch.where(positive, square, torch.ones_like(square)).sqrt(), torch.zeros_like(square)
    )

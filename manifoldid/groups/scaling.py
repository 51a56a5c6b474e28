"""Scaling: x -> a x with a > 0, on x != 0."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldid._linalg import root, widened
from manifoldid.groups._sphere import SphereGeometry
from manifoldid.groups._items import ItemGroup, Measure
from manifoldid.groups.base import Canonical
from manifoldid.groups.geometry import Geometry
from manifoldid.groups.reference import reference_items
from manifoldid.points import Point, Weights


@dataclass(frozen=True, eq=False, repr=False)
class Scaling(ItemGroup):
    """x -> a x, a > 0, one a per block. Canonical: weighted root mean square 1. Coordinates: log a.

    Everything in which only ratios or directions enter, x of any sign.

    Args:
        blocks: Integer labels (n,) of the items, one scale per label; None is one scale for all.
    """

    flat = True
    defect = "is a zero vector: every a x is the same point, so it has no scale to remove; start from a point that is not zero"
    reference_defect = "has a reference item that is not positive: dividing by it would leave the orbit; choose a positive item as reference"

    def dimension(self, x: Point) -> int:
        return self.block_count

    def act(self, xi: Tensor, x: Tensor) -> Tensor:
        return x * self.at_items(xi.exp())

    def undo(self, xi: Tensor, x: Tensor) -> Tensor:
        return x * self.at_items((-xi).exp())

    def vertical_basis(self, x: Tensor) -> Tensor:
        return per_block(self, x)

    def canonical(self, x: Tensor, weights: Weights = None) -> Canonical:
        measure = self.measure(x, weights)
        size = measure.size(x)
        regular = size > 0
        return divided(x, size, regular, measure.spread)

    def closest(self, x: Tensor, to: Tensor, weights: Weights = None) -> Canonical:
        measure = self.measure(x, weights)
        form = self.canonical(x, weights)
        factor = measure.mean(form.point * to)
        regular = form.regular & (factor > 0)
        safe = torch.where(regular, factor, torch.ones_like(factor))
        point = form.point * measure.spread(torch.where(regular, factor, torch.zeros_like(factor)))
        return Canonical(point, form.xi - safe.log(), regular)

    def reference_frame(self, x: Tensor, index: object) -> Canonical:
        size = x[..., reference_items(self, index, x.shape[-1], each=1)[0]]
        return divided(x, size, size > 0, self.at_items)

    def geometry(self, weights: Weights = None) -> Geometry:
        return SphericalGeometry(self, weights, Sized.without_origin)

    def geometry(self, weights: Weights = None) -> SphereGeometry:
        return SphereGeometry(self, weights, shifts=False)

    def generator_names(self, x: Point) -> list[str]:
        return self.named("scaling")


def divided(x: Tensor, size: Tensor, regular: Tensor, spread) -> Canonical:
    """x / size with frame log size; zeros and frame 0 where not `regular`. `spread` takes one number per block to the items."""
    safe = torch.where(regular, size, torch.ones_like(size))
    quotient = x / spread(safe)
    return Canonical(torch.where(spread(regular), quotient, torch.zeros_like(quotient)), safe.log(), regular)


def per_block(group: ItemGroup, velocity: Tensor) -> Tensor:
    """`velocity` (*batch, n) of all items, as one row per block that is zero outside of it; shape (*batch, blocks, n)."""
    if group.blocks is None:
        return velocity.unsqueeze(-2)
    blocks = torch.arange(group.block_count, device=velocity.device)[:, None]
    member = blocks == group._partition.index.to(velocity.device)
    return torch.where(member, velocity.unsqueeze(-2), torch.zeros((), dtype=velocity.dtype, device=velocity.device))


@dataclass(frozen=True)
class Sized:
    """A point taken apart: x = origin + size * unit, where the unit has root mean square 1 per block."""

    measure: Measure
    unit: Tensor
    origin: Tensor
    """What the group adds, at every item; 0 for a scaling."""
    size: Tensor
    """The size at every item, 1 where the point is degenerate (and `unit` 0)."""
    centred: bool = False
    together: bool = False
    """Whether all blocks share one size."""

    @classmethod
    def without_origin(cls, group: ItemGroup, x: Tensor, weights: Weights) -> "Sized":
        """`x` under a scaling."""
        measure = group.measure(x, weights)
        size = measure.size(x)
        form = divided(x, size, size > 0, measure.spread)
        return cls(
            measure, form.point, torch.zeros_like(x), measure.spread(torch.where(size > 0, size, torch.ones_like(size)))
        )

    def mean(self, x: Tensor) -> Tensor:
        """Weighted mean over the items that share a size; shape (*batch, sizes)."""
        return self.measure.mean_over_all(x) if self.together else self.measure.mean(x)

    def spread(self, value: Tensor) -> Tensor:
        """One number per size, at every item."""
        return value if self.together else self.measure.spread(value)

    def mass(self, x: Tensor) -> Tensor:
        """Sum of the weights that share a size; shape (sizes)."""
        ones = torch.ones_like(x[(0,) * (x.ndim - 1)])
        weighted = ones if self.measure.weights is None else ones * self.measure.weights
        return weighted.sum(-1, keepdim=True) if self.together else self.measure.sum(weighted)

    def horizontal(self, u: Tensor) -> Tensor:
        """`u` less its components along the shift and along the unit."""
        u = self.measure.centre(u)[0] if self.centred else u
        return u - self.unit * self.spread(self.mean(self.unit * u))

    def normalised(self, x: Tensor) -> Tensor:
        """`x` near the unit sphere, put on it."""
        x = self.measure.centre(x)[0] if self.centred else x
        size = self.measure.size(x, together=self.together)
        return divided(x, size, size > 0, self.spread).point


class SphericalGeometry(Geometry):
    """Groups that scale, and perhaps shift: the quotient is a product of spheres of radius sqrt(W), one per size.

    The metric is sum w u v / s^2; a shift and a scaling have a flat connection, so mean and size are kept along geodesics.
    Formulas: Absil, Mahony, Sepulchre, Optimization Algorithms on Matrix Manifolds (2008), examples 5.4.1 and 8.1.1, on the
    sphere of units.

    Args:
        group: The group.
        weights: Item weights.
        take_apart: Origin, size and unit of a point under the group.
    """

    def __init__(self, group: ItemGroup, weights: Weights, take_apart: Callable[[ItemGroup, Tensor, Weights], Sized]):
        super().__init__(group, weights)
        self._take_apart = take_apart

    def _sized(self, x: Tensor) -> Sized:
        return self._take_apart(self.group, x, self.weights)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        at = self._sized(x)
        return self._weighted(at, (u / at.size) * (v / at.size)).sum(-1)

    @staticmethod
    def _weighted(at: Sized, product: Tensor) -> Tensor:
        return product if at.measure.weights is None else product * at.measure.weights

    def horizontal(self, x: Tensor, u: Tensor) -> Tensor:
        return self._sized(x).horizontal(u)

    def gradient(self, x: Tensor, derivative: Tensor) -> Tensor:
        at = self._sized(x)
        w = at.measure.weights
        return at.size.square() * at.horizontal(derivative if w is None else derivative / w)

    def components(self, x: Tensor, u: Tensor) -> Tensor:
        at = self._sized(x)
        relative = u / at.size
        return relative if at.measure.weights is None else relative * at.measure.weights.sqrt()

    def retract(self, x: Tensor, u: Tensor) -> Tensor:
        return self.exp(x, u)

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        at = self._sized(x)
        velocity = u / at.size
        angle = root(at.mean(velocity.square()))
        turned = at.unit * at.spread(angle.cos()) + velocity * at.spread(torch.sinc(angle / torch.pi))
        return at.origin + at.size * at.normalised(turned)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        start, end = self._sized(widened(x)), self._sized(widened(y))
        near, far = end.unit - start.unit, end.unit + start.unit
        q, p = start.mean(near.square()) / 4, start.mean(far.square()) / 4
        # Both have the same horizontal part; the shorter one has it without cancellation.
        direction = start.horizontal(torch.where(start.spread(q < p), near, far))
        return (start.size * direction * start.spread(_angle_over_sine(q, p))).to(x.dtype)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return root(self.squared_dist(x, y))

    def squared_dist(self, x: Tensor, y: Tensor) -> Tensor:
        start, end = self._sized(widened(x)), self._sized(widened(y))
        q = start.mean((end.unit - start.unit).square()) / 4
        p = start.mean((end.unit + start.unit).square()) / 4
        return (start.mass(start.unit) * _squared_angle(q, p)).sum(-1).to(x.dtype)

    def align(self, x: Tensor, to: Tensor) -> Tensor:
        """The representative with the mean and the size of `to`: in the invariant metric it is the closest one."""
        end = self._sized(to)
        return end.origin + end.size * self._sized(x).unit

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport along the shortest geodesic: v - <v, a + b> (a + b) / (1 + <a, b>) for units a, b."""
        start, end = self._sized(x), self._sized(y)
        middle = start.unit + end.unit
        square = start.mean(
            middle.square()
        )  # 2 (1 + <a, b>); 0 for opposite points, between which no direction is distinguished
        safe = torch.where(square > 0, square, torch.ones_like(square))
        velocity = start.horizontal(v) / start.size
        turned = velocity - middle * start.spread(2 * start.mean(velocity * middle) / safe)
        return end.horizontal(turned * end.size)


_SERIES_BELOW = 0.01  # of sin^2(angle / 2): the formulas divide by it, the series of 10 terms is exact to 1e-18


def _angle_over_sine(q: Tensor, p: Tensor) -> Tensor:
    """angle / sin(angle) for q = sin^2(angle / 2), p = cos^2(angle / 2): smooth at 0; 0 for opposite points, p = 0."""
    series, coefficient = torch.zeros_like(q), 1.0
    terms = []
    for k in range(10):
        terms.append(coefficient)
        coefficient *= 2 * (k + 1) / (2 * k + 3)
    for term in reversed(terms):
        series = series * q + term
    regular = (q >= _SERIES_BELOW) & (p > 0)
    far, other = torch.where(regular, q, 0.5), torch.where(regular, p, 0.5)
    exact = torch.atan2(far.sqrt(), other.sqrt()) / (far.sqrt() * other.sqrt())
    return torch.where(regular, exact, torch.where(q < _SERIES_BELOW, series, torch.zeros_like(q)))


def _squared_angle(q: Tensor, p: Tensor) -> Tensor:
    """The square of the angle with sin^2(angle / 2) = q and cos^2(angle / 2) = p: smooth at 0."""
    series, coefficient = torch.zeros_like(q), 4.0
    terms = []
    for k in range(10):
        terms.append(coefficient)
        coefficient *= 2 * (k + 1) ** 2 / ((k + 2) * (2 * k + 3))
    for term in reversed(terms):
        series = series * q + term
    regular = q >= _SERIES_BELOW
    far = torch.where(regular, q, 0.5)
    other = torch.where(regular & (p > 0), p, torch.zeros_like(p))
    half = torch.atan2(far.sqrt(), root(other))
    return torch.where(regular, 4 * half.square(), series * q)

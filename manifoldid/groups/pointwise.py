"""Pointwise: a known group, seen through a chart."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manifoldid._linalg import pushforward
from manifoldid.groups._named_blocks import NamedBlocksGeometry
from manifoldid.groups.base import Canonical, GaugeGroup
from manifoldid.groups.geometry import Geometry
from manifoldid.groups.translation import Translation
from manifoldid.points import Point, Weights, blocks_of, cast_like, flatten, map_blocks, part_of_weights


@dataclass(frozen=True, eq=False, repr=False)
class Pointwise(GaugeGroup):
    """x -> inverse(g . forward(x)): a group acting through a chart.

    Powers x -> x^c on x > 1 are translations of log log x; a free link function, a monotone transformation with one or two
    parameters, are translations or affine maps of a chart. Canonical: `inverse` of the canonical representative of
    `forward(x)`. Coordinates, metric and everything that follows are those of `group` in the chart, so item weights, blocks
    and reference items (with their values in the chart) work as there.

    Nothing is checked about the chart but that frames are finite: `inverse(forward(x)) == x` is for you to see to
    (`mid.conformance.check_group` looks), and where a move leaves the range of `inverse` the action is incomplete.

    Args:
        forward: The chart, a differentiable function of a point, entry by entry or not.
        inverse: Its inverse.
        group: The group that acts in the chart.

    Raises:
        TypeError: An argument is of the wrong kind.
    """

    forward: Callable[[Point], Point]
    inverse: Callable[[Point], Point]
    group: GaugeGroup = Translation()  # noqa: RUF009 (immutable)

    def __post_init__(self) -> None:
        for role in ("forward", "inverse"):
            if not callable(getattr(self, role)):
                raise TypeError(f"`{role}` must be a function of a point, got {type(getattr(self, role)).__name__}")
        if not isinstance(self.group, GaugeGroup):
            raise TypeError(f"`group` must be a gauge group, such as mid.Translation(), got {self.group!r}")
        for name in ("event_dim", "flat", "block_names"):
            object.__setattr__(self, name, getattr(self.group, name))
        for name in ("defect", "reference_defect", "closest_defect"):
            text = f"is outside the domain of the chart of Pointwise (`forward` is not finite there), or in the chart it {getattr(self.group, name)}"
            object.__setattr__(self, name, text)

    def dimension(self, x: Point) -> int:
        return self.group.dimension(x)

    def batch_ndim(self, x: Point) -> int:
        return self.group.batch_ndim(x)

    def validate(self, x: Any, name: str = "point") -> Point:
        """See `GaugeGroup.validate`: what the group in the chart asks of shapes."""
        return self.group.validate(x, name)

    def act(self, xi: Tensor, x: Point) -> Point:
        return self._back(self.group.act(xi, self.chart(x)), x)

    def undo(self, xi: Tensor, x: Point) -> Point:
        return self._back(self.group.undo(xi, self.chart(x)), x)

    def chart(self, x: Point) -> Point:
        """`forward(x)`; blocks that it does not return are left alone."""
        return _completed(self.forward(x), x)

    def _back(self, y: Point, x: Point) -> Point:
        return _completed(self.inverse(_completed(y, x)), x)

    def canonical(self, x: Point, weights: Weights = None) -> Canonical:
        return self._through(x, self.group.canonical(self.chart(x), weights))

    def closest(self, x: Point, to: Point, weights: Weights = None) -> Canonical:
        """The representative closest to `to` in the chart."""
        return self._through(x, self.group.closest(self.chart(x), self.chart(to), weights))

    def reference_frame(self, x: Point, index: Any) -> Canonical:
        return self._through(x, self.group.reference_frame(self.chart(x), index))

    def _through(self, x: Point, form: Canonical) -> Canonical:
        """A form in the chart as one of `x`; zeroed where the chart is not finite."""
        point, ndim = self._back(form.point, x), self.batch_ndim(x)
        inside = torch.isfinite(flatten(point, ndim)).all(-1, keepdim=True) & torch.isfinite(form.xi).all(
            -1, keepdim=True
        )
        regular = inside if form.regular is None else inside & form.regular
        keep = regular.all(-1)
        point = map_blocks(
            lambda t: torch.where(keep[(..., *(None,) * (t.ndim - ndim))], t, torch.zeros_like(t)), point
        )
        if self.block_names:
            point = {name: t if name in self.block_names else x[name] for name, t in point.items()}
        xi = torch.where(keep[..., None], form.xi, torch.zeros_like(form.xi))
        return Canonical(cast_like(point, x), xi, regular.expand(*regular.shape[:-1], len(self.regular_columns())))

    def regular_columns(self) -> list[tuple[GaugeGroup, str]]:
        """See `GaugeGroup.regular_columns`: those of the group in the chart."""
        return [(self, label) for _, label in self.group.regular_columns()]

    def geometry(self, weights: Weights = None) -> "PointwiseGeometry | NamedBlocksGeometry":
        if not self.block_names:
            return PointwiseGeometry(self, weights)
        own = PointwiseGeometry(self, part_of_weights(weights, self.block_names))
        return NamedBlocksGeometry(own, weights)

    def generator_names(self, x: Point) -> list[str]:
        return [f"{name} in the chart" for name in self.group.generator_names(x)]


class PointwiseGeometry(Geometry):
    """The geometry of the group in the chart, pulled back."""

    group: Pointwise

    def __init__(self, group: Pointwise, weights: Weights):
        super().__init__(group, weights)
        self.inside = group.group.geometry(weights)
        self.isometric = self.inside.isometric

    def inner(self, x: Point, u: Point, v: Point) -> Tensor:
        """See `Geometry.inner`."""
        return self.inside.inner(self.group.chart(x), self._into(x, u), self._into(x, v))

    def horizontal(self, x: Point, u: Point) -> Point:
        """See `Geometry.horizontal`."""
        return self._out(x, self.inside.horizontal(self.group.chart(x), self._into(x, u)))

    def gradient(self, x: Point, derivative: Point) -> Point:
        """See `Geometry.gradient`."""
        y = self.group.chart(x)
        _, pull = torch.func.vjp(lambda y: self.group._back(y, x), y)[:2]
        return self._out(x, self.inside.gradient(y, pull(derivative)[0]))

    def components(self, x: Point, u: Point) -> Point:
        """See `Geometry.components`: those of the chart."""
        return self.inside.components(self.group.chart(x), self._into(x, u))

    def retract(self, x: Point, u: Point) -> Point:
        """See `Geometry.retract`."""
        return self.group._back(self.inside.retract(self.group.chart(x), self._into(x, u)), x)

    def exp(self, x: Point, u: Point) -> Point:
        """See `Geometry.exp`."""
        return self.group._back(self.inside.exp(self.group.chart(x), self._into(x, u)), x)

    def log(self, x: Point, y: Point) -> Point:
        """See `Geometry.log`."""
        return self._out(x, self.inside.log(self.group.chart(x), self.group.chart(y)))

    def dist(self, x: Point, y: Point) -> Tensor:
        """See `Geometry.dist`."""
        return self.inside.dist(self.group.chart(x), self.group.chart(y))

    def squared_dist(self, x: Point, y: Point) -> Tensor:
        """See `Geometry.squared_dist`."""
        return self.inside.squared_dist(self.group.chart(x), self.group.chart(y))

    def align(self, x: Point, to: Point) -> Point:
        """See `Geometry.align`."""
        return self.group._back(self.inside.align(self.group.chart(x), self.group.chart(to)), x)

    def transport(self, x: Point, y: Point, v: Point) -> Point:
        """See `Geometry.transport`."""
        return self._out(y, self.inside.transport(self.group.chart(x), self.group.chart(y), self._into(x, v)))

    def _into(self, x: Point, u: Point) -> Point:
        """A vector at `x`, in the chart."""
        return pushforward(self.group.chart, x, u)

    def _out(self, x: Point, u: Point) -> Point:
        """The inverse of `_into`."""
        return pushforward(lambda y: self.group._back(y, x), self.group.chart(x), u)


def _completed(y: Point, x: Point) -> Point:
    """`y` with the blocks of `x` that it lacks."""
    if isinstance(y, Tensor):
        return y
    given = blocks_of(y)
    return {name: given.get(name, t) for name, t in blocks_of(x).items()}

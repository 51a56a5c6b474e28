"""The quotient M/G in torch: a checked front for the geometry that a group derives from its action.

`groups/geometry.py` holds the mathematics. Here points and vectors from outside are validated, half precision is computed in
float32, batches are broadcast, and points without a quotient are refused by name.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from manifoldid.errors import DegeneratePointError, listed
from manifoldid.groups.base import GaugeGroup, check_quotient, checked, code_of, require_group, same_value
from manifoldid.groups.geometry import Geometry
from manifoldid.points import (
    Point,
    Weights,
    as_point,
    blocks_of,
    cast_like,
    compute_point,
    concrete,
    first,
    is_dict,
    like_point,
)
from manifoldid.quotient.frechet import frechet_mean


class Quotient:
    """The quotient of the space of points by a gauge group, with the invariant metric of the group.

    Points x, y are any representatives (*batch, *event), or dicts of blocks; tangent vectors u, v live at a representative and
    mean the same at another one after being carried there by the group. Batch dimensions broadcast. Values are checked in
    eager mode only: under compile, export and vmap a degenerate point gives finite numbers.

    Args:
        group: The gauge group.
        weights: Positive item weights of the metric; only ratios matter. None for equal ones; a dict for dict points.

    Raises:
        TypeError: `group` is no group.
        ValueError: A weight is not positive.
    """

    group: GaugeGroup
    weights: Weights
    _geometry: Geometry

    def __init__(self, group: GaugeGroup, weights: Weights = None):
        require_group(group)
        object.__setattr__(self, "group", group)
        object.__setattr__(self, "weights", positive_weights(weights))
        object.__setattr__(self, "_geometry", group.geometry(self.weights))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: make a new one instead of setting `{name}`")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Quotient):
            return NotImplemented
        return type(self) is type(other) and self.group == other.group and same_value(self.weights, other.weights)

    def __hash__(self) -> int:
        return hash((type(self), self.group))

    def __repr__(self) -> str:
        return code_of(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.group, self.weights)

    # ------------------------------------------------------------------------------------------------ at one point

    def inner(self, x: Point, u: Point, v: Point) -> Tensor:
        """The invariant metric <u, v>_x; shape (*batch).

        Args:
            x: A point (*batch, *event).
            u: A vector at `x`, shaped like it.
            v: Another one.

        Returns:
            The inner products, in the dtype of `x`.

        Raises:
            TypeError: A dtype is not that of `x`.
            ValueError: A shape does not fit, or entries of `x` are not finite.
            DegeneratePointError: `x` has a stabiliser, or nothing of it is identifiable.
        """
        return self._number(self._geometry.inner, x, vectors={"u": u, "v": v})

    def norm(self, x: Point, u: Point) -> Tensor:
        """The length |u|_x; shape (*batch), derivative 0 at u = 0. Arguments and errors as for `inner`."""
        square = self.inner(x, u, u)
        positive = square > 0
        return torch.where(positive, torch.where(positive, square, torch.ones_like(square)).sqrt(), square * 0)

    def vertical_component(self, x: Point, u: Point) -> Point:
        """The component of `u` along the orbit of `x`; shaped like `u`. Arguments and errors as for `inner`."""
        return self._vector(self._geometry.vertical, x, vectors={"u": u})

    def horizontal_component(self, x: Point, u: Point) -> Point:
        """The component of `u` orthogonal to the orbit of `x`; shaped like `u`. Arguments and errors as for `inner`."""
        return self._vector(self._geometry.horizontal, x, vectors={"u": u})

    def gradient(self, x: Point, derivative: Point) -> Point:
        """The Riemannian gradient of an invariant function.

        Args:
            x: A point (*batch, *event).
            derivative: The derivative of the function by the entries of `x`, as autograd returns it.

        Returns:
            The horizontal vector u with <u, v>_x = sum(derivative * v) for horizontal v. Errors as for `inner`.
        """
        return self._vector(self._geometry.gradient, x, vectors={"derivative": derivative})

    def components(self, x: Point, u: Point) -> Point:
        """`u` in a frame that moves with the group; squares sum to |u|_x^2, the same at g.x. Arguments, errors: `inner`."""
        return self._vector(self._geometry.components, x, vectors={"u": u})

    # ------------------------------------------------------------------------------------------------ motions

    def retract(self, x: Point, u: Point) -> Point:
        """A point near exp(x, u), cheap to compute: the difference is of second order in `u` or higher.

        Args:
            x: A point (*batch, *event).
            u: A vector at `x`; only its horizontal component counts.

        Returns:
            A representative shaped like `x`. Errors as for `inner`.
        """
        geometry = self._geometry.remembering()
        return self._vector(lambda x, u: geometry.retract(x, geometry.horizontal(x, u)), x, vectors={"u": u})

    def exp(self, x: Point, u: Point) -> Point:
        """The geodesic of the quotient from `x` with velocity `u`, at time 1. Arguments and errors as for `retract`."""
        return self._vector(lambda x, u: self._geometry.exp(x, self._geometry.horizontal(x, u)), x, vectors={"u": u})

    def log(self, x: Point, y: Point) -> Point:
        """The velocity at `x` of the shortest geodesic to the orbit of `y`: the same for all representatives of `y`.

        Differentiable also where the orbits coincide.

        Args:
            x: A point (*batch, *event).
            y: Another one.

        Returns:
            A horizontal vector at `x`.

        Raises:
            TypeError: A dtype is not that of `x`.
            ValueError: A shape does not fit, or entries are not finite.
            DegeneratePointError: A point has a stabiliser, or two points lie opposite to one another, so that no geodesic
                between them is the shortest.
        """
        x, y = self._pair(x, y)
        wide = compute_point(x), compute_point(y)
        step = self._geometry.log(*wide)
        self._refuse_opposite(wide[0], step, self._geometry.squared_dist(*wide))
        return cast_like(step, x)

    def dist(self, x: Point, y: Point) -> Tensor:
        """The length of the shortest path between the orbits of `x` and `y`; shape (*batch).

        Accurate in float32 at small and at large distances. Its derivative where the orbits coincide is 0; `squared_dist` is
        smooth there. Arguments and errors as for `log`, except that opposite points are allowed.
        """
        return self._number(self._geometry.dist, x, points={"y": y})

    def squared_dist(self, x: Point, y: Point) -> Tensor:
        """The square of `dist`, smooth where the orbits coincide; shape (*batch). Arguments and errors as for `dist`."""
        return self._number(self._geometry.squared_dist, x, points={"y": y})

    def align(self, x: Point, to: Point) -> Point:
        """The representative of the orbit of `x` that is closest to `to` in the invariant metric: exp(to, log(to, x)).

        Args:
            x: A point (*batch, *event).
            to: Another one.

        Returns:
            A point on the orbit of `x`, shaped like it. Errors as for `dist`.
        """
        return self._vector(self._geometry.align, x, points={"to": to})

    def transport(self, x: Point, y: Point, v: Point) -> Point:
        """`v` at `x`, carried to `y`: linear in `v`, horizontal, equivariant.

        Parallel, and so isometric, along the shortest geodesic for translation, shift, scalings and affine groups.

        Args:
            x: A point (*batch, *event).
            y: Where to.
            v: A vector at `x`; only its horizontal component counts.

        Returns:
            A horizontal vector at `y`. Errors as for `dist`.
        """
        return self._vector(lambda x, v, y: self._geometry.transport(x, y, v), x, {"v": v}, {"y": y})

    def mean(self, points: Point) -> Point:
        """The Frechet mean: the point whose summed squared distance to the orbits of `points` is least.

        Args:
            points: Points (M, *batch, *event), or a dict of such blocks.

        Returns:
            The mean (*batch, *event), on the canonical section.

        Raises:
            TypeError: `points` are no points.
            ValueError: They have no leading dimension, or entries are not finite.
            DegeneratePointError: A point has a stabiliser.
            NotConvergedError: The points are too far apart for the iteration to settle.
        """
        points = self.group.validate(points, "points")
        if self.group.batch_ndim(points) < 1:
            shapes = {name: tuple(t.shape) for name, t in blocks_of(points).items()}
            raise ValueError(
                f"`points` must have shape (M, *batch, *event): M points along the first dimension, got {shapes}"
            )
        return cast_like(frechet_mean(self.group, points, self.weights), points)

    # ------------------------------------------------------------------------------------------------ private

    def _vector(
        self,
        operation: Callable[..., Point],
        x: Point,
        vectors: Mapping[str, Point] | None = None,
        points: Mapping[str, Point] | None = None,
    ) -> Point:
        x, others = self._checked(x, vectors or {}, points or {})
        return cast_like(operation(compute_point(x), *(compute_point(t) for t in others)), x)

    def _number(
        self,
        operation: Callable[..., Tensor],
        x: Point,
        vectors: Mapping[str, Point] | None = None,
        points: Mapping[str, Point] | None = None,
    ) -> Tensor:
        x, others = self._checked(x, vectors or {}, points or {})
        value = operation(compute_point(x), *(compute_point(t) for t in others))
        dtype = first(x).dtype
        return value.to(dtype.to_real() if dtype.is_complex else dtype)

    def _pair(self, x: Point, y: Point) -> tuple[Point, Point]:
        x, (y,) = self._checked(x, {}, {"y": y})
        return x, y

    def _checked(
        self, x: Point, vectors: Mapping[str, Point], points: Mapping[str, Point]
    ) -> tuple[Point, list[Point]]:
        """`x` and the others with the same batch, after all checks; vectors before points."""
        x = self.regular(x, "x")
        others = {name: beside(x, as_point(t, name), name, self.group.batch_ndim(x)) for name, t in vectors.items()}
        for name, t in points.items():
            others[name] = beside(x, self.regular(t, name), name, self.group.batch_ndim(x))
        return _broadcast([x, *others.values()])

    def regular(self, x: Any, name: str = "x") -> Point:
        """`x` itself, after a look at whether it has a quotient.

        Args:
            x: What should be a point.
            name: What the caller calls it.

        Returns:
            The validated point.

        Raises:
            TypeError: It is no point.
            ValueError: A shape does not fit, or entries are not finite.
            DegeneratePointError: It has a stabiliser, or nothing of it is identifiable.
        """
        x = self.group.validate(x, name)
        check_quotient(self.group, x, name)
        if all(concrete(t) for t in blocks_of(x).values()):
            with torch.no_grad():
                wide = compute_point(x)
                checked(self.group.canonical(wide, self.weights), self.group, wide, name)
        return x

    def _refuse_opposite(self, x: Point, step: Point, squared: Tensor) -> None:
        if not concrete(squared):
            return
        with torch.no_grad():
            lost = self._geometry.inner(x, step, step) < 0.5 * squared
        if bool(lost.any()):
            entries = [tuple(entry) if len(entry) != 1 else entry[0] for entry in lost.nonzero().tolist()]
            where = f" at batch index {listed(entries)}" if lost.ndim else ""
            raise DegeneratePointError(
                f"`x` and `y`{where} lie opposite to one another: no geodesic between them is the shortest, so there is no "
                "logarithm; use dist, or another point"
            )


def positive_weights(weights: Weights, name: str = "weights") -> Weights:
    """A copy of `weights`, which a metric needs to be positive.

    Args:
        weights: Item weights, a dict of them, or None.
        name: What the caller calls them.

    Returns:
        Tensors of their own, in the same form.

    Raises:
        TypeError: They are no tensors.
        ValueError: A weight is not positive.
    """
    if weights is None:
        return None
    if is_dict(weights):
        return {key: positive_weights(w, f"{name}[{key!r}]") for key, w in weights.items()}  # type: ignore[return-value]
    if not isinstance(weights, Tensor):
        raise TypeError(
            f"`{name}` must be a tensor (n,) of item weights or a dict of them, got {type(weights).__name__}"
        )
    if concrete(weights) and not bool((torch.isfinite(weights) & (weights > 0)).all()):
        raise ValueError(
            f"`{name}` must be positive in a metric, and finite: {int((~(weights > 0)).sum())} of {weights.numel()} are not; "
            "weights of 0 are for mid.Section(group, weights=...), where such an item does not define the origin"
        )
    return weights.detach().clone()


def beside(x: Point, u: Point, name: str, ndim: int) -> Point:
    """`u` itself if its blocks, event shapes and dtypes are those of `x`, which has `ndim` batch dimensions.

    Raises:
        TypeError: A dtype differs.
        ValueError: Blocks or shapes differ.
    """
    mine, others = blocks_of(x), blocks_of(u)
    if mine.keys() != others.keys():
        kind = "a dict with the blocks " + ", ".join(mine) if is_dict(x) else "a tensor"
        raise ValueError(f"`{name}` must be {kind} like `x`, got {sorted(others) if is_dict(u) else 'a tensor'}")
    for block, t in mine.items():
        label, other, event = f"{name}[{block!r}]" if block else name, others[block], t.shape[ndim:]
        if other.dtype != t.dtype:
            raise TypeError(f"`{label}` must have the dtype {t.dtype} of `x`, got {other.dtype}; convert one of them")
        if other.shape[max(0, other.ndim - len(event)) :] != event:
            raise ValueError(
                f"`{label}` must end in the shape {tuple(event)} of one point, like `x` {tuple(t.shape)}, got {tuple(other.shape)}"
            )
        try:
            torch.broadcast_shapes(t.shape, other.shape)
        except RuntimeError:
            raise ValueError(
                f"`{label}` of shape {tuple(other.shape)} does not broadcast with `x` of shape {tuple(t.shape)}"
            ) from None
    return u


def _broadcast(points: list[Point]) -> tuple[Point, list[Point]]:
    together = {
        name: torch.broadcast_tensors(*(blocks_of(point)[name] for point in points)) for name in blocks_of(points[0])
    }
    out = [like_point({name: ts[k] for name, ts in together.items()}, point) for k, point in enumerate(points)]
    return out[0], out[1:]

"""The invariant metric of a gauge group on the total space, and the operations of the quotient that follow from it.

`Geometry` derives everything from the action: the metric is Euclidean (weighted by items) at the canonical representative
and carried along the orbit by the group, so that it is invariant. Groups with closed forms subclass it in their own file.
All methods are equivariant, take points (*batch, *event) or dicts of them in float32 or wider, and check nothing;
`quotient/horizontal.py` is the checked front.
"""

import copy
import math
import operator
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from manifoldid._linalg import pushforward
from manifoldid.groups.base import Canonical, GaugeGroup
from manifoldid.groups.orbit import flatten_basis, moved
from manifoldid.points import Point, Weights, blocks_of, concrete, flat_weights, flatten, map_blocks, unflatten

Check = Callable[[Tensor], None]
"""Looks at a tensor, and may raise; see `Geometry.follow`."""


def unchecked(values: Tensor) -> None:
    """The `Check` of those who look at the answer themselves."""


@runtime_checkable
class StepGeometry(Protocol):
    """What a step of an optimiser asks for at one point that has a quotient, without derivatives."""

    def gradient(self, derivative: Tensor) -> Tensor:
        """The Riemannian gradient, see `Geometry.gradient`."""

    def squares(self, u: Tensor) -> Tensor:
        """Squares of the components of `u`, see `Geometry.components`."""

    def retract(self, u: Tensor) -> Tensor:
        """The retraction along the horizontal part of `u`."""

    def retract_and_carry(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`retract(u)`, and `v` transported to it."""


class Geometry:
    """Invariant metric, horizontal space, and motions of the quotient M/G.

    Attributes:
        group: The gauge group.
        weights: Item weights, all positive; None for equal ones.
        isometric: Whether `transport` keeps inner products, as parallel transport does.
    """

    isometric: bool = False

    def __init__(self, group: GaugeGroup, weights: Weights = None):
        self.group = group
        self.weights = weights
        self._recent: list[tuple[list[Tensor], list[int], Canonical]] | None = None

    # ------------------------------------------------------------------------------------------------ at one point

    def inner(self, x: Point, u: Point, v: Point) -> Tensor:
        """The metric <u, v>_x; shape (*batch)."""
        form, ndim = self._form(x), self.group.batch_ndim(x)
        product = flatten(self._pull(form, x, u), ndim) * flatten(self._pull(form, x, v), ndim)
        w = self._flat_weights(x, ndim)
        return (product if w is None else product * w).sum(-1)

    def horizontal(self, x: Point, u: Point) -> Point:
        """The horizontal component of `u` at `x`."""
        form = self._form(x)
        return self._push(form, self._horizontal_at(form.point, self._pull(form, x, u)))

    def vertical(self, x: Point, u: Point) -> Point:
        """The component of `u` along the orbit of `x`."""
        return map_blocks(torch.sub, u, self.horizontal(x, u))

    def gradient(self, x: Point, derivative: Point) -> Point:
        """The Riemannian gradient, horizontal, of a function with the Euclidean `derivative` (autograd's) at `x`."""
        form, ndim = self._form(x), self.group.batch_ndim(x)
        _, pull_back = torch.func.vjp(lambda y: moved(self.group, form.xi, y), form.point)[:2]
        covector = flatten(pull_back(derivative)[0], ndim)
        w = self._flat_weights(x, ndim)
        gradient = unflatten(covector if w is None else covector / w, x, ndim)
        return self._push(form, self._horizontal_at(form.point, gradient))

    def components(self, x: Point, u: Point) -> Point:
        """`u` in a frame that moves with the group: a point whose squares sum to <u, u>_x, the same at g.x.

        Element-wise optimisers take their second moments from it. Where the action moves every entry by itself, the frame is
        that of the canonical representative, carried along; else no element-wise frame moves with the group, and every entry
        is |u|_x / sqrt(N).
        """
        form, ndim = self._form(x), self.group.batch_ndim(x)
        pulled = flatten(self._pull(form, x, u), ndim)
        w = self._flat_weights(x, ndim)
        pulled = pulled if w is None else pulled * w.sqrt()
        level = pulled.norm(dim=-1, keepdim=True) / math.sqrt(pulled.shape[-1])
        own = self._acts_by_entry(form, ndim)[..., None]
        return unflatten(torch.where(own, pulled, level.expand_as(pulled)), x, ndim)

    def _acts_by_entry(self, form: Canonical, ndim: int) -> Tensor:
        """Whether the derivative of a generic move at the canonical representative is diagonal; shape (*batch)."""
        k = torch.arange(form.xi.shape[-1], dtype=form.xi.dtype, device=form.xi.device)
        xi = (0.4 + 0.2 * (1.7 * k).cos()).expand_as(form.xi)
        ones = torch.ones_like(flatten(form.point, ndim))
        bent = ones + 0.5 * torch.arange(ones.shape[-1], dtype=ones.dtype, device=ones.device).mul(1.3).add(0.7).cos()

        def derivative(direction: Tensor) -> Tensor:
            along = unflatten(direction, form.point, ndim)
            return flatten(pushforward(lambda y: moved(self.group, xi, y), form.point, along), ndim)

        straight = derivative(ones)
        rest = (derivative(bent) - bent * straight).abs().amax(-1)
        return rest <= torch.finfo(rest.dtype).eps ** 0.5 * straight.abs().amax(-1)

    # ------------------------------------------------------------------------------------------------ motions

    def retract(self, x: Point, u: Point) -> Point:
        """A point on the curve through `x` with velocity `u`, horizontal; second order is promised by closed forms only."""
        form = self._form(x)
        return moved(self.group, form.xi, map_blocks(torch.add, form.point, self._pull(form, x, u)))

    def follow(self, x: Point, y: Point, check: Check = unchecked) -> Point:
        """Where a step of an optimiser from `x` to `y` leads: `retract` along the horizontal component of y - x.

        Without derivatives, and perhaps in the memory of both.

        Args:
            x: Where the step began; may be overwritten.
            y: Where it led to; may be overwritten, with the answer.
            check: Is handed, once, a tensor that is finite only where the answer is; may raise, and `y` is where it was, up to rounding.

        Returns:
            The answer.
        """
        near = self.remembering()
        answer = near.retract(x, near.horizontal(x, map_blocks(torch.sub, y, x)))
        for values in blocks_of(answer).values():
            check(values)
        return answer

    def stepping(self) -> "Geometry":
        """This geometry for many calls of `follow`, at points near one another.

        What it keeps from one call to the next changes how long an answer takes, and beyond rounding not the answer.
        """
        return self

    def exp(self, x: Point, u: Point) -> Point:
        """The geodesic of the quotient from `x` with horizontal velocity `u`, at time 1.

        Raises:
            NotImplementedError: The group has no closed form.
        """
        raise self._absent("exp", "use retract")

    def log(self, x: Point, y: Point) -> Point:
        """The horizontal velocity at `x` of the shortest geodesic to the orbit of `y`.

        Raises:
            NotImplementedError: The group has no closed form.
        """
        raise self._absent("log", "use align and the difference")

    def dist(self, x: Point, y: Point) -> Tensor:
        """The length of the shortest path between the orbits of `x` and `y`; shape (*batch).

        Raises:
            NotImplementedError: The group has no closed form.
        """
        raise self._absent("dist", "use align and the norm of the difference")

    def squared_dist(self, x: Point, y: Point) -> Tensor:
        """The square of `dist`; closed forms keep it smooth where the orbits coincide."""
        return self.dist(x, y).square()

    def align(self, x: Point, to: Point) -> Point:
        """The representative of the orbit of `x` closest to `to`, measured at the canonical representative of `to`."""
        form = self._form(to)
        return moved(self.group, form.xi, self.group.closest(x, form.point, self.weights).point)

    def transport(self, x: Point, y: Point, v: Point) -> Point:
        """`v` at `x`, carried to `y`: by the frame of the group and horizontal projection. Linear and equivariant."""
        start, end = self._form(x), self._form(y)
        return self._push(end, self._horizontal_at(end.point, self._pull(start, x, v)))

    def step_at(self, x: Point) -> "StepGeometry | None":
        """The geometry at `x` for a step of an optimiser, without derivatives; None where there is no short cut, or no quotient."""
        del x
        return None

    # ------------------------------------------------------------------------------------------------ private

    def remembering(self) -> "Geometry":
        """A copy that remembers the canonical representatives of the last two points, for several operations at one point.

        One step of an optimiser asks for a representative seven times, and without a closed form each answer is a Newton
        iteration. The copy is for callers that see every write to the points while they hold it: one through `.data` shows nowhere.
        """
        other = copy.copy(self)
        other._recent = []
        return other

    def _form(self, x: Point) -> Canonical:
        """The canonical representative of `x`."""
        tensors = list(blocks_of(x).values())
        if self._recent is None or any(t.requires_grad or not concrete(t) or t.is_inference() for t in tensors):
            return self.group.canonical(x, self.weights)
        versions = [t._version for t in tensors]
        for known, seen, form in self._recent:
            if len(known) == len(tensors) and all(map(operator.is_, known, tensors)) and seen == versions:
                return form
        form = self.group.canonical(x, self.weights)
        self._recent = [(tensors, versions, form), *self._recent[:1]]
        return form

    def _flat_weights(self, x: Point, ndim: int) -> Tensor | None:
        return flat_weights(self.group.entry_weights(self.weights, x), x, ndim)

    def _pull(self, form: Canonical, x: Point, u: Point) -> Point:
        """`u` at `x`, carried to the canonical representative."""
        return pushforward(lambda y: self.group.undo(form.xi, y), x, u)

    def _push(self, form: Canonical, u: Point) -> Point:
        """`u` at the canonical representative, carried to the point that it represents."""
        return pushforward(lambda y: moved(self.group, form.xi, y), form.point, u)

    def _horizontal_at(self, y: Point, u: Point) -> Point:
        """`u` less its component along the orbit in the weighted Euclidean metric, for canonical `y`."""
        ndim = self.group.batch_ndim(y)
        rows = flatten_basis(self.group.vertical_basis(y), y, ndim)
        w = self._flat_weights(y, ndim)
        root = None if w is None else w.sqrt()
        vector = flatten(u, ndim)
        scaled, right = (rows, vector) if root is None else (rows * root, vector * root)
        if rows.shape[-2] == 0:
            return u
        left, values, _ = torch.linalg.svd(scaled.mT, full_matrices=False)  # a stabiliser has singular value 0
        cut = values > max(scaled.shape[-2:]) * torch.finfo(values.dtype).eps * values[..., :1]
        basis = left * cut[..., None, :]
        right = right - (basis @ (basis.mT @ right[..., None]))[..., 0]
        return unflatten(right if root is None else right / root, y, ndim)

    def _absent(self, operation: str, instead: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self.group).__name__} has no closed form of `{operation}`; {instead}")

"""Parts: a group on blocks, for a model that keeps all its parameters in one vector."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from manifoldid.groups.base import Canonical, GaugeGroup, same_value
from manifoldid.groups.geometry import Check, Geometry, unchecked
from manifoldid.groups.orbit import flatten_basis
from manifoldid.groups.product import Product
from manifoldid.points import Point, Weights, flatten

_REST = "rest of the vector"  # the block of the entries that are in no part


class Parts(GaugeGroup):
    """A group on dict points, acting on a vector whose parts are the blocks.

    `mid.Parts(mid.GeneralLinear("U", "V"), U=torch.arange(8).reshape(4, 2), V=torch.arange(8, 18).reshape(5, 2))` acts on vectors
    x of which x[:8] is U and x[8:18] is V, row by row; what is in no part is left alone. Everything is that of the group on
    blocks, entries being only picked and put back: canonical representative, coordinates, metric. Item weights of a vector are
    those of the entries of its parts; rows of a matrix weigh the mean of their entries.

    Args:
        group: A group that acts on dict points, `Product(block=...)` for a group on one tensor.
        **parts: For each block the places of its entries in the vector: integers, shaped like the block.

    Raises:
        TypeError: `group` is no group, or a part holds no integers.
        ValueError: A place is negative or in two parts, or the blocks of `group` are not all there.
    """

    event_dim = 1

    def __init__(self, group: GaugeGroup, /, **parts: Tensor):
        if not isinstance(group, GaugeGroup) or not group.block_names:
            raise TypeError(
                f"`group` must be a group on the blocks of a dict, such as mid.Product(x=...), got {group!r}"
            )
        missing = sorted(set(group.block_names) - parts.keys())
        if missing or not parts:
            raise ValueError(f"`parts` lacks the blocks {missing} of {group}; it has {sorted(parts)}")
        for name, places in parts.items():
            if not isinstance(places, Tensor) or places.dtype != torch.int64:
                raise TypeError(f"`parts` must be long tensors of places in the vector, got {places!r} for {name!r}")
        taken = torch.cat([places.reshape(-1) for places in parts.values()])
        if bool((taken < 0).any()) or len(taken.unique()) < len(taken):
            raise ValueError("`parts` must not overlap, and places count from 0: some place is negative or named twice")
        self.group, self.parts = group, dict(parts)
        self._inside = group if isinstance(group, Product) else Product(group)
        # entries of positive blocks are kept positive by the geometry, not in their logarithm: that is for whole tensors
        positive = any(factor.positive for factor, _ in self._inside.factors())
        self.flat, self.arithmetic = self._inside.flat and not positive, self._inside.arithmetic
        self._taken = taken

    # ------------------------------------------------------------------------------------------------ picking and putting

    def blocks(self, x: Tensor) -> dict[str, Tensor]:
        """The parts of a vector (*batch, n), and the rest of it."""
        picked = {name: x[..., self._at(places, x)].unflatten(-1, places.shape) for name, places in self.parts.items()}
        rest = self._rest(x)
        return {**picked, _REST: x[..., rest]} if len(rest) else picked

    def vector(self, blocks: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `blocks`."""
        ndim = blocks[next(iter(self.parts))].ndim - next(iter(self.parts.values())).ndim
        flat = flatten(blocks, ndim)
        rest = blocks.get(_REST, flat[..., :0])
        order = torch.cat([self._at(self._taken, flat), self._rest(flat, len(self._taken) + rest.shape[-1])])
        return flat[..., torch.argsort(order)]

    def _at(self, places: Tensor, x: Tensor) -> Tensor:
        return places.reshape(-1).to(x.device)

    def _rest(self, x: Tensor, size: int | None = None) -> Tensor:
        size = x.shape[-1] if size is None else size
        free = torch.ones(size, dtype=torch.bool)
        free[self._taken] = False
        return free.nonzero()[:, 0].to(x.device)

    def part_weights(self, weights: Weights) -> Weights:
        """Item weights (n,) of the vector as those of the items of its parts."""
        if weights is None:
            return None
        return {
            name: w if w.ndim < 2 else w.flatten(1).mean(1) for name, w in self.blocks(torch.as_tensor(weights)).items()
        }

    # ------------------------------------------------------------------------------------------------ the group

    def dimension(self, x: Point) -> int:
        return self._inside.dimension(self.blocks(x))

    def validate(self, x: Any, name: str = "point") -> Point:
        x = super().validate(x, name)
        least = int(self._taken.max()) + 1
        if not isinstance(x, Tensor) or x.shape[-1] < least:
            raise ValueError(
                f"`{name}` must be a tensor whose last dimension has at least {least} entries, got {_shape(x)}"
            )
        self._inside.validate(self.blocks(x), name)
        return x

    def act(self, xi: Tensor, x: Point) -> Point:
        return self.vector(self._inside.act(xi, self.blocks(x)))

    def undo(self, xi: Tensor, x: Point) -> Point:
        return self.vector(self._inside.undo(xi, self.blocks(x)))

    def vertical_basis(self, x: Point) -> Point:
        blocks = self.blocks(x)
        rows = flatten_basis(self._inside.vertical_basis(blocks), blocks, x.ndim - 1)
        order = torch.cat([self._at(self._taken, x), self._rest(x)])
        return rows[..., torch.argsort(order)]

    def canonical(self, x: Point, weights: Weights = None) -> Canonical:
        return self._put(self._inside.canonical(self.blocks(x), self.part_weights(weights)))

    def closest(self, x: Point, to: Point, weights: Weights = None) -> Canonical:
        return self._put(self._inside.closest(self.blocks(x), self.blocks(to), self.part_weights(weights)))

    def _put(self, form: Canonical) -> Canonical:
        return Canonical(self.vector(form.point), form.xi, form.regular)

    def regular_columns(self) -> list[tuple[GaugeGroup, str]]:
        return self._inside.regular_columns()

    def generator_names(self, x: Point) -> list[str]:
        return self._inside.generator_names(self.blocks(x))

    def geometry(self, weights: Weights = None) -> "PartsGeometry":
        return PartsGeometry(self, weights)

    def __repr__(self) -> str:
        return f"Parts({self.group!r}, {', '.join(f'{name}={_code(places)}' for name, places in self.parts.items())})"

    def __str__(self) -> str:
        """See the base class."""
        short = {name: _code(at) if at.numel() <= 12 else f"<{_shape(at)}>" for name, at in self.parts.items()}
        return f"Parts({', '.join([str(self.group), *map('='.join, short.items())])})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parts) and self.group == other.group and same_value(self.parts, other.parts)

    def __hash__(self) -> int:
        return hash((self.group, tuple(self.parts)))


class PartsGeometry(Geometry):
    """The geometry of the group on blocks."""

    group: Parts

    def __init__(self, group: Parts, weights: Weights):
        super().__init__(group, weights)
        self.inside = group._inside.geometry(group.part_weights(weights))
        self.isometric = self.inside.isometric

    def _inside_of(self, operation: Callable[..., Point], *vectors: Tensor) -> Tensor:
        return self.group.vector(operation(*(self.group.blocks(v) for v in vectors)))

    def inner(self, x: Point, u: Point, v: Point) -> Tensor:
        return self.inside.inner(*(self.group.blocks(t) for t in (x, u, v)))

    def horizontal(self, x: Point, u: Point) -> Point:
        return self._inside_of(self.inside.horizontal, x, u)

    def gradient(self, x: Point, derivative: Point) -> Point:
        return self._inside_of(self.inside.gradient, x, derivative)

    def components(self, x: Point, u: Point) -> Point:
        return self._inside_of(self.inside.components, x, u)

    def retract(self, x: Point, u: Point) -> Point:
        return self._inside_of(self.inside.retract, x, u)

    def follow(self, x: Point, y: Point, check: Check = unchecked) -> Point:
        answer = self._inside_of(self.inside.follow, x, y)
        check(answer)
        return answer

    def stepping(self) -> "PartsGeometry":
        other = copy.copy(self)
        other.inside = self.inside.stepping()
        return other

    def exp(self, x: Point, u: Point) -> Point:
        return self._inside_of(self.inside.exp, x, u)

    def log(self, x: Point, y: Point) -> Point:
        return self._inside_of(self.inside.log, x, y)

    def dist(self, x: Point, y: Point) -> Tensor:
        return self.inside.dist(self.group.blocks(x), self.group.blocks(y))

    def squared_dist(self, x: Point, y: Point) -> Tensor:
        return self.inside.squared_dist(self.group.blocks(x), self.group.blocks(y))

    def align(self, x: Point, to: Point) -> Point:
        return self._inside_of(self.inside.align, x, to)

    def transport(self, x: Point, y: Point, v: Point) -> Point:
        return self._inside_of(self.inside.transport, x, y, v)


def _code(places: Tensor) -> str:
    """The tensor of places as code, a range where it is one."""
    flat = places.reshape(-1)
    if len(flat) and bool((flat == torch.arange(int(flat[0]), int(flat[0]) + len(flat))).all()):
        start, stop = int(flat[0]), int(flat[0]) + len(flat)
        text = f"torch.arange({stop})" if start == 0 else f"torch.arange({start}, {stop})"
        return text if places.ndim == 1 else f"{text}.reshape{tuple(places.shape)}"
    return f"torch.tensor({places.tolist()})"


def _shape(x: Point) -> str:
    return f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else "a dict"

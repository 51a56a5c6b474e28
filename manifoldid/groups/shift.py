"""Shift: x -> x + sum_k xi_k d_k along given directions."""

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manifoldid._linalg import widened
from manifoldid.groups._euclidean import EuclideanGeometry
from manifoldid.groups.base import Canonical, GaugeGroup, Settler, require_one_place
from manifoldid.points import (
    Point,
    Shards,
    Weights,
    blocks_of,
    cast_like,
    concrete,
    event_numel,
    first,
    flat_shares,
    flat_weights,
    flatten,
    unflatten,
)

_LONG, _STAGE = 1 << 15, 1 << 12  # longer sums of products are sums of sums of so many

Direction = Mapping[str, Tensor | float | int]


@dataclass(frozen=True, eq=False, repr=False)
class Shift(GaugeGroup):
    """x -> x + sum_k xi_k d_k. Canonical: least weighted norm. Coordinates: xi_k, one per direction.

    Rasch (`{"theta": 1, "beta": 1}`), biases (`{"user": 1, "item": -1}`), the null space of a design (`directions` (k, n)),
    sequence maps.

    Args:
        directions: A tensor (k, *point); or a dict from block names to tensors shaped like the block or numbers, which
            stand for the whole block; or a list of such dicts, one per direction.

    Batch: a tensor direction says how many trailing dimensions of its block are one point. Where all directions are numbers,
    the block with the fewest dimensions is taken to have one of them; give `torch.tensor(1.0)` for a block that is a scalar
    in every batch entry.
    """

    directions: Any
    flat = True
    arithmetic = True

    def __post_init__(self) -> None:
        directions = self.directions
        if isinstance(directions, Tensor):
            if directions.ndim < 1 or not directions.is_floating_point():
                raise ValueError(
                    f"`directions` must be a floating tensor (k, *point), got {directions.dtype} {tuple(directions.shape)}"
                )
            frozen: Any = directions.detach().clone()
            names: tuple[str, ...] = ()
        else:
            frozen, names = _frozen_dicts(directions)
        object.__setattr__(self, "directions", frozen)
        object.__setattr__(self, "block_names", names)
        object.__setattr__(self, "event_dim", frozen.ndim - 1 if isinstance(frozen, Tensor) else 0)

    def on_items(self, rows: dict[str, Tensor]) -> "Shift":
        """See `GaugeGroup.on_items`: the directions at these items."""
        return self.with_items(lambda name, values: values[rows[name].to(values.device)])

    def with_items(self, of: Callable[[str, Tensor], Tensor]) -> "Shift":
        """See `GaugeGroup.with_items`: the directions at these items."""

        def part(name: str, d: Any) -> Any:
            return of(name, d) if isinstance(d, Tensor) and d.ndim else d

        if isinstance(self.directions, Tensor):
            return Shift(torch.stack([part("", d) for d in self.directions]))
        return Shift([{name: part(name, d) for name, d in direction.items()} for direction in self.directions])

    def on_shards(self, shards: Shards) -> "Shift":
        """See `GaugeGroup.on_shards`; directions are those of the items here."""
        group = copy.copy(self)
        object.__setattr__(group, "shards", shards)
        return group

    def dimension(self, x: Point) -> int:
        return len(self.directions)

    def batch_ndim(self, x: Point) -> int:
        if isinstance(self.directions, Tensor):
            return max(0, first(x).ndim - self.event_dim)
        given = {
            x[b].ndim - d.ndim for direction in self.directions for b, d in direction.items() if isinstance(d, Tensor)
        }
        if len(given) > 1:
            raise ValueError(f"`point` has blocks whose batch dimensions do not agree with the directions of {self}")
        if given:
            return given.pop()
        return max(0, min(x[name].ndim for name in self.block_names) - 1)

    def validate(self, x: Any, name: str = "point") -> Point:
        x = super().validate(x, name)
        if isinstance(self.directions, Tensor):
            if not isinstance(x, Tensor):
                raise ValueError(f"`{name}` must be a tensor for the directions of {type(self).__name__}, got a dict")
            if x.shape[self.batch_ndim(x) :] != self.directions.shape[1:]:
                raise ValueError(
                    f"`{name}` must end in the shape {tuple(self.directions.shape[1:])} of the directions, got {tuple(x.shape)}"
                )
            return x
        ndim = self.batch_ndim(x)
        for direction in self.directions:
            for block, d in direction.items():
                if isinstance(d, Tensor) and x[block].shape[ndim:] != d.shape:
                    raise ValueError(
                        f"`{name}[{block!r}]` must end in the shape {tuple(d.shape)} of its direction, got {tuple(x[block].shape)}"
                    )
        return x

    def vertical_basis(self, x: Point) -> Point:
        ndim = self.batch_ndim(x)
        if isinstance(self.directions, Tensor):
            d = self.directions.to(dtype=x.dtype, device=x.device)
            return d.expand(*x.shape[:ndim], *d.shape)
        basis = {}
        for name, t in blocks_of(x).items():
            rows = [self._direction(direction.get(name, 0.0), t, ndim) for direction in self.directions]
            basis[name] = torch.stack(rows).expand(*t.shape[:ndim], len(rows), *t.shape[ndim:])
        return basis

    @staticmethod
    def _direction(d: Tensor | float | int, t: Tensor, ndim: int) -> Tensor:
        if isinstance(d, Tensor):
            return d.to(dtype=t.dtype, device=t.device)
        return torch.full(t.shape[ndim:], d, dtype=t.dtype, device=t.device)

    def _matrix(self, x: Point) -> Tensor:
        """The directions as rows (k, N) beside `flatten(x)`."""
        ndim = self.batch_ndim(x)
        one = {name: t.new_empty(t.shape[ndim:]) for name, t in blocks_of(x).items()}
        if isinstance(x, Tensor):
            return (
                self.directions.to(dtype=x.dtype, device=x.device).flatten(1)
                if self.event_dim
                else self.vertical_basis(one[""])[:, None]
            )
        return torch.stack(
            [
                torch.cat([self._direction(d.get(name, 0.0), t, 0).reshape(-1) for name, t in one.items()])
                for d in self.directions
            ]
        )

    def act(self, xi: Tensor, x: Point) -> Point:
        ndim = self.batch_ndim(x)
        return unflatten(flatten(x, ndim) + xi @ self._matrix(x), x, ndim)

    def undo(self, xi: Tensor, x: Point) -> Point:
        return self.act(-xi, x)

    def canonical(self, x: Point, weights: Weights = None) -> Canonical:
        return self._nearest(x, flatten(widened(x), self.batch_ndim(x)), weights)

    def closest(self, x: Point, to: Point, weights: Weights = None) -> Canonical:
        ndim = self.batch_ndim(x)
        return self._nearest(x, flatten(widened(x), ndim) - flatten(widened(to), ndim), weights)

    def _nearest(self, x: Point, difference: Tensor, weights: Weights) -> Canonical:
        """Moves `x` so that `difference` gets its least weighted norm.

        In float64 where the device has it, and in two passes for devices that do not: far from the section, the small
        representative is the difference of two large float32 numbers.
        """
        ndim, wide = self.batch_ndim(x), widened(x)
        rows, measures = self.settling_rows(wide, weights)
        vector, xi = flatten(wide, ndim), difference.new_zeros(*difference.shape[:-1], rows.shape[0])
        for _ in range(2):
            step = self.across(difference @ measures.mT)
            xi, difference, vector = xi + step, difference - step @ rows, vector - step @ rows
        return Canonical(cast_like(unflatten(vector, wide, ndim), x), xi.to(flatten(x, ndim).dtype))

    def _check_rank(self, columns: Tensor, culprit: str, items: int = 0) -> None:
        """Refuses columns (m, k) that are dependent up to the rounding of `items` numbers (at least m)."""
        tolerance = max(items, *columns.shape) * torch.finfo(columns.dtype).eps
        if concrete(columns) and int(torch.linalg.matrix_rank(columns, rtol=tolerance)) < columns.shape[1]:
            raise ValueError(
                f"`{culprit}` leave the {columns.shape[1]} directions of {type(self).__name__} linearly dependent at this point: "
                "give independent directions, and positive weights where they differ"
            )

    def reference_frame(self, x: Point, index: Any) -> Canonical:
        """`index`: one flat index per direction; for dict points a dict from block names to an index or a list of them."""
        require_one_place(self)
        ndim, rows = self.batch_ndim(x), self._matrix(x)
        columns = self._reference_columns(x, index, ndim)
        square = rows[:, columns]
        self._check_rank(widened(square.mT), "index")
        vector = flatten(x, ndim)
        xi = torch.linalg.solve(square.mT, vector[..., columns, None])[..., 0]
        moved = vector - xi @ rows
        zero = torch.zeros(moved.shape[-1], dtype=torch.bool, device=moved.device)
        zero[columns] = True
        return Canonical(unflatten(torch.where(zero, torch.zeros_like(moved), moved), x, ndim), xi)

    def _reference_columns(self, x: Point, index: Any, ndim: int) -> list[int]:
        by_block = index if isinstance(index, Mapping) else {"": index}
        columns, start = [], 0
        for name, t in blocks_of(x).items():
            size = event_numel(t, ndim)
            chosen = by_block.get(name, [])
            for item in [chosen] if isinstance(chosen, int) else list(chosen):
                if not -size <= item < size:
                    raise ValueError(f"`index` of Reference is {item}, but block {name!r} has {size} items")
                columns.append(start + item % size)
            start += size
        unknown = set(by_block) - set(blocks_of(x))
        if unknown or len(columns) != len(self.directions):
            raise ValueError(
                f"`index` of Reference needs {len(self.directions)} reference item(s), one per direction of {self}, got {index!r}"
            )
        return columns

    def settler(self, weights: Weights = None) -> Settler:
        return _ShiftSettler(self, weights)

    def settling_rows(self, x: Point, weights: Weights) -> tuple[Tensor, Tensor]:
        """The directions, and the rows whose products with a point are how far it is shifted along them, both (k, N).

        Raises:
            ValueError: The directions are linearly dependent, or the weights do not fit.
        """
        ndim, rows = self.batch_ndim(x), self._matrix(x)
        factors = (flat_weights(weights, x, ndim, self.shards), flat_shares(x, ndim, self.shards))
        root = functools.reduce(torch.mul, [w.sqrt() for w in factors if w is not None], torch.ones_like(rows[0]))
        columns = (rows * root).mT
        q, r = torch.linalg.qr(columns)
        items = columns.shape[0]
        if self.shards is not None:  # the factor of all items is that of the factors of all ranks, one under the other
            r = torch.nn.functional.pad(r, (0, 0, 0, r.shape[1] - r.shape[0]))
            r = torch.linalg.qr(self.shards.rows(r).flatten(0, 1)).R
            items = int(self.shards.count(items, rows)) if concrete(r) else items
        self._check_rank(r, "directions" if weights is None else "weights", items)
        if self.shards is not None:
            q = torch.linalg.solve_triangular(r, columns, upper=True, left=False)
        return rows, torch.linalg.solve_triangular(r, q.mT, upper=True) * root

    def geometry(self, weights: Weights = None) -> EuclideanGeometry:
        return EuclideanGeometry(self, weights)

    def generator_names(self, x: Point) -> list[str]:
        if isinstance(self.directions, Tensor):
            return [f"shift along direction {k}" for k in range(len(self.directions))]
        return [f"shift of {', '.join(direction)}" for direction in self.directions]


class _Part(NamedTuple):
    """What shifts do to one block: directions and measuring rows (k, n), or one number of each that stands for the block (k, 1)."""

    rows: Tensor
    measures: Tensor
    constant: bool


class _ShiftSettler:
    """Takes the shifts out, in place, block by block; see `GaugeGroup.settler`."""

    def __init__(self, group: Shift, weights: Weights):
        self._group, self._weights = group, weights
        self._known: tuple[list, dict[str, _Part]] | None = None

    def __call__(self, x: Point) -> Canonical | None:
        """The canonical form of `x`, in its memory; None where it is not finite."""
        blocks, ndim = blocks_of(x), self._group.batch_ndim(x)
        batch = first(x).shape[:ndim]
        flat = {name: t.view(batch.numel(), t.shape[ndim:].numel()) for name, t in blocks.items()}
        parts = self._parts(x, flat)
        xi = self._group.across(
            functools.reduce(torch.add, [_measured(flat[name], part) for name, part in parts.items()])
        )
        if xi.device.type == "cpu" and not math.isfinite(xi.sum()):
            return None  # what is wrong is said before anything is written
        for name, part in parts.items():
            own = xi.to(flat[name].dtype)
            if part.constant:
                flat[name].sub_(own @ part.rows)
            else:
                flat[name].addmm_(own, part.rows, alpha=-1)
        return Canonical(x, xi.view(*batch, xi.shape[-1]))

    def _parts(self, x: Point, flat: dict[str, Tensor]) -> dict[str, _Part]:
        """Found and checked once for points of one kind."""
        kind = [(name, t.shape[1], t.dtype, t.device) for name, t in flat.items()]
        if self._known is None or self._known[0] != kind:
            rows, measures = self._group.settling_rows(widened(x), self._weights)
            sizes = [t.shape[1] for t in flat.values()]
            pieces = zip(flat, rows.split(sizes, dim=1), measures.split(sizes, dim=1), strict=True)
            self._known = kind, {name: _part(of, by, flat[name].dtype) for name, of, by in pieces}
        return self._known[1]


def _part(rows: Tensor, measures: Tensor, dtype: torch.dtype) -> _Part:
    constant = rows.shape[1] > 0 and _is_constant(rows) and _is_constant(measures)
    rows, measures = (rows[:, :1], measures[:, :1]) if constant else (rows, measures)
    return _Part(rows.to(dtype).contiguous(), measures.to(dtype).contiguous(), constant)


def _is_constant(rows: Tensor) -> bool:
    """Whether every row is one number, up to the rounding of a decomposition, where that can be seen."""
    if not concrete(rows):
        return False
    rounding = rows.shape[1] * torch.finfo(rows.dtype).eps * rows.abs().max()
    return bool(((rows - rows[:, :1]).abs() <= rounding).all())


def _measured(x: Tensor, part: _Part) -> Tensor:
    """Products of the points (b, n) with the measuring rows of a block, (b, k)."""
    if part.constant:
        return x.sum(-1, keepdim=True) @ part.measures.mT
    if x.shape[1] <= _LONG:
        return x @ part.measures.mT
    head = x.shape[1] - x.shape[1] % _STAGE  # in two stages: one float32 sum of 1e6 products loses digits
    stages, factors = (t[:, :head].unflatten(1, (-1, _STAGE)).movedim(1, 0) for t in (x, part.measures))
    return torch.bmm(stages, factors.mT).sum(0) + x[:, head:] @ part.measures[:, head:].mT


def _frozen_dicts(directions: Any) -> tuple[tuple[dict[str, Tensor | float | int], ...], tuple[str, ...]]:
    entries = [directions] if isinstance(directions, Mapping) else directions
    if not isinstance(entries, Sequence) or not entries or not all(isinstance(d, Mapping) and d for d in entries):
        raise TypeError(
            "`directions` must be a tensor (k, *point), a dict from block names to tensors or numbers, or a list of such "
            f"dicts, got {type(directions).__name__}"
        )
    frozen = tuple({k: _frozen(v, k) for k, v in direction.items()} for direction in entries)
    names = tuple(dict.fromkeys(name for direction in frozen for name in direction))
    return frozen, names


def _frozen(value: Any, name: str) -> Tensor | float | int:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    raise TypeError(f"`directions` of block {name!r} must be a tensor or a number, got {type(value).__name__}")

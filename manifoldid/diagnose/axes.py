"""Fields along the axes of tensors, of any size: what one member of an axis, or a pair of them, does in all tensors that share it.

A gauge that mixes the r members of an axis (units of a layer, columns of factors, dimensions of a head) is spanned by maps
X -> X E_ij of the tensors X that have an axis of length r, with coefficients that depend on the pair (i, j) and no other: GL(r)
between factors by E_ij on one and -E_ji on the other, rotations by E_ij - E_ji, scales of units by E_ii, all of it for each head
where a further axis counts heads. So the search falls into small systems, one for each pair: for random w the numbers
<J'w, X E_ij> of all pairs are the product X' (J'w), and the null space of the few columns of a pair is what the pair can do.
Shifts of the i-th member, alone or against the i-th member of another tensor in a third one (a mean against an intercept), are
one small system for each i.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manifoldid.diagnose.fields import ClosedField, snapped
from manifoldid.points import Point, blocks_of

_MOST_MIXED = 160  # length of an axis whose members are mixed; those of longer ones are scaled and shifted
_MOST_HEADS = 64
_MOST_VIEWS = 40  # tensors that share an axis
_ROUNDING = 1e-9  # singular values relative to the largest, fields and functionals being of length 1
_FLOOR = 1e-4  # the largest is at least that, unless predictions see nothing
_ZERO = 1e-7  # of a coefficient

Places = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, eq=False)
class View:
    """A tensor by one of its axes: places (heads, rest, r) of its entries in the flat vector.

    Attributes:
        block: Name of the tensor.
        axis: Which axis comes last; -1 for the whole tensor as one member.
        places: Places of the entries.
    """

    block: str
    axis: int
    places: Tensor


@dataclass(frozen=True, eq=False)
class _Slot:
    """A term that every system of a family has: `targets` move by the value of `sources`, or by 1.

    Attributes:
        seen: What functionals see of it (functionals, systems).
        size: Its length (systems,).
        places: Targets and sources (m,) of a system.
    """

    seen: Tensor
    size: Tensor
    places: Callable[[int], Places]


def views_of(like: Point) -> dict[tuple[int, int], list[View]]:
    """All tensors by each of their axes, by the numbers (heads, r), most heads first; whole tensors are (1, 1)."""
    found: dict[tuple[int, int], list[View]] = {}
    start = 0
    for name, t in blocks_of(like).items():
        shape = (*t.shape, 2) if t.is_complex() else tuple(t.shape)
        place = start + torch.arange(math.prod(shape)).reshape(shape)
        start += place.numel()
        found.setdefault((1, 1), []).append(View(name, -1, place.reshape(1, -1, 1)))
        for axis, r in enumerate(shape):
            if r > 1:
                found.setdefault((1, r), []).append(View(name, axis, place.movedim(axis, -1).reshape(1, -1, r)))
        for head, axis in itertools.permutations(range(len(shape)), 2) if len(shape) > 2 else ():
            if 1 < shape[head] <= _MOST_HEADS and shape[axis] > 1:
                places = place.movedim((head, axis), (0, -1)).reshape(shape[head], -1, shape[axis])
                found.setdefault((shape[head], shape[axis]), []).append(View(name, axis, places))
    return dict(sorted(found.items(), key=lambda item: (-item[0][0], -item[0][1])))


class AxisFields:
    """Vertical fields along the axes of the blocks of a point."""

    def __init__(self, like: Point, points: list[Tensor], functionals: list[Tensor], scale: Tensor):
        """Takes what predictions see.

        Args:
            like: The point, for its shapes.
            points: Flat points (n,).
            functionals: At each point rows (k, n) that vanish on null vectors in the scaled coordinates x / scale.
            scale: Units (n,) of the coordinates.
        """
        self.like, self.points, self.scale = like, points, scale
        self.rows = [rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300) / scale for rows in functionals]
        self.views = {key: views for key, views in views_of(like).items() if len(views) <= _MOST_VIEWS}

    @staticmethod
    def functionals_wanted(like: Point) -> int:
        """How many functionals per point decide all systems."""
        return 2 * min(_MOST_VIEWS, max(len(views) for views in views_of(like).values())) + 6

    def found(self, most: int) -> list[ClosedField] | None:
        """The fields, those that move least first; values may depend on each other. None if there are more than `most`."""
        fields: list[ClosedField] = []
        for slots in self._systems():
            new = self._solved(slots, most - len(fields))
            if new is None:
                return None
            fields += new
        return fields

    def _systems(self) -> Iterator[list[_Slot]]:
        for (_, r), views in self.views.items():
            yield [self._scaled(v) for v in views]
            if 1 < r <= _MOST_MIXED:
                pairs = [self._mixed(v) for v in views]
                yield [forth for forth, _ in pairs] + [back for _, back in pairs]
        for views in self.views.values():
            yield [self._shifted(v) for v in views] + [slot for v in views for slot in self._across(v)]

    # ------------------------------------------------------------------------------------------------ slots

    def _at_points(self, view: View) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Entries (heads, rest, r), what is seen of them (functionals, heads, rest, r), and their units."""
        for x, rows in zip(self.points, self.rows, strict=True):
            yield x[view.places], rows[:, view.places], self.scale[view.places]

    def _scaled(self, view: View) -> _Slot:
        seen, square = [], torch.zeros(view.places.shape[::2], dtype=torch.float64)
        for x, g, unit in self._at_points(view):
            seen.append((g * x).sum(2).flatten(1))
            square += (x / unit).square().sum(1)
        members = view.places.movedim(1, 2).flatten(0, 1)
        return _Slot(torch.cat(seen), square.sqrt().flatten(), lambda k: (members[k], members[k]))

    def _shifted(self, view: View) -> _Slot:
        seen, square = [], torch.zeros(view.places.shape[::2], dtype=torch.float64)
        for _, g, unit in self._at_points(view):
            seen.append(g.sum(2).flatten(1))
            square += unit.square().reciprocal().sum(1)
        members = view.places.movedim(1, 2).flatten(0, 1)
        return _Slot(torch.cat(seen), square.sqrt().flatten(), lambda k: (members[k], None))

    def _mixed(self, view: View) -> tuple[_Slot, _Slot]:
        """Member i added to member j of an axis for i < j, and j to i."""
        heads, _, r = view.places.shape
        seen, square = [], torch.zeros(heads, r, r, dtype=torch.float64)
        for x, g, unit in self._at_points(view):
            seen.append(x.mT @ g)
            square += x.square().mT @ unit.square().reciprocal()
        table, size = torch.cat(seen), square.sqrt()
        i, j = torch.triu_indices(r, r, 1)

        def slot(source: Tensor, target: Tensor) -> _Slot:
            def places(k: int) -> Places:
                h, pair = divmod(k, len(i))
                return view.places[h, :, target[pair]], view.places[h, :, source[pair]]

            return _Slot(table[:, :, source, target].flatten(1), size[:, source, target].flatten(), places)

        return slot(i, j), slot(j, i)

    def _across(self, view: View) -> list[_Slot]:
        """Members of an axis, added to tensors of the shape that is left without it."""
        shapes = {name: tuple(t.shape) for name, t in blocks_of(self.like).items() if not t.is_complex()}
        shape = shapes.get(view.block, ())
        if view.axis < 0 or view.places.shape[0] > 1 or not shape:
            return []
        left = [size for k, size in enumerate(shape) if k != view.axis and size > 1]
        wholes = {v.block: v.places.reshape(-1) for v in self.views.get((1, 1), ())}
        return [
            self._added(view, wholes[name])
            for name, other in shapes.items()
            if name != view.block and name in wholes and [size for size in other if size > 1] == left
        ]

    def _added(self, view: View, target: Tensor) -> _Slot:
        seen, square = [], torch.zeros(view.places.shape[2], dtype=torch.float64)
        for x, rows in zip(self.points, self.rows, strict=True):
            source = x[view.places[0]]  # (rest, r)
            seen.append(rows[:, target] @ source)
            square += (source / self.scale[target, None]).square().sum(0)
        return _Slot(torch.cat(seen), square.sqrt(), lambda k: (target, view.places[0, :, k]))

    # ------------------------------------------------------------------------------------------------ solutions

    def _solved(self, slots: list[_Slot], most: int) -> list[ClosedField] | None:
        """The vertical combinations of every system; None if there are more than `most`."""
        table, size = torch.stack([s.seen for s in slots], dim=-1), torch.stack([s.size for s in slots], dim=-1)
        table = (table / size.clamp_min(1e-300)).movedim(1, 0)  # (systems, functionals, slots)
        if table.shape[1] > 2 * table.shape[2]:
            table = torch.linalg.qr(table, mode="r")[1]
        _, sigma, vh = torch.linalg.svd(table, full_matrices=True)
        ranks = (sigma > _ROUNDING * sigma.max().clamp_min(_FLOOR)).sum(1)
        free = (size > 0).sum(1) - ranks
        if int(free.clamp_min(0).sum()) > most:
            return None
        fields = []
        for k in (free > 0).nonzero()[:, 0].tolist():
            used = size[k] > 0
            null = vh[k, int(ranks[k]) :].mT * used[:, None] / size[k].clamp_min(1e-300)[:, None]
            fields += [self._field(slots, k, c) for c in _echelon(null, size[k])]
        return fields

    def _field(self, slots: list[_Slot], k: int, coefficients: list[float]) -> ClosedField:
        n = len(self.scale)
        constant, rows, columns, entries = None, [], [], []
        terms = [(c, *slot.places(k)) for slot, c in zip(slots, coefficients, strict=True) if c]
        sign = -1.0 if sum(c * len(target) for c, target, _ in terms) < -1e-6 else 1.0  # most of it forward
        for c, target, source in ((sign * c, target, source) for c, target, source in terms):
            if source is None:
                constant = torch.zeros(n, dtype=torch.float64) if constant is None else constant
                constant[target] += c
            else:
                rows.append(target), columns.append(source)
                entries.append(torch.full(target.shape, c, dtype=torch.float64))
        if not rows:
            return ClosedField(n, constant)
        return ClosedField(n, constant, torch.cat(rows), torch.cat(columns), torch.cat(entries))


def _echelon(columns: Tensor, size: Tensor) -> list[list[float]]:
    """Columns (m, d) as combinations that are 1 in the first d rows that allow it and 0 in the others of these."""
    rest, weight, free, pivots = (
        columns.numpy().copy(),
        size.clamp_min(1e-300).numpy(),
        list(range(columns.shape[1])),
        [],
    )
    for row in range(len(rest)):
        if not free:
            break
        lengths = np.linalg.norm(rest * weight[:, None], axis=0)
        values = np.abs(rest[row] * weight[row]) / np.maximum(lengths, 1e-300)
        d = max(free, key=lambda d: values[d])
        if values[d] <= _ZERO:
            continue
        rest[:, d] /= rest[row, d]
        share = rest[row].copy()
        share[d] = 0.0
        rest -= np.outer(rest[:, d], share)
        free.remove(d), pivots.append(d)
    found = rest[:, pivots].T
    small = np.abs(found * weight) <= _ZERO * np.linalg.norm(found * weight, axis=1, keepdims=True)
    return [[snapped(v) if v else 0.0 for v in c.tolist()] for c in np.where(small, 0.0, found)]

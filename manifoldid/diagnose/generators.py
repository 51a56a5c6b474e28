"""Closed-form vector fields that predictions cannot see: constant combinations of candidates, found by linear algebra.

A combination c of candidates X_1 .. X_m is vertical if sum_j c_j J(x_k) X_j(x_k) = 0 at many points x_k. Nearly collinear
candidates make |J X c| / |c| small for no reason, so what is small here is |J X c| relative to |X c|: generalised singular
values. Vertical fields form a module over functions; what counts is new modulo the pointwise span of simpler fields.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import scipy  # its submodules load on first use
import torch
from torch import Tensor

from manifoldid.diagnose.axes import AxisFields
from manifoldid.diagnose.fields import ClosedField, Field
from manifoldid.diagnose.libraries import Family, Pointwise
from manifoldid.diagnose.nullspace import LocalNull, NullSpaces, local_null
from manifoldid.diagnose.sparse import echelon_basis, readable, sparse_candidates
from manifoldid.points import Point

if TYPE_CHECKING:
    from manifoldid.diagnose.large import LargeNulls

_VERTICAL = 1e-8  # relative generalised singular value of a vertical field: rounding of null spaces is below 1e-9
_MOST_TOGETHER = 60  # coordinates up to which it is looked at which of them the null space moves together
_DEPENDENT = 1e-7  # what is left of a field of length 1 without those before it
_MOST_ALONG_AXES = 1200
_COLLINEAR = 1e-7  # candidates closer than this cannot be told apart


@dataclass
class Search:
    """Vertical fields found so far, over probe points of generic rank.

    Attributes:
        nulls: Null spaces at probe points.
        fields: Fields found; their values are independent at generic points, except those that close the algebra.
    """

    nulls: "NullSpaces | LargeNulls"
    fields: list[Field]
    _fresh: list[LocalNull] = field(default_factory=list)

    @property
    def dim(self) -> int:
        """Dimension of the generic null space."""
        return self.nulls.dim

    @property
    def complete(self) -> bool:
        """Whether the fields span the null space at generic points."""
        return self.rank() >= self.dim

    def rank(self, more: tuple[Field, ...] = ()) -> int:
        """Rank of the fields, and `more`, at generic points."""
        fields = [*self.fields, *more]
        if not fields:
            return 0
        return max(_rank(self._values(fields, p)) for p in self.nulls.regular(3))

    def _values(self, fields: Sequence[Field], p: LocalNull) -> Tensor:
        """Values (n, k) of fields in scaled coordinates, columns of length 1."""
        values = torch.stack([f(p.x) for f in fields], dim=1) / self.nulls.scale[:, None]
        return values / values.norm(dim=0).clamp_min(1e-300)

    # ------------------------------------------------------------------------------------------------ constants

    def add_constants(self) -> None:
        """Finds all constant fields."""
        points = self.nulls.regular(max(4, -(-self.nulls.probe.size // max(self.nulls.rank, 1)) + 3))
        space = points[0].null
        for p in points[1:]:
            if space.shape[1] == 0:
                return
            _, s, vh = torch.linalg.svd(p.seen @ space, full_matrices=True)
            rank = int((s > _VERTICAL).sum())
            space = space @ vh[rank:].mT
        if space.shape[1] == 0:
            return
        raw = space * self.nulls.scale[:, None]
        for c in _sparse_constants(raw, self.nulls.scale):
            self.fields.append(ClosedField(len(c), c))

    def add_along_axes(self, like: Point) -> int:
        """Adds fields along the axes of the blocks that are new at generic points; returns how many."""
        count = AxisFields.functionals_wanted(like)
        probe, points = self.nulls.probe, self.nulls.regular(max(3, -(-count // max(self.nulls.rank, 1)) + 1))
        rows = []
        for p in points:
            mix = torch.randn(count, len(p.seen), generator=probe.generator, dtype=torch.float64)
            rows.append(mix @ p.seen if len(p.seen) > count else p.seen)
        fields = AxisFields(like, [p.x for p in points], rows, self.nulls.scale).found(_MOST_ALONG_AXES) or []
        if not fields:
            return 0
        tested = [*points, *self.fresh_points()]
        seen = torch.stack([(p.seen @ self._values(fields, p)).norm(dim=0) for p in tested]).amax(0)
        fields = [f for f, leak in zip(fields, seen.tolist(), strict=True) if leak < _VERTICAL]
        values = self._values([*self.fields, *fields], points[-1])
        new = [k - len(self.fields) for k in independent(values) if k >= len(self.fields)]
        self.fields += [fields[k] for k in new]
        return len(new)

    # ------------------------------------------------------------------------------------------------ families

    def add_from(self, family: Family) -> int:
        """Adds the simplest vertical fields of `family` that are new at generic points; returns how many."""
        n = self.nulls.probe.size
        points = self.nulls.regular(self._points_for(family.count))
        values = [family.evaluate(p.x) / self.nulls.scale[:, None] for p in points]
        stacked = torch.cat(values)
        if not bool(torch.isfinite(stacked).all()):
            return 0
        size = stacked.norm(dim=0) / (len(points) * n) ** 0.5
        used = size > 1e-14 * size.max()
        orthogonal = isinstance(family, Pointwise) and len(family.functions) == 1
        whiten = _whitening(stacked[:, used] / size[used], orthogonal)
        space = _vertical_space(whiten, values, points, used, size)
        if space is None:
            return 0
        full = torch.zeros(family.count, space.shape[1], dtype=torch.float64)
        full[used] = space / size[used, None]
        costs = family.costs() * 8.0 ** torch.round(torch.log(size.clamp_min(1e-300)) / torch.log(torch.tensor(8.0)))
        costs = torch.where(used, costs, torch.ones_like(costs))
        total = 0
        while self.rank() < self.dim and len(new := self._new(full, values, points)):
            added = self._accept(family, sparse_candidates(full, new, costs), costs, values, points)
            total += added
            if not added:
                break
        return total

    def _points_for(self, count: int) -> int:
        """How many points have more seen directions than `count` candidates, also among coordinates that move by themselves alone."""
        most = max(4, -(-count // max(self.nulls.rank, 1)) + 3)
        if self.nulls.probe.size > _MOST_TOGETHER:
            return most
        null = self.nulls.regular(1)[0].null
        together = (null @ null.mT).abs() > _VERTICAL
        sets, places = scipy.sparse.csgraph.connected_components(together.numpy(), directed=False)
        for k in range(sets):
            mine = torch.from_numpy(places == k)
            size, hidden = int(mine.sum()), round(float(null[mine].square().sum()))
            if 0 < hidden < size:
                most = max(most, math.ceil(count * size / len(mine) / (size - hidden)) + 3)
        return most

    def _new(self, space: Tensor, values: list[Tensor], points: list[LocalNull]) -> Tensor:
        """Coordinates (q, D) of the space modulo fields whose values lie in the span of those found already."""
        rest = []
        for value, p in zip(values, points, strict=True):
            block = value @ space
            if self.fields:
                span = _orthonormal(self._values(self.fields, p))
                block = block - span @ (span.mT @ block)
            rest.append(block)
        everything = torch.cat(rest)
        _, s, vh = torch.linalg.svd(everything, full_matrices=False)
        total = torch.cat([v @ space for v in values])
        return vh[s > 1e-7 * torch.linalg.matrix_norm(total, 2)]

    def _accept(
        self, family: Family, candidates: list[Tensor], costs: Tensor, values: list[Tensor], points: list[LocalNull]
    ) -> int:
        added, rank = 0, self.rank()
        for candidate in candidates:
            if rank >= self.dim:
                break
            for c in (readable(candidate, costs), candidate):
                if _leak(c, values, points) >= _VERTICAL:
                    continue
                found = family.field(c)
                if not self._holds(found, int((c != 0).sum())):
                    continue
                now = self.rank((found,))
                if now > rank:
                    self.fields.append(found)
                    added, rank = added + 1, now
                break
        return added

    def _holds(self, found: ClosedField, terms: int) -> bool:
        """Whether the field is short, and vertical at points that had no part in finding it."""
        if not found.is_affine and terms > 4 * int(found.moved_rows().sum()) + 4:
            return False  # a fit and no formula
        for p in self.fresh_points():
            velocity = found(p.x) / self.nulls.scale
            if not float((p.seen @ velocity).norm()) <= 10 * _VERTICAL * float(velocity.norm()):
                return False
        return True

    def fresh_points(self) -> list[LocalNull]:
        """Null spaces at points that no search has used."""
        if not self._fresh:
            found = [local_null(self.nulls.probe, self.nulls.probe.draw(), self.nulls.scale) for _ in range(8)]
            self._fresh = [p for p in found if p.rank == self.nulls.rank]
        return self._fresh


def _leak(c: Tensor, values: list[Tensor], points: list[LocalNull]) -> float:
    """How much of the field with coefficients `c` is seen, relative to the field."""
    seen = torch.cat([p.seen @ (v @ c) for v, p in zip(values, points, strict=True)]).norm()
    total = torch.cat([v @ c for v in values]).norm()
    return float(seen / total.clamp_min(1e-300))


def _whitening(stacked: Tensor, orthogonal: bool) -> Tensor:
    """Combinations (m, k) of the columns that are orthonormal, those that are too close together left out."""
    if orthogonal:
        return torch.diag(1 / stacked.norm(dim=0))
    _, s, vh = (
        torch.linalg.svd(stacked, full_matrices=False)
        if stacked.shape[0] < 3 * stacked.shape[1]
        else (
            None,
            *_svd_of_triangle(stacked),
        )
    )
    keep = s > _COLLINEAR * s[0]
    return vh[keep].mT / s[keep]


def _vertical_space(
    whiten: Tensor, values: list[Tensor], points: list[LocalNull], used: Tensor, size: Tensor
) -> Tensor | None:
    """Coefficients (m, D) of vertical combinations of candidates of unit size, orthonormal as fields."""
    seen = torch.cat([p.seen @ (v[:, used] / size[used]) for v, p in zip(values, points, strict=True)]) @ whiten
    if seen.shape[0] > 2 * seen.shape[1]:
        seen = torch.linalg.qr(seen, mode="r")[1]
    _, sigma, right = torch.linalg.svd(seen, full_matrices=True)
    rank = int((sigma > _VERTICAL).sum())
    return whiten @ right[rank:].mT if rank < right.shape[0] else None


def _svd_of_triangle(matrix: Tensor) -> tuple[Tensor, Tensor]:
    _, s, vh = torch.linalg.svd(torch.linalg.qr(matrix, mode="r")[1], full_matrices=False)
    return s, vh


def _rank(values: Tensor) -> int:
    if values.shape[0] > 2 * values.shape[1]:
        values = torch.linalg.qr(values, mode="r")[1]
    s = torch.linalg.svdvals(values)
    return int((s > 1e-7 * s[0]).sum()) if len(s) and s[0] > 0 else 0


def independent(columns: Tensor) -> list[int]:
    """Which columns (n, k) of length 1 are no combination of those before them."""
    if not columns.shape[1]:
        return []
    factor = torch.linalg.qr(columns, mode="r")[1]
    size = torch.zeros(columns.shape[1], dtype=columns.dtype)
    size[: len(factor)] = factor.diagonal().abs()
    return (size > _DEPENDENT).nonzero()[:, 0].tolist()


def _orthonormal(columns: Tensor) -> Tensor:
    u, s, _ = torch.linalg.svd(columns, full_matrices=False)
    return u[:, s > 1e-9 * s[0]] if s[0] > 0 else u[:, :0]


def _sparse_constants(raw: Tensor, scale: Tensor) -> list[Tensor]:
    """A readable basis of a space of constants (n, q)."""
    costs = 1 / scale
    if raw.shape[1] == 1:
        return [readable(raw[:, 0], costs)]
    echelon, _ = echelon_basis(raw * costs[:, None])
    echelon = echelon / costs[:, None]
    simple = [readable(c, costs) for c in echelon.mT]
    overlap = int((torch.stack(simple) != 0).sum(0).max())
    if overlap <= 1 or raw.shape[0] * raw.shape[1] > 4000:
        return simple
    chosen: list[Tensor] = []
    for candidate in sparse_candidates(raw, torch.eye(raw.shape[1], dtype=torch.float64), costs, most=200):
        c = readable(candidate, costs)
        if torch.linalg.matrix_rank(torch.stack([*chosen, c]) * costs, rtol=1e-9) == len(chosen) + 1:
            chosen.append(c)
    return chosen if len(chosen) == raw.shape[1] else simple


# ---------------------------------------------------------------------------------------------------- brackets


@dataclass(frozen=True)
class Algebra:
    """Structure constants of fields: [X_i, X_j] = sum_k constants[i, j, k] X_k.

    Attributes:
        constants: (g, g, g).
        error: Largest bracket that constant combinations miss, relative to the fields; above 1e-6 they do not close.
    """

    constants: Tensor
    error: float

    @property
    def closed(self) -> bool:
        """Whether brackets are constant combinations of the fields."""
        return self.error < 1e-6


def close(search: Search, most: int | None = None) -> Algebra:
    """Adds brackets of affine fields until the fields close, and returns the structure constants."""
    if not search.fields:
        return Algebra(torch.zeros(0, 0, 0, dtype=torch.float64), 0.0)
    limit = search.dim + 12 if most is None else most
    while True:
        algebra, missing = _structure(search)
        if algebra.closed or missing is None or len(search.fields) >= limit:
            return algebra
        i, j = missing
        first, second = search.fields[i], search.fields[j]
        if not (
            isinstance(first, ClosedField) and isinstance(second, ClosedField) and first.is_affine and second.is_affine
        ):
            return algebra
        search.fields.append(_affine_bracket(first, second))
        if not _independent(search):
            search.fields.pop()
            return algebra


def _independent(search: Search) -> bool:
    """Whether no constant combination of the fields vanishes."""
    count = len(search.fields)
    points = search.nulls.regular(-(-count // search.nulls.probe.size) + 4)
    stacked = torch.cat(
        [torch.stack([f(p.x) for f in search.fields], dim=1) / search.nulls.scale[:, None] for p in points]
    )
    return _rank(stacked / stacked.norm(dim=0).clamp_min(1e-300)) == count


def _structure(search: Search) -> tuple[Algebra, tuple[int, int] | None]:
    fields, scale = search.fields, search.nulls.scale
    g = len(fields)
    points = search.nulls.regular(-(-2 * g // search.nulls.probe.size) + 4)
    values = torch.cat([torch.stack([f(p.x) for f in fields], dim=1) / scale[:, None] for p in points])
    size = values.norm(dim=0)
    constants, worst, missing = torch.zeros(g, g, g, dtype=torch.float64), 0.0, None
    factor = torch.linalg.qr(values / size)
    brackets = [_brackets(fields, p.x) / scale for p in points]
    for i in range(g):
        for j in range(i):
            bracket = torch.cat([b[i, j] for b in brackets])
            unit = float(size[i] * size[j]) / len(values) ** 0.5
            if float(bracket.norm()) < 1e-10 * unit:
                continue
            c = torch.linalg.solve_triangular(factor.R, (factor.Q.mT @ bracket)[:, None], upper=True)[:, 0]
            error = float((values / size @ c - bracket).norm() / bracket.norm())
            if error > worst:
                worst, missing = error, (i, j)
            constants[i, j] = torch.where(c.abs() > 1e-9 * c.abs().max(), c / size, torch.zeros_like(c))
            constants[j, i] = -constants[i, j]
    return Algebra(constants, worst), missing


def _brackets(fields: list[Field], x: Tensor) -> Tensor:
    """All brackets (g, g, n) of fields at one point; [i, j] is filled for j < i."""
    affine = [f for f in fields if isinstance(f, ClosedField) and f.is_affine]
    if len(affine) == len(fields):
        values = torch.stack([f(x) for f in affine])
        moved = torch.stack([f.linear(values) for f in affine])  # [j, i]: D X_j . X_i
        return moved.transpose(0, 1) - moved
    found = torch.zeros(len(fields), len(fields), len(x), dtype=torch.float64)
    for i, j in itertools.combinations(range(len(fields)), 2):
        found[j, i] = fields[j].bracket(fields[i], x)
    return found


def _affine_bracket(first: ClosedField, second: ClosedField) -> ClosedField:
    """[A x + a, B x + b] = (B A - A B) x + B a - A b."""
    zero = torch.zeros(first.size, dtype=torch.float64)
    a, b = ((f.constant if f.constant is not None else zero).numpy() for f in (first, second))
    left, right = (_sparse(f) for f in (first, second))
    # differences of two terms, which are rounding where they are small beside the terms
    forth, back = right @ a, left @ b
    constant = torch.from_numpy(
        np.where(np.abs(forth - back) > 1e-12 * (abs(right) @ abs(a) + abs(left) @ abs(b)), forth - back, 0.0)
    )
    terms = abs(right) @ abs(left) + abs(left) @ abs(right)
    matrix = (right @ left - left @ right).tocoo()
    keep = np.abs(matrix.data) > 1e-12 * np.asarray(terms[matrix.row, matrix.col]).reshape(-1)
    return ClosedField(
        first.size,
        constant if bool((constant != 0).any()) else None,
        torch.from_numpy(matrix.row[keep].astype(np.int64)),
        torch.from_numpy(matrix.col[keep].astype(np.int64)),
        torch.from_numpy(matrix.data[keep]),
    )


def _sparse(field: ClosedField) -> "scipy.sparse.csr_matrix":
    """The linear part as a sparse matrix."""
    place = (field.rows.numpy(), field.columns.numpy())
    return scipy.sparse.csr_matrix((field.entries.numpy(), place), shape=(field.size, field.size))

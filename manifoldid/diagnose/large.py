"""Closed-form fields of models with many parameters.

Candidates come first from the structure of the point (constants, scalings and small matrix maps of its blocks), tested with
products J'w of random w; what they do not explain is looked for by random projections on the null space, and pointwise
fields c_i f(x_i) are read off these: c = nu(x) / f(x) must be the same vector at every point.

Parameters without derivative (rows of an embedding that no observation names) are set apart beforehand: their scale is
infinite, so that they are 0 in all vectors, and fields are those of the other parameters.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from manifoldid.diagnose.axes import AxisFields
from manifoldid.diagnose.fields import ClosedField, Field, FunctionField, combined
from manifoldid.diagnose.functions import CONSTANT, LIBRARY, ScalarFunction
from manifoldid.diagnose.generators import Search, _sparse_constants, independent
from manifoldid.diagnose.libraries import Operators, Pointwise
from manifoldid.diagnose.matrix_free import DENSE, LargeNull, Linearised, dense_null, large_null, project
from manifoldid.diagnose.moves import relative_change, straight_move
from manifoldid.diagnose.nullspace import LocalNull, scale_of, typical_units
from manifoldid.diagnose.probe import Probe
from manifoldid.diagnose.sparse import echelon_basis, readable
from manifoldid.diagnose.strategy import block_families, layout_guesses

_MOST_NUMBERS = 40_000_000  # of a dense table of candidate fields, 320 MB
_MOST_DIRECTIONS = 64
_MOST_FIELDS = 1500  # of one family
_MOST_POINTS = 16
_SPARE = 12  # equations beyond those that decide
MOST_UNNAMED = 40  # null directions without a formula that are handed over one by one
_SEEN = 1e-6  # relative change of predictions along a field, per step of the size of the point, that is no rounding
_ROUNDING = 1e-12  # relative change of predictions
_DRAWN, _WIDE, _DOUBLINGS = (
    4,
    32,
    8,
)  # moves of coordinates without derivative: in the domain, and beyond, by 1 to 256 units
_MOST_TESTS = 100  # by which coordinates that leave predictions alone are told from others


class LargeNulls:
    """Null spaces of a large model, one point at a time and without matrices; `NullSpaces` is the dense counterpart.

    Attributes:
        scale: Units (n,) of the coordinates, infinite for those that are set apart.
        units: Typical units (n,), finite for all.
        dead: Places (k,) of coordinates that predictions do not depend on.
        jumping: Places (k,) of coordinates along which there is no derivative, and predictions change.
        dim: Dimension of the generic null space of the others.
        certain: Whether all iterations converged.
        more: How many further null directions there are, roughly, that were too many to look for.
        here: The model at the caller's point, and
        models: at random points, linearised.
        left_out: Whether there were too many candidates for a model of this size.
    """

    def __init__(self, probe: Probe):
        """Draws points, as many as it takes to test candidates, and linearises the model there."""
        self.probe = probe
        count = min(max(2, -(-2 * _MOST_FIELDS // probe.outputs.numel())), _MOST_POINTS)
        points = [probe.draw() for _ in range(count)]
        self.scale = scale_of(torch.stack(points), probe.spans().values())
        self.units = typical_units(self.scale, probe.spans().values())
        self.models = [Linearised(probe, x, self.scale) for x in points]
        self.here = Linearised(probe, probe.point, self.scale)
        self.dead = self.jumping = torch.zeros(0, dtype=torch.long)
        flat = _without_derivative([*self.models, self.here], probe.generator)
        if bool(flat.any()):
            self.dead, self.jumping = dead_and_jumping(probe, flat.nonzero()[:, 0], self.units)
            self.scale = self.scale.masked_fill(flat, torch.inf)
            self.models = [model.in_units(self.scale) for model in self.models]
            self.here = self.here.in_units(self.scale)
        self.dim, self.certain, self.more, self.left_out = 0, True, 0, False
        self.kept, self.dropped = 1.0, 1e-11

    @property
    def rank(self) -> int:
        """Generic rank."""
        return self.models[0].size - self.dim

    def regular(self, count: int) -> list[LocalNull]:
        """The probe points, at most `count`; their null spaces are left out."""
        empty = torch.zeros(0, 0, dtype=torch.float64)
        return [LocalNull(model.x, empty, empty, empty[0:0].reshape(-1), 1.0, 0.0) for model in self.models[:count]]


def _without_derivative(models: list[Linearised], generator: torch.Generator) -> Tensor:
    """Mask (n,) of the coordinates along which the derivative is exactly zero at every point."""
    draws = [torch.randn(m.outputs, generator=generator, dtype=torch.float64) for m in models]
    return (torch.stack([m.pull(w) for m, w in zip(models, draws, strict=True)]) == 0).all(0)


def dead_and_jumping(probe: Probe, flat: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Which coordinates leave predictions alone wherever the others are, and which do not, or are among too many to be told one from the other.

    Args:
        probe: The model.
        flat: Places (k,) of coordinates without derivative.
        scale: Units (n,) of the coordinates.
    """
    dead, jumping, left, tests = [flat[:0]], [flat[:0]], [flat], 0
    while left:
        places, tests = left.pop(), tests + 1
        if _unmoved(probe, places, flat, scale):
            dead.append(places)
        elif len(places) == 1 or tests + len(left) >= _MOST_TESTS:
            jumping.append(places)
        else:
            left += places.chunk(2)
    return torch.cat(dead).sort().values, torch.cat(jumping).sort().values


def _unmoved(probe: Probe, places: Tensor, flat: Tensor, scale: Tensor) -> bool:
    """Whether finite moves of the coordinates at `places` leave predictions alone, wherever all those at `flat` are.

    Where the others are matters to inputs of a maximum, which count once they exceed them. Moves out of the domain are left out.
    """
    x = probe.draw()
    starts, ends = _scattered(probe, x, scale), _scattered(probe, x, scale)
    starts = torch.where(_mask(flat, x), starts, x)
    before, after = probe.many_values(starts), probe.many_values(torch.where(_mask(places, x), ends, starts))
    inside = before.isfinite().all(1) & after.isfinite().all(1)
    changes = [relative_change(b, a) for b, a in zip(before[inside], after[inside], strict=True)]
    return bool(changes) and max(changes) <= _ROUNDING


def _scattered(probe: Probe, x: Tensor, scale: Tensor) -> Tensor:
    """Points: some from the domain, and some around x, at distances that double."""
    drawn = torch.stack([probe.draw() for _ in range(_DRAWN)])
    units = torch.logspace(0, _DOUBLINGS, _WIDE, base=2, dtype=torch.float64)[:, None] * scale
    return torch.cat([drawn, x + units * torch.randn(_WIDE, len(x), generator=probe.generator, dtype=torch.float64)])


def _mask(places: Tensor, x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.bool).index_fill(0, places, True)


def search_large(probe: Probe) -> tuple[Search, int]:
    """The fields of a large model, and the dimension of the null space at the caller's point, of the coordinates that have a derivative."""
    search, dim = _searched(probe, LargeNulls(probe))
    live = search.nulls.scale.isfinite()
    search.fields[:] = [f.on(live) if isinstance(f, ClosedField) else f for f in search.fields]
    _drop_fits(search.fields, probe)
    missing = search.dim - search.rank()
    if isinstance(search.nulls, LargeNulls) and missing > MOST_UNNAMED:
        search.nulls.dim, search.nulls.more, dim = search.dim - missing, search.nulls.more + missing, dim - missing
    return search, dim


def _drop_fits(fields: list[Field], probe: Probe) -> None:
    """Drops closed forms that predictions see at a point that had no part in finding them."""
    closed = [f for f in fields if isinstance(f, ClosedField)]
    if not closed or not probe.exact:
        return
    x = probe.draw()
    weights = torch.randn(len(closed), generator=probe.generator, dtype=torch.float64)
    sizes = torch.stack([f(x).norm() for f in closed]).clamp_min(1e-300)
    if straight_move(probe, combined(closed, (weights / sizes).tolist()), x) > _SEEN:
        fields[:] = [f for f in fields if not isinstance(f, ClosedField) or straight_move(probe, f, x) <= _SEEN]


def _searched(probe: Probe, nulls: LargeNulls) -> tuple[Search, int]:
    search, here = Search(nulls, []), nulls.here
    if not here.size:
        return search, 0
    fields = _along_axes(nulls)
    if fields and _all_of_it(search, here, fields):
        return search, nulls.dim
    fields = _with_blocks(nulls, fields)
    if 2 * (fewest := here.size - here.outputs) > here.size:
        return _mostly_unseen(search, nulls, fields, fewest)
    first = large_null(nulls.models[0], probe.generator, _span(fields, nulls.models[0]), _MOST_DIRECTIONS)
    if 2 * first.basis.shape[1] > here.size:
        return _mostly_unseen(search, nulls, fields, first.basis.shape[1])
    nulls.dim, nulls.certain, nulls.more = first.basis.shape[1], first.certain, first.more
    if nulls.dim:
        _explain(search, nulls, first, fields)
    if bool((probe.point == nulls.models[0].x).all()):
        return search, nulls.dim
    local = large_null(here, probe.generator, _span(search.fields, here), _MOST_DIRECTIONS)
    return search, local.basis.shape[1]


def _mostly_unseen(search: Search, nulls: LargeNulls, fields: list[Field], dim: int) -> tuple[Search, int]:
    """The structured fields alone, and how many directions are left: null spaces of `dim` > n / 2 meet whatever the model.

    Fields that vanish at two points, which is how others are found, would then say nothing.
    """
    simple_first = sorted(fields, key=lambda f: len(f.rows) if isinstance(f, ClosedField) else 0)
    search.fields += _independent(simple_first, nulls.models[0])
    nulls.dim = len(search.fields)
    nulls.more = dim - nulls.dim
    return search, nulls.dim


def _all_of_it(search: Search, here: Linearised, fields: list[Field]) -> bool:
    """Whether fields span the null space at the caller's point; then `search` has them, and is done.

    It is then that of generic points, too: predictions see no less there, and the fields have no smaller rank.
    """
    nulls, span = search.nulls, _span(fields, here)
    if span.shape[1] < len(fields) or here.size - here.outputs > len(fields):
        return False
    if not isinstance(nulls, LargeNulls) or not _vertical_at(here, span, nulls):
        return False
    found = large_null(here, nulls.probe.generator, span, most=0)
    if found.basis.shape[1] > len(fields) or found.more:
        return False
    nulls.dim, nulls.certain = len(fields), found.certain
    search.fields += fields
    return True


def _vertical_at(here: Linearised, span: Tensor, nulls: LargeNulls) -> bool:
    """Whether a random combination of orthonormal columns is unseen."""
    inside = span @ torch.randn(span.shape[1], generator=nulls.probe.generator, dtype=torch.float64)
    any_ = here.random(nulls.probe.generator)
    return float(here.push(inside).norm() / inside.norm()) <= 1e-8 * float(here.push(any_).norm() / any_.norm())


def _with_blocks(nulls: LargeNulls, fields: list[Field]) -> list[Field]:
    """Those fields, and independent ones among the maps of whole blocks."""
    more = _structured(nulls, block_families(nulls.probe.like, nulls.probe.size))
    return _independent([*fields, *more], nulls.models[0]) if fields and more else fields or more


def _along_axes(nulls: LargeNulls) -> list[Field]:
    """Independent fields along the axes of the blocks."""
    probe, rows = nulls.probe, []
    for model in nulls.models:
        pulled = []
        for _ in range(AxisFields.functionals_wanted(probe.like)):
            w = torch.randn(model.outputs, generator=probe.generator, dtype=torch.float64)
            pulled.append(model.pull(w))
        rows.append(torch.stack(pulled))
    axes = AxisFields(probe.like, [model.x for model in nulls.models], rows, nulls.scale)
    found = axes.found(_MOST_NUMBERS // probe.size)
    nulls.left_out = found is None
    return _independent(found or [], nulls.models[0])


def _independent(fields: Sequence[Field], model: Linearised) -> list[Field]:
    """Those fields whose values at a point are no combination of those before them."""
    if not fields:
        return []
    values = torch.stack([f(model.x) for f in fields], dim=1) / model.scale[:, None]
    return [fields[k] for k in independent(values / values.norm(dim=0).clamp_min(1e-300))]


def _explain(search: Search, nulls: LargeNulls, null: LargeNull, structured: list[Field]) -> None:
    """Closed forms for the null space: constants, then the structured ones, then pointwise functions."""
    if len(structured) == nulls.dim == _span(structured, nulls.models[0]).shape[1]:
        search.fields += structured
        return
    search.fields += _pointwise(null.basis, CONSTANT, nulls)
    rank = _take(search, nulls.models[0], structured, search.rank())
    points = torch.stack([m.x for m in nulls.models])
    for function in LIBRARY[1:]:
        if rank >= nulls.dim:
            return
        if function.defined(points):
            rank = _take(search, nulls.models[0], _pointwise(null.basis, function, nulls), rank)
    if rank < nulls.dim and nulls.probe.size * 100 <= _MOST_NUMBERS:
        guesses = layout_guesses(nulls.probe.like, nulls.probe.size)
        _take(search, nulls.models[0], _structured(nulls, guesses), rank)


def _take(search: Search, model: Linearised, fields: Sequence[Field], rank: int) -> int:
    """Adds those fields that raise the rank at the first point; returns the new rank."""
    span = _span(search.fields, model)
    for field in fields:
        if rank >= search.dim:
            break
        v = field(model.x) / model.scale
        v = v / v.norm().clamp_min(1e-300)
        rest = v - span @ (span.mT @ v)
        rest = rest - span @ (span.mT @ rest)
        if float(rest.norm()) > 1e-7:
            span = torch.cat([span, (rest / rest.norm())[:, None]], dim=1)
            search.fields.append(field)
            rank += 1
    return rank


def _pointwise(basis: Tensor, function: ScalarFunction, nulls: LargeNulls) -> list[ClosedField]:
    """All fields c_i f(x_i) of the null space with basis (n, d) at the first point, tested at the second."""
    first, second = nulls.models[:2]
    live = first.live.nonzero()[:, 0]
    scale, there = nulls.scale[live], function.value(second.x[live])
    c = basis[live] * scale[:, None] / function.value(first.x[live])[:, None]
    candidates = c * there[:, None] / scale[:, None]
    length = candidates.norm(dim=0)
    if not bool(torch.isfinite(length).all()):
        return []
    # orthonormal as fields, so that nearly collinear candidates cannot cancel to nothing
    u, s, vh = torch.linalg.svd(candidates / length, full_matrices=False)
    keep = s > 1e-6 * s[0]
    mix = vh[keep].mT / s[keep] / length[:, None]
    n = len(first.x)
    seen = torch.stack([second.push(_spread(v, live, n)) for v in u[:, keep].mT], dim=1)
    z = second.random(nulls.probe.generator)
    top = float(second.push(z).norm() / z.norm())
    _, sigma, right = torch.linalg.svd(seen / max(top, 1e-300), full_matrices=False)
    kept = mix @ right[sigma < 1e-7].mT
    if not kept.shape[1]:
        return []
    family = Pointwise(n, (function,))
    return [family.field(_spread(found, live, n)) for found in _sparse_constants(c @ kept, scale)]


def _spread(values: Tensor, live: Tensor, n: int) -> Tensor:
    """Values of the live coordinates as a vector (n,) that is 0 in the others."""
    return values.new_zeros(n).index_copy(0, live, values)


def _structured(nulls: LargeNulls, families: Iterable[Operators]) -> list[Field]:
    """Fields of structured families that are vertical at both points: those of the family with most of them."""
    best: list[Field] = []
    n = nulls.probe.size
    equations = sum(model.outputs for model in nulls.models)
    for family in families:
        if family.count * n <= _MOST_NUMBERS and family.count <= min(_MOST_FIELDS, equations - _SPARE):
            found = _vertical(family, nulls)
            best = found if len(found) > len(best) else best
    return best


def _vertical(family: Operators, nulls: LargeNulls) -> list[Field]:
    values, stacked = [], []
    count = -(-family.count // len(nulls.models)) + 6
    for model in nulls.models:
        value = family.evaluate(model.x) / nulls.scale[:, None]
        rows = []
        for _ in range(count):
            w = torch.randn(model.outputs, generator=nulls.probe.generator, dtype=torch.float64)
            pulled = model.pull(w)
            rows.append(pulled / pulled.norm().clamp_min(1e-300))
        values.append(torch.stack(rows) @ value)
        stacked.append(value.mT @ value)
    gram = torch.stack(stacked).sum(0)
    return _read(family, values, gram, gram.diagonal().sqrt())


def _read(family: Operators, seen: list[Tensor], gram: Tensor, size: Tensor) -> list[Field]:
    used = size > 1e-14 * size.max()
    chosen = size[used]
    values, vectors = torch.linalg.eigh(gram[used][:, used] / chosen / chosen[:, None])
    keep = values > 1e-10 * values[-1]
    whiten = vectors[:, keep] / values[keep].sqrt()
    matrix = torch.cat(seen)[:, used] / chosen @ whiten
    _, sigma, vh = torch.linalg.svd(matrix, full_matrices=True)
    rank = int((sigma > 1e-9 * sigma[0]).sum()) if len(sigma) and sigma[0] > 0 else 0
    space = whiten @ vh[rank:].mT
    if not space.shape[1]:
        return []
    echelon, _ = echelon_basis(space)
    fields: list[Field] = []
    for column in echelon.mT:
        full = torch.zeros(family.count, dtype=torch.float64)
        full[used] = column / chosen
        fields.append(family.field(readable(full, torch.where(used, size, torch.ones_like(size)))))
    return fields


def _span(fields: list[Field], model: Linearised) -> Tensor:
    """Orthonormal columns (n, k) of the fields at a point, in scaled coordinates."""
    if not fields:
        return model.x.new_zeros(len(model.x), 0)
    values = torch.stack([f(model.x) for f in fields], dim=1) / model.scale[:, None]
    q, r = torch.linalg.qr(values / values.norm(dim=0).clamp_min(1e-300))
    size = r.diagonal().abs()
    if bool((size > 1e-9).all()):
        return q
    u, s, _ = torch.linalg.svd(values, full_matrices=False)
    return u[:, s > 1e-9 * s[0]]


def add_large_projections(search: Search) -> None:
    """Completes the fields by projections of random directions on the null space at each point."""
    nulls = search.nulls
    if isinstance(nulls, LargeNulls):
        projector = _Projector(nulls)
        for _ in range(min(search.dim - search.rank(), _MOST_DIRECTIONS)):
            search.fields.append(_projection(projector))


class _Projector:
    """Projections on the null space at one point after the other; what is dense is decomposed once a point."""

    def __init__(self, nulls: LargeNulls):
        """Starts at no point."""
        self.nulls = nulls
        self._model: Linearised | None = None
        self._basis: Tensor | None = None

    def __call__(self, x: Tensor, z: Tensor) -> Tensor:
        """The null part (n,) of z at x, in the caller's units."""
        if self._model is None or not torch.equal(self._model.x, x):
            self._model, self._basis = Linearised(self.nulls.probe, x, self.nulls.scale), None
        model = self._model
        if self._basis is not None:
            return model.unit * (self._basis @ (self._basis.mT @ z))
        null, converged = project(model, z, torch.ones_like(z))
        if converged or model.size > DENSE:
            return model.unit * null
        self._basis = dense_null(model, torch.Generator().manual_seed(0)).basis
        return self(x, z)


def _projection(projector: _Projector) -> Field:
    """A field without a formula: a random direction, projected on the null space at each point."""
    z = projector.nulls.models[0].random(projector.nulls.probe.generator)
    return FunctionField(
        projector.nulls.probe.size,
        lambda x: projector(x.detach().double(), z).to(x),
        "no closed form: a random direction, projected on the null space at each point",
        False,
    )

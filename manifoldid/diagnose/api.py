"""`diagnose`: from a function to an answer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manifoldid.diagnose.chart import add_tabulated
from manifoldid.diagnose.classify import Overlap, name_algebra, rotations_of
from manifoldid.diagnose.diagnosis import Diagnosis, Generator
from manifoldid.diagnose.fallback import add_projections
from manifoldid.diagnose.fields import ClosedField, Field
from manifoldid.diagnose.formula import Labels, formula
from manifoldid.diagnose.generators import Algebra, Search, close
from manifoldid.diagnose.large import add_large_projections, search_large
from manifoldid.diagnose.moves import finite_moves
from manifoldid.diagnose.nullspace import NullSpaces
from manifoldid.diagnose.probe import Probe
from manifoldid.diagnose.ratios import add_ratio
from manifoldid.diagnose.strategy import search_closed_forms
from manifoldid.points import Point, blocks_of

_LARGE = 600  # parameters beyond which derivatives are never matrices


def diagnose(
    predict: Callable[[Point], Any],
    point: Point,
    sample: Callable[[], Point] | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Diagnosis:
    probe = Probe(predict, point, sample, generator)
    search, null_dim, algebra = _searched(probe)
    nulls = search.nulls
    labels = labels_of(probe)
    name = _name(search, algebra)
    points = [p.x for p in nulls.regular(2)]
    generators = []
    for k, field in enumerate(search.fields):
        error, complete = finite_moves(probe, field, points)
        generators.append(
            Generator(f"X{k + 1}", formula(field, labels), error, complete, field.closed_form, field, probe.like)
        )
    return Diagnosis(
        dim=nulls.dim,
        null_dim=null_dim,
        algebra=name,
        generators=tuple(generators),
        discrete=(),
        group=None,
        directions=(),
        weak=(),
        dead=(),
        verdict="",
        warnings=tuple(probe.notes),
        certainty=nulls.kept / max(nulls.dropped, 1e-17),
        size=probe.size,
    )


def _searched(probe: Probe) -> tuple[Search, int, Algebra]:
    """The fields of a model, the dimension of the null space at the given point, and the structure constants."""
    if probe.size > _LARGE:
        search, null_dim = search_large(probe)
        algebra = close(search)
        add_large_projections(search)
        return search, null_dim, algebra
    nulls = NullSpaces(probe)
    search = Search(nulls, [])
    search_closed_forms(search, probe.like)
    algebra = close(search)
    _ = add_ratio(search) or add_tabulated(search) or add_projections(search)
    if len(search.fields) > len(algebra.constants) and all(f.closed_form for f in search.fields):
        algebra = close(search)
    return search, probe.size - nulls.local.rank, algebra


def labels_of(probe: Probe) -> Labels:
    """Names of the coordinates of the diagnosed point."""
    shapes = {name: (*t.shape, 2) if t.is_complex() else tuple(t.shape) for name, t in blocks_of(probe.like).items()}
    return Labels(probe.spans(), shapes)


def _name(search: Search, algebra: Algebra) -> str:
    if search.dim == 0:
        return "trivial"
    if not all(f.closed_form for f in search.fields) or not algebra.closed:
        return "R" if search.dim == 1 and len(search.fields) == 1 else f"unknown(dim={search.dim})"
    moved = torch.stack([f.moved_rows() if isinstance(f, ClosedField) else torch.ones(f.size, dtype=torch.bool) for f in search.fields])
    return name_algebra(algebra.constants, compact_combinations(search.fields), Overlap(moved))


def compact_combinations(fields: list[Field]) -> Tensor:
    """Rows (k, g): combinations of commuting affine fields whose flows are rotations."""
    g = len(fields)
    turning = [
        k for k, f in enumerate(fields) if isinstance(f, ClosedField) and f.is_affine and len(f.rows) and not f.is_diagonal
    ]
    if not turning:
        return torch.zeros(0, g, dtype=torch.float64)
    affine = [f for f in fields if isinstance(f, ClosedField) and f.is_affine]
    used = torch.stack([f.moved_rows() for f in affine]).any(0)
    for f in affine:
        used[f.columns] = True
    index = used.nonzero()[:, 0]
    if len(index) > 400:
        return torch.zeros(0, g, dtype=torch.float64)
    matrices = [_augmented(fields[k], index) for k in turning]
    commute = all(float((a @ b - b @ a).abs().max()) < 1e-9 for a in matrices for b in matrices)
    if commute and len(affine) == g:
        matrices, turning = [_augmented(f, index) for f in affine], list(range(g))
    rows = rotations_of(matrices) if commute else torch.cat([_lone(matrices, k) for k in range(len(matrices))])
    full = torch.zeros(len(rows), g, dtype=torch.float64)
    full[:, turning] = rows
    return full


def _lone(matrices: list[Tensor], k: int) -> Tensor:
    rows = rotations_of([matrices[k]])
    return rows @ torch.eye(len(matrices), dtype=torch.float64)[k : k + 1] if len(rows) else torch.zeros(
        0, len(matrices), dtype=torch.float64
    )


def _augmented(field: Field, index: Tensor) -> Tensor:
    """[[B, b], [0, 0]] on the coordinates `index`."""
    assert isinstance(field, ClosedField)
    matrix = torch.zeros(len(index) + 1, len(index) + 1, dtype=torch.float64)
    matrix[:-1, :-1] = field.matrix()[index][:, index]
    if field.constant is not None:
        matrix[:-1, -1] = field.constant[index]
    return matrix

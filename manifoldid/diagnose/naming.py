"""Structure constants of the fields that were found, and the name of the algebra they span."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from manifoldid.diagnose.classify import Overlap, name_algebra
from manifoldid.diagnose.compact import compact_combinations
from manifoldid.diagnose.fields import ClosedField, Field
from manifoldid.diagnose.generators import Algebra, Search, close
from manifoldid.diagnose.match_parts import clusters, mixes_factors
from manifoldid.groups import GaugeGroup, GeneralLinear

MOST_BRACKETS = 40  # fields whose structure constants are computed; more are named by the group that they make


def structure_of(search: Search) -> Algebra:
    """The structure constants; of many fields only whether they commute for a simple reason."""
    if not all(f.closed_form for f in search.fields):
        return Algebra(torch.zeros(0, 0, 0, dtype=torch.float64), math.inf)
    if len(search.fields) <= MOST_BRACKETS:
        return close(search)
    return Algebra(torch.zeros(0, 0, 0, dtype=torch.float64), 0.0 if _commute(search.fields) else math.inf)


def name_of(search: Search, algebra: Algebra, closed: bool, dim: int) -> str:
    """The name by structure constants; `closed` tells whether they are constants of closed fields."""
    if dim == 0:
        return "trivial"
    if not closed:
        return "R" if dim == 1 and len(search.fields) == 1 else f"unknown(dim={dim})"
    size = search.nulls.probe.size
    moved = [
        f.moved_rows() if isinstance(f, ClosedField) else torch.ones(size, dtype=torch.bool) for f in search.fields
    ]
    lengths = _lengths(search)  # constants and matrices of one size, whatever the units of the coordinates
    constants = algebra.constants * lengths / (lengths[:, None, None] * lengths[:, None])
    fields = [_in_units(f, search.nulls.scale, float(s)) for f, s in zip(search.fields, lengths, strict=True)]
    return name_algebra(constants, compact_combinations(fields), Overlap(torch.stack(moved)))


def _lengths(search: Search) -> Tensor:
    """Root mean squares of the fields at probe points, in scaled coordinates."""
    scale = search.nulls.scale
    values = [torch.stack([f(p.x) for f in search.fields]) / scale for p in search.nulls.regular(3)]
    return torch.cat(values, dim=1).square().mean(1).sqrt().clamp_min(1e-300)


def _in_units(field: Field, scale: Tensor, length: float) -> Field:
    """An affine field divided by its length, in scaled coordinates; others as they are."""
    if not isinstance(field, ClosedField) or not field.is_affine:
        return field
    entries = field.entries * scale[field.columns] / (scale[field.rows] * length)
    constant = None if field.constant is None else field.constant / (scale * length)
    return replace(field, constant=constant, entries=entries)


def name_of_many(search: Search, group: GaugeGroup | None, dim: int) -> str:
    """The name of many fields: those of sets of fields that move coordinates of their own."""
    names, lines = [], 0
    factors = [set(of) for g, of in (group.factors() if group is not None else []) if _is_general_linear(g)]
    for fields in clusters(search.fields):
        rank = math.isqrt(len(fields))
        if _commute(fields):
            lines += len(fields)
        elif rank**2 == len(fields) and (
            any(_blocks(search, fields) <= blocks for blocks in factors) or mixes_factors(fields)
        ):
            names.append(f"gl({rank})")
        elif len(fields) <= MOST_BRACKETS:
            algebra = close(part := Search(search.nulls, fields), len(fields))
            names.append(name_of(part, algebra, algebra.closed, len(fields)))
        else:
            return f"unknown(dim={dim})"
    names.sort(key=lambda name: (name.startswith("R"), name))
    return with_lines(" + ".join(names) or "trivial", lines)


def with_lines(name: str, count: int) -> str:
    """The name of the direct sum of an algebra and R^count."""
    if not count:
        return name
    lines = "R" if count == 1 else f"R^{count}"
    return lines if name == "trivial" else f"{name} + {lines}"


def _is_general_linear(group: GaugeGroup) -> bool:
    return isinstance(group, GeneralLinear)


def _blocks(search: Search, fields: list[Field]) -> set[str]:
    """The blocks whose coordinates the fields move."""
    moved = torch.stack([f.moved_rows() for f in fields if isinstance(f, ClosedField)]).any(0)
    return {name for name, (start, stop) in search.nulls.probe.spans().items() if bool(moved[start:stop].any())}


def _commute(fields: list[Field]) -> bool:
    """Whether all fields are constants, or all are scalings."""
    closed = [f for f in fields if isinstance(f, ClosedField) and f.is_affine]
    if len(closed) < len(fields):
        return False
    return all(not len(f.rows) for f in closed) or all(f.is_diagonal and f.constant is None for f in closed)

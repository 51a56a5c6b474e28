"""`diagnose`: from a function to an answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from manifoldid.diagnose.chart import add_tabulated
from manifoldid.diagnose.classify import Overlap, name_algebra
from manifoldid.diagnose.compact import compact_combinations
from manifoldid.diagnose.diagnosis import Diagnosis, Generator
from manifoldid.diagnose.fallback import add_projections
from manifoldid.diagnose.fields import ClosedField, Field
from manifoldid.diagnose.finite import find_discrete
from manifoldid.diagnose.formula import Labels, formula
from manifoldid.diagnose.generators import Algebra, Search, close
from manifoldid.diagnose.invariants import invariants
from manifoldid.diagnose.large import add_large_projections, search_large
from manifoldid.diagnose.match import match_group
from manifoldid.diagnose.moves import finite_moves
from manifoldid.diagnose.networks import NetworkDiagnosis, diagnose_network
from manifoldid.diagnose.nullspace import NullSpaces
from manifoldid.diagnose.practical import directions_at, weak_ones
from manifoldid.diagnose.probe import Probe
from manifoldid.diagnose.ratios import add_ratio
from manifoldid.diagnose.strategy import search_closed_forms
from manifoldid.groups.base import GaugeGroup
from manifoldid.points import blocks_of

_LARGE = 600  # parameters beyond which derivatives are never matrices
_MOST_BRACKETS = 40  # fields whose structure constants are computed; more are named by the group that they make
_MOVES = 1e-6  # relative change under a finite move that shows that a null direction is no gauge


def diagnose(
    predict: Any,
    point: Any = None,
    sample: Callable[[], Any] | None = None,
    *,
    inputs: Any = None,
    likelihood: Callable[[Any], Any] | None = None,
    generator: torch.Generator | None = None,
) -> "Diagnosis | NetworkDiagnosis":
    """Which parameters, or combinations of parameters, a likelihood determines.

    Finds the continuous gauge (moves of the parameters that predictions cannot see) with generators in closed form, its name
    and a group to hand to the rest of the library, the finite symmetries beside it, and what is only weakly determined.

    Derivatives are taken in float64 at several random points. Not checked: that `predict` returns everything the likelihood
    sees, and symmetries of kinds that are not in the library of candidates; fields without a closed form say so.

    Args:
        predict: Everything the likelihood sees, as a function of one point: log-probabilities, means, natural parameters.
            Returns a tensor, or a list or dict of tensors. Must be differentiable and deterministic. Or a network.
        point: A floating tensor or a dict of such tensors: where to look.
        sample: Draws a random generic point shaped like `point`; default: around `point`, with the signs of its numbers.
        inputs: For a network: what it is called with, a tensor or a tuple of arguments.
        likelihood: For a network: everything the likelihood sees of its outputs, as a function of them.
        generator: Source of randomness; default a private one seeded with 0.

    Returns:
        The diagnosis; `print` it. Of a network a pair of them, `.outputs` and `.weights`.

    Raises:
        TypeError: `predict` is no function of a point or returns no floating numbers, `point` is no point; a network comes
            without `inputs`, or a function with them.
        ValueError: Predictions are random or not finite, `predict` writes into its input, or `sample` does not fit.
    """
    if isinstance(predict, torch.nn.Module):
        if inputs is None or point is not None or sample is not None:
            raise TypeError(
                "`inputs` must be given for a network, instead of `point` and `sample`: diagnose(module, inputs=x)"
            )
        return diagnose_network(diagnose, predict, inputs, likelihood, generator)
    if inputs is not None or likelihood is not None:
        raise TypeError("`inputs` and `likelihood` go with a network; for a function pass `point`")
    if point is None:
        raise TypeError("`point` is missing: diagnose(predict, point), a tensor or a dict of tensors where to look")
    probe = Probe(predict, point, sample, generator)
    found = _found(probe)
    labels = labels_of(probe)
    if found.search.dim and found.search.rank() == 0 and not found.search.fields:
        return _blind(probe, labels)
    points = [p.x for p in found.search.nulls.regular(2)]
    generators, lost = _generators(probe, found.search.fields, points, labels)
    if lost and found.blind(probe):
        return _blind(probe, labels)
    return _assembled(probe, found, generators, lost, points, labels)


@dataclass
class _Found:
    """The fields of a model, the null dimension at the given point, and the structure constants."""

    search: Search
    null_dim: int
    algebra: Algebra

    def blind(self, probe: Probe) -> bool:
        """Whether derivatives vanish everywhere."""
        return self.search.dim == probe.size


def _found(probe: Probe) -> _Found:
    if probe.size > _LARGE:
        search, null_dim = search_large(probe)
        algebra = _structure(search)
        add_large_projections(search)
        return _Found(search, null_dim, algebra)
    nulls = NullSpaces(probe)
    search = Search(nulls, [])
    search_closed_forms(search, probe.like)
    algebra = _structure(search)
    _ = add_ratio(search) or add_tabulated(search) or add_projections(search)
    if len(search.fields) > len(algebra.constants) and all(f.closed_form for f in search.fields):
        algebra = _structure(search)
    return _Found(search, probe.size - nulls.local.rank, algebra)


def _generators(
    probe: Probe, fields: list[Field], points: list[torch.Tensor], labels: Labels
) -> tuple[list[Generator], list[str]]:
    """The generators that finite moves confirm, and the formulas of those that they do not."""
    generators, lost, kept = [], [], []
    for field in fields:
        error, complete = finite_moves(probe, field, points if len(fields) <= _MOST_BRACKETS else points[:1])
        text = formula(field, labels)
        if error > _MOVES:
            lost.append(text)
            continue
        kept.append(field)
        name = f"X{len(kept)}"
        generators.append(Generator(name, text, error, complete, field.closed_form, field, probe.like))
    fields[:] = kept
    return generators, lost


def _assembled(
    probe: Probe,
    found: _Found,
    generators: list[Generator],
    lost: list[str],
    points: list[torch.Tensor],
    labels: Labels,
) -> Diagnosis:
    search, nulls = found.search, found.search.nulls
    fields, formulas = search.fields, [g.formula for g in generators]
    dim = search.rank() if lost else search.dim
    algebra = _structure(search) if lost else found.algebra
    many = len(fields) > _MOST_BRACKETS
    closed = algebra.closed and all(f.closed_form for f in fields) and (many or len(algebra.constants) == len(fields))
    whole = (closed or many) and all(g.complete and g.closed_form for g in generators)
    group = match_group(probe, fields, formulas, points) if whole or not dim else None
    closed = closed or (many and group is not None)
    small = probe.size <= _LARGE
    discrete = find_discrete(probe, fields, points, labels, solve=found.null_dim == 0) if small else ()
    directions = directions_at(probe, found.null_dim, nulls.scale, labels) if small else ()
    dead = _dead(fields, labels) if small else ()
    diagnosis = Diagnosis(
        dim=dim,
        null_dim=found.null_dim,
        algebra=_name_of_many(fields, group, dim) if many else _name(search, algebra, closed, dim),
        generators=tuple(generators),
        discrete=discrete,
        group=group,
        directions=directions,
        weak=weak_ones(directions),
        dead=dead,
        verdict="",
        warnings=(),
        certainty=nulls.kept / max(nulls.dropped, 1e-17),
        size=probe.size,
        invariants=invariants(fields, group, labels, probe.size),
    )
    return diagnosis.concluded(_warnings(probe, found, diagnosis, lost, closed))


def _warnings(probe: Probe, found: _Found, d: Diagnosis, lost: list[str], closed: bool) -> tuple[str, ...]:
    notes = list(probe.notes)
    outputs = probe.outputs.numel()
    if outputs < probe.size:
        notes.append(
            f"`predict` returns {outputs} numbers for {probe.size} parameters, so at least {probe.size - outputs} directions "
            "are unseen whatever the model: return predictions at more inputs to tell the design from the model"
        )
    if lost:
        notes.append(
            f"no derivative information along {'; '.join(lost[:2])}: the derivative vanishes and finite moves still change "
            "predictions (a threshold or rounding in `predict`); return probabilities, not decisions"
        )
    if d.null_dim > d.dim:
        notes.append(
            f"`point` is singular: {d.null_dim} directions have no derivative there, {d.dim} at generic points; "
            "start elsewhere, and do not read standard errors there"
        )
    if not found.search.nulls.certain:
        notes.append(
            "uncertain: rounding and weak directions are not clearly apart; use float64 throughout, "
            "and more informative inputs"
        )
    if d.dim and not all(g.closed_form for g in d.generators):
        notes.append(
            "some directions have no closed form in the library of candidates: d.generators hands them over unnamed"
        )
    elif d.dim and not closed:
        notes.append(
            "the fields do not close under the bracket with constant coefficients: there are orbits but no group"
        )
    if any(not g.complete for g in d.generators):
        notes.append("a flow leaves the domain in finite time: the gauge is local, use a constraint or a chart")
    return tuple(notes)


def _blind(probe: Probe, labels: Labels) -> Diagnosis:
    """The answer when derivatives vanish everywhere although predictions move."""
    note = (
        "the derivative of `predict` is zero everywhere, and its values still change: it compares, rounds or detaches; "
        "return what the decisions are made from (probabilities, margins), and keep the graph"
    )
    del labels
    return Diagnosis(
        dim=0,
        null_dim=probe.size,
        algebra="unknown",
        generators=(),
        discrete=(),
        group=None,
        directions=(),
        weak=(),
        dead=(),
        verdict="no derivative information: nothing can be said about identifiability",
        warnings=(note, *probe.notes),
        certainty=0.0,
        size=probe.size,
        invariants="unknown",
    )


def labels_of(probe: Probe) -> Labels:
    """Names of the coordinates of the diagnosed point."""
    shapes = {name: (*t.shape, 2) if t.is_complex() else tuple(t.shape) for name, t in blocks_of(probe.like).items()}
    return Labels(probe.spans(), shapes)


def _dead(fields: list[Field], labels: Labels) -> tuple[str, ...]:
    """Coordinates that are a generator by themselves."""
    names = []
    for f in fields:
        if isinstance(f, ClosedField) and f.is_affine and f.constant is not None and not len(f.rows):
            moved = f.constant.nonzero()[:, 0].tolist()
            if len(moved) == 1:
                names.append(labels.name(moved[0]))
    return tuple(names)


def _structure(search: Search) -> Algebra:
    """The structure constants; of many fields only whether they commute for a simple reason."""
    if len(search.fields) <= _MOST_BRACKETS:
        return close(search)
    return Algebra(torch.zeros(0, 0, 0, dtype=torch.float64), 0.0 if _commute(search.fields) else float("inf"))


def _commute(fields: list[Field]) -> bool:
    """Whether all fields are constants, or all are scalings, or each moves coordinates of its own."""
    closed = [f for f in fields if isinstance(f, ClosedField) and f.is_affine]
    if len(closed) < len(fields):
        return False
    constants = all(not len(f.rows) for f in closed)
    return constants or all(f.is_diagonal and f.constant is None for f in closed)


def _name_of_many(fields: list[Field], group: GaugeGroup | None, dim: int) -> str:
    if _commute(fields):
        return f"R^{len(fields)}"
    pairs = [g for g, _ in group.factors()] if group is not None else []
    rank = round((dim / max(len(pairs), 1)) ** 0.5)
    if pairs and all(type(g).__name__ == "GeneralLinear" for g in pairs) and rank**2 * len(pairs) == dim:
        return " + ".join([f"gl({rank})"] * len(pairs))
    return f"unknown(dim={dim})"


def _name(search: Search, algebra: Algebra, closed: bool, dim: int) -> str:
    if dim == 0:
        return "trivial"
    if not closed:
        return "R" if dim == 1 and len(search.fields) == 1 else f"unknown(dim={dim})"
    moved = [
        f.moved_rows() if isinstance(f, ClosedField) else torch.ones(search.nulls.probe.size, dtype=torch.bool)
        for f in search.fields
    ]
    return name_algebra(algebra.constants, compact_combinations(search.fields), Overlap(torch.stack(moved)))

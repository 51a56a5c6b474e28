"""`diagnose`: from a function to an answer."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from manifoldid.diagnose.chart import TableField, add_tabulated
from manifoldid.diagnose.design import with_design
from manifoldid.diagnose.diagnosis import Diagnosis, DiscreteSymmetry, Generator
from manifoldid.diagnose.draws import Draws
from manifoldid.diagnose.fallback import add_projections
from manifoldid.diagnose.fields import ClosedField, Field, combined
from manifoldid.diagnose.finite import find_discrete
from manifoldid.diagnose.formula import formula
from manifoldid.diagnose.generators import Algebra, Search
from manifoldid.diagnose.invariants import invariants
from manifoldid.diagnose.labels import Labels, labels_of
from manifoldid.diagnose.large import MOST_UNNAMED, LargeNulls, add_large_projections, dead_and_jumping, search_large
from manifoldid.diagnose.match import match_group
from manifoldid.diagnose.moves import Moves, finite_moves, relative_change, straight_move
from manifoldid.diagnose.naming import MOST_BRACKETS, name_of, name_of_many, structure_of, with_lines
from manifoldid.diagnose.networks import NetworkDiagnosis, diagnose_network
from manifoldid.diagnose.notes import BLIND, notes_of
from manifoldid.diagnose.nullspace import NullSpaces
from manifoldid.diagnose.practical import directions_at, weak_ones
from manifoldid.diagnose.probe import Probe
from manifoldid.diagnose.ratios import add_ratio
from manifoldid.diagnose.stages import Stages
from manifoldid.diagnose.strategy import search_closed_forms
from manifoldid.groups.base import GaugeGroup
from manifoldid.points import Point, flatten, unflatten

_LARGE = 600  # parameters beyond which derivatives are never matrices
_MOVES = 1e-6  # relative change under a finite move that shows that a null direction is no gauge

_JUMPS = 1e-3  # the same of a field that is itself only as good as the null spaces it was made from
_MOST_INTEGRATED = 2  # unnamed fields whose flows are integrated, a null space at every step (in float64: rounding halves steps for ever)
_BUT_UNKNOWN = "every parameter, apart from the directions in the note"
_REACH, _SHORT_REACH = 0.3, 1e-3  # moves by which a proposed group is tested; short where predictions jump
_DRAWS = 20  # random points at which a model without derivatives is watched


def diagnose(
    predict: Any,
    point: Any = None,
    sample: Callable[..., Any] | None = None,
    *,
    inputs: Any = None,
    likelihood: Callable[[Any], Any] | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Diagnosis | NetworkDiagnosis:
    """Which parameters, or combinations of parameters, a likelihood determines.

    Finds the continuous gauge (moves of the parameters that predictions cannot see) with generators in closed form, its name
    and a group to hand to the rest of the library, the finite symmetries beside it, and what is only weakly determined.

    Derivatives are taken in float64 at several random points. Not checked: that `predict` returns everything the likelihood
    sees, and symmetries of kinds that are not in the library of candidates; fields without a closed form say so, and are tabulated
    where all coordinates move by one function of themselves.

    Args:
        predict: Everything the likelihood sees, as a function of one point: log-probabilities, means, natural parameters.
            Returns a tensor, or a list or dict of tensors. Must be differentiable and deterministic. Or a network.
        point: A floating tensor or a dict of such tensors: where to look.
        sample: Draws a random generic point shaped like `point`; default: around `point`, with the signs of its numbers. A function
            of nothing, or of a generator. If it draws pairs (point, inputs), what further inputs of these determine is told from
            what no inputs do: the former is called design.
        inputs: For a network: what it is called with, a tensor or a tuple of arguments. For a function: its second argument,
            predict(point, inputs); default the first that `sample` draws, if it draws inputs. Directions that more varied
            inputs determine, those of `sample` or others of the same kind, are the design's.
        likelihood: For a network: everything the likelihood sees of its outputs, as a function of them.
        generator: Source of randomness; default a private one seeded with 0.
        progress: Write a line per stage to stderr, once the whole has taken two seconds.

    Returns:
        The diagnosis; `print` it. Of a network a pair of them, `.outputs` and `.weights`.

    Raises:
        TypeError: `predict` is no function of a point or returns no floating numbers, `point` is no point; a network comes
            without `inputs`.
        ValueError: Predictions are random or not finite, `predict` writes into its input, or `sample` does not fit.
    """
    # fused attention has no second derivatives, which products with the Jacobian are made of
    with Stages(progress) as stages, sdpa_kernel(SDPBackend.MATH):
        if isinstance(predict, torch.nn.Module):
            if inputs is None or point is not None or sample is not None:
                raise TypeError(
                    "`inputs` must be given for a network, instead of `point` and `sample`: diagnose(module, inputs=x)"
                )
            return diagnose_network(
                lambda f, x, given: _at_inputs(f, x, None, given, None, generator, stages), predict, inputs, likelihood
            )
        if likelihood is not None:
            raise TypeError("`likelihood` goes with a network; for a function pass `point`")
        if point is None:
            raise TypeError("`point` is missing: diagnose(predict, point), a tensor or a dict of tensors where to look")
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        draws = None if sample is None else Draws(sample, generator)
        sample = None if draws is None else draws.point
        others = draws.inputs if draws is not None and draws.varies_inputs else None
        inputs = draws.first_inputs if draws is not None and inputs is None else inputs
        if inputs is None:
            return _diagnosed(Probe(predict, point, sample, generator), stages)
        return _at_inputs(predict, point, sample, inputs, others, generator, stages)


def _at_inputs(
    predict: Callable[[Any, Any], Any],
    point: Any,
    sample: Callable[[], Any] | None,
    inputs: Any,
    others: Callable[[], Any] | None,
    generator: torch.Generator | None,
    stages: Stages,
) -> Diagnosis:
    probe = Probe(lambda x: predict(x, inputs), point, sample, generator)
    diagnosis = _diagnosed(probe, stages)
    return diagnosis if inputs is None else with_design(diagnosis, predict, probe, inputs, _LARGE, others)


def _diagnosed(probe: Probe, stages: Stages) -> Diagnosis:
    labels = labels_of(probe.like)
    found = _found(probe, stages)
    search = found.search
    if (search.dim == probe.size and _moves(probe)) or len(search.nulls.jumping) == probe.size:
        return _blind(probe)
    stages.begin("finite moves along the generators")
    points = [p.x for p in search.nulls.regular(2)]
    generators, lost = _generators(probe, search.fields, points, labels, search.nulls)
    if lost and search.dim == probe.size:
        return _blind(probe)
    return _assembled(probe, found, generators, lost, points, labels, stages)


def _moves(probe: Probe) -> bool:
    """Whether predictions differ between random points."""
    return any(relative_change(probe.outputs, probe.values(probe.draw())) > _MOVES for _ in range(_DRAWS))


@dataclass
class _Found:
    """The fields of a model, the null dimension at the given point, and the structure constants."""

    search: Search
    null_dim: int
    algebra: Algebra


def _found(probe: Probe, stages: Stages) -> _Found:
    stages.begin("directions that predictions cannot see")
    if probe.size > _LARGE:
        search, null_dim = search_large(probe)
        algebra = structure_of(search)
        add_large_projections(search)
        return _Found(search, null_dim, algebra)
    nulls = NullSpaces(probe)
    search = Search(nulls, [])
    stages.begin("closed forms of the generators")
    search_closed_forms(search, probe.like)
    algebra = structure_of(search)
    missing = search.dim - search.rank()
    if missing > MOST_UNNAMED:
        nulls.more = missing
    _ = add_ratio(search) or add_tabulated(search) or add_projections(search)
    if len(search.fields) > len(algebra.constants) and all(f.closed_form for f in search.fields):
        algebra = structure_of(search)
    return _Found(search, probe.size - nulls.local.rank - nulls.more, algebra)


def _generators(
    probe: Probe, fields: list[Field], points: list[torch.Tensor], labels: Labels, nulls: NullSpaces | LargeNulls
) -> tuple[list[Generator], list[Field]]:
    """The generators that finite moves confirm, and the fields that they do not."""
    generators, lost, kept = [], [], []
    together = _moved_together(probe, fields, points[0])
    unnamed = sum(not f.has_flow for f in fields)
    for field in fields:
        if not field.has_flow and (unnamed > _MOST_INTEGRATED or not probe.exact):
            moves = Moves(straight_move(probe, field, points[0]), False)
        else:
            moves = together or finite_moves(probe, field, points)
        if isinstance(field, TableField):
            moves = moves._replace(complete=field.table.complete)
        if moves.error > (_MOVES if field.has_flow and probe.exact else _JUMPS):
            lost.append(field)
            continue
        kept.append(field)
        name, text = f"X{len(kept)}", formula(field, labels)
        generators.append(
            Generator(name, text, moves.error, moves.complete, field.closed_form, field, probe.like, moves.jump)
        )
    jumping = _not_dead(probe, kept + lost, nulls)
    lost += [f for f in kept if f in jumping]
    still = [g for g in generators if g.flat_field not in jumping]
    fields[:] = [g.flat_field for g in still]
    return [replace(g, name=f"X{k}") for k, g in enumerate(still, 1)], lost


def _not_dead(probe: Probe, fields: list[Field], nulls: NullSpaces | LargeNulls) -> list[Field]:
    """Those fields that move only one coordinate, which looks dead and is not, as an input of a maximum that another one exceeds."""
    x = probe.draw()
    moved = [(f, (f(x) != 0).nonzero()[:, 0]) for f in fields if f.closed_form]
    alone = [(f, int(places)) for f, places in moved if len(places) == 1]
    if not alone:
        return []
    flat = torch.tensor(sorted({*(i for _, i in alone), *nulls.jumping.tolist()}))
    jumping = set(dead_and_jumping(probe, flat, nulls.units)[1].tolist())
    return [f for f, i in alone if i in jumping]


def _moved_together(probe: Probe, fields: list[Field], x: torch.Tensor) -> Moves | None:
    """Finite moves along a random combination of many affine fields, in place of each; None if they do not all pass."""
    affine = [f for f in fields if isinstance(f, ClosedField) and f.is_affine]
    if len(fields) <= MOST_BRACKETS or len(affine) < len(fields):
        return None
    weights = torch.randn(len(fields), generator=probe.generator, dtype=torch.float64) / len(fields) ** 0.5
    moves = finite_moves(probe, combined(affine, weights.tolist()), [x])
    return moves if moves.error <= _MOVES and moves.complete else None


def _assembled(
    probe: Probe,
    found: _Found,
    generators: list[Generator],
    lost: list[Field],
    points: list[torch.Tensor],
    labels: Labels,
    stages: Stages,
) -> Diagnosis:
    search, nulls = found.search, found.search.nulls
    fields, formulas = search.fields, [g.formula for g in generators]
    dim = search.rank() if lost else search.dim
    unknown = search.dim - dim + len(nulls.jumping)
    algebra = structure_of(search) if lost else found.algebra
    many = len(fields) > MOST_BRACKETS
    closed = algebra.closed and all(f.closed_form for f in fields) and (many or len(algebra.constants) == len(fields))
    one_flow = len(fields) == 1 and fields[0].has_flow
    whole = (closed or many or one_flow) and all(g.complete and g.flat_field.has_flow for g in generators)
    stages.begin("the group")
    nothing = not fields and unknown + nulls.more > 0  # neither a gauge nor the certainty that there is none
    reach = _SHORT_REACH if any(g.jump for g in generators) else _REACH
    group = None
    if (whole or not dim) and not nothing:
        group = match_group(probe, fields, formulas, points, reach, nulls.scale.isinf())
    algebra_name = name_of_many(search, group, dim) if many else name_of(search, algebra, closed, dim)
    closed = closed or (many and (group is not None or not algebra_name.startswith("unknown")))
    small = probe.size <= _LARGE
    stages.begin("finite symmetries")
    named = probe.exact and not lost and all(f.has_flow for f in fields)
    bases = ([probe.point] if found.null_dim == dim else []) + points[:1] if named else []
    discrete, starts = find_discrete(probe, fields, points, labels, bases) if small else ((), 0)
    discrete = tuple(s for s in discrete if _moves_more_than(lost, s, points[0], probe.like))
    stages.begin("information at the point")
    directions = directions_at(probe, found.null_dim + nulls.more, nulls.scale, labels) if small else ()
    diagnosis = Diagnosis(
        dim=dim + len(nulls.dead),
        null_dim=found.null_dim + len(nulls.dead) + len(nulls.jumping),
        algebra=with_lines(algebra_name, len(nulls.dead)),
        generators=tuple(generators),
        discrete=discrete,
        starts=starts,
        group=group,
        directions=directions,
        weak=weak_ones(directions),
        dead=_dead(fields, labels) if small else tuple(labels.name(i) for i in nulls.dead.tolist()),
        verdict="",
        warnings=(),
        certainty=nulls.kept / max(nulls.dropped, 1e-17),
        size=probe.size,
        invariants=_determined(search, unknown, group, labels, lost),
        unknown=unknown,
        more=nulls.more,
    )
    jumping = [f"all of {labels.listed_by_block(nulls.jumping.tolist())}"] if len(nulls.jumping) else []
    texts = [*(formula(field, labels) for field in lost), *jumping]
    return diagnosis.concluded(notes_of(probe, diagnosis, texts, closed, nulls))


def _moves_more_than(lost: list[Field], symmetry: DiscreteSymmetry, x: torch.Tensor, like: Point) -> bool:
    """Whether a finite symmetry moves coordinates other than those of fields that were lost: of these nothing is known."""
    known = torch.ones(len(x), dtype=torch.bool)
    for field in lost:
        known &= ~field.moved_rows() if isinstance(field, ClosedField) else True
    return not lost or bool((flatten(symmetry.map(unflatten(x, like))) != x)[known].any())


def _determined(search: Search, unknown: int, group: GaugeGroup | None, labels: Labels, lost: list[Field]) -> str:
    """What predictions determine, as text."""
    nulls, fields = search.nulls, search.fields
    if nulls.more:
        live = int(nulls.scale.isfinite().sum())
        return f"about {live - nulls.dim - nulls.more} combinations of {live} parameters"
    if unknown and not fields:
        return _BUT_UNKNOWN
    apart = nulls.scale.isinf()
    for field in lost:
        apart |= field.moved_rows() if isinstance(field, ClosedField) else False
    return invariants(fields, group, labels, nulls.probe.size, apart)


def _blind(probe: Probe) -> Diagnosis:
    """The answer when derivatives vanish everywhere although predictions move."""
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
        warnings=(BLIND, *probe.notes),
        certainty=0.0,
        size=probe.size,
        invariants="unknown",
    )


def _dead(fields: list[Field], labels: Labels) -> tuple[str, ...]:
    """Coordinates that are a generator by themselves."""
    alone = [f.lone_coordinate() for f in fields if isinstance(f, ClosedField)]
    return tuple(labels.name(i) for i in alone if i is not None)

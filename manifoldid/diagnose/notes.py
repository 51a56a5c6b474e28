"""What to know before trusting a diagnosis, each with a remedy."""

from manifoldid.diagnose.chart import SeriesField, TableField
from manifoldid.diagnose.diagnosis import Diagnosis
from manifoldid.diagnose.labels import labels_of
from manifoldid.diagnose.large import LargeNulls
from manifoldid.diagnose.match import MOST_GENERATORS
from manifoldid.diagnose.nullspace import NullSpaces
from manifoldid.diagnose.probe import Probe
from manifoldid.diagnose.tabulate import Table

_EXACT = 1e-8  # change of predictions under finite moves that needs no mention


def notes_of(
    probe: Probe, d: Diagnosis, lost: list[str], closed: bool, nulls: NullSpaces | LargeNulls
) -> tuple[str, ...]:
    """The notes of a diagnosis.

    Args:
        probe: The model.
        d: The diagnosis so far.
        lost: Formulas of null directions along which finite moves change predictions.
        closed: Whether the generators close under the bracket with constant coefficients.
        nulls: The null spaces.

    Returns:
        Sentences.
    """
    found = [
        *probe.notes,
        _too_few_outputs(probe),
        _apart(probe, d, nulls.dead.tolist()),
        _vacuous(probe, d),
        _LEFT_OUT if nulls.left_out and (d.more or not all(g.closed_form for g in d.generators)) else _too_many(d),
        _lost(lost),
        _singular(d),
        "" if nulls.certain else _UNCERTAIN,
        _unnamed(d, closed),
        _without_group(d),
        _INCOMPLETE if any(g.closed_form and not g.complete for g in d.generators) else "",
        _jumping(d),
    ]
    return tuple(note for note in found if note)


_UNCERTAIN = (
    "uncertain: rounding and weak directions are not clearly apart; use float64 throughout, and more informative inputs"
)
_INCOMPLETE = "a flow leaves the domain in finite time: the gauge is local, use a constraint or a chart"
_LEFT_OUT = (
    "fields that mix the members of an axis are too many to be tried at this size, so that some directions are left: diagnose a "
    "smaller model of the same structure (fewer items, the same ranks), which has the same gauge"
)
BLIND = (
    "the derivative of `predict` is zero everywhere, and its values still change: it compares, rounds, detaches, or leaves torch "
    "(numpy, float(), .item()); return what the decisions are made from (probabilities, margins), and keep the graph"
)


def _jumping(d: Diagnosis) -> str:
    jumping = [g for g in d.generators if g.jump]
    if not jumping:
        return ""
    return (
        f"predictions jump along {', '.join(g.name for g in jumping[:4])}, by {max(g.jump for g in jumping):.2g} times the largest, and stay "
        "the same between the jumps: a branch cut of `predict` (atan2, angle, a remainder, the sign of a root), not an end of the domain; "
        "return what has none (cosine and sine of the angle, squares), or `attach` and `check_invariance` may refuse the group"
    )


def _of_a_table(table: Table, d: Diagnosis) -> str:
    start = (
        f"xi has no formula in the library of candidates: psi, psi' = 1 / xi, is a table of {table.count} places that were measured, with "
        f"a relative error of {table.error:.0e}"
    )
    ends = " and ".join(end for end in table.ends if end)
    if ends:
        return f"{start}. psi is finite {ends}, where the domain ends: moves leave it in finite time, and there is no group"
    if d.group is None:
        return f"{start}; no group is made of it (complex numbers): hold a parameter"
    error = max(g.flow_error for g in d.generators)
    honest = f"; finite moves change predictions by {error:.0e}, no less" if error > _EXACT else ""
    return (
        f"{start}{honest}. d.group refuses points, and moves to points, outside of {table.chart.range}: a `sample` that draws from a "
        "wider range makes a longer table"
    )


def _vacuous(probe: Probe, d: Diagnosis) -> str:
    signs = any(s.name == "sign" for s in d.discrete)
    if probe.sampled or not signs or not bool((probe.point > 0).all()):
        return ""
    return (
        "all numbers of `point` are positive: if they always are, changes of sign are no symmetries; pass `sample`, "
        "which draws positive points, and they are left out"
    )


def _too_few_outputs(probe: Probe) -> str:
    outputs = probe.outputs.numel()
    if outputs >= probe.size:
        return ""
    if outputs == 1:
        return (
            f"`predict` returns one number for {probe.size} parameters and so determines one direction at most: if it is a loss, "
            "return what the loss is made of (margins, probabilities, means), one number for each observation"
        )
    return (
        f"`predict` returns {outputs} numbers for {probe.size} parameters, so at least {probe.size - outputs} directions "
        "are unseen whatever the model: return predictions at more inputs to tell the design from the model"
    )


def _apart(probe: Probe, d: Diagnosis, dead: list[int]) -> str:
    """Of large models, whose dead parameters are not among the generators."""
    if not dead:
        return ""
    names = labels_of(probe.like).listed_by_block(dead)
    share = (
        "; d.group is that of the others: where it acts on whole tensors, give rows of dead numbers weight 0 (weights=) in sections, "
        "attach and ensembles"
        if d.generators
        else ""
    )
    return (
        f"predictions do not depend on {len(dead)} of the {d.size} parameters ({names}): leave them out of the model, or return "
        f"predictions that do{share}"
    )


def _too_many(d: Diagnosis) -> str:
    if not d.more:
        return ""
    beside = f"beside these {d.dim} directions about {d.more} more" if d.dim else f"about {d.more} directions"
    return (
        f"{beside} are unseen or hardly seen, too many to be looked for one by one: "
        "most likely `predict` covers too few inputs; return predictions at more of them"
    )


def _lost(lost: list[str]) -> str:
    if not lost:
        return ""
    return (
        f"no derivative information along {'; '.join(lost[:2])}: the derivative vanishes and finite moves still change "
        "predictions (a threshold or rounding in `predict`, a unit that is off at every input); return probabilities, not decisions"
    )


def _singular(d: Diagnosis) -> str:
    if d.null_dim <= d.dim + d.unknown:
        return ""
    return (
        f"`point` is singular: {d.null_dim} directions have no derivative there, {d.dim} at generic points; "
        "start elsewhere, and do not read standard errors there"
    )


def _without_group(d: Diagnosis) -> str:
    if d.group is not None or len(d.generators) <= MOST_GENERATORS or not all(g.complete for g in d.generators):
        return ""
    return (
        f"no group of the catalogue fits these {len(d.generators)} generators, and groups are made of {MOST_GENERATORS} at most: give "
        "what they mix an axis of its own (heads as a leading dimension, not as slices of a matrix), and GeneralLinear and others fit"
    )


def _unnamed(d: Diagnosis, closed: bool) -> str:
    fields = [g.flat_field for g in d.generators]
    if len(fields) == 1 and isinstance(fields[0], TableField):
        return _of_a_table(fields[0].table, d)
    if len(fields) == 1 and isinstance(fields[0], SeriesField) and not fields[0].closed_form:
        return (
            "xi has no formula in the library of candidates and was fitted where points were drawn; predictions at points laid out for "
            "a longer table do not tell it, so that there is no group: hold a parameter, or write the model in psi, psi' = 1 / xi"
        )
    if d.dim and not all(g.closed_form for g in d.generators):
        return (
            "some directions have no closed form in the library of candidates: d.generators hands them over unnamed, without a group "
            "(a chart is tabulated only of one function of a coordinate that is the same for all, and of one direction)"
        )
    if d.dim and not closed:
        return "the fields do not close under the bracket with constant coefficients: there are orbits but no group"
    return ""

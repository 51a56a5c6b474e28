"""What to know before trusting a diagnosis, each with a remedy."""

from manifoldid.diagnose.diagnosis import Diagnosis
from manifoldid.diagnose.probe import Probe


def notes_of(probe: Probe, d: Diagnosis, lost: list[str], closed: bool, certain: bool, more: int) -> tuple[str, ...]:
    """The notes of a diagnosis.

    Args:
        probe: The model.
        d: The diagnosis so far.
        lost: Formulas of null directions along which finite moves change predictions.
        closed: Whether the generators close under the bracket with constant coefficients.
        certain: Whether rounding and information are clearly apart.
        more: How many further null directions there are, roughly.

    Returns:
        Sentences.
    """
    found = [
        *probe.notes,
        _too_few_outputs(probe),
        _vacuous(probe, d),
        _too_many(d, more),
        _lost(lost),
        _singular(d),
        "" if certain else _UNCERTAIN,
        _unnamed(d, closed),
        _INCOMPLETE if any(g.closed_form and not g.complete for g in d.generators) else "",
    ]
    return tuple(note for note in found if note)


_UNCERTAIN = (
    "uncertain: rounding and weak directions are not clearly apart; use float64 throughout, and more informative inputs"
)
_INCOMPLETE = "a flow leaves the domain in finite time: the gauge is local, use a constraint or a chart"
BLIND = (
    "the derivative of `predict` is zero everywhere, and its values still change: it compares, rounds, detaches, or leaves torch "
    "(numpy, float(), .item()); return what the decisions are made from (probabilities, margins), and keep the graph"
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


def _too_many(d: Diagnosis, more: int) -> str:
    if not more:
        return ""
    return (
        f"beside these {d.dim} directions about {more} more are unseen or hardly seen, too many to be looked for one by one: "
        "most likely `predict` covers too few inputs; return predictions at more of them"
    )


def _lost(lost: list[str]) -> str:
    if not lost:
        return ""
    return (
        f"no derivative information along {'; '.join(lost[:2])}: the derivative vanishes and finite moves still change "
        "predictions (a threshold or rounding in `predict`); return probabilities, not decisions"
    )


def _singular(d: Diagnosis) -> str:
    if d.null_dim <= d.dim + d.unknown:
        return ""
    return (
        f"`point` is singular: {d.null_dim} directions have no derivative there, {d.dim} at generic points; "
        "start elsewhere, and do not read standard errors there"
    )


def _unnamed(d: Diagnosis, closed: bool) -> str:
    if d.dim and not all(g.closed_form for g in d.generators):
        return "some directions have no closed form in the library of candidates: d.generators hands them over unnamed"
    if d.dim and not closed:
        return "the fields do not close under the bracket with constant coefficients: there are orbits but no group"
    return ""

"""The diagnosis as a page of text: what can be known, what cannot, and what to do about it."""

import textwrap
from collections.abc import Iterable

from manifoldid.diagnose.chart import TableField
from manifoldid.diagnose.diagnosis import Diagnosis
from manifoldid.diagnose.labels import labels_of
from manifoldid.diagnose.match_pointwise import OnBlocks
from manifoldid.diagnose.moves import held_coordinates
from manifoldid.groups import Pointwise
from manifoldid.points import flatten

_WIDTH = 100
_LABEL = 15
_SHOWN = 5  # entries of one kind


def report(d: Diagnosis) -> str:
    """The page, at most a screen."""
    lines = [d.verdict, ""]
    lines += _entry("determined", [d.invariants])
    if d.generators:
        lines += _entry("not seen", _generators(d), most=2)
    if d.dead:
        lines += _entry("dead", [", ".join(d.dead[:8]) + (f", ... ({len(d.dead)})" if len(d.dead) > 8 else "")])
    if d.group is not None or d.generators:
        lines += _entry("group", [_group(d)])
    if d.group is not None and d.generators:
        lines += _entry("next", ["mid.attach(optimizer, d.group, parameters); mid.Ensemble(members, d.group)"])
    if d.discrete:
        lines += _entry("finite part", _shortened([f"{s.formula}  ({s.name})" for s in d.discrete]), most=2)
        lines += _entry("", ["align ensembles over it with mid.Finite(*[s.map for s in d.discrete])"])
    elif d.starts:
        lines += _entry(
            "finite part", [f"none found, of signs, exchanges, and second solutions from {d.starts} starts"]
        )
    if d.weak:
        lines += _entry("weak", _shortened([f"{w.formula}: information {w.information:.1e}" for w in d.weak]), most=2)
    elif d.directions:
        worst = d.directions[0]
        share = f", {worst.relative:.0e} of the best direction" if len(d.directions) > 1 else ""
        lines += _entry(
            "least certain",
            [f"{worst.formula}: information {worst.information:.2g} for noise 1 on each prediction{share}"],
        )
    lines += _entry("note", d.warnings)
    lines += _entry("numbers", [_numbers(d)])
    return "\n".join(lines)


def _entry(label: str, texts: Iterable[str], most: int = 4) -> list[str]:
    """Texts beside a label, each on at most so many lines."""
    lines = []
    for text in texts:
        wrapped = textwrap.wrap(text, _WIDTH - _LABEL - 1, subsequent_indent="  ", break_long_words=False) or [""]
        wrapped = [*wrapped[: most - 1], wrapped[most - 1] + " ..."] if len(wrapped) > most else wrapped
        for line in wrapped:
            lines.append(f"  {label:{_LABEL - 2}} {line}".rstrip())
            label = ""
    return lines


def _shortened(texts: list[str]) -> list[str]:
    return [*texts[:_SHOWN], f"... ({len(texts)} in all)"] if len(texts) > _SHOWN else texts


def _generators(d: Diagnosis) -> list[str]:
    texts = []
    for g in d.generators:
        note = "" if g.complete or not g.flat_field.has_flow else "  [leaves the domain in finite time]"
        texts.append(f"{g.name}: {g.formula}{note}")
    return _shortened(texts)


def _group(d: Diagnosis) -> str:
    if d.group is None:
        acts = all(g.complete and g.closed_form for g in d.generators)
        return f"none {'of the catalogue' if acts else 'acts on all points'} (see the notes). Instead: {_remedy(d)}"
    if not d.generators:
        return "mid.Product(), the trivial group: nothing has to be removed"
    text = repr(d.group)
    if text.startswith("GeneratedGroup"):
        return "d.group, made of the generators above (the catalogue has none with these orbits)"
    if isinstance(d.group, Pointwise) and isinstance(d.group.forward, OnBlocks):
        return f"d.group, a shift of the logarithms of {', '.join(d.group.forward.names)}"
    tables = [g.flat_field.table.chart for g in d.generators if isinstance(g.flat_field, TableField)]
    if tables:
        return f"d.group, a shift of psi(x), psi tabulated on {tables[0].range}"
    return "mid." + text


def _remedy(d: Diagnosis) -> str:
    like = d.generators[0].like
    labels = labels_of(like)
    held = [labels.name(i) for i in held_coordinates([g.flat_field for g in d.generators], flatten(like))]
    return f"hold {', '.join(held[:6])}{', ...' if len(held) > 6 else ''} at a fixed value, which takes the gauge out"


def _numbers(d: Diagnosis) -> str:
    where = f"null space {d.null_dim} at the point" if d.null_dim != d.dim else "the same at the point"
    error = max((g.flow_error for g in d.generators), default=0.0)
    moves = f"; finite moves change predictions by {error:.0e}" if d.generators else ""
    return f"{d.size} parameters, orbit dimension {d.dim} ({where}); gap {d.certainty:.0e}{moves}"

"""The diagnosis as a page of text: what can be known, what cannot, and what to do about it."""

import textwrap
from collections.abc import Iterable

from manifoldid.diagnose.diagnosis import Diagnosis

_WIDTH = 100
_SHOWN = 6


def report(d: Diagnosis) -> str:
    """The page, at most a screen."""
    lines = [d.verdict, ""]
    lines += _entry("determined", [d.invariants])
    if d.dim:
        lines += _entry("not seen", _generators(d))
    if d.dead:
        lines += _entry("dead", [", ".join(d.dead[:8]) + (f", ... ({len(d.dead)})" if len(d.dead) > 8 else "")])
    lines += _entry("group", [_group(d)])
    if d.discrete:
        lines += _entry("finite part", _shortened([f"{s.formula}  ({s.name})" for s in d.discrete]))
    if d.weak:
        lines += _entry("weak", _shortened([f"{w.formula}: information {w.information:.1e}" for w in d.weak]))
    elif d.directions:
        worst = d.directions[0]
        text = f"{worst.formula}: information {worst.information:.2g}, {worst.relative:.0e} of the best direction"
        lines += _entry("least certain", [text])
    for warning in d.warnings:
        lines += _entry("note", [warning])
    lines += _entry("numbers", [_numbers(d)])
    return "\n".join(lines)


def _entry(label: str, texts: Iterable[str]) -> list[str]:
    lines = []
    for k, text in enumerate(texts):
        wrapped = textwrap.wrap(text, _WIDTH - 16, break_long_words=False) or [""]
        wrapped = [*wrapped[:4], "..."] if len(wrapped) > 5 else wrapped
        lines.append(f"  {label if k == 0 else '':13} {wrapped[0]}")
        lines += [" " * 16 + line for line in wrapped[1:]]
    return lines


def _shortened(texts: list[str]) -> list[str]:
    return [*texts[:_SHOWN], f"... ({len(texts)} in all)"] if len(texts) > _SHOWN else texts


def _generators(d: Diagnosis) -> list[str]:
    texts = []
    for g in d.generators:
        note = "" if g.complete else "  [leaves the domain in finite time]"
        texts.append(f"{g.name}: {g.formula}{note}")
    return _shortened(texts)


def _group(d: Diagnosis) -> str:
    if d.group is None:
        return "none: no group acts on all points (see the notes); fix the gauge with mid.Section at a point, or a constraint"
    if not d.dim:
        return "mid.Product(), the trivial group: nothing has to be removed"
    text = repr(d.group)
    return text if text.startswith("GeneratedGroup") else "mid." + text


def _numbers(d: Diagnosis) -> str:
    where = f"null space {d.null_dim} at the point" if d.null_dim != d.dim else "the same at the point"
    error = max((g.flow_error for g in d.generators), default=0.0)
    moves = f"; finite moves change predictions by {error:.0e}" if d.dim else ""
    return f"{d.size} parameters, orbit dimension {d.dim} ({where}); gap {d.certainty:.0e}{moves}"

"""How a field is written: grouped by blocks and by equal formulas, short enough to read."""

import torch

from manifoldid.diagnose.fields import ClosedField, Field

_LISTED = 6  # coordinates that are written one by one


class Labels:
    """Names of the coordinates of a flat point."""

    def __init__(self, spans: dict[str, tuple[int, int]], shapes: dict[str, tuple[int, ...]]):
        """Stores where each block lies and what its shape is.

        Args:
            spans: Start and end of each block in the flat vector.
            shapes: Shape of each block, (..., 2) for complex ones.
        """
        self.spans, self.shapes = spans, shapes

    def block_of(self, index: int) -> str:
        """The block that a coordinate belongs to."""
        return next(name for name, (start, stop) in self.spans.items() if start <= index < stop)

    def name(self, index: int) -> str:
        """The coordinate as code: x[3], theta[2], W[0, 1]."""
        block = self.block_of(index)
        inside = index - self.spans[block][0]
        place = [int(i) for i in torch.unravel_index(torch.tensor(inside), self.shapes[block])] if self.shapes[block] else []
        return f"{block or 'x'}[{', '.join(map(str, place))}]" if place else block or "x"

    def listed(self, indices: list[int]) -> str:
        """Several coordinates of one block: x[0:3], x[1, 4], all of x."""
        block = self.block_of(indices[0])
        start, stop = self.spans[block]
        label = block or "x"
        if len(indices) == stop - start:
            return label
        if len(indices) == 1:
            return self.name(indices[0])
        inside = [i - start for i in indices]
        if inside == list(range(inside[0], inside[-1] + 1)):
            flat = f"{label}.flatten()" if len(self.shapes[block]) > 1 else label
            return f"{flat}[{inside[0]}:{inside[-1] + 1}]"
        if len(indices) <= 4:
            return ", ".join(self.name(i) for i in indices)
        return f"{self.name(indices[0])}, {self.name(indices[1])}, ... ({len(indices)} of {label})"


def formula(field: Field, labels: Labels) -> str:
    """The velocity of a field in words: what d/dt of which coordinates is."""
    text = getattr(field, "text", None)
    if text is not None:
        return text
    if not isinstance(field, ClosedField):
        return "combination of closed forms"
    groups = _groups(field, labels)
    parts = []
    for (block, expression), members in list(groups.items())[:_LISTED]:
        where = labels.listed(members)
        parts.append((expression, where, block))
    whole = len(groups) == 1 and len(labels.spans) == 1 and len(parts) == 1 and parts[0][1] == "x"
    if whole:
        return f"dx = {parts[0][0]}"
    text = ", ".join(f"d{where} = {expression}" for expression, where, _ in parts)
    return text + (f", ... ({len(groups)} terms)" if len(groups) > _LISTED else "")


def _groups(field: ClosedField, labels: Labels) -> dict[tuple[str, str], list[int]]:
    groups: dict[tuple[str, str], list[int]] = {}
    moved = field.moved_rows().nonzero()[:, 0].tolist()
    if field.is_affine and not len(field.rows) and field.constant is not None:
        for i in moved:
            groups.setdefault((labels.block_of(i), number(float(field.constant[i]))), []).append(i)
        return groups
    for i in moved:
        block = labels.block_of(i)
        terms = field.terms_of(i)
        own = all("{" not in factor.replace(f"{{{i}}}", "") for _, factor in terms)
        expression = expression_of([(c, factor.replace(f"{{{i}}}", block or "x")) for c, factor in terms]) if own else None
        if expression is None:
            expression = expression_of([(c, _named(factor, labels)) for c, factor in terms])
        groups.setdefault((block, expression), []).append(i)
    return groups


def _named(factor: str, labels: Labels) -> str:
    pieces = factor.split("{")
    text = pieces[0]
    for piece in pieces[1:]:
        index, rest = piece.split("}", 1)
        text += labels.name(int(index)) + rest
    return text


def number(value: float) -> str:
    """A coefficient, short."""
    return f"{value:.6g}"


def expression_of(terms: list[tuple[float, str]]) -> str:
    """A sum of terms: 2 x^2 - 1."""
    text = ""
    for coefficient, factor in terms:
        sign, size = ("-" if coefficient < 0 else "+"), abs(coefficient)
        body = number(size) if factor == "1" else factor if size == 1 else f"{number(size)} {factor}"
        text += (f" {sign} " if text else "-" if sign == "-" else "") + body
    return text or "0"

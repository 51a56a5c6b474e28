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
        place = (
            [int(i) for i in torch.unravel_index(torch.tensor(inside), self.shapes[block])]
            if self.shapes[block]
            else []
        )
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
        shape = self.shapes[block]
        if len(shape) == 2:
            rows, columns = sorted({i // shape[1] for i in inside}), sorted({i % shape[1] for i in inside})
            if len(rows) * len(columns) == len(inside) and (len(rows) == shape[0] or len(columns) == shape[1]):
                whole_rows = len(columns) == shape[1]
                chosen = _range(rows if whole_rows else columns)
                if chosen:
                    return f"{label}[{chosen}]" if whole_rows else f"{label}[:, {chosen}]"
        step = inside[1] - inside[0]
        last = inside[-1] + step > stop - start - 1
        if (
            len(shape) < 2
            and len(inside) > 2
            and step > 1
            and last
            and inside == list(range(inside[0], inside[-1] + 1, step))
        ):
            return f"{label}[{inside[0]}::{step}]"
        if inside == list(range(inside[0], inside[-1] + 1)):
            flat = f"{label}.flatten()" if len(self.shapes[block]) > 1 else label
            return f"{flat}[{inside[0]}:{inside[-1] + 1}]"
        if len(indices) <= 4:
            return ", ".join(self.name(i) for i in indices)
        return f"{self.name(indices[0])}, {self.name(indices[1])}, ... ({len(indices)} of {label})"


def _range(values: list[int]) -> str:
    """Consecutive numbers as a slice."""
    if len(values) == 1:
        return str(values[0])
    return f"{values[0]}:{values[-1] + 1}" if values == list(range(values[0], values[-1] + 1)) else ""


def formula(field: Field, labels: Labels) -> str:
    """The velocity of a field in words: what d/dt of which coordinates is."""
    text = getattr(field, "text", None)
    if text is not None:
        return text
    if not isinstance(field, ClosedField):
        return "combination of closed forms"
    rows = row_formula(field, labels)
    if rows is not None:
        return rows
    groups = _groups(field, labels)
    parts = [(_derivative(labels.listed(members)), text) for (_, text), members in list(groups.items())[:_LISTED]]
    text = ", ".join(f"{left} = {right}" for left, right in parts)
    return text + (f", ... ({len(groups)} terms)" if len(groups) > _LISTED else "")


def _derivative(where: str) -> str:
    return f"d({where})" if "," in where.split("[")[0] or "], " in where else f"d{where}"


def row_formula(field: ClosedField, labels: Labels) -> str | None:
    """A linear field that treats the rows of matrices alike: (x[1], -x[0]) for every row; None if it is not of this kind."""
    if not field.is_affine or field.is_diagonal:
        return None
    pattern: list[tuple] = [() for _ in range(field.size)]
    for row, column, entry in zip(field.rows.tolist(), field.columns.tolist(), field.entries.tolist(), strict=True):
        pattern[row] += ((column - row, entry),)
    if field.constant is not None:
        for row in field.constant.nonzero()[:, 0].tolist():
            pattern[row] += ((None, float(field.constant[row])),)
    texts = []
    for block, (start, stop) in labels.spans.items():
        if not any(pattern[start:stop]):
            continue
        text = _block_rows(pattern[start:stop], block or "x", labels.shapes[block])
        if text is None:
            return None
        texts.append(text)
    return "; ".join(texts)


def _block_rows(pattern: list[tuple], name: str, shape: tuple[int, ...]) -> str | None:
    n = len(pattern)
    widths = [shape[-1]] if len(shape) > 1 else [k for k in range(2, 9) if n % k == 0]
    for k in widths:
        runs: list[list] = []  # [first row, number of rows, pattern]
        for r in range(n // k):
            mine = tuple(pattern[r * k : (r + 1) * k])
            if runs and runs[-1][2] == mine:
                runs[-1][1] += 1
            else:
                runs.append([r, 1, mine])
        inside = all(
            d is None or 0 <= i + d < k for _, _, mine in runs for i, terms in enumerate(mine) for d, _ in terms
        )
        runs = [run for run in runs if any(run[2])]
        if inside and len(runs) <= 2 and all(count > 1 or len(shape) > 1 for _, count, _ in runs):
            return "; ".join(_row_text(name, k, n // k, len(shape) > 1, *run) for run in runs)
    return None


def _row_text(name: str, k: int, rows: int, matrix: bool, first: int, count: int, pattern: tuple) -> str:
    variables = [f"{name[0] if name[0].isalpha() else 'w'}{i}" for i in range(k)]
    moves = [
        expression_of([(c, "1" if d is None else variables[i + d]) for d, c in terms])
        for i, terms in enumerate(pattern)
    ]
    which = name if matrix else f"{name}.reshape(-1, {k})"
    which += "" if count == rows else f"[{first}]" if count == 1 else f"[{first}:{first + count}]"
    return f"d({', '.join(variables)}) = ({', '.join(moves)}) for the rows of {which}"


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
        text = expression_of([(c, factor.replace(f"{{{i}}}", block or "x")) for c, factor in terms]) if own else None
        if text is None:
            text = expression_of([(c, _named(factor, labels)) for c, factor in terms])
        groups.setdefault((block, text), []).append(i)
    lonely = {key: i for key, (i, *others) in groups.items() if not others and labels.shapes[key[0]]}
    named = {}
    for key, members in groups.items():  # one coordinate alone is called by its own name on both sides
        if key in lonely:
            terms = field.terms_of(lonely[key])
            key = (key[0], expression_of([(c, _named(factor, labels)) for c, factor in terms]))
        named.setdefault(key, []).extend(members)
    return named


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

"""Affine fields that treat the rows or columns of a matrix alike, as equations between its columns or rows."""

from manifoldid.diagnose.fields import ClosedField
from manifoldid.diagnose.terms import expression_of

Term = tuple[int, int | None, float]  # row, column (None: constant) and entry, counted from the start of a block


def terms_of_block(field: ClosedField, start: int, stop: int) -> list[Term] | None:
    """(row, column, entry) of the field on one block, column None for constants; None if it mixes blocks."""
    inside = (field.rows >= start) & (field.rows < stop)
    columns = field.columns[inside]
    if bool(((columns < start) | (columns >= stop)).any()):
        return None
    terms: list[Term] = list(
        zip(
            (field.rows[inside] - start).tolist(),
            (columns - start).tolist(),
            field.entries[inside].tolist(),
            strict=True,
        )
    )
    if field.constant is not None:
        moved = field.constant[start:stop].nonzero()[:, 0].tolist()
        terms += [(row, None, float(field.constant[start + row])) for row in moved]
    return terms


def lines_of_block(terms: list[Term], name: str, size: int, shape: tuple[int, ...]) -> list[str] | None:
    """The terms as equations between columns or rows of a matrix, which may be the reshaped block; None if they are not."""
    if len(shape) > 1:
        rows, width = size // shape[-1], shape[-1]
        ways = [_lines_alike(terms, name, rows, width, by_rows) for by_rows in (True, False)]
        return min((lines for lines in ways if lines is not None), key=len, default=None)
    view = name.upper() if name.islower() else f"{name}_"
    for width in range(2, 9):
        if size % width == 0 and size > width:
            lines = _lines_alike(terms, view, size // width, width, by_rows=True, least=2)
            if lines is not None:
                return [f"{view} = {name}.reshape(-1, {width}): {lines[0]}", *lines[1:]]
    return None


def _lines_alike(
    terms: list[Term], name: str, rows: int, width: int, by_rows: bool, least: int = 1
) -> list[str] | None:
    """Equations that hold for runs of rows (of columns with `by_rows` false), at most two runs of `least` or more."""

    def place(index: int) -> tuple[int, int]:
        row, column = divmod(index, width)
        return (row, column) if by_rows else (column, row)

    patterns: dict[int, list[Term]] = {}
    for to, source, entry in terms:
        here, item = place(to)
        there, other = (here, None) if source is None else place(source)
        if there != here:
            return None
        patterns.setdefault(here, []).append((item, other, entry))
    runs = _runs(patterns)
    if len(runs) > 2 or any(last - first + 1 < least for first, last, _ in runs):
        return None
    lines = []
    for first, last, pattern in runs:
        whole = last - first + 1 == (rows if by_rows else width)
        where = ":" if whole else str(first) if first == last else f"{first}:{last + 1}"
        for item in dict.fromkeys(term[0] for term in pattern):
            mine = [(c, "1" if o is None else _entry(name, where, o, by_rows)) for i, o, c in pattern if i == item]
            lines.append(f"d{_entry(name, where, item, by_rows)} = {expression_of(mine)}")
    return lines


def _runs(patterns: dict[int, list[Term]]) -> list[tuple[int, int, list[Term]]]:
    """Consecutive rows with one pattern: first, last, pattern."""
    runs: list[tuple[int, int, list[Term]]] = []
    for here in sorted(patterns):
        mine = sorted(patterns[here], key=lambda term: (term[0], -1 if term[1] is None else term[1]))
        if runs and runs[-1][1] == here - 1 and runs[-1][2] == mine:
            runs[-1] = (runs[-1][0], here, mine)
        else:
            runs.append((here, here, mine))
    return runs


def _entry(name: str, where: str, item: int, by_rows: bool) -> str:
    if by_rows:
        return f"{name}[{where}, {item}]"
    return f"{name}[{item}]" if where == ":" else f"{name}[{item}, {where}]"

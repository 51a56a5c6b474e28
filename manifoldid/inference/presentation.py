"""Tables as plain text: no colour and nothing but ASCII of our own, so that they read the same in a terminal, a pipe and a log."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

_ROWS = 30  # more rows are cut in the middle: `table()` has them all
_DIGITS = 3  # of the median standard error


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: Of the rows; the heading is the key with blanks for underscores.
        scale: The column whose precision the numbers are shown in: an estimate has the decimals of its standard error.
    """

    key: str
    scale: str = ""


def rendered(
    title: str, columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()
) -> str:
    """A table as text.

    Args:
        title: First line.
        columns: What to show, in order.
        rows: One mapping per row; a missing or None entry is left blank.
        notes: Lines below the table.

    Returns:
        Text without a newline at its end.
    """
    from rich import box  # here: half of what `import manifoldid` would take
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n"),
        title_justify="left",
        pad_edge=False,
        show_edge=False,
    )
    decimals = {column.key: _decimals(rows, column.scale or column.key) for column in columns}
    for column in columns:
        numeric = any(isinstance(row.get(column.key), float) for row in rows)
        table.add_column(Text(column.key.replace("_", " ")), justify="right" if numeric else "left", no_wrap=True)
    cut = len(rows) > _ROWS
    for k, row in enumerate(rows):
        if cut and k == _ROWS // 2:
            table.add_row(Text(f"... {len(rows) - 2 * (_ROWS // 2)} more, all in .table()"))
        if not cut or k < _ROWS // 2 or k >= len(rows) - _ROWS // 2:
            table.add_row(*(Text(_shown(row.get(column.key), decimals[column.key])) for column in columns))
    buffer = StringIO()
    # wide: nothing wraps or is shortened, whatever the terminal
    Console(file=buffer, width=10_000, color_system=None, force_terminal=False, highlight=False, markup=False).print(
        table
    )
    body = [line.rstrip() for line in buffer.getvalue().splitlines()]
    return "\n".join([title, *body, *notes])


def _decimals(rows: Sequence[Mapping[str, Any]], key: str) -> int | None:
    """Decimals that show the usual number of a column with three digits and the smallest with one; None where that takes too many."""
    sizes = sorted(
        abs(row[key]) for row in rows if isinstance(row.get(key), float) and math.isfinite(row[key]) and row[key]
    )
    if not sizes:
        return 3
    usual, smallest = math.floor(math.log10(sizes[len(sizes) // 2])), math.floor(math.log10(sizes[0]))
    decimals = max(_DIGITS - 1 - usual, -smallest)
    return max(decimals, 0) if decimals <= 7 else None


def _shown(entry: Any, decimals: int | None) -> str:
    if entry is None:
        return ""
    if isinstance(entry, complex):
        return f"{entry:.4g}"
    if not isinstance(entry, float):
        return str(entry)
    return f"{entry:.4g}" if decimals is None or not math.isfinite(entry) else f"{entry:.{decimals}f}"

"""The table that `fit(progress=True)` writes."""

import sys
from types import TracebackType
from typing import Any

from manifoldid.optim.steihaug import Search

_HEADINGS = ("step", "nll", "gradient", "radius", "products")


class Progress:
    """A table on stderr that grows by a row per step: in place on a terminal, once at the end in a pipe.

    Args:
        shown: Whether there is anything to write.
    """

    def __init__(self, shown: bool):
        self._live: Any = None
        if shown:
            from rich.console import Console  # here: half of what `import manifoldid` would take
            from rich.live import Live
            from rich.table import Table

            self._table = Table(*_HEADINGS, box=None)
            self._live = Live(self._table, console=Console(file=sys.stderr), auto_refresh=False)

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def row(self, k: int, search: Search) -> None:
        """Adds a row: where the search is, and what the step before it cost in Hessian products."""
        if self._live is None:
            return
        model, spent = search.model, str(search.last.products) if search.last is not None else ""
        self._table.add_row(
            str(k), f"{model.value:.10g}", f"{model.norm:.2e}", f"{search.radius:.1e}", spent, style=None
        )
        self._live.refresh()

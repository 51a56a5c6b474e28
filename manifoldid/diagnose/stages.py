"""What a long command is busy with."""

import sys
import threading
import time
from types import TracebackType

_PATIENCE = 2.0  # seconds without a word


class Stages:
    """Writes the stage that is running to stderr, once the whole has taken longer than two seconds.

    A context manager, so that no line comes after the end.
    """

    def __init__(self, shown: bool, of: str = "diagnose"):
        """Starts the clock; with `shown` false nothing is ever written. `of` begins every line."""
        self._of = of
        self._shown, self._start = shown, time.monotonic()
        self._timer: threading.Timer | None = None

    def begin(self, stage: str) -> None:
        """Ends the stage before this one."""
        self._cancel()
        if self._shown:
            wait = max(0.0, _PATIENCE - (time.monotonic() - self._start))
            self._timer = threading.Timer(wait, self._write, (stage,))
            self._timer.daemon = True
            self._timer.start()

    def _write(self, stage: str) -> None:
        sys.stderr.write(f"{self._of}: {stage} ... (after {time.monotonic() - self._start:.0f} s)\n")
        sys.stderr.flush()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def __enter__(self) -> "Stages":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel()

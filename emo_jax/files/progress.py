"""Progress of long work: a live line on a terminal, occasional plain lines in a log."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.status import Status

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows the latest line it is given; use as a context manager.

    Args:
      name: starts every line.
      enabled: if False, nothing is shown.
    """

    def __init__(self, name: str, enabled: bool = True):
        self._name, self._enabled = name, enabled
        self._status: Status | None = None
        self._last = time.monotonic()

    def __enter__(self) -> "Progress":
        if self._enabled and sys.stderr.isatty():
            self._status = Status(self._name, console=Console(stderr=True))
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, line: str, *, always: bool = False) -> None:
        """Shows a line; in a log only every ten seconds, or if `always`."""
        if self._status is not None:
            self._status.update(f"{self._name}: {line}")
        elif self._enabled and (always or time.monotonic() - self._last > _SECONDS_BETWEEN_LINES):
            print(f"{self._name}: {line}", file=sys.stderr, flush=True)
            self._last = time.monotonic()

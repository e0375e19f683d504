"""Waits a set time for files that are temporarily unavailable, then names them in an error.

A network file system comes back, and a folder that was moved may. What existed when it was opened
and cannot be read now is tried again for `EMO_READ_WAIT` seconds; a log line says what is waited
for. What does not exist when it is opened is refused immediately.
"""

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from emo_jax.errors import UsageError

VARIABLE = "EMO_READ_WAIT"
WAIT_SECONDS = 60.0
_FIRST_PAUSE, _LAST_PAUSE = 0.05, 1.0  # seconds between attempts
_LOG = logging.getLogger(__name__)
_here = threading.local()

T = TypeVar("T")


class AwayError(Exception):
    """`PATH: why` for what existed and cannot be read now: it may come back."""


class SpoiltError(Exception):
    """`PATH: why` for what existed and will never read correctly: damaged, or replaced."""


class RefusedError(Exception):
    """`PATH: why; WHAT TO DO` for what may not be read; neither waiting nor another copy helps."""


def wait_seconds() -> float:
    """Returns how long to wait for an unavailable file.

    Raises:
      UsageError: the environment variable for it is not a number of seconds.
    """
    text = os.environ.get(VARIABLE, "")
    try:
        seconds = float(text) if text else WAIT_SECONDS
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UsageError(f"{VARIABLE}={text}: must be a number of seconds, 0 or more")
    return seconds


@contextlib.contextmanager
def wait_unless(stopped: Callable[[], bool]) -> Iterator[None]:
    """Stops all waiting in this thread as soon as `stopped` returns True."""
    before = getattr(_here, "stopped", None)
    _here.stopped = stopped
    try:
        yield
    finally:
        _here.stopped = before


class Patience:
    """Retries reads from one place, in any number of threads.

    Args:
      error: raised when nothing helps, as `PATH: why; WHAT TO DO`.
      away: what to do about a file that stays unavailable.
      spoilt: what to do about a damaged or replaced file; "": say nothing.
      seconds: how long to wait; None: `wait_seconds()`.
    """

    def __init__(
        self, error: type[Exception], *, away: str, spoilt: str, seconds: float | None = None
    ):
        self._error, self._away = error, f"; {away}"
        self._spoilt = f"; {spoilt}" if spoilt else ""
        self._seconds = wait_seconds() if seconds is None else seconds
        self._lock = threading.Lock()
        self._since: float | None = None  # when the file waited for was first missed
        self._back = -math.inf  # when one was last read again

    def read(self, attempt: Callable[[], T], *, begun: float | None = None) -> T:
        """Returns what `attempt` returns, as soon as it does not raise `AwayError`.

        Args:
          attempt: reads, or waits for what was requested.
          begun: when that was, as `time.monotonic` says; None: now.

        Raises:
          error: unavailable for too long, spoilt or refused (which waiting does not help).
        """
        begin, pause, missed = time.monotonic(), _FIRST_PAUSE, False
        started = begin if begun is None else begun
        while True:
            try:
                found = attempt()
            except SpoiltError as error:
                raise self._error(f"{error}{self._spoilt}") from error
            except RefusedError as error:
                raise self._error(str(error)) from error
            except AwayError as error:
                waited = time.monotonic() - begin
                if waited >= self._seconds or is_stopped():
                    how_long = f" (waited {waited:.0f} s)" if waited >= 1 else ""
                    raise self._error(f"{error}{how_long}{self._away}") from error
                self._miss(str(error), started)
                missed = True
                _sleep(min(pause, self._seconds - waited))
                pause, started = min(2 * pause, _LAST_PAUSE), time.monotonic()
                continue
            if missed:  # another read that succeeds, from a cache, says nothing
                self._found()
            return found

    def _miss(self, what: str, started: float) -> None:
        with self._lock:  # many threads miss the same file; log it once
            if self._since is None and started > self._back:
                self._since = time.monotonic()
                _LOG.warning("%s; waiting up to %.0f s for it", what, self._seconds)

    def _found(self) -> None:
        with self._lock:
            if self._since is not None:
                _LOG.warning("can be read again, after %.1f s", time.monotonic() - self._since)
                self._back = time.monotonic()
            self._since = None


def is_stopped() -> bool:
    """Whether waiting in this thread is over, see `wait_unless`."""
    stopped = getattr(_here, "stopped", None)
    return stopped is not None and stopped()


def _sleep(seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not is_stopped():
        time.sleep(min(left, 0.1))

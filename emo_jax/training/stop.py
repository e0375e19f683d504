"""Signals that ask a run to stop. Imports nothing heavy: the request may come early."""

import contextlib
import signal
import time
from typing import Any

ASK_SECONDS = 5.0  # between agreements of several processes; schedulers kill 30 s after SIGTERM


class StopRequest:
    """Becomes True on SIGTERM, SIGINT or SIGHUP; the running step is finished first.

    A SIGHUP (the terminal is gone) that nohup ignores does not count. A second SIGINT does not
    wait. Entering it again inside itself keeps it one request.

    Attributes:
      requested: whether to stop.
      began: when it was made, by `time.monotonic`: `emo train` makes it first of all.
    """

    def __init__(self) -> None:
        self.requested, self.began = False, time.monotonic()
        self._depth = 0
        self._old: dict[int, Any] = {}
        # The last agreement: number and time of its call, and after how many calls the next one is.
        self._calls, self._asked, self._wait = 0, (0, 0.0), 1

    def __enter__(self) -> "StopRequest":
        self._depth += 1
        if self._depth == 1:
            with contextlib.suppress(ValueError):  # not in the main thread: signals stay as is
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                        continue
                    self._old[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *exc: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            for number, old in self._old.items():
                signal.signal(number, old)
            self._old = {}

    def agreed(self) -> bool:
        """Returns whether any process was asked to stop: all must save the same step.

        Called at the start and after every step. Several processes agree about every `ASK_SECONDS`,
        at the same steps: each says after how many steps it wants the next agreement, and the
        minimum counts. That number at most doubles: a step is dispatched in far less time than it
        takes, and the second step of a start is timed as its dispatch alone.
        """
        import jax

        if jax.process_count() == 1:
            return self.requested
        self._calls += 1
        before, then = self._asked
        if self._calls < before + self._wait:
            return False
        from emo_jax.parallel import processes

        now = time.monotonic()
        per_step = (now - then) / (self._calls - before) if before else ASK_SECONDS
        wait = max(1, min(2 * self._wait, int(ASK_SECONDS / max(per_step, 1e-3))))
        found = processes.gather(0 if self.requested else wait)
        self._asked, self._wait = (self._calls, now), min(found)
        return min(found) == 0

"""Signals that ask a run to stop. Nothing heavy is imported here: a run may be asked early."""

import contextlib
import signal
from typing import Any


class StopRequest:
    """True once SIGTERM or SIGINT came; the step that runs is finished first.

    A second SIGINT does not wait. Entered again inside itself it stays one request.
    """

    def __init__(self) -> None:
        self.requested = False
        self._depth = 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._depth += 1
        if self._depth == 1:
            with contextlib.suppress(ValueError):  # not in the main thread: signals stay as is
                for number in (signal.SIGTERM, signal.SIGINT):
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

    def agreed(self, step: int, *, every: int) -> bool:
        """Whether any process was asked: all must save the same step.

        Args:
          every: steps from one agreement of several processes to the next; each waits for all.
        """
        import jax

        if jax.process_count() == 1:
            return self.requested
        if step % every:
            return False
        from emo_jax.parallel import processes

        return any(processes.gather(self.requested))

"""The end of a process that may be stuck in a collective, a device or a disk."""

import contextlib
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from emo_jax.errors import EmoError, PreemptedError, UsageError
from emo_jax.parallel.processes.stall import SECONDS, in_background

KINDS: dict[int, type[EmoError]] = {kind.exit_code: kind for kind in (UsageError, PreemptedError)}


class Ending:
    """Ends this process from a thread, without cleanup.

    Attributes:
      last_words: takes the error with which this process ends, before it does; None: nobody does.
    """

    last_words: Callable[[EmoError], None] | None = None

    def __init__(self) -> None:
        self._once = threading.Lock()

    def end(self, code: int, text: str) -> NoReturn:
        """Says why, and exits with the code; waits for ever if another thread is about to."""
        with self._once:
            if self.last_words is not None:
                error = KINDS.get(code, EmoError)(text)
                in_background(partial(self.last_words, error)).join(SECONDS)
            # Not by `print`: another thread may hold the stream's lock forever.
            with contextlib.suppress(OSError):
                os.write(2, f"emo: {text}\n".encode())
            os._exit(code)

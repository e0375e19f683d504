"""A run that does not get on: all write their stacks, and process 0 says who waits for whom.

Whatever writes to a disk does so in a thread of its own: the disk may be what the run waits for.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from emo_jax.parallel.processes.pulse import Pulse, does, who_waits
from emo_jax.parallel.processes.words import some

SECONDS = 10.0  # in which all processes write their stacks

# Writes the stacks of this process, given the name of their folder; on process 0, given lines too,
# writes those. Returns where they are.
WriteStacks = Callable[[str, list[str]], str]
Sign = dict[str, Any]  # see `Pulse.sign`


class Stall:
    """What one process knows of it.

    Attributes:
      write: writes stacks; None: nothing does.
    """

    def __init__(self, pulse: Pulse):
        self.write: WriteStacks | None = None
        self._pulse = pulse
        self._begun: tuple[str, float, float] | None = None  # process 0: folder, limit, when
        self._wrote: dict[int, Sign] = {}  # process 0: who wrote their stacks, and what they do

    @property
    def has_begun(self) -> bool:
        """Process 0: whether a process has said that there is no step."""
        return self._begun is not None

    def begin(self, limit: float) -> str | None:
        """Process 0: returns the folder for the stacks of all; None if this has begun before."""
        if self._begun is not None:
            return None
        folder = f"step{self._pulse.sign()['step']}-{time.strftime('%Y%m%dT%H%M%S')}"
        self._begun = (folder, limit, time.monotonic())
        return folder

    def write_here(self, folder: str, then: Callable[[Sign], None]) -> None:
        """Writes this process's stacks, and says what it does."""

        def work() -> None:
            if self.write is not None:
                self.write(folder, [])
            then(self._pulse.sign())

        in_background(work)

    def wrote(self, index: int, sign: Sign) -> None:
        """Process 0: a process has written its stacks."""
        self._wrote[index] = sign

    def verdict(self, now: float, names: dict[int, str], signs: dict[int, Sign]) -> str | None:
        """Process 0: who waits for whom, once all have written, or did not in time; else None.

        Args:
          names: of all processes.
          signs: what each said last.
        """
        if self._begun is None:
            return None
        folder, limit, since = self._begun
        if len(self._wrote) < len(names) and now - since < SECONDS:
            return None
        signs = signs | self._wrote
        where = [f"{folder}/"]

        def work() -> None:
            if self.write is not None:
                where[0] = self.write(
                    folder, [f"{names[i]} {does(signs.get(i))}" for i in sorted(names)]
                )

        in_background(work).join(SECONDS)
        silent = [i for i in sorted(names) if i not in self._wrote]
        return (
            f"no step for {limit:.0f} s: {who_waits(names, signs)}; the stacks of all threads are"
            f" in {where[0]}{f' (without {some(silent)})' if silent else ''}"
        )


def in_background(work: Callable[[], None]) -> threading.Thread:
    """Starts what writes to a disk; it is not waited for when the process ends."""
    thread = threading.Thread(target=work, name="stacks", daemon=True)
    thread.start()
    return thread

"""Ends a run that does no step for too long, and says where every thread of every process is.

A run hangs without an error if a device, a network or a library does. Processes of the run that
wait for one another all say the same then, so process 0 says who waits for whom.
"""

import contextlib
import faulthandler
import threading
import time
from pathlib import Path
from typing import NoReturn

from emo_jax.errors import EXIT_RUN_AGAIN
from emo_jax.parallel import processes
from emo_jax.parallel.processes.pulse import does
from emo_jax.parallel.processes.stall import SECONDS as WRITE_SECONDS
from emo_jax.parallel.processes.stall import in_background

STALLS = "stalls"  # in a workdir
_LONGER = {"read": 3, "compile": 6, "evaluation": 6, "save": 6, "restore": 6}  # times the limit
_AGAIN = "run the same command again to go on (train.stall_timeout is how long it may take)"


class Watchdog:
    """A context in which `processes.pulse` must beat within a time. It does not touch the step.

    Time in which this process does not run at all, as while it is stopped, does not count.

    Args:
      workdir: where stacks are written, in `stalls/`.
      limit: seconds; 0: there is no limit.
    """

    def __init__(self, workdir: Path, limit: float):
        self._workdir, self._limit = workdir, limit
        self._over = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._limit:
            processes.write_stacks_with(self._write)
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        pulse, pause = processes.pulse, min(1.0, self._limit / 8)
        beats, idle, looked = pulse.beats, 0.0, time.monotonic()
        while not self._over.wait(pause):
            now = time.monotonic()
            idle += min(now - looked, 2 * pause)
            looked = now
            if pulse.beats != beats:
                beats, idle = pulse.beats, 0.0
            limit = self._limit * _LONGER.get(pulse.phase, 1)
            if idle < limit:
                continue
            if processes.stalled(limit):
                self._over.wait(3 * WRITE_SECONDS)  # process 0 ends all
                if self._over.is_set():
                    return
            self._end(limit)

    def _end(self, limit: float) -> NoReturn:
        """Ends this process, which is alone, or has no answer from process 0."""
        sign = processes.pulse.sign()
        folder = f"step{sign['step']}-{time.strftime('%Y%m%dT%H%M%S')}"
        where = [str(self._workdir / STALLS / folder)]

        def work() -> None:
            where[0] = self._write(folder, [])

        in_background(work).join(WRITE_SECONDS)
        text = (
            f"no step for {limit:.0f} s: this process {does(sign)}; the stacks of all threads are"
            f" in {where[0]}; {_AGAIN}"
        )
        processes.ending.end(EXIT_RUN_AGAIN, text)

    def _write(self, folder: str, lines: list[str]) -> str:
        """Writes the stacks, or some lines about all processes; returns where."""
        place = self._workdir / STALLS / folder
        try:
            place.mkdir(parents=True, exist_ok=True)
            if lines:
                (place / "processes.txt").write_text("".join(f"{line}\n" for line in lines))
                return str(place)
            import jax

            with (place / f"process{jax.process_index()}.txt").open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as e:
            with contextlib.suppress(OSError, ValueError):
                faulthandler.dump_traceback(all_threads=True)
            return f"the log, since {place} cannot be written ({e.strerror})"
        return str(place)

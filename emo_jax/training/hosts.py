"""What process 0 notes about all processes, from their heartbeats: no step waits for it."""

import statistics
from typing import Any

from emo_jax.parallel import processes
from emo_jax.training.progress import TrainProgress
from emo_jax.training.tracking import Tracker

Sign = dict[str, Any]  # see `Pulse.sign`


class HostWatch:
    """Compares the processes of a run; does nothing for a single one, and not on the others."""

    def __init__(self) -> None:
        self._before: dict[int, Sign] = processes.signs()

    def spread(self) -> dict[str, float]:
        """How much processes differ since the last call, for the log: empty if one is not heard of.

        `step_seconds/…` is the time of a step, `data_seconds/…` that in which a process waited for
        data itself. Where one is late, all others wait for it in the step: the time of a step is
        about the same, and the time for data is not.
        """
        now = processes.signs()
        if len(now) < 2:
            return {}
        if now.keys() != self._before.keys():
            self._before = now
            return {}
        steps = {i: now[i]["steps"] - self._before[i]["steps"] for i in now}
        if min(steps.values()) < 1:
            return {}
        before, self._before = self._before, now
        record: dict[str, float] = {}
        for name, of in (("step_seconds", "now"), ("data_seconds", "data")):
            each = {i: (now[i][of] - before[i][of]) / steps[i] for i in now}
            values = sorted(each.values())
            record |= {
                f"{name}/min": round(values[0], 6),
                f"{name}/median": round(statistics.median(values), 6),
                f"{name}/max": round(values[-1], 6),
                f"{name}/slowest_process": max(each, key=lambda i: each[i]),
            }
        return record

    def note_slow(self, step: int, log: Tracker | None, progress: TrainProgress) -> None:
        """Records the processes that stood still for a while and went on.

        Args:
          step: the step that is logged.
        """
        for name, index, seconds in processes.slow():
            progress.line(f"{name} stood still for {seconds:.1f} s")
            if log is not None:
                log.write({"step": step, "slow_process": index, "slow_seconds": round(seconds, 1)})

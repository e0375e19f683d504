"""What process 0 notes about the others, and itself, in the run's log."""

from emo_jax.parallel import processes
from emo_jax.training.progress import TrainProgress
from emo_jax.training.tracking import Tracker


def note_slow(step: int, log: Tracker | None, progress: TrainProgress) -> None:
    """Records the processes that stood still for a while and went on: stopped, or out of memory.

    Args:
      step: the step that is logged.
    """
    for name, index, seconds in processes.slow():
        progress.line(f"{name} stood still for {seconds:.1f} s")
        if log is not None:
            log.write({"step": step, "slow_process": index, "slow_seconds": round(seconds, 1)})

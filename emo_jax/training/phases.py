"""What a run is doing, said once: to the other processes, and to the account of its wall time."""

from emo_jax.parallel import processes
from emo_jax.parallel.processes.pulse import Phase
from emo_jax.run.goodput import STEPS
from emo_jax.training.stopwatch import Stopwatch

# What the time of a phase counts as while no step is on the devices (`run/goodput.py`).
_CAUSES: dict[Phase, str] = {
    "start": "startup",
    "read": "startup",
    "data": "input_wait",
    "compile": "compile",
    "step": STEPS,
    "evaluation": "evaluation",
    "save": "save_stall",
    "restore": "restart",
    "agree": "other",
}


class Phases:
    """The phases of a run on this process.

    Args:
      times: measures them.
    """

    def __init__(self, times: Stopwatch):
        self._times = times

    def at(self, phase: Phase, step: int) -> None:
        """Begins a phase of a step."""
        processes.pulse.at(phase, step)
        self._times.enter(_CAUSES[phase])

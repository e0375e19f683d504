"""What a run does about a bad step: one whose loss or gradient is not finite, or a spike.

`train.on_nan` and `train.on_spike` say what. The state goes back to before the step, or to the
newest checkpoint by the same way as in a restart, and the batches from there to the bad one are
passed over (`passed.py`), so that a run that is killed afterwards goes on in the same way.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from emo_jax.batch import Batch
from emo_jax.config import Config
from emo_jax.errors import EmoError
from emo_jax.training import halt
from emo_jax.training.passed import Passed, PassedWindows
from emo_jax.training.saves import Saves
from emo_jax.training.start import Made
from emo_jax.training.state import TrainState

MOST_IN_A_ROW = 3  # times that a run goes on from the same step


class Running(NamedTuple):
    """A step that has started and has not been checked yet."""

    step: int
    window: int  # the first of its batch
    batch: Batch
    metrics: dict[str, Any]
    logged: bool


class BadStepError(Exception):
    """A step that the run cannot go on from as it is.

    Attributes:
      running: the step.
      state: the one before, which refuses every step; None: after a spike, it has been updated.
    """

    def __init__(self, running: Running, state: TrainState | None):
        super().__init__()
        self.running, self.state = running, state


class Recovery:
    """The policy of a run; every process calls the same methods.

    Args:
      workdir: of the run.
      passed: the windows that it passes over; a bad step adds to them.
      extra: what a checkpoint of a step says, given the step and the windows consumed.
      restart: returns what a run that is started again begins with.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path,
        passed: PassedWindows,
        *,
        extra: Callable[[int, int], dict[str, Any]],
        restart: Callable[[], Made],
    ):
        self._train, self._workdir, self._passed = config.train, workdir, passed
        self._extra, self._restart = extra, restart
        self._spikes = self._train.on_spike == "rollback"

    def check(self, running: Running, state: TrainState) -> None:
        """Waits for a step; raises BadStepError if it was bad.

        Args:
          state: the newest; if the step was not finite, the one before it.
        """
        names = ["halted", "skipped"] if self._spikes else ["halted"]
        found = jax.device_get({name: running.metrics[name] for name in names})
        if found["halted"]:
            raise BadStepError(running, state)
        if self._spikes and found["skipped"]:
            raise BadStepError(running, None)

    def after(self, bad: BadStepError, start: int, saves: Saves) -> tuple[Made, str]:
        """Returns the state to go on with, its step and windows, and a line that says so.

        Args:
          start: the step that this run began after.

        Raises:
          EmoError: the policy is to stop, or nothing helps.
        """
        step, metrics = bad.running.step, jax.device_get(bad.running.metrics)
        skips = bad.state is not None and self._train.on_nan == "skip"
        if bad.state is not None and self._train.on_nan == "stop":
            self._fail(bad, bad.state, metrics, start, saves)
        saves.settle()
        target = step - 1 if skips else max(saves.steps(), default=0)
        if self._passed.after(target) >= MOST_IN_A_ROW:
            how = "going on from" if skips else "rolling back to"
            tried = f", after {how} step {target} {MOST_IN_A_ROW} times"
            if bad.state is not None:
                self._fail(bad, bad.state, metrics, start, saves, tried)
            raise EmoError(
                f"step {step}: {halt.described(metrics)}{tried}: the state may be the reason;"
                " begin anew from an earlier one with --init-from WORKDIR@STEP, or with a lower"
                " optimizer.peak_lr"
            )
        if skips:
            assert bad.state is not None
            made: Made = (halt.go_on(bad.state), step - 1, bad.running.window)
        else:
            bad.state = None  # frees its memory
            made = self._restart()
        why = halt.described(metrics)
        end = bad.running.window + self._train.batch_size
        self._passed.add(self._workdir, Passed(made[2], end, made[1], step, why))
        back = f"back to step {made[1]}, " if made[1] < step - 1 else ""
        return made, f"step {step}: {why}; {back}{self._said(end)}"

    def _said(self, end: int) -> str:
        newest = next(one for one in self._passed.all if one.end == end)
        return f"windows {newest.first}..{end - 1} are passed over"

    def _fail(
        self,
        bad: BadStepError,
        state: TrainState,
        metrics: dict[str, Any],
        start: int,
        saves: Saves,
        tried: str = "",
    ) -> None:
        """Saves the state before a step that was not finite, and its batch; raises an error."""
        running, good = bad.running, bad.running.step - 1
        batch_file = halt.keep_batch(self._workdir, running.step, running.batch)
        # The state that the run began from is saved already.
        if good > start or good not in saves.steps():
            saves.finish(good, halt.go_on(state), self._extra(good, running.window))
        kept = f"the state before is step {good} in {self._workdir}"
        raise halt.failure(running.step, metrics, batch_file, kept, tried)

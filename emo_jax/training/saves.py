"""Saves of a run in training: one that fails is said at once, and the next one happens."""

from collections.abc import Callable, Mapping
from typing import Any

from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.checkpoint.local import LocalCheckpointer
from emo_jax.errors import CheckpointError, TakenOverError


class Saves:
    """Saves through a checkpointer, and counts what fails. All processes call the same methods.

    Args:
      checkpointer: of the run.
      most: failed saves in a row after which one more ends the run (`checkpoint.max_failed_saves`).
      show: takes a line for the user.
      local: saves to the disks of the hosts; None: nothing does.

    Attributes:
      failed: saves that have failed since the run started.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        *,
        most: int,
        show: Callable[[str], None],
        local: LocalCheckpointer | None = None,
    ):
        self._checkpointer, self._most, self._show = checkpointer, most, show
        self._local = local
        self.failed = 0
        self._in_a_row = 0
        self._started: int | None = None  # the step that is being written
        self._said: CheckpointError | None = None

    def begin(self, step: int) -> None:
        """Says that training goes on from a step: what hosts have kept of later ones is dropped."""
        if self._local is not None:
            self._local.drop_after(step)

    def look(self) -> None:
        """Says that the save in the background has failed, if it has; never waits."""
        if (error := self._checkpointer.failed) is not None:
            self._say(error)
        if self._local is not None:
            self._local.look()

    def start(self, step: int, state: Any, extra: Mapping[str, Any]) -> None:
        """Starts a save; returns when the state is copied. The one before is waited for.

        Raises:
          CheckpointError: one too many has failed.
        """
        if self._checkpointer.busy:
            self._show(
                f"step {self._started} is still being saved; step {step} waits for it: save less"
                " often (checkpoint.save_every), or to a faster disk"
            )
        self.settle()
        try:
            self._checkpointer.save(step, state, extra)
        except CheckpointError as error:
            self._count(error)
            return
        self._started = step

    def keep(self, step: int, state: Any, extra: Mapping[str, Any]) -> None:
        """Starts to save on the hosts' own disks; a failure there is only said."""
        assert self._local is not None
        self._local.save(step, state, extra, shared=self._started)

    def finish(self, step: int, state: Any, extra: Mapping[str, Any]) -> None:
        """Saves and waits until that is written.

        Raises:
          CheckpointError: this save has failed. An earlier one that has is only counted.
        """
        self._wait_for_earlier(may_end=False)
        self._checkpointer.save(step, state, extra)
        self.wait()

    def steps(self) -> list[int]:
        """Returns the steps with a complete checkpoint."""
        return self._checkpointer.steps()

    def wait(self) -> None:
        """Waits for the last save; raises CheckpointError if it has failed."""
        self._started = None
        self._checkpointer.wait()
        self._in_a_row = 0

    def settle(self) -> None:
        """Waits for the save before, and counts it if it has failed.

        Raises:
          CheckpointError: one too many has failed.
        """
        self._wait_for_earlier(may_end=True)

    def _wait_for_earlier(self, *, may_end: bool) -> None:
        if self._started is None:
            return
        self._started = None
        try:
            self._checkpointer.wait()
        except CheckpointError as error:
            self._count(error, may_end=may_end)
        else:
            self._in_a_row = 0

    def _count(self, error: CheckpointError, *, may_end: bool = True) -> None:
        self.failed += 1
        self._in_a_row += 1
        ends = may_end and self._in_a_row > self._most
        if ends or isinstance(error, TakenOverError):
            raise error
        self._say(error)

    def _say(self, error: CheckpointError) -> None:
        if error is not self._said:
            self._said = error
            self._show(str(error))

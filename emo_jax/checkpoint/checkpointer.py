"""Checkpoints of a run: asynchronous, sharded, verified.

`WORKDIR/checkpoints/<step>/` contains the arrays as written by orbax (`data/params` and
`data/rest`, so that an export never touches the optimizer state) and `manifest.json`, written last:
the size and sha256 of every file, the shape and dtype of every array, and the run's `extra`, with
its own checksum. A folder without a manifest is an unfinished save and is never used as a
checkpoint. orbax detects neither a flipped byte nor a missing array; the manifest does.

Host memory: `save` copies this process's shards off the devices once (orbax's staging) and returns;
writing and reading then need a bounded amount more, see `limit_gb`. All processes of a run share
the file system and call the same methods in the same order.
"""

import atexit
import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from emo_jax.checkpoint.manifest import (
    FORMAT,
    DamagedError,
    LeafPath,
    compare,
    complete,
    dtype_name,
    item_of,
    leaves_of,
    like,
    newest_good,
    numbered,
    publish,
    read_manifest,
    remove,
    savable,
    versions,
)
from emo_jax.checkpoint.peers import TOGETHER, Peers
from emo_jax.checkpoint.reading import checkpoints_of, read_leaves
from emo_jax.checkpoint.together import Meeting, OtherFailedError
from emo_jax.checkpoint.writing import start_writing
from emo_jax.config import CheckpointConfig
from emo_jax.errors import EXIT_FAILED, CheckpointError, TakenOverError, one_line
from emo_jax.files.json_files import dumps
from emo_jax.parallel import host_memory

_LOG = logging.getLogger(__name__)
_DATA = "data"  # in a step's folder


class Checkpointer:
    """Saves and restores the states of a run. Close it, or use it in a `with` statement.

    Args:
      workdir: folder of the run, or its URL.
      config: what is kept.
      peers: who saves and restores.
      check_ours: called before anything is changed or removed; raises TakenOverError where another
        run uses the workdir.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        config: CheckpointConfig,
        *,
        peers: Peers = TOGETHER,
        check_ours: Callable[[], None] = lambda: None,
    ):
        self.skipped: list[tuple[int, str]] = []  # (step, fault) of damaged checkpoints
        self._folder = checkpoints_of(workdir)
        self._config, self._peers, self._check_ours = config, peers, check_ours
        self._saves = 0
        self._own: set[int] = set()  # steps this run saved or restored, on every process
        self._started: set[int] = set()  # the save in progress, if any
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None
        atexit.register(self._at_exit)

    def save(self, step: int, state: Any, extra: Mapping[str, Any]) -> bool:
        """Starts saving a pytree of arrays and `extra` (JSON); returns when the state is copied.

        The caller may then donate the state. Saves run one at a time: this first waits for the
        previous one and raises its failure. `step` and the library versions are added to `extra`.

        A damaged checkpoint of this step, listed in `skipped`, is replaced.

        Returns:
          False if this run already saved, or was restored from, this step: nothing to do.
        """
        self.wait()
        if step in self._own:
            return False
        try:
            head: dict[str, Any] = {
                "format": FORMAT,
                "step": step,
                "data": _DATA,
                "extra": {"versions": versions(), **extra, "step": step},
            }
            dumps(head)
        except (TypeError, ValueError) as e:
            raise CheckpointError(f"step {step}: extra is not JSON: {one_line(e)}") from e
        leaves = {path: savable(path, leaf) for path, leaf in leaves_of(state).items()}
        first = self._peers.index == 0
        self._peers.all_succeed(lambda: self._prepare(step) if first else None, CheckpointError)
        folder = self._folder / str(step)
        head["leaves"] = [
            {"path": list(path), "shape": list(leaf.shape), "dtype": dtype_name(leaf)}
            for path, leaf in leaves.items()
        ]
        self._saves += 1
        logging.getLogger("absl").addFilter(self._without_orbax)
        name = f"step{step}.{self._saves}"
        meeting = Meeting(name, self._peers)
        try:
            writer = start_writing(folder / _DATA, self._peers.options(name), leaves, meeting)
        except Exception as e:
            meeting.fail(e)
            self._undo(folder)
            if self._peers.count == 1:
                raise self._failure(step, e) from e
            # The others may have begun: all raise it where all wait for this save.
            self._error, self._started = self._failure(step, e), {step}
            return True
        self._thread = threading.Thread(
            target=self._finish, args=(writer, folder, head, meeting), name=f"checkpoint-{step}"
        )
        self._thread.start()
        self._started = {step}
        return True

    @property
    def failed(self) -> CheckpointError | None:
        """Why the save in the background has failed, which the next `save` or `wait` raises."""
        return None if self.busy else self._error

    @property
    def busy(self) -> bool:
        """Whether a save is being written."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Waits for the save in the background; raises CheckpointError if it failed."""
        started, self._started = self._started, set()
        self._peers.all_succeed(self._join, CheckpointError)
        self._own |= started

    def drop_after(self, step: int) -> None:
        """Removes all later steps, which may then be saved anew.

        Raises:
          CheckpointError: they cannot be removed.
        """
        with contextlib.suppress(CheckpointError):  # of a save that is dropped
            self.wait()
        self._check_ours()
        self._own = {s for s in self._own if s <= step}
        try:
            for s in numbered(self._folder):
                if s > step:
                    remove(self._folder / str(s))
        except OSError as e:
            raise CheckpointError(
                f"{self._folder}: steps after {step} cannot be removed: {one_line(e)}"
            ) from e

    def close(self) -> None:
        """Like `wait`, but for this process alone, so that a failing process can exit."""
        atexit.unregister(self._at_exit)
        try:
            self._join()
        finally:
            logging.getLogger("absl").removeFilter(self._without_orbax)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self.close()
        except CheckpointError as e:
            if error is None:
                raise
            _LOG.error("%s", e)  # the first error is the one to show

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first; the files are not verified here."""
        return complete(self._folder)

    def latest_step(self) -> int | None:
        """The newest of `steps`."""
        return max(self.steps(), default=None)

    def read_extra(self, step: int) -> dict[str, Any]:
        """The `extra` that was saved with a step."""
        try:
            return read_manifest(self._folder / str(step))["extra"]
        except DamagedError as e:
            raise CheckpointError(f"checkpoint of step {step} in {self._folder}: {e}") from e

    def items(self, step: int) -> set[str]:
        """The items of a step: `params` and the `rest` of the state, or only `params`.

        The latter comes from an import: `restore_params` reads it, and the optimizer starts fresh.
        """
        try:
            manifest = read_manifest(self._folder / str(step))
        except DamagedError as e:
            raise CheckpointError(f"checkpoint of step {step} in {self._folder}: {e}") from e
        return {item_of(tuple(leaf["path"])) for leaf in manifest["leaves"]}

    def restore(
        self,
        abstract_state: Any,
        step: int | None = None,
        *,
        refuses: Callable[[dict[str, Any]], str | None] = lambda extra: None,
    ) -> tuple[Any, dict, int]:
        """The newest good checkpoint, or that of `step`, as (state, extra, step).

        Every leaf of `abstract_state` has a shape, a dtype and the sharding to restore to, on any
        mesh; a leaf without a sharding is restored as a host array. A damaged checkpoint is
        reported in a warning and in `skipped`, and the one before it is used; so is one for which
        `refuses`, given its `extra`, says why.

        Raises:
          CheckpointError: there is no good checkpoint, or `step` is damaged or has another
            structure.
        """
        self.wait()
        wanted = leaves_of(abstract_state)

        def load(folder: epath.Path, manifest: dict[str, Any]) -> dict[LeafPath, Any]:
            compare(folder, manifest, wanted, ())
            return dict(read_leaves(folder, manifest, wanted))

        items = {item_of(path) for path in wanted}
        with host_memory.nothing_kept():
            values, extra, found = newest_good(
                self._folder, step, items, load, self.skipped, refuses
            )
        self._own = {found}
        return like(abstract_state, values), extra, found

    # --- saving, step by step --------------------------------------------------------------------

    def _prepare(self, step: int) -> None:
        """Process 0: makes the folder of the step, removing anything but a good checkpoint."""
        self._check_ours()
        folder = self._folder / str(step)
        try:
            try:
                manifest = read_manifest(folder)
            except DamagedError:
                manifest = None
            if manifest is not None and all(s != step for s, _ in self.skipped):
                raise CheckpointError(
                    f"{folder} already holds step {step}, of an earlier run: use a new workdir"
                )
            remove(folder)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise self._failure(step, e) from e

    def _finish(
        self, writer: Any, folder: epath.Path, head: dict[str, Any], meeting: Meeting
    ) -> None:
        """Background thread: waits for the writes, publishes, then retires old checkpoints."""
        step = head["step"]
        try:
            writer.wait_until_finished()  # on all processes
            if self._peers.index == 0:
                self._check_ours()
                publish(folder, head)
        except BaseException as e:
            meeting.fail(e)
            self._error = self._failure(step, e)
        with contextlib.suppress(BaseException):
            writer.close()
        del writer
        host_memory.give_back()
        if isinstance(self._error, TakenOverError):
            return  # the folder may be another run's by now
        if self._error is not None:
            self._undo(folder)
        elif self._peers.index == 0:
            try:
                self._retire(step)
            except OSError as e:
                _LOG.warning("old checkpoints in %s stay: %s", self._folder, one_line(e))

    def _without_orbax(self, record: logging.LogRecord) -> bool:
        """Filter for absl's logger from the first save until this is closed.

        It drops the tracebacks that orbax logs for a failed write, which is reported once, in one
        line; some come from threads that outlive the save.
        """
        ours = f"{os.sep}orbax{os.sep}" in record.pathname
        return record.levelno < logging.ERROR or not ours

    def _at_exit(self) -> None:
        """Ends a program that forgot to close this, and so cut a save short, with an error."""
        try:
            self._join()  # the interpreter has waited for it, but it could start no more threads
        except CheckpointError as e:
            sys.stdout.flush()
            with contextlib.suppress(OSError):
                os.write(
                    2, f"emo: the program ended before it closed its checkpoints: {e}\n".encode()
                )
            os._exit(EXIT_FAILED)

    def _undo(self, folder: epath.Path) -> None:
        """Frees the space of a failed save as far as possible; the disk may be full."""
        if self._peers.index != 0:
            return
        # After a failed write, orbax's other writes may continue briefly and recreate the folder.
        for _ in range(10):
            with contextlib.suppress(OSError):
                remove(folder)
            time.sleep(0.2)
            if not folder.exists():
                return

    def _retire(self, step: int) -> None:
        """Deletes all checkpoints but the newest `keep_last` and every `keep_every`-th.

        Steps later than `step` are not touched: they are not this run's.
        """
        every, steps = self._config.keep_every, [s for s in self.steps() if s <= step]
        damaged = {s for s, _ in self.skipped} - self._own - {step}
        good = [s for s in steps if s not in damaged]
        keep = {*good[-self._config.keep_last :], *(s for s in steps if every and s % every == 0)}
        for s in numbered(self._folder):
            if s < step and s not in keep:
                remove(self._folder / str(s))

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _failure(self, step: int, error: BaseException) -> CheckpointError:
        if isinstance(error, TakenOverError):
            return error
        try:
            damaged = {s for s, _ in self.skipped} - self._own
            good = max((s for s in self.steps() if s not in damaged), default=None)
        except OSError:
            good = None
        remains = "there is no earlier one" if good is None else f"step {good} is the last good one"
        reason = one_line(error).rpartition('": ')[2]  # tensorstore first lists nested file names
        if isinstance(error, OtherFailedError):
            reason = f"process {error.index} could not write its part: {reason}"
        if self._peers.count > 1 and _is_of_others(error):
            return CheckpointError(
                f"checkpoint of step {step} was not saved in {self._folder}: {_others_in(error)}"
                f" was lost, or did not write its part in time ({reason.rstrip('.')}); that save"
                f" is not used, {remains}: see the log of that process, and run again"
            )
        return CheckpointError(
            f"checkpoint of step {step} was not saved in {self._folder}: {reason};"
            f" {remains}: mend space or access there and run again"
        )


def _is_of_others(error: BaseException) -> bool:
    """Whether a save failed because another process did not do its part, not because of a disk."""
    # Errors of orbax's barrier and of JAX's coordination service.
    return isinstance(error, TimeoutError | jax.errors.JaxRuntimeError) or "barrier" in str(error)


def _others_in(error: BaseException) -> str:
    """The processes named by an error; with two processes it is the other one."""
    ours, count = jax.process_index(), jax.process_count()
    named = {int(found) for found in re.findall(r"task:(\d+)", str(error))} - {ours}
    if count == 2:
        named = {1 - ours}
    listed = ", ".join(map(str, sorted(named)[:8])) + (", …" if len(named) > 8 else "")
    return f"process {listed}" if named else "another process"

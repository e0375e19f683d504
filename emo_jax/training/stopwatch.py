"""Measures where the wall time of a start goes, and writes it to the workdir; see `run/goodput.py`.

While a step is on the devices, the time counts as steps, whatever the host does meanwhile: a batch
that is waited for behind a running step costs nothing. While the devices are idle, the time is what
the host says it is doing. A thread waits for the steps to learn when each is done, so the loop
never waits for the sake of measuring.
"""

import contextlib
import logging
import queue
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from etils import epath

from emo_jax.errors import (
    EmoError,
    NotFiniteError,
    PreemptedError,
    UsageError,
    escaped,
    one_line,
)
from emo_jax.files.atomic import write_atomic
from emo_jax.files.json_files import dumps
from emo_jax.run import goodput
from emo_jax.run.goodput import CAUSES, STEPS, Account, Mark, account

_LOG = logging.getLogger(__name__)
_JOIN_SECONDS = 1.0  # for the threads at the end; a step that hangs is not waited for


class Stopwatch:
    """The times of one start, as a context: an error on exit says how the start ended.

    Args:
      workdir: where they are kept; None: nothing is measured (on all processes but the first).
      first: steps done before.
      began: when the start began, by `time.monotonic`.
    """

    def __init__(self, workdir: Path | None, *, first: int, began: float):
        self._on, self._folder, self._first = workdir is not None, workdir or Path(), first
        self._seconds = dict.fromkeys(CAUSES, 0.0)
        self._host, self._since, self._busy = "startup", began, 0
        self._done, self._done_at = first, began
        self._saves = [(first, 0.0)]  # (step, seconds in steps)
        self._start, self._before = 0, Account()
        self._keeps, self._warned = True, False
        self._lock = threading.RLock()
        self._running: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"stopwatch-{name}", daemon=True)
            for name, target in (("steps", self._watch), ("beats", self._beat))
        ]

    # --- what the loop says -----------------------------------------------------------------------

    def enter(self, cause: str) -> None:
        """The host does this from now on."""
        if self._on:
            with self._lock:
                self._advance()
                self._host = cause

    def started(self, step: int, output: jax.Array) -> None:
        """A step was given to the devices; it is done when `output` is there."""
        if self._on:
            with self._lock:
                self._advance()
                self._host, self._busy = "other", self._busy + 1
            self._running.put((step, output))

    def saves(self, step: int) -> None:
        """A checkpoint is about to be made of this step, which is done: a run may resume here."""
        if self._on:
            with self._lock:
                mark = self._mark(step=step)
                self._saves.append((step, mark.seconds[STEPS]))
            self._append(mark)

    def went_back(self, step: int) -> None:
        """The run took up an earlier checkpoint of its own: the steps after it are lost work."""
        if not self._on:
            return
        with self._lock:
            self._advance()
            while len(self._saves) > 1 and self._saves[-1][0] > step:
                self._saves.pop()
            lost = max(0.0, self._seconds[STEPS] - self._saves[-1][1])
            self._seconds[STEPS] -= lost
            self._seconds["lost_work"] += lost
            self._done = step
            mark = self._mark()
        self._append(mark)

    def shares(self) -> dict[str, float]:
        """Goodput and badput of the run so far, for metrics.jsonl; empty if not measured."""
        if not self._on:
            return {}
        now, before = self._mark().seconds, self._before.seconds
        found = {name: now[name] + before.get(name, 0.0) for name in CAUSES}
        return Account((), found).shares()

    def end(self, error: BaseException | None = None) -> None:
        """Writes how the start ended; later calls do nothing."""
        if not self._on or self._over.is_set():
            return
        outcome, said = _outcome(error)
        mark = self._mark(outcome=outcome, said=said)
        self._over.set()
        _join(self._threads[1])  # nothing must write the heartbeat again
        if self._append(mark):
            with contextlib.suppress(OSError):
                (self._folder / goodput.HEARTBEAT_FILE).unlink(missing_ok=True)

    # --- as a context -----------------------------------------------------------------------------

    def __enter__(self) -> "Stopwatch":
        if self._on:
            earlier: list[Mark] = []
            try:
                earlier = goodput.keep_heartbeat(self._folder)
            except (OSError, UsageError) as e:
                self._warn(e)
                self._keeps = False
            self._start = 1 + max((mark.start for mark in earlier), default=-1)
            mark = self._mark()
            so_far = account([*earlier, mark]).seconds
            # What `shares` adds to the seconds of this start.
            self._before = Account((), {n: so_far[n] - mark.seconds[n] for n in CAUSES})
            self._append(mark)
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end(error)
        self._running.put(None)
        _join(self._threads[0])

    # --- measuring --------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Counts the time since the last call."""
        now = time.monotonic()
        self._seconds[STEPS if self._busy else self._host] += now - self._since
        self._since = now

    def _mark(self, *, step: int | None = None, outcome: str = "running", said: str = "") -> Mark:
        with self._lock:
            self._advance()
            return Mark(
                start=self._start,
                first=self._first,
                step=self._done if step is None else step,
                time=time.time(),
                seconds=dict(self._seconds),
                cause=STEPS if self._busy else self._host,
                since_step=self._since - self._done_at,
                outcome=outcome,
                said=said,
            )

    def _watch(self) -> None:
        while (running := self._running.get()) is not None:
            step, output = running
            with contextlib.suppress(Exception):  # the loop will raise it
                output.block_until_ready()
            running = output = None  # neither is kept until the next step
            with self._lock:
                self._advance()
                self._busy -= 1
                self._done, self._done_at = step, self._since

    # --- writing ----------------------------------------------------------------------------------

    def _beat(self) -> None:
        path = epath.Path(self._folder) / goodput.HEARTBEAT_FILE
        while True:
            try:
                there = goodput.read_heartbeat(self._folder)
                if there is not None and there.start > self._start:
                    self._keeps = False  # another process has taken over the workdir
                    return
                write_atomic(path, dumps(self._mark().to_json()) + "\n")
            except OSError as e:
                self._warn(e)
            if self._over.wait(goodput.BEAT_SECONDS):
                return

    def _append(self, mark: Mark) -> bool:
        if not self._keeps:
            return False
        try:
            goodput.append_mark(self._folder, mark)
        except OSError as e:
            self._warn(e)
            return False
        return True

    def _warn(self, error: Exception) -> None:
        """Says once that times are not kept: no reason to end a run."""
        if not self._warned:
            self._warned = True
            _LOG.warning("goodput: not kept in %s: %s", self._folder, one_line(error))


def _join(thread: threading.Thread) -> None:
    if thread.ident is not None and thread is not threading.current_thread():
        thread.join(_JOIN_SECONDS)


def _outcome(error: BaseException | None) -> tuple[str, str]:
    if error is None:
        return "finished", ""
    said = str(error) if isinstance(error, EmoError) else f"{type(error).__name__}: {error}"
    if isinstance(error, PreemptedError | KeyboardInterrupt):
        outcome = "stopped"
    else:
        outcome = "halted" if isinstance(error, NotFiniteError) else "failed"
    return outcome, escaped(said)

"""Where the records of a run go: always to metrics.jsonl, and to the trackers of `config.tracking`.

Only process 0 writes. The file is written immediately, and if that fails, so does the run. Each
tracker has its own thread: a slow or lost network never delays a step, and a tracker that fails
costs one line. See docs/tracking.md for what resuming a run does to each.
"""

import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol

from emo_jax.errors import PreemptedError, one_line
from emo_jax.run.metrics_file import (
    METRICS_FILE,
    MetricsFile,
    number_in,
    numbers_in,
    read_metrics,
)
from emo_jax.run.run_info import RunInfo, append_run_info

_LOG = logging.getLogger(__name__)

Outcome = Literal["finished", "stopped", "failed"]
Record = dict[str, Any]

QUEUE_RECORDS = 1000  # waiting for a slow tracker; any more are dropped, and counted
_STARTS = 3  # of a tracker, at most
CLOSE_SECONDS = 30.0  # for all trackers to send what they have; a stopped run has little time

_BY_LAYER = re.compile(r"_by_layer$")
_POOL = re.compile(r"^([^/]+)(/.+)? \((pool|keep)=(\d+)\)$")


class MetricWriter(Protocol):
    """A place for records: `start` is called once, first; `close` once, last, if it started.

    Once started, `where` tells the user where to find the records.
    """

    name: str
    where: str

    def start(self, run: RunInfo) -> int:
        """Opens the place for a new run, or resumes it; returns the last step it has."""
        ...

    def write(self, record: Record) -> None:
        """Writes one step's record: `step`, and values by name."""
        ...

    def close(self, outcome: Outcome) -> None:
        """Sends what is left."""
        ...


class JsonLines:
    """WORKDIR/metrics.jsonl, and WORKDIR/run_info.jsonl with a line for each start."""

    name = where = METRICS_FILE

    def start(self, run: RunInfo) -> int:
        """Drops records of steps that are redone, and appends from there."""
        append_run_info(run)
        self._file = MetricsFile(run.workdir, resume_step=run.start)
        return run.start

    def write(self, record: Record) -> None:
        """Appends a line."""
        self._file.write(record)

    def rewind(self, step: int) -> None:
        """Drops records of steps after this one, and appends from there."""
        self._file.close()
        self._file = MetricsFile(self._file.path.parent, resume_step=step)

    def close(self, outcome: Outcome) -> None:
        """Closes the file."""
        self._file.close()


class Tracker:
    """All writers of a run, as a context: an error on exit means the run failed or was stopped.

    Args:
      run: the run that starts.
      trackers: in addition to the file.
      show: takes a line for the user.
    """

    def __init__(
        self, run: RunInfo, trackers: Sequence[MetricWriter], *, show: Callable[[str], None]
    ):
        self._run, self._file = run, JsonLines()
        self._threads = [_Thread(tracker, run, show) for tracker in trackers]

    def __enter__(self) -> "Tracker":
        self._file.start(self._run)
        for thread in self._threads:
            thread.start()
        return self

    def write(self, record: Record) -> None:
        """Takes a record; only the file is written before this returns.

        Raises:
          EmoError: the file cannot be written.
        """
        self._file.write(record)
        for thread in self._threads:
            thread.put(record)

    def rewind(self, step: int) -> None:
        """Drops the file's records of steps after this one, which are done again.

        Trackers get those records a second time.
        """
        self._file.rewind(step)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stopped = isinstance(error, PreemptedError | KeyboardInterrupt)
        outcome: Outcome = "finished" if error is None else "stopped" if stopped else "failed"
        self._file.close(outcome)
        give_up = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.finish(outcome)
        for thread in self._threads:
            thread.wait(give_up - time.monotonic())


class _Thread(threading.Thread):
    """Runs one tracker; any error it raises becomes one line."""

    def __init__(self, tracker: MetricWriter, run: RunInfo, show: Callable[[str], None]):
        super().__init__(name=f"tracking-{tracker.name}", daemon=True)
        self._tracker, self._run_info, self._show = tracker, run, show
        self._records: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._outcome: Outcome = "failed"
        self._lost = 0
        self._warned = False

    def put(self, record: Record) -> None:
        if self._records.qsize() >= QUEUE_RECORDS:
            self._lose("it is too slow")
        elif self.is_alive():
            self._records.put(record)

    def finish(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._records.put(None)

    def wait(self, seconds: float) -> None:
        self.join(max(seconds, 0))
        if self.is_alive():
            _LOG.warning(
                "tracking: %s has not taken all records within %.0f s; the run goes on without"
                " (metrics.jsonl has them)",
                *(self._tracker.name, CLOSE_SECONDS),
            )
        elif self._lost:
            _LOG.warning(
                "tracking: %d records did not reach %s; metrics.jsonl has them",
                *(self._lost, self._tracker.name),
            )

    def _start(self) -> int:
        """Starts the tracker, again if Python itself failed.

        CPython below 3.13 raises SystemError if two threads parse source at once, as libraries do
        while they are imported.
        """
        for _ in range(_STARTS - 1):
            try:
                return self._tracker.start(self._run_info)
            except SystemError:
                time.sleep(0.1)
        return self._tracker.start(self._run_info)

    def run(self) -> None:
        try:
            last = self._start()
        except Exception as error:
            self._lose(f"it cannot be started: {one_line(error)}", count=0)
            return
        self._show(f"{self._tracker.name}: {self._tracker.where}")
        # The file has what a kill kept from it, and records from before it was enabled.
        start = self._run_info.start
        kept = read_metrics(self._run_info.workdir) if last < start else []
        for record in kept:
            if record["step"] <= start:
                self._write(record, last)
        while (given := self._records.get()) is not None:
            self._write(given, last)
        try:
            self._tracker.close(self._outcome)
        except Exception as error:
            self._lose(one_line(error), count=0)

    def _write(self, record: Record, last: int) -> None:
        if record["step"] <= last:
            return  # redone, with the same result
        try:
            self._tracker.write(record)
        except Exception as error:
            self._lose(one_line(error))

    def _lose(self, why: str, count: int = 1) -> None:
        """Counts a lost record; says so only once. The next is tried: a network may come back."""
        self._lost += count
        if not self._warned:
            self._warned = True
            name = self._tracker.name
            _LOG.warning("tracking: %s fails, the run goes on without it: %s", name, why)


def scalars(record: Record) -> dict[str, float]:
    """Returns the numbers of a record by the names that trackers get.

    A list over layers `x_by_layer` becomes `x/layer_00`, …; `heldout_loss/law (pool=16)` becomes
    `heldout_loss_pool16/law`, likewise `keep=16`, since not every tracker allows brackets; `step`
    and values that were not measured are omitted, and those that are not finite are NaN.
    """
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, list):
            base, values = _BY_LAYER.sub("", name), numbers_in(record, name) or []
            found |= {f"{base}/layer_{i:02d}": v for i, v in enumerate(values)}
        elif name != "step" and (number := number_in(record, name)) is not None:
            match = _POOL.match(name)
            if match:
                name = f"{match[1]}_{match[3]}{match[4]}{match[2] or ''}"
            found[name] = number
    return found

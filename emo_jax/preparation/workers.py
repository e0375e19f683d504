"""What runs tasks: this process, one after the other, or the workers of Apache Beam.

Beam is given the descriptions of tasks and returns nothing: what a task makes, its outcome or its
error are files, which this process reads. The pipeline has a process of its own: it may fail or be
killed, and its logs go to a file.
"""

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from emo_jax.errors import DataError, UsageError, one_line
from emo_jax.preparation.scratch import WORKERS, is_locked
from emo_jax.preparation.tasks import (
    Job,
    Outcome,
    Task,
    failure_of,
    outcome_of,
    run_task,
    whole_file,
)

Tell = Callable[[Outcome], None]
_LOG = "beam.log"
_POLL_SECONDS = 0.25
_DEAD_SECONDS = 5.0
WORTH_SECONDS = 10.0  # starting a pipeline and its workers takes some
# The plain DirectRunner would fetch a binary of another runner.
_LOCAL = ("--runner=FnApiRunner", "--direct_running_mode=multi_processing")


class Here:
    """Runs tasks in this process."""

    def run(self, tasks: list[Task], job: Job, tell: Tell, seconds: float = 0) -> Iterator[Outcome]:
        """Runs those tasks that are not finished, telling of each; yields all outcomes in order.

        Args:
          seconds: that they may take a core, to choose where they run.
        """
        for task in tasks:
            found = outcome_of(task, job)
            if found is None:
                run_task(task, job)
                found = _finished(task, job)
                tell(found)
            yield found


class Beam:
    """Runs tasks with Apache Beam.

    Args:
      options: of the pipeline.
      workers: processes on this machine; None: the workers are elsewhere.
    """

    def __init__(self, options: tuple[str, ...], workers: int | None):
        self._options, self._workers = options, workers

    def run(self, tasks: list[Task], job: Job, tell: Tell, seconds: float = 0) -> Iterator[Outcome]:
        """Runs those tasks that are not finished, as `Here.run` does."""
        left = [task for task in tasks if outcome_of(task, job) is None]
        few = len(left) == 1 or seconds < WORTH_SECONDS
        if few and self._workers is not None:
            yield from Here().run(tasks, job, tell)
            return
        if left:
            for folder in ("failed", WORKERS):
                for path in (job.work / folder).glob("*"):
                    path.unlink()
            self._run(left, job, tell)
        for task in tasks:
            yield _finished(task, job)

    def _run(self, tasks: list[Task], job: Job, tell: Tell) -> None:
        file = job.work / "tasks.json"
        with whole_file(file) as temporary:
            temporary.write_text(json.dumps(tasks))
        command = [sys.executable, "-m", "emo_jax.preparation.pipeline", str(file)]
        environment = dict(os.environ)
        if self._workers is not None:
            # Each worker has a core; the threads of its tokenizer would get in each other's way.
            environment |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
        with (job.work / _LOG).open("ab") as log:
            process = subprocess.Popen(
                [*command, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
            try:
                waiting = {task["name"]: task for task in tasks}
                dead_since = None
                while process.poll() is None:
                    time.sleep(_POLL_SECONDS)
                    _tell_of_finished(waiting, job, tell)
                    # The runner itself may wait for a worker that was killed for ever.
                    if not (self._workers and waiting and _one_died(job)):
                        dead_since = None
                    elif dead_since is None:
                        dead_since = time.monotonic()
                    elif time.monotonic() - dead_since > _DEAD_SECONDS:
                        break
                _tell_of_finished(waiting, job, tell)
            finally:
                _stop(process)
        if not waiting:
            return
        for task in waiting.values():
            if (failure := failure_of(task, job)) is not None:
                raise failure
        raise DataError(
            f"Apache Beam stopped with {len(waiting)} of {len(tasks)} tasks left"
            f" ({_last_line(job.work / _LOG)}): a worker was killed, or out of memory? Run the same"
            f" command again to go on; its log is {job.work / _LOG}"
        )


def _one_died(job: Job) -> bool:
    """Returns whether a process that has run tasks of the pipeline does not run any more."""
    return any(not is_locked(path) for path in (job.work / WORKERS).glob("*"))


def _tell_of_finished(waiting: dict[str, Task], job: Job, tell: Tell) -> None:
    for entry in os.scandir(job.work / "done"):
        name = entry.name.removesuffix(".json")
        if name in waiting and (outcome := outcome_of(waiting[name], job)) is not None:
            del waiting[name]
            tell(outcome)


def _stop(process: subprocess.Popen) -> None:
    """Ends the process of a pipeline and its workers, if they still run."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        if process.poll() is None:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                continue
    process.wait()


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - (1 << 14)))
        lines = file.read().decode("utf-8", "replace").split("\n")
    return one_line(Exception(next((line for line in reversed(lines) if line.strip()), "")), 200)


def _finished(task: Task, job: Job) -> Outcome:
    found = outcome_of(task, job)
    if found is None:
        raise DataError(f"{job.work}: what {task['name']} wrote is gone; run the command again")
    return found


def choose(workers: int, beam: str | None) -> Here | Beam:
    """Returns what runs the tasks.

    Raises:
      UsageError: Apache Beam is needed and not installed, or both options are given.
    """
    if workers < 1:
        raise UsageError(f"--workers {workers}: must be at least 1")
    if beam is not None and workers != 1:
        raise UsageError("--workers and --beam: give one; Beam's options say how many workers")
    if beam is None and workers == 1:
        return Here()
    if importlib.util.find_spec("apache_beam") is None:
        option = f"--workers {workers}" if beam is None else "--beam"
        raise UsageError(f"{option}: needs Apache Beam; pip install 'emo-jax[beam]'")
    if beam is not None:
        return Beam(tuple(shlex.split(beam)), None)
    return Beam((*_LOCAL, f"--direct_num_workers={workers}"), workers)

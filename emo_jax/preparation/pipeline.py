"""The process of a Beam pipeline that runs tasks: TASKS.json, then options of Beam.

Only descriptions of tasks go through Beam, and nothing comes back, so that no runner has to keep,
shuffle or pickle documents.
"""

import functools
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from emo_jax.preparation.scratch import WORKERS, is_used, lock_until_exit
from emo_jax.preparation.tasks import load_job, try_task


def run(line: str) -> None:
    """Runs a task in a worker; `line` is a JSON list of it and the folder of the work."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    task, work = json.loads(line)
    _mark(work)
    try_task(task, load_job(work))


@functools.lru_cache(maxsize=1)
def _mark(work: str) -> None:
    """Tells the command which processes are at work, so that it sees one die."""
    lock_until_exit(Path(work) / WORKERS / str(os.getpid()))


def _end_with(home: Path) -> None:
    """Ends this process and its workers soon after the command that waits for it."""

    def watch() -> None:
        while is_used(home):
            time.sleep(1)
        os.killpg(os.getpid(), signal.SIGKILL)

    if is_used(home) and os.getpgrp() == os.getpid():
        threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Runs the tasks of a file."""
    file, *options = sys.argv[1:]
    work = Path(file).parent
    _end_with(load_job(str(work)).store.parent)
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions

    tasks = json.loads(Path(file).read_text())
    lines = [json.dumps([task, str(work)]) for task in tasks]
    with apache_beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        _ = pipeline | apache_beam.Create(lines) | apache_beam.Reshuffle() | apache_beam.Map(run)


if __name__ == "__main__":
    # Workers import the functions by the name of the module, not as `__main__`.
    from emo_jax.preparation import pipeline as itself

    itself.main()

"""The process of a Beam pipeline that runs tasks: TASKS.json, then options of Beam.

Only descriptions of tasks go through Beam, and nothing comes back, so that no runner has to keep,
shuffle or pickle documents.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

from emo_jax.preparation.scratch import is_used
from emo_jax.preparation.tasks import load_job, try_task


def run(line: str) -> None:
    """Runs a task in a worker; `line` is a JSON list of it and the folder of the work."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    task, work = json.loads(line)
    job = load_job(work)
    _end_with(job.store.parent)
    try_task(task, job)


_watched: set[Path] = set()


def _end_with(home: Path) -> None:
    """Ends this process soon after the command that waits for it, if that is on this machine."""
    if home in _watched or not is_used(home):
        return
    _watched.add(home)

    def watch() -> None:
        while is_used(home):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Runs the tasks of a file."""
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions

    file, *options = sys.argv[1:]
    tasks = json.loads(Path(file).read_text())
    lines = [json.dumps([task, str(Path(file).parent)]) for task in tasks]
    with apache_beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        _ = pipeline | apache_beam.Create(lines) | apache_beam.Reshuffle() | apache_beam.Map(run)


if __name__ == "__main__":
    # Workers import the functions by the name of the module, not as `__main__`.
    from emo_jax.preparation import pipeline as itself

    itself.main()

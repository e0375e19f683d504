"""Tasks: small descriptions of restartable work, run in this process or by Apache Beam.

A task writes files of its own, whole or not at all, and then its outcome; a task whose outcome is
there, with its files, is not run again. What a task is called covers all that its files depend on.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax import errors
from emo_jax.data.stream import token_dtype
from emo_jax.errors import DataError, EmoError, one_line
from emo_jax.files import json_files
from emo_jax.files.atomic import unfinished
from emo_jax.files.json_files import NotReadableError
from emo_jax.preparation.drop import DropIds
from emo_jax.preparation.reading import Reading
from emo_jax.tokenizer.base import Tokenizer
from emo_jax.tokenizer.load import byte_tokenizer, load_tokenizer

Task = dict[str, Any]  # "kind", "name", and what the kind needs
Outcome = dict[str, Any]
_JOB = "job.json"


def _quiet(line: str) -> None:
    return


@dataclasses.dataclass(frozen=True)
class Job:
    """What the tasks of a command share.

    Args:
      work: folder for what is between inputs and store.
      store: folder that becomes the store.
      reading: how documents are read.
      tokenizer: turns texts into ids.
      add_bos: documents begin with the tokenizer's beginning-of-document token.
      seed: of the order.
      bins: ranges of the order key, counted for planning; a power of two.
      run_bytes: tokens, ids and index of a run, which is sorted in memory.
      drop: ids of documents to leave out.
      show: told what is done inside of a task.
    """

    work: Path
    store: Path
    reading: Reading
    tokenizer: Tokenizer
    add_bos: bool
    seed: int
    run_bytes: int
    bins: int = 1
    drop: DropIds | None = None
    show: Callable[[str], None] = _quiet

    @property
    def token(self) -> np.dtype:
        """The type of a token."""
        return np.dtype(token_dtype(self.tokenizer.vocab_size))

    def path(self, name: str) -> Path:
        """Returns the path of a file that an outcome names."""
        head, _, rest = name.partition("/")
        return self.store / rest if head == "store" else self.work / name

    def save(self) -> None:
        """Writes what other processes need to run tasks."""
        self.tokenizer.save(self.work / "tokenizer")
        content = {
            "store": str(self.store),
            "reading": self.reading.described(),
            "add_bos": self.add_bos,
            "seed": self.seed,
            "bins": self.bins,
            "run_bytes": self.run_bytes,
            "drop": self.drop is not None,
        }
        if self.drop is not None:
            self.drop.save(self.work)
        _write(self.work / _JOB, content)


@functools.lru_cache(maxsize=1)
def load_job(work: str) -> Job:
    """Reads what `Job.save` wrote."""
    folder = Path(work)
    content = json.loads((folder / _JOB).read_text())
    # The process that wrote it has loaded this tokenizer already, so what it names is trusted.
    tokenizer = load_tokenizer(folder / "tokenizer", trust=True)
    plain = byte_tokenizer()
    if tokenizer.fingerprint == plain.fingerprint:
        tokenizer = plain  # the same ids, faster
    tokenizer.adds_bos = content["add_bos"]
    return Job(
        folder,
        Path(content["store"]),
        Reading.of(content["reading"]),
        tokenizer,
        content["add_bos"],
        content["seed"],
        content["run_bytes"],
        content["bins"],
        DropIds.open(folder) if content["drop"] else None,
    )


def name_of(kind: str, *parts: Any) -> str:
    """Returns the name of a task; `parts` are all that its files depend on."""
    return f"{kind}-{hash_of(*parts)}"


def hash_of(*parts: Any) -> str:
    """Returns 16 hexadecimal digits that stand for JSON values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def kinds() -> dict[str, Callable[[Task, Job], Outcome]]:
    """Returns what runs each kind of task; it returns the outcome, with the sizes of "files"."""
    from emo_jax.preparation import buckets, pieces, shards

    return {
        "lines": pieces.count_lines,
        "piece": pieces.read_piece,
        "bucket": buckets.sort_bucket,
        "shard": shards.write_shards,
    }


def run_task(task: Task, job: Job) -> None:
    """Runs a task and writes its outcome; raises what it raises."""
    outcome = kinds()[task["kind"]](task, job)
    _write(job.work / "done" / f"{task['name']}.json", outcome | {"pid": os.getpid()})


def _write(path: Path, content: Any) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content))


def try_task(task: Task, job: Job) -> None:
    """Runs a task; what goes wrong is written down, for the process that waits for the task."""
    try:
        run_task(task, job)
    except Exception as error:
        kind = "OSError" if isinstance(error, OSError) else type(error).__name__
        text = str(error) if isinstance(error, EmoError) else one_line(error)
        _write(job.work / "failed" / f"{task['name']}.json", {"kind": kind, "text": text})


def failure_of(task: Task, job: Job) -> Exception | None:
    """Returns why a task failed, if it did."""
    path = job.work / "failed" / f"{task['name']}.json"
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    kind, text = content["kind"], content["text"]
    if kind == "OSError":
        return OSError(text)
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, EmoError):
        return known(text)
    return DataError(f"a worker failed at {task['name']} ({kind}: {text}); please report this")


def outcome_of(task: Task, job: Job, *, files: bool = True) -> Outcome | None:
    """Returns the outcome of a finished task; None if it has to be run (again).

    Args:
      files: it counts as finished only with all its files.
    """
    path = job.work / "done" / f"{task['name']}.json"
    try:
        outcome = json_files.parse(path.read_bytes())
        for name, size in outcome["files"].items() if files else ():
            if job.path(name).stat().st_size != size:
                return None
    except (OSError, NotReadableError, KeyError, TypeError, ValueError):
        return None
    return outcome


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a new path that becomes `path` at the end, synced; a failure removes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""What a run has read: the documents of each step, from the run's own folder."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.config import Config
from emo_jax.data.provenance import Part, documents_of
from emo_jax.data.run_windows import RunWindows, open_run_windows
from emo_jax.data.sources import open_data
from emo_jax.errors import CheckpointError, DataError, UsageError
from emo_jax.run.metrics_file import METRICS_FILE, read_metrics
from emo_jax.run.workdir import INDEX_FOLDER, read_workdir_config
from emo_jax.training.init_from import read_record, windows_of
from emo_jax.training.passed import PassedWindows

_ROWS = 64  # windows looked up at once


@dataclass(frozen=True)
class Read:
    """A document that a step read, or a part of it.

    Attributes:
      step: as in metrics.jsonl, from 1.
      place: of the window in the run's order.
      source: the store or token files, as the config calls them.
      window: number of the window in that source.
      part: the document; `part.row` is the row of the step's batch.
    """

    step: int
    place: int
    source: str
    window: int
    part: Part

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        head = {"step": self.step, "row": self.part.row, "place": self.place}
        return head | {"source": self.source, "window": self.window} | self.part.to_json()


class Trace:
    """The order in which a run reads its data; open it with `Trace.open`.

    Attributes:
      config: the run's.
      windows: of its data, in the order of the run.
      begun: the step that this workdir's run began after; not 0 with `--init-from`.
      last: the last step that is known to have been done; 0 if none is.
      passed: the windows that it passed over.
    """

    def __init__(
        self,
        config: Config,
        windows: RunWindows,
        *,
        begun: int,
        offset: int,
        last: int,
        passed: PassedWindows,
    ):
        size = config.train.batch_size
        self.config, self.passed = config, passed
        self.windows = windows.longer(config.train.steps + -(-passed.total // size))
        self.begun, self.last, self._offset = begun, last, offset

    @classmethod
    def open(cls, workdir: str | os.PathLike[str]) -> "Trace":
        """Opens the data of a run.

        Raises:
          UsageError: no such run.
          DataError: the data is not what the run has read.
        """
        folder = Path(workdir).absolute()
        config = read_workdir_config(folder)
        if not config.data.stores:
            raise UsageError(f"{folder}: its config.data names no store; it has read nothing")
        # As the run has it; in a folder of someone else's, found anew and not kept.
        cache = folder / INDEX_FOLDER if os.access(folder, os.W_OK) else None
        windows = open_run_windows(config, open_data(config.data, cache=cache), cache=cache)
        saved = _saved(folder, config)
        for step, extra in reversed(saved[-1:]):
            _check_data(folder, step, extra, windows)
        passed = PassedWindows.read(folder, saved[-1][1] if saved else None)
        begun, offset = _beginning(folder, config, saved, passed)
        logged = [r["step"] for r in read_metrics(folder)] if _has_metrics(folder) else []
        last = max([*logged, *(step for step, _ in saved)], default=0)
        return cls(config, windows, begun=begun, offset=offset, last=last, passed=passed)

    @property
    def batch_size(self) -> int:
        """Windows of a step."""
        return self.config.train.batch_size

    def places(self, step: int) -> np.ndarray:
        """Returns the places of a step's windows in the run's order: (B,) int64.

        Raises:
          UsageError: the run has no such step.
        """
        if step <= self.begun:
            other = "; ask the run it began from" if self.begun else ""
            raise UsageError(f"step {step}: the first step of this run is {self.begun + 1}{other}")
        if step > self.config.train.steps:
            raise UsageError(f"step {step}: the run has {self.config.train.steps} steps")
        number = self._offset + (step - 1 - self.begun) * self.batch_size
        first = self.passed.place(number)
        return np.arange(first, first + self.batch_size, dtype=np.int64)

    def read(self, step: int, row: int | None = None) -> Iterator[Read]:
        """Yields the documents of a step by row and column; of one row, if given.

        Raises:
          UsageError: the run has no such step or row.
        """
        places = self.places(step)
        if row is not None and not 0 <= row < len(places):
            raise UsageError(f"row {row}: a step has rows 0..{len(places) - 1}")
        rows = np.arange(len(places)) if row is None else np.array([row])
        for start in range(0, len(rows), _ROWS):
            yield from self._rows(step, places, rows[start : start + _ROWS])

    def _rows(self, step: int, places: np.ndarray, rows: np.ndarray) -> Iterator[Read]:
        sources, numbers = self.windows.locate(places[rows])
        found: list[Read] = []
        for k in np.unique(sources).tolist():
            here = np.flatnonzero(sources == k)
            for part in documents_of(self.windows.parts[k], numbers[here]):
                at = int(here[part.row])
                row = int(rows[at])
                name, number = self.windows.names[k], int(numbers[at])
                part = Part(**{**vars(part), "row": row})
                found.append(Read(step, int(places[row]), name, number, part))
        yield from sorted(found, key=lambda one: one.part.row)  # stable: columns stay in order


def steps_asked(
    trace: Trace, *, step: int | None, last: int | None, steps: tuple[int, int] | None
) -> range:
    """Returns the steps that were asked for: one, the last few, or from one to another.

    Raises:
      UsageError: not exactly one of them was given, or the run has done no step.
    """
    if sum(one is not None for one in (step, last, steps)) != 1:
        raise UsageError("give one of --step K, --last N and --steps A:B")
    if step is not None:
        return range(step, step + 1)
    if steps is not None:
        if steps[0] > steps[1]:
            raise UsageError(f"--steps {steps[0]}:{steps[1]}: the first comes after the last")
        return range(steps[0], steps[1] + 1)
    if trace.last <= trace.begun:
        raise UsageError("--last: the run has done no step yet; give --step")
    assert last is not None
    return range(max(trace.last - last, trace.begun) + 1, trace.last + 1)


def _has_metrics(folder: Path) -> bool:
    return (folder / METRICS_FILE).is_file()


def _saved(folder: Path, config: Config) -> list[tuple[int, dict[str, Any]]]:
    """Returns (step, extra) of each checkpoint that can be read, oldest first."""
    found = []
    with Checkpointer(folder, config.checkpoint) as checkpoints:
        for step in checkpoints.steps():
            try:
                extra = checkpoints.read_extra(step)
            except CheckpointError:
                continue  # damaged: another one says the same
            if step or extra.get("windows"):  # an import's step 0 has read nothing
                found.append((step, extra))
    return found


def _check_data(folder: Path, step: int, extra: dict[str, Any], windows: RunWindows) -> None:
    """Raises DataError if the windows before a checkpoint are not those that were read."""
    ours = windows.fingerprint_at(windows_of(extra, f"{folder}: step {step}"))
    theirs = extra.get("store", ours)
    if theirs != ours:
        raise DataError(
            f"{folder}: its data is not what the run had read by step {step} ({ours[:12]} is not"
            f" {theirs[:12]}); bring back the stores that config.json names, as they were"
        )


def _beginning(
    folder: Path, config: Config, saved: list[tuple[int, dict[str, Any]]], passed: PassedWindows
) -> tuple[int, int]:
    """Returns the step after which a run began, and the windows consumed before it."""
    record = read_record(folder)
    if record is None or record["mode"] != "all":
        return 0, 0
    begun = record["step"]
    if saved:
        step, extra = saved[0]
        done = (step - begun) * config.train.batch_size
        window = windows_of(extra, f"{folder}: step {step}")
        return begun, window - passed.before(window) - done
    theirs = Path(record["workdir"])
    where = f"{folder}: began from {theirs}@{begun}"
    try:
        with Checkpointer(theirs, config.checkpoint) as checkpoints:
            return begun, windows_of(checkpoints.read_extra(begun), where)
    except CheckpointError as error:
        raise DataError(
            f"{where}, which cannot be read ({error}), and has no checkpoint of its own to say"
            " which window that was; bring that checkpoint back"
        ) from error

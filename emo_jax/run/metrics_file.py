"""The file that the metrics of a run go to."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emo_jax.files.json_files import Fields
from emo_jax.files.json_lines import json_line, mend_lines, read_lines, warn_of_bad

METRICS_FILE = "metrics.jsonl"
_UNKNOWN = ("mfu",)  # null where the peak of the device is not known


class MetricsFile:
    """One JSON object a line in WORKDIR/metrics.jsonl; `step` is the steps done after it."""

    def __init__(self, workdir: Path, *, resume_step: int):
        """Opens for appending; records of steps that the resumed run will do again are dropped."""
        self.path = workdir / METRICS_FILE
        if os.path.lexists(self.path):  # what a link leads to is not ours to write
            lines = read_lines(self.path, _check)
            mend_lines(self.path, lines, [r for r in lines.records if r["step"] <= resume_step])
        self._file = self.path.open("a", buffering=1)

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record; null stands for a number that is not finite."""
        self._file.write(json_line(record))

    def close(self) -> None:
        """Flushes and closes the file."""
        self._file.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """All records of a run; what is none is left out, and named in the log."""
    lines = read_lines(workdir / METRICS_FILE, _check)
    warn_of_bad(workdir / METRICS_FILE, lines)
    return lines.records


def number_in(record: Mapping[str, Any], name: str) -> float | None:
    """A number of a record; NaN where it was not finite, None where nothing was measured."""
    if name not in record or (record[name] is None and name in _UNKNOWN):
        return None
    return _number(record[name])


def numbers_in(record: Mapping[str, Any], name: str) -> list[float] | None:
    """The same of a list over layers."""
    values = record.get(name)
    if not isinstance(values, list):
        return None
    found = [number for value in values if (number := _number(value)) is not None]
    return found if found and len(found) == len(values) else None


def _number(value: Any) -> float | None:
    if value is None:
        return math.nan
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_one else None


def _check(record: dict[str, Any]) -> None:
    Fields(record).integer("step")

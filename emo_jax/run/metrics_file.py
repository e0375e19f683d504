"""The metrics file of a run."""

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emo_jax.errors import EmoError, UsageError, one_line
from emo_jax.files.json_files import Fields, NotReadableError, open_regular, parse
from emo_jax.files.json_lines import json_line, mend_lines, read_lines, warn_of_bad

METRICS_FILE = "metrics.jsonl"
_NEWEST_BYTES = 1 << 21  # of a log that grew for weeks, to see how a run is doing
_UNKNOWN = ("mfu",)  # null if the device's peak is unknown


class MetricsFile:
    """WORKDIR/metrics.jsonl: one JSON object per line; `step` is the number of completed steps."""

    def __init__(self, workdir: Path, *, resume_step: int):
        """Opens for appending; drops records of steps that the resumed run will repeat."""
        self.path = workdir / METRICS_FILE
        if os.path.lexists(self.path):  # the target of a link is not ours to write
            lines = read_lines(self.path, _check)
            mend_lines(self.path, lines, [r for r in lines.records if r["step"] <= resume_step])
        self._file, self._failed = self.path.open("a", buffering=1), False

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record; numbers that are not finite become null.

        Raises:
          EmoError: it cannot be written.
        """
        try:
            self._file.write(json_line(record))
        except OSError as e:
            self._failed = True
            raise EmoError(
                f"{self.path}: cannot be written: {one_line(e)}; mend space or access there and run"
                " the same command again"
            ) from e

    def close(self) -> None:
        """Flushes and closes the file."""
        with contextlib.suppress(*([OSError] if self._failed else [])):  # it was said
            self._file.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """All records of a run; lines that are not records are skipped and logged."""
    lines = read_lines(workdir / METRICS_FILE, _check)
    warn_of_bad(workdir / METRICS_FILE, lines)
    return lines.records


def read_newest(workdir: Path) -> list[dict[str, Any]]:
    """The last records of a run, in order, from the end of the file; none if there is no file.

    Lines that are not records are skipped.

    Raises:
      OSError: the file cannot be read.
      UsageError: it is not a regular file.
    """
    path, found = workdir / METRICS_FILE, []
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _NEWEST_BYTES))
            lines = file.read(_NEWEST_BYTES).splitlines()
    except FileNotFoundError:
        return []
    except NotReadableError as error:
        raise UsageError(f"{path}: cannot be read ({error}); mend or remove it") from None
    for line in lines:  # the first may be the end of one, which is no record
        try:
            record = parse(line)
            _check(record)
            found.append(record)
        except NotReadableError:
            continue
    return found


def number_in(record: Mapping[str, Any], name: str) -> float | None:
    """A number in a record; NaN if it was not finite, None if nothing was measured."""
    if name not in record or (record[name] is None and name in _UNKNOWN):
        return None
    return _number(record[name])


def numbers_in(record: Mapping[str, Any], name: str) -> list[float] | None:
    """The same for a list over layers."""
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

"""Our own small files of JSON lines, such as metrics.jsonl, read in whatever state they are.

A kill or a full disk may have cut the last line, and a person or another program may have changed
the file. Reading skips and names what is not a record. Before such a file is written to again, a
copy of it is kept next to it, unless only an incomplete last line is lost.
"""

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from emo_jax.errors import UsageError, one_line
from emo_jax.files.atomic import write_bytes_atomic
from emo_jax.files.inside import check_own_file
from emo_jax.files.json_files import NotReadableError, dumps, name_of, open_regular, parse

MAX_LINE = 1 << 24  # bytes; anything longer is not one of our records
_LOG = logging.getLogger(__name__)

Record = dict[str, Any]


class Lines(NamedTuple):
    """The contents of a file.

    Attributes:
      records: the objects, in order.
      bad: for each line that is not a record, where it is and why.
      cut: the last line is incomplete: it does not end, and is among `bad`.
    """

    records: list[Record]
    bad: list[str]
    cut: bool

    def said(self, path: str | os.PathLike[str]) -> str:
        """Returns one line about what is skipped."""
        more = f" and {len(self.bad) - 3} more" if len(self.bad) > 3 else ""
        return f"{os.fspath(path)}: left out: {'; '.join(self.bad[:3])}{more}"


def read_lines(
    path: str | os.PathLike[str], check: Callable[[Record], None] = lambda record: None
) -> Lines:
    """Reads the objects of a file, one per line.

    Args:
      check: raises NotReadableError for an object that is not a record.

    Raises:
      FileNotFoundError: no such file.
      UsageError: it cannot be read, or is a link to a file outside its folder.
    """
    records: list[Record] = []
    bad: list[str] = []
    number, line = 0, b"\n"
    try:
        check_own_file(path)
        with open_regular(path) as file:
            while content := file.readline(MAX_LINE):
                # What follows the limit is part of the same line.
                number, line = number + line.endswith(b"\n"), content
                is_bad = bool(bad) and bad[-1].startswith(f"line {number} ")
                if is_bad or not line.strip():
                    continue
                try:
                    records.append(_record(line, check))
                except NotReadableError as error:
                    bad.append(f"line {number} ({one_line(error, 80)})")
    except FileNotFoundError:
        if os.path.islink(path):
            raise UsageError(f"{path}: a link to nothing; remove it") from None
        raise
    except (OSError, NotReadableError) as error:
        raise UsageError(f"{path}: cannot be read ({one_line(error)}); mend or remove it") from None
    cut = not line.endswith(b"\n") and bool(bad) and bad[-1].startswith(f"line {number} ")
    return Lines(records, bad, cut)


def _record(line: bytes, check: Callable[[Record], None]) -> Record:
    if len(line) >= MAX_LINE:
        raise NotReadableError(f"longer than {MAX_LINE} bytes")
    value = parse(line)
    if not isinstance(value, dict):
        raise NotReadableError(f"must be a JSON object, not {name_of(value)}")
    check(value)
    return value


def warn_of_bad(path: str | os.PathLike[str], lines: Lines) -> None:
    """Logs what is skipped, except an incomplete last line, which may still be being written."""
    if len(lines.bad) > lines.cut:
        _LOG.warning("%s", lines.said(path))


def mend_lines(path: Path, lines: Lines, keep: Sequence[Record]) -> None:
    """Rewrites a file with some of its records, before more are added to it.

    If it contains anything but records, the old file is kept as a copy, which the log names; for an
    incomplete last line, as a kill leaves, there is only a log line.
    """
    if lines.bad:
        said = lines.said(path)
        if len(lines.bad) > lines.cut:
            copy = _free_name(path)
            shutil.copy2(path, copy)
            said += f"; as it was it is {copy.name} now"
        _LOG.warning("%s", said)
    write_bytes_atomic(epath.Path(path), "".join(json_line(record) for record in keep).encode())


def json_line(record: Record) -> str:
    """Returns a record as a line of JSON, even if its numbers are not finite."""
    return dumps(record) + "\n"


def _free_name(path: Path) -> Path:
    number = 1
    while os.path.lexists(free := path.with_name(f"{path.name}.damaged{number}")):
        number += 1
    return free

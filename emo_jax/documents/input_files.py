"""Lists the files of an input and the kind of each; nothing is skipped silently.

An input is checked before anything is read, so that an unusable file is found immediately, not
after the hours that the files before it take.
"""

import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from emo_jax.documents import arrow_files, foreign, hub, locations, tars
from emo_jax.documents.archives import READ_ERRORS, unreadable
from emo_jax.documents.file_kinds import ARROW, LINES, ROWS, TAR, TEXT, is_plain, kind_of
from emo_jax.documents.folders import check_there, walk
from emo_jax.documents.foreign import Foreign
from emo_jax.documents.records import UNKNOWN_DOMAIN, ReadReport
from emo_jax.documents.splits import mixed, split_of
from emo_jax.documents.text_files import read_start
from emo_jax.errors import DataError, UsageError
from emo_jax.files import named_code
from emo_jax.files.remote import refuse_secret

_CHECKED = (ROWS, ARROW, TAR)  # kinds that are checked by their own readers
_POINTER_BYTES = 1024  # maximum size of a Git LFS pointer

# Files that describe a data set and are not documents of it.
_PAPERS = re.compile(
    r"(readme|licen[cs]e)([._-].*)?"
    r"|(copying|notice|citation|changelog|contributing|authors|datasheet|dataset_?card)(\.\w+)?",
    re.IGNORECASE,
)
_ABOUT = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


class File(NamedTuple):
    """A file of an input.

    Attributes:
      name: used in ids: the path in the input, so that moving the input does not move documents
        between splits.
      domain: used for documents that name none: the first sub-folder.
      kind: LINES, ROWS, ARROW, TAR or TEXT.
    """

    path: Path
    name: str
    domain: str
    kind: str


@dataclass
class Input:
    """A file or folder that has been checked.

    Attributes:
      is_file: it is no folder.
      has_records: it has JSON lines, rows of Parquet or Arrow, or tar archives.
      has_data: it has those or a data set in another format.
      left_out: files whose content is not what their names say.
    """

    path: Path
    is_file: bool = False
    has_records: bool = False
    has_data: bool = False
    left_out: set[Path] = field(default_factory=set)

    def files(self) -> Iterator[File]:
        """Yields the files to read, sorted within each folder."""
        if self.is_file:
            yield _explicit(self.path)
            return
        for path, name, domain in walk(self.path, _say_nothing):
            kind = kind_of(path)
            read = not (self.has_records and kind is None) and not (
                self.has_data and _is_about(path)
            )
            if read and path not in self.left_out and (kind or foreign.of_name(path) is None):
                yield File(path, name, domain, kind or TEXT)


def expand(inputs: Sequence[str | os.PathLike[str]]) -> Iterator[str]:
    """Yields the inputs, with a pattern such as `data/train-*.parquet` replaced by its matches.

    Raises:
      UsageError: a pattern that matches nothing, or matches several splits; a URL that holds a
        secret.
    """
    for path in inputs:
        given = os.fspath(path) if isinstance(path, os.PathLike) else str(path)
        refuse_secret(given)
        if given.startswith((named_code.PREFIX, hub.PREFIX)):
            yield given
            continue
        if not glob.has_magic(given) or locations.what_is(locations.location(given)):
            yield given
            continue
        found = locations.matches(given)
        if not found:
            raise UsageError(f"{given}: no file fits this pattern")
        _refuse_mixed_pattern(given, found)
        yield from found


def look_at(
    path: Path,
    report: ReadReport,
    *,
    text_field: str,
    check_rows: Callable[[Path], None],
) -> Input:
    """Checks all files of an input, and adds to the report what is skipped.

    Args:
      check_rows: called with the path of each Parquet and Arrow file.

    Raises:
      UsageError: no such file or folder, an unsupported file, or splits that would be mixed.
      DataError: a file that cannot be read.
    """
    there = locations.what_is(path)
    if not there:
        raise UsageError(f"{path}: no such file or folder")
    check_there(path)
    if there == locations.OTHER:
        raise UsageError(f"{path}: not a regular file; save what it gives in one")
    with locations.readable(path):
        return _look_at(Input(path, there == locations.FILE), report, text_field, check_rows)


def _look_at(
    found: Input, report: ReadReport, text_field: str, check_rows: Callable[[Path], None]
) -> Input:
    path = found.path
    if found.is_file:
        kind = _explicit(path).kind
        found.has_records = found.has_data = kind != TEXT
        if kind in _CHECKED:
            _check(path, kind, check_rows)
        elif kind == TEXT:
            _refuse(path, foreign.of_text(_start(path), text_field))
        else:
            _refuse(path, _other(path, kind))
        return found
    if (other := foreign.of_folder(path)) is not None:
        raise UsageError(f"{path}: {other.what}; {other.advice}")
    splits: dict[str, list[str]] = {}
    beside: Counter[str] = Counter()
    first: dict[str, str] = {}
    about: list[Path] = []
    there: list[tuple[Path, str, str | None]] = []

    def left(file: Path, what: str) -> None:
        report.leave_out(str(file), what, text=True)

    for file, relative, _ in walk(path, left):
        kind_here = kind_of(file)
        if kind_here is None and (other := foreign.of_name(file)) is not None:
            found.has_data |= other.is_data
            report.leave_out(str(file), str(other), text=other.may_hold_text)
            continue
        if _is_about(file):
            about.append(file)
            continue
        if kind_here is None:
            suffix = file.suffix.lower() or "a file without an ending"
            beside[suffix] += 1
            first.setdefault(suffix, str(file))
        there.append((file, relative, kind_here))
    _leave_out_caches(about, [f for f, _, kind in there if kind == ARROW], found, report)
    there = [item for item in there if item[0] not in found.left_out]

    def look(item: tuple[Path, str, str | None]) -> tuple[Foreign | None, bool]:
        file, _, kind = item
        if kind in _CHECKED:
            _check(file, kind, check_rows)
        other = _other(file, LINES) if kind == LINES else None
        lines = kind == LINES and other is None and _has_records(file, text_field)
        return other, lines or kind in _CHECKED

    looks = locations.concurrently(look, there, locations.is_remote(path))
    for (file, relative, _), (other, records) in zip(there, looks, strict=True):
        if other is not None:
            _leave_out_lines(file, other, found, report)
            continue
        found.has_records |= records
        found.has_data |= records
        if (split := split_of(relative, named=records or is_plain(file))) is not None:
            splits.setdefault(split, []).append(relative)
    for file in about:
        if found.has_data:
            report.leave_out(str(file), "what describes the data")
        elif kind_of(file) == LINES and (other := _other(file, LINES)) is not None:
            _leave_out_lines(file, other, found, report)
    if found.has_records:
        for suffix, count in beside.items():
            report.leave_out(first[suffix], f"{suffix} beside lines of JSON or rows", count)
    if len(splits) > 1:
        raise UsageError(mixed(path, splits))
    return found


def is_of_documents(place: str) -> bool:
    """Returns whether an input that may also be a token store is a file of documents.

    In an object store, where a store is a folder, its name says so.
    """
    if locations.is_remote(place):
        return kind_of(Path(place)) is not None
    return Path(place).is_file()


def leave_out_papers(found: Sequence[Input], report: ReadReport) -> list[Input]:
    """Returns the inputs that describe the data next to them, which `FOLDER/*` matches too."""
    data = {i.path.resolve().parent for i in found if i.has_data}
    papers = [
        i for i in found if i.is_file and _is_about(i.path) and i.path.resolve().parent in data
    ]
    for paper in papers:
        report.leave_out(str(paper.path), "what describes the data")
    return papers


def refuse_foreign(path: Path, kind: str | None) -> None:
    """Checks the name and the first bytes of a file that should hold lines or texts.

    Raises:
      UsageError: no such file, or a folder.
      DataError: it cannot be read, or is something else.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file; give one that is there")
    if path.is_dir():
        raise UsageError(f"{path}: a folder; name a file in it")
    other = _other(path, kind) or foreign.of_name(path)
    _refuse(path, other and foreign.as_lines(other))


def _refuse(path: Path, other: Foreign | None) -> None:
    if other is not None:
        raise DataError(f"{path}: {other.what}; {other.advice}")


def _explicit(path: Path) -> File:
    """Returns a file that the user names."""
    kind = kind_of(path) or (TEXT if is_plain(path) else None)
    if kind is None:
        other = foreign.of_name(path) or _other(path, kind)
        raise UsageError(
            f"{path}: {other.what}; {other.advice}"
            if other
            else f"{path}: unknown kind of file; give .jsonl, .parquet, .arrow, .tar, .txt or .md"
            " (.jsonl, .tar and texts also .gz, .zst) or a folder"
        )
    return File(path, path.name, UNKNOWN_DOMAIN, kind)


def _other(path: Path, kind: str | None) -> Foreign | None:
    """Returns what a file of lines or text is instead, by its first bytes; None if it is one."""
    return (foreign.of_lines if kind == LINES else foreign.of_content)(_start(path))


def _start(path: Path) -> bytes:
    try:
        return read_start(path)
    except READ_ERRORS as error:
        raise unreadable(path, error) from error


def _leave_out_lines(file: Path, other: Foreign, found: Input, report: ReadReport) -> None:
    """Leaves out a file in a folder that should hold JSON lines and is something else."""
    if other is foreign.POINTER:
        _refuse(file, other)
    report.leave_out(str(file), str(other), text=True)
    found.left_out.add(file)
    found.has_data |= other.is_data


def _leave_out_caches(
    about: list[Path], arrows: list[Path], found: Input, report: ReadReport
) -> None:
    """Leaves out the Arrow files beside those that a folder of `save_to_disk` consists of."""
    beside: dict[Path, list[Path]] = {}
    for file in arrows:
        beside.setdefault(file.parent, []).append(file)
    described = set(about)
    for state in about:
        here = beside.get(state.parent, [])
        is_saved = here or state.with_name("dataset_info.json") in described
        if state.name != arrow_files.STATE or not is_saved:
            continue
        saved = set(arrow_files.saved_files(state))
        for file in here:
            if file not in saved:
                report.leave_out(str(file), "what datasets has cached")
                found.left_out.add(file)


def _check(path: Path, kind: str, check_rows: Callable[[Path], None]) -> None:
    """Checks the beginning or the footer of a file of rows or an archive."""
    if locations.size_of(path) < _POINTER_BYTES and _other(path, None) is foreign.POINTER:
        _refuse(path, foreign.POINTER)
    if kind == TAR:
        tars.check(path)
    else:
        check_rows(path)


def _has_records(path: Path, text_field: str) -> bool:
    """Returns whether a .json file holds documents; a .jsonl file always does."""
    if path.suffix.lower() != ".json":
        return True
    line = read_start(path).lstrip().partition(b"\n")[0]
    return b'"' + text_field.partition(".")[0].encode() + b'"' in line


def _is_about(path: Path) -> bool:
    """Returns whether a file describes the data next to it."""
    if path.name.lower() in _ABOUT:
        return True
    return kind_of(path) in (TEXT, None) and bool(_PAPERS.fullmatch(path.name))


def _say_nothing(file: Path, what: str) -> None:
    return


# --- splits ---------------------------------------------------------------------------------------


def _refuse_mixed_pattern(pattern: str, found: list[str]) -> None:
    """Refuses a pattern whose matches are of several splits, as is done for a folder."""
    if locations.is_remote(pattern):
        fixed = locations.location(locations.fixed_part(pattern))
    else:
        folders = Path(pattern).parts
        fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), folders))
    splits: dict[str, list[str]] = {}
    for name in found:
        path = locations.location(name)
        relative = path.relative_to(fixed)
        named = kind_of(path) in (LINES, *_CHECKED) or is_plain(path) or path.is_dir()
        if (split := split_of(relative.as_posix(), named=named)) is not None:
            splits.setdefault(split, []).append(relative.as_posix())
    if len(splits) > 1:
        raise UsageError(mixed(fixed, splits))

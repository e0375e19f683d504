"""Cuts the inputs into pieces of about equal size, whatever the number of workers."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from emo_jax.documents import parquet, text_files
from emo_jax.documents.archives import READ_ERRORS, packing, unreadable
from emo_jax.documents.file_kinds import LINES, ROWS
from emo_jax.documents.input_files import File, Input
from emo_jax.documents.locations import location
from emo_jax.documents.read import Found
from emo_jax.documents.text_files import Part
from emo_jax.preparation.reading import name_of as name_of_input
from emo_jax.preparation.tasks import Task, name_of

PIECE_BYTES = 1 << 26
_UNKNOWN_BYTES = 1 << 30  # of a source that does not say its size
_UNPACKED = 4  # bytes of text per byte of a compressed file
_BIN_BYTES = 1 << 25
_MOST_BINS = 1 << 16


@dataclasses.dataclass(frozen=True)
class Span:
    """A file, a part of one, or a source that is not of files, such as a seqio task.

    Args:
      source: the input that it belongs to, as given.
      file: None for what is not of files.
      part: None for all of the file.
      size: bytes of text, estimated.
      state: (size, time of the last change) of the file.
      given: what specifies a source that is not of files.
    """

    source: str
    file: File | None
    size: int
    part: Part | None = None
    state: tuple[int, int] = (0, 0)
    given: str = ""

    def described(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        file = None if self.file is None else [str(self.file.path), *self.file[1:]]
        return dataclasses.asdict(self) | {"file": file}

    @classmethod
    def of(cls, described: dict[str, Any]) -> "Span":
        """Returns what `described` describes."""
        file, part = described["file"], described["part"]
        return cls(
            **described
            | {
                "file": None if file is None else File(location(file[0]), *file[1:]),
                "part": None if part is None else Part(*part),
            }
        )


def find_spans(found: Sequence[tuple[str, Found]]) -> list[Span]:
    """Returns what to read, large files in parts.

    The parts of a file of lines say nothing of line numbers yet: their `first` is 0.
    """
    return [span for source, one in found for span in _spans(source, one)]


def _spans(source: str, found: Found) -> Iterator[Span]:
    if not isinstance(found, Input):
        yield Span(source, None, _UNKNOWN_BYTES, given=name_of_input(found))
        return
    for file in found.files():
        try:
            yield from _parts(source, file)
        except READ_ERRORS as error:
            raise unreadable(file.path, error) from error


def _parts(source: str, file: File) -> Iterator[Span]:
    status = file.path.stat()
    state = (status.st_size, int(1e6 * (getattr(status, "st_mtime", None) or 0)))
    whole = Span(source, file, status.st_size, state=state)
    if file.kind == ROWS:
        yield from _row_groups(whole, file)
    elif packing(file.path):
        yield dataclasses.replace(whole, size=_UNPACKED * whole.size)
    elif file.kind == LINES and whole.size > PIECE_BYTES and text_files.has_parts(file.path):
        for start in range(0, whole.size, PIECE_BYTES):
            stop = min(start + PIECE_BYTES, whole.size)
            yield dataclasses.replace(whole, size=stop - start, part=Part(start, stop, 0))
    else:
        yield whole


def _row_groups(whole: Span, file: File) -> Iterator[Span]:
    start = size = rows = before = 0
    groups = parquet.row_groups(file.path)
    for i, (count, bytes_) in enumerate(groups, 1):
        size, rows = size + bytes_, rows + count
        if size >= PIECE_BYTES or i == len(groups):
            part = Part(start, i, before + 1)
            yield dataclasses.replace(whole, size=size, part=part)
            start, before, size, rows = i, before + rows, 0, 0


def line_tasks(spans: Sequence[Span]) -> list[Task]:
    """Returns the tasks that count the lines of parts of files."""
    return [
        {"kind": "lines", "name": name_of("lines", span.described()), "span": span.described()}
        for span in spans
        if _is_part_of_lines(span)
    ]


def number_lines(spans: Sequence[Span], counts: Sequence[int]) -> list[Span]:
    """Returns the spans with the numbers of their first lines, given what `line_tasks` counted."""
    left, numbered, before = iter(counts), [], 0
    for span in spans:
        if _is_part_of_lines(span):
            assert span.part is not None
            before = 0 if not span.part.start else before
            first = 2 + before if span.part.start else 1
            before += next(left)
            span = dataclasses.replace(span, part=span.part._replace(first=first))
        numbered.append(span)
    return numbered


def _is_part_of_lines(span: Span) -> bool:
    return span.part is not None and span.file is not None and span.file.kind == LINES


def piece_tasks(spans: Sequence[Span], settings: Any) -> list[Task]:
    """Groups spans into tasks; `settings` is what else the outcome of a task depends on."""
    groups: list[list[Span]] = []
    size = 0
    for span in spans:
        if not groups or size + span.size > PIECE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(span)
        size += span.size
    described = [[span.described() for span in group] for group in groups]
    return [
        {"kind": "piece", "name": name_of("piece", spans, settings), "spans": spans}
        for spans in described
    ]


def num_bins(spans: Sequence[Span]) -> int:
    """Returns how many ranges of the order key to count, so that each has some tens of MB."""
    total = 2 * sum(span.size for span in spans)
    return min(1 << max(0, total // _BIN_BYTES).bit_length(), _MOST_BINS)

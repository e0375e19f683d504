"""Which documents windows consist of: their numbers, ids, domains and tokens."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np

from emo_jax.batch import Batch
from emo_jax.data.stream import DocumentStream, Stream
from emo_jax.data.windows import Windows


@dataclass(frozen=True)
class Part:
    """Consecutive tokens of one document in a window.

    Attributes:
      row: of the windows asked for.
      segment: segment id of its tokens.
      columns: where in the window they are, [first, one past the last].
      stream: name of the stream: a split of a store, or a token file.
      document: its number in the stream; None where the format does not say.
      id: of the document; "" where the format keeps none.
      domain: its name; "" if unknown.
      tokens: which tokens of the document they are, [first, one past the last]; without `document`,
        which of the stream.
      length: tokens of the whole document, with its end; None without `document`.
    """

    row: int
    segment: int
    columns: tuple[int, int]
    stream: str
    document: int | None
    id: str
    domain: str
    tokens: tuple[int, int]
    length: int | None

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def documents_of(
    windows: Windows, windows_N: np.ndarray, batch: Batch | None = None
) -> Iterator[Part]:
    """Yields the documents of windows, by row and column.

    Args:
      windows_N: their numbers.
      batch: these windows, (N,S) arrays, where they were read before.
    """
    batch = windows.read(windows_N) if batch is None else batch
    streams = windows.source.streams(windows.split)
    found: dict[int, list[Part]] = {}
    for stream, rows, pieces in windows.pieces(windows_N):
        for piece in zip(*pieces, strict=True):
            local, column, start, stop = map(int, piece)
            row = int(rows[local])
            ranges = _ranges(streams[stream], start, stop, batch.segment_ids[row, column:])
            for (first, last), document, name, begin, length in ranges:
                columns = column + first - start, column + last - start
                domain = int(batch.domain_ids[row, columns[0]])
                part = Part(
                    row=row,
                    segment=int(batch.segment_ids[row, columns[0]]),
                    columns=columns,
                    stream=streams[stream].name,
                    document=document,
                    id=name,
                    domain=windows.domains[domain] if domain >= 0 else "",
                    tokens=(first - begin, last - begin),
                    length=length,
                )
                found.setdefault(row, []).append(part)
    for row in sorted(found):
        yield from found[row]


_Range = tuple[tuple[int, int], int | None, str, int, int | None]


def _ranges(stream: Stream, start: int, stop: int, segments: np.ndarray) -> list[_Range]:
    """Returns the documents of tokens [start, stop) of a stream.

    Returns:
      For each document its tokens as [first, last) of the stream, its number, id, first token (or
      0), and length.
    """
    if getattr(stream, "num_documents", None) is None:
        steps = np.flatnonzero(np.diff(segments[: stop - start])) + 1
        edges = [start, *(steps + start).tolist(), stop]
        return [((a, b), None, "", 0, None) for a, b in pairwise(edges)]
    known = cast(DocumentStream, stream)
    first, last = known.document_at(start), known.document_at(stop - 1)
    ends = [0, *known.document_ends(first, last + 1).tolist()]
    if first:
        ends[0] = int(known.document_ends(first - 1, first)[0])
    ids = known.document_ids(first, last + 1)
    return [
        ((max(begin, start), min(end, stop)), first + n, ids[n], begin, end - begin)
        for n, (begin, end) in enumerate(pairwise(ends))
    ]

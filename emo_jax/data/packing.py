"""How documents fill windows (`data.packing`): which tokens of a stream window i consists of.

    cut        tokens [i·S, (i+1)·S): documents end to end, cut where a window ends
    best_fit   whole documents, by best-fit decreasing within each block of documents; what is left
               of a window is padding. Only documents longer than a window are cut, into windows and
               a rest that is packed like a document.
    document   one document; one longer than a window has several windows

`cut` needs to know nothing about documents. The others work on blocks of 1024 documents, so that a
window can be found without those before it: a pass over the lengths of all documents counts the
windows of each block, and a block is packed anew whenever one of its windows is read.
"""

import bisect
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from emo_jax.config.names import Packing
from emo_jax.data.stream import DocumentStream, Stream
from emo_jax.errors import DataError

BLOCK_DOCUMENTS = 1024
_PASS_DOCUMENTS = 1 << 20  # lengths read at once by the pass over all documents
_HELD_BLOCKS = 256


class Pieces(NamedTuple):
    """P stretches of a stream that fill N windows; every field is (P,) int64, sorted by row."""

    rows: np.ndarray  # the window, 0..N-1
    columns: np.ndarray  # where in it the piece begins
    starts: np.ndarray  # its first token in the stream
    stops: np.ndarray  # one past its last


@dataclass
class PackingCounts:
    """What a packing makes of a stream: windows, tokens in them, documents, and cut documents."""

    windows: int = 0
    tokens: int = 0
    documents: int = 0
    cut: int = 0

    def __add__(self, other: "PackingCounts") -> "PackingCounts":
        return PackingCounts(
            self.windows + other.windows,
            self.tokens + other.tokens,
            self.documents + other.documents,
            self.cut + other.cut,
        )

    def summary(self, seq_len: int) -> str:
        """Returns one line: padding and documents that are cut."""
        padding = 1 - self.tokens / max(self.windows * seq_len, 1)
        return (
            f"{self.windows:,} windows, {padding:.1%} padding, {self.cut:,} of"
            f" {self.documents:,} documents cut ({self.cut / max(self.documents, 1):.1%})"
        )


class Packed(Protocol):
    """The windows of one stream."""

    def __len__(self) -> int:
        """Number of windows."""
        ...

    def pieces(self, windows_N: np.ndarray) -> Pieces:
        """Returns what these windows consist of."""
        ...


class CutWindows:
    """Windows cut from the stream.

    Args:
      num_tokens: length of the stream.
      seq_len: S.
      tail: keep what is left at the end as a shorter window.
    """

    def __init__(self, num_tokens: int, seq_len: int, *, tail: bool):
        self._tokens, self._seq_len = num_tokens, seq_len
        self._count = (num_tokens + (seq_len - 1 if tail else 0)) // seq_len

    def __len__(self) -> int:
        return self._count

    def pieces(self, windows_N: np.ndarray) -> Pieces:
        """Returns what these windows consist of: a piece each."""
        starts = windows_N * self._seq_len
        stops = np.minimum(starts + self._seq_len, self._tokens)
        return Pieces(np.arange(len(starts)), np.zeros_like(starts), starts, stops)


class Block(NamedTuple):
    """The pieces of a block of documents, sorted by window; every field is (P,) int64."""

    windows: np.ndarray
    documents: np.ndarray
    offsets: np.ndarray  # tokens of the document before the piece
    lengths: np.ndarray


class DocumentWindows:
    """Windows of whole documents.

    Args:
      stream: knows its documents.
      seq_len: S.
      kind: "best_fit" or "document".
      known: from an earlier pass, see `known`.

    Attributes:
      known: (blocks + 1,) int64: windows up to the end of each block, then the number of documents
        that are cut.
    """

    def __init__(
        self,
        stream: DocumentStream,
        seq_len: int,
        kind: Packing,
        known: np.ndarray | None = None,
    ):
        self._stream, self._seq_len = stream, seq_len
        self._pack = _best_fit if kind == "best_fit" else _one_each
        if known is None:
            counts, cut = [], 0
            for lengths in _blocks(stream):
                counts.append(self._pack(lengths, seq_len)[0])
                cut += int((lengths > seq_len).sum())
            known = np.append(np.cumsum(counts, dtype=np.int64), cut)
        self.known = known
        self.ends = known[:-1]
        self._block = functools.lru_cache(_HELD_BLOCKS)(self._make_block)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def counts(self) -> PackingCounts:
        """Returns what the packing makes of the stream."""
        documents, cut = self._stream.num_documents, int(self.known[-1])
        return PackingCounts(len(self), self._stream.num_tokens, documents, cut)

    def _make_block(self, block: int) -> tuple[np.ndarray, Block]:
        """Returns where the block's documents begin in the stream, and its pieces."""
        first = block * BLOCK_DOCUMENTS
        stop = min(first + BLOCK_DOCUMENTS, self._stream.num_documents)
        ends = _ends_with_start(self._stream, first, stop)
        windows, packed = self._pack(np.diff(ends), self._seq_len)
        if windows != self.ends[block] - (self.ends[block - 1] if block else 0):
            raise DataError(
                f"{self._stream.name}: the index of its windows is of other documents; delete the"
                " folder with it, and run the same command again"
            )
        return ends[:-1], packed

    def pieces(self, windows_N: np.ndarray) -> Pieces:
        """Returns what these windows consist of."""
        found = []
        blocks = np.searchsorted(self.ends, windows_N, side="right")
        for row, (window, block) in enumerate(zip(windows_N, blocks, strict=True)):
            begins, packed = self._block(int(block))
            local = window - (self.ends[block - 1] if block else 0)
            low, high = np.searchsorted(packed.windows, [local, local + 1])
            lengths = packed.lengths[low:high]
            starts = begins[packed.documents[low:high]] + packed.offsets[low:high]
            columns = np.cumsum(lengths) - lengths
            found.append(Pieces(np.full(high - low, row), columns, starts, starts + lengths))
        return Pieces(*(np.concatenate(field) for field in zip(*found, strict=True)))


def count_cuts(stream: DocumentStream, seq_len: int, windows: CutWindows) -> PackingCounts:
    """Returns what cutting makes of a stream, by a pass over the ends of all documents."""
    cut = 0
    for first, stop in _ranges(stream, _PASS_DOCUMENTS):
        ends = _ends_with_start(stream, first, stop)
        # Cut where its first and last token are in different windows, or behind the last one.
        of_first, of_last = ends[:-1] // seq_len, (ends[1:] - 1) // seq_len
        cut += int(((of_first != of_last) & (of_first < len(windows))).sum())
    tokens = min(stream.num_tokens, len(windows) * seq_len)
    return PackingCounts(len(windows), tokens, stream.num_documents, cut)


def make_packed(
    stream: Stream, seq_len: int, kind: Packing, *, tail: bool, known: np.ndarray | None = None
) -> Packed:
    """Makes the windows of a stream; see the classes."""
    if kind == "cut":
        return CutWindows(stream.num_tokens, seq_len, tail=tail)
    return DocumentWindows(stream, seq_len, kind, known)  # type: ignore[arg-type]


def _ranges(stream: DocumentStream, size: int) -> Iterator[tuple[int, int]]:
    for first in range(0, stream.num_documents, size):
        yield first, min(first + size, stream.num_documents)


def _ends_with_start(stream: DocumentStream, first: int, stop: int) -> np.ndarray:
    """Returns where documents [first, stop) begin, and where the last of them ends."""
    before = max(first - 1, 0)
    ends = np.asarray(stream.document_ends(before, stop), np.int64)
    return ends if first else np.concatenate([[0], ends])


def _blocks(stream: DocumentStream) -> Iterator[np.ndarray]:
    """Yields the lengths of each block's documents."""
    for first, stop in _ranges(stream, _PASS_DOCUMENTS):
        lengths = np.diff(_ends_with_start(stream, first, stop))
        yield from (
            lengths[at : at + BLOCK_DOCUMENTS] for at in range(0, len(lengths), BLOCK_DOCUMENTS)
        )


def _one_each(lengths_D: np.ndarray, seq_len: int) -> tuple[int, Block]:
    """Returns the number of windows and the pieces, one for each."""
    counts = -(-lengths_D // seq_len)
    documents = np.repeat(np.arange(len(lengths_D)), counts)
    offsets = (np.arange(documents.size) - (np.cumsum(counts) - counts)[documents]) * seq_len
    lengths = np.minimum(lengths_D[documents] - offsets, seq_len)
    return documents.size, Block(np.arange(documents.size), documents, offsets, lengths)


def _best_fit(lengths_D: np.ndarray, seq_len: int) -> tuple[int, Block]:
    """Returns the number of windows and the pieces.

    The longest comes first, and goes where the least room would be left; among equal ones, the
    earlier document and the earlier window. Windows are numbered by their first piece.
    """
    _, cut = _one_each(lengths_D, seq_len)
    order = np.lexsort((np.arange(len(cut.lengths)), -cut.lengths))
    window_of = np.empty(len(cut.lengths), np.int64)
    room: dict[int, list[int]] = {}  # windows by the room that is left, each list sorted
    rooms = 0  # bit r: some window has room r
    count = 0
    for piece in order.tolist():
        length = int(cut.lengths[piece])
        fitting = rooms >> length
        if fitting:
            left = (fitting & -fitting).bit_length() - 1 + length
            there = room[left]
            window = there.pop(0)
            if not there:
                rooms ^= 1 << left
        else:
            window, left, count = count, seq_len, count + 1
        window_of[piece] = window
        if left := left - length:
            bisect.insort(room.setdefault(left, []), window)
            rooms |= 1 << left
    first = np.full(count, len(window_of))
    np.minimum.at(first, window_of, np.arange(len(window_of)))
    rank = np.empty(count, np.int64)
    rank[np.argsort(first)] = np.arange(count)
    windows = rank[window_of]
    by_window = np.argsort(windows, kind="stable")
    return count, Block(windows[by_window], *(field[by_window] for field in cut[1:]))

"""Runs: documents as tokens, sorted by the key that orders them, in files read by ranges of it.

A file holds, one after the other: the tokens of all documents, their ids (UTF-8), their index
(`INDEX`), and the index of the first document of each bin of the order key with its first token
and byte of id: (bins + 1, 3) int64.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emo_jax.errors import DataError

INDEX = np.dtype(
    [
        ("order", "<u8"),
        ("split", "<u8"),
        ("content", "<u8"),  # a hash of the tokens: documents of one id keep one order
        ("length", "<i8"),  # tokens
        ("id_length", "<i4"),  # bytes
        ("domain", "<i4"),  # of the piece's list
    ]
)
SORT_BYTES = 5 * INDEX.itemsize  # that a document takes in memory while a bucket is sorted


class RunFile(NamedTuple):
    """A run: its file, and how many documents, tokens and bytes of ids it has."""

    name: str
    documents: int
    tokens: int
    id_bytes: int


class RunPart(NamedTuple):
    """The documents of a range of keys: where they are in the file, and their index."""

    rows: np.ndarray  # (D,) INDEX
    token_start: int
    id_start: int


def write_run(
    path: Path, index: np.ndarray, tokens: list[np.ndarray], ids: list[bytes], bins: int
) -> None:
    """Writes documents, in any order, as a run."""
    order = np.argsort(index["order"], kind="stable")
    index = index[order]
    with path.open("wb") as file:
        for items in (tokens, ids):
            for start in range(0, len(order), 1 << 14):
                chosen = [items[i] for i in order[start : start + (1 << 14)].tolist()]
                file.write(b"".join(chosen) if items is ids else np.concatenate(chosen).tobytes())
        file.write(index.tobytes())
        file.write(bin_starts(index, bins).tobytes())


def bin_starts(index: np.ndarray, bins: int) -> np.ndarray:
    """Returns (bins + 1, 3) int64: documents, tokens and bytes of ids before each bin."""
    shift = np.uint64(64 - (bins - 1).bit_length())
    before = np.zeros((len(index) + 1, 3), np.int64)
    before[1:, 0] = np.arange(1, len(index) + 1)
    before[1:, 1] = np.cumsum(index["length"])
    before[1:, 2] = np.cumsum(index["id_length"], dtype=np.int64)
    if bins == 1:
        return before[[0, -1]]
    at = np.searchsorted(index["order"] >> shift, np.arange(bins, dtype=np.uint64))
    return before[np.append(at, len(index))]


class OpenRun:
    """A run that is read from; use as a context manager.

    Args:
      path: the file.
      run: what it holds.
      dtype: of a token.
      bins: as it was written with.
    """

    def __init__(self, path: Path, run: RunFile, dtype: np.dtype, bins: int):
        self._path, self._run, self._dtype, self._bins = path, run, dtype, bins
        self._ids_at = run.tokens * dtype.itemsize
        self._index_at = self._ids_at + run.id_bytes
        self._bins_at = self._index_at + run.documents * INDEX.itemsize

    def __enter__(self) -> "OpenRun":
        self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def _read(self, start: int, size: int) -> bytes:
        content = read_exactly(self._fd, start, size)
        if len(content) != size:
            raise DataError(f"{self._path}: was cut short; run the same command again")
        return content

    def bin_starts(self, first: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns what `bin_starts` did for bins [first, stop) and for their end."""
        stop = self._bins if stop is None else stop
        content = self._read(self._bins_at + 24 * first, 24 * (stop + 1 - first))
        return np.frombuffer(content, np.int64).reshape(-1, 3)

    def part(self, low: int, high: int) -> RunPart:
        """Returns the documents whose order key is in [low, high)."""
        shift = 64 - (self._bins - 1).bit_length() if self._bins > 1 else 64
        ends = [
            self.bin_starts(b, b)[0] for b in (low >> shift, min(-(-high >> shift), self._bins))
        ]
        (first, token, id_), (stop, *_) = (end.tolist() for end in ends)
        size = INDEX.itemsize
        content = self._read(self._index_at + first * size, (stop - first) * size)
        index = np.frombuffer(content, INDEX)
        a = int(np.searchsorted(index["order"], np.uint64(low)))
        b = len(index)
        if high < 1 << 64:
            b = int(np.searchsorted(index["order"], np.uint64(high)))
        token += int(index["length"][:a].sum())
        id_ += int(index["id_length"][:a].sum(dtype=np.int64))
        return RunPart(index[a:b], token, id_)

    def tokens(self, start: int, count: int) -> np.ndarray:
        """Returns tokens [start, start + count)."""
        width = self._dtype.itemsize
        return np.frombuffer(self._read(start * width, count * width), self._dtype)

    def ids(self, start: int, size: int) -> bytes:
        """Returns bytes [start, start + size) of the ids."""
        return self._read(self._ids_at + start, size)


def read_exactly(fd: int, start: int, size: int) -> bytes:
    """Reads a range of a file, in as many calls as that takes; less at its end."""
    # Not a memory map: its pages would count as this process's memory.
    parts = []
    while size and (part := os.pread(fd, size, start)):
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)

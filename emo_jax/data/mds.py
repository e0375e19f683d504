"""MosaicML's data sets (MDS) of token arrays, read in place: a folder with index.json and shards.

    FOLDER/index.json   the shards: names, sizes, numbers of samples, the columns and encodings
    FOLDER/NAME.mds     number of samples N (uint32); N + 1 offsets (uint32); the samples
      a sample          sizes of those columns that have no fixed one (uint32 each); the columns

A column is `bytes` (bare tokens) or `ndarray[:DTYPE[:SHAPE]]`, which begins with the dtype and
the shape that its name leaves open. The lengths of samples follow from index.json if all columns
have a fixed size; otherwise the shards are scanned once.
"""

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emo_jax.data.ends import Ends
from emo_jax.data.found_ends import FoundEnds
from emo_jax.data.record_files import EvenEnds, RecordStream, dtype_of
from emo_jax.data.stream import TokenSource
from emo_jax.data.token_files import TokenFiles, Vocabulary, file_patience
from emo_jax.documents import foreign
from emo_jax.errors import DataError, UsageError, clipped, listed, one_line
from emo_jax.files import json_files
from emo_jax.files.json_files import Fields, NotReadableError
from emo_jax.files.ranges import (
    Ranges,
    exists,
    expand,
    local_path,
    map_files,
    open_ranges,
    read_all,
)
from emo_jax.files.remote import is_remote
from emo_jax.files.waiting import Patience

INDEX = "index.json"
_MOST_INDEX = 1 << 28  # bytes
_MOST_SHARD = 1 << 32  # bytes; offsets are uint32
_SCAN = 1 << 24  # bytes of samples read at a time
_COLUMNS = ("tokens", "input_ids")  # tried if data.raw_column says nothing
_DTYPES = {8: "u1", 9: "i1", 16: "<u2", 17: "<i2", 32: "<u4", 33: "<i4", 64: "<u8", 65: "<i8"}
_NAMES = {np.dtype(kind).name: np.dtype(kind) for kind in _DTYPES.values()}
_AGAIN = "copy the data set again"


def is_mds(name: str) -> bool:
    """Tells whether a name is that of an MDS folder or its index.json; a folder if it is local."""
    if name.rstrip("/").endswith(f"/{INDEX}") or name == INDEX:
        return True
    local = not is_remote(name) and os.path.isdir(local_path(name))
    return local and foreign.of_folder(local_path(name)) is foreign.MDS


def open_mds(
    names: Sequence[str], column: str, vocabulary: Vocabulary, *, cache: Path | None = None
) -> TokenSource:
    """Opens MDS folders, each a stream: its samples end to end.

    Args:
      names: folders or their index.json files, or patterns of these, which are sorted.
      column: name of the column with the tokens; "auto": tokens or input_ids.
      vocabulary: what the ids mean; also the width of a token, in columns of `bytes`.
      cache: folder for the lengths of samples, if they have to be looked for.

    Raises:
      UsageError: a file is not there, or there is no such column.
      DataError: an index or a shard is damaged, or is compressed.
    """
    patience = file_patience()
    folders = []
    for name in names:
        for found in expand(name, patience):
            folders.append(found.rstrip("/").removesuffix(INDEX).rstrip("/") or ".")
    return TokenFiles(
        "mds", vocabulary, [_open(f, column, vocabulary, patience, cache) for f in folders]
    )


class _Shard(NamedTuple):
    name: str
    size: int  # bytes
    samples: int


class _Layout(NamedTuple):
    """The columns of a sample, and which of them holds the tokens."""

    sizes: tuple[int | None, ...]  # bytes of each column; None: at the start of the sample
    column: int
    dtype: np.dtype | None  # of a token; None: at the start of the array
    has_shape: bool  # at the start of the array
    is_bytes: bool

    def parse(self, content: bytes | bytearray, begins: np.ndarray, ends: np.ndarray) -> Any:
        """Finds the tokens of samples, (N,) each, in `content`.

        Returns:
          First byte, number of bytes (N,), and the dtype; None if the samples are damaged.
        """
        data = np.frombuffer(content, np.uint8)
        num = sum(size is None for size in self.sizes)
        if (begins + 4 * num > ends).any():
            return None
        heads = data[begins[:, None] + np.arange(4 * num)].view("<u4").astype(np.int64)
        at, columns = begins + 4 * num, iter(heads.T)
        start = size = at
        for n, fixed in enumerate(self.sizes):
            this = next(columns) if fixed is None else np.full(at.shape, fixed, np.int64)
            if n == self.column:
                start, size = at, this
            at = at + this
        if (at != ends).any():
            return None
        dtype = self.dtype
        if dtype is None and not self.is_bytes:
            if (size < 1).any() or (data[start] != data[start[0]]).any():
                return None
            dtype = np.dtype(_DTYPES.get(int(data[start[0]]), "V1"))
            start, size = start + 1, size - 1
        if self.has_shape:
            if (size < 1).any():
                return None
            kind = data[start].astype(np.int64)
            head = 1 + (kind >> 2) * (1 << (kind & 3))
            start, size = start + head, size - head
        if (size < 0).any() or (dtype is not None and (size % dtype.itemsize).any()):
            return None
        return start, size, dtype


def _open(
    folder: str, column: str, vocabulary: Vocabulary, patience: Patience, cache: Path | None
) -> "MdsStream":
    where = f"{folder}/{INDEX}"
    content = read_all(where, _MOST_INDEX, patience)
    try:
        shards, layout = _read_index(Fields(json_files.parse(content)), where, column)
    except NotReadableError as error:
        raise DataError(f"{where}: not an index of MDS ({one_line(error)}); {_AGAIN}") from error
    first = f"{folder}/{shards[0].name}"
    if not exists(first, patience):
        packed = Fields(json_files.parse(content)).items("shards")[0].get("zip_data")
        if packed:
            raise DataError(
                f"{folder}: its shards are compressed; unpack each FILE.mds.zstd (or the like) to"
                " FILE.mds beside it"
            )
    names = [f"{folder}/{shard.name}" for shard in shards]
    if is_remote(folder):  # one listing instead of a request for each
        listed_ones = {str(name): name for name in expand(f"{glob.escape(folder)}/*", patience)}
        names = [listed_ones.get(name, name) for name in names]
    files = map_files(names, lambda name: open_ranges(name, patience))
    for file, shard in zip(files, shards, strict=True):
        if file.size != shard.size:
            raise DataError(f"{file.name}: {file.size} bytes, {INDEX} says {shard.size}; {_AGAIN}")
    key = (hashlib.sha256(content).hexdigest(), [file.stamp for file in files])
    return MdsStream(folder, shards, files, layout, vocabulary, key, cache)


def _read_index(index: Fields, where: str, column: str) -> tuple[list[_Shard], _Layout]:
    shards, first = [], None
    for n, value in enumerate(index.items("shards")):
        fields = Fields(value, f"shards[{n}].")
        fields.choice("format", ["mds"])
        columns = [fields.items(f"column_{what}") for what in ("names", "encodings", "sizes")]
        if first is None:
            first = columns
        if columns != first:
            raise NotReadableError(f"shards[{n}] has other columns than shards[0]")
        raw = fields.inner("raw_data")
        name = raw.line("basename")
        if "/" in name or name in ("", ".", ".."):
            raise NotReadableError(f"shards[{n}] is not in the folder")
        size = raw.integer("bytes", high=_MOST_SHARD)
        samples = fields.integer("samples", high=size // 4)
        if samples:
            shards.append(_Shard(name, size, samples))
    if not shards or first is None:
        raise DataError(f"{where}: has no samples; leave it out")
    names, encodings, sizes = first
    return shards, _layout(names, encodings, sizes, where, column)


def _layout(
    names: list[Any], encodings: list[Any], sizes: list[Any], where: str, column: str
) -> _Layout:
    fits = all(isinstance(text, str) for text in names + encodings)
    fits = fits and len(names) == len(encodings) == len(sizes) <= 1000
    known = all(s is None or (json_files.is_integer(s) and 0 <= s < _MOST_SHARD) for s in sizes)
    if not fits or not known:
        raise NotReadableError("columns must have names, encodings and sizes")
    wanted = _COLUMNS if column == "auto" else (column,)
    found = [name for name in wanted if name in names]
    if not found:
        have = listed(clipped(f"{n} ({e})", 60) for n, e in zip(names, encodings, strict=True))
        raise UsageError(
            f"{where}: has no column {' or '.join(wanted)}; set data.raw_column to one of {have}"
        )
    n = names.index(found[0])
    kind, _, rest = encodings[n].partition(":")
    dtype, _, shape = rest.partition(":")
    if kind not in ("bytes", "ndarray") or (dtype and (kind == "bytes" or dtype not in _NAMES)):
        raise UsageError(
            f"{where}: column {clipped(names[n])} is {clipped(encodings[n])}, not token ids; set"
            " data.raw_column to a column of bytes or of an ndarray of integers"
        )
    return _Layout(
        tuple(sizes), n, _NAMES.get(dtype), kind == "ndarray" and not shape, kind == "bytes"
    )


class MdsStream(RecordStream):
    """The samples of one folder, end to end."""

    def __init__(
        self,
        folder: str,
        shards: list[_Shard],
        files: list[Ranges],
        layout: _Layout,
        vocabulary: Vocabulary,
        key: object,
        cache: Path | None,
    ):
        self.name, self._shards, self._files, self._layout = folder, shards, files, layout
        self._samples = np.cumsum([shard.samples for shard in shards])
        if layout.is_bytes:
            dtype = dtype_of(self._first, vocabulary, folder)
            self._layout = layout = layout._replace(dtype=dtype)
        key = (folder.rpartition("/")[2], key, layout.column, str(layout.dtype))
        super().__init__(
            folder, self._lengths(layout, key, cache), vocabulary, key=key, cache=cache
        )

    def _lengths(self, layout: _Layout, key: object, cache: Path | None) -> Ends:
        size, dtype = layout.sizes[layout.column], layout.dtype
        if size is not None and dtype is not None and not layout.has_shape:
            if size % dtype.itemsize or not size:
                raise DataError(f"{self.name}/{INDEX}: {size} bytes are no {dtype.name} tokens")
            return EvenEnds(int(self._samples[-1]), size // dtype.itemsize)
        return FoundEnds(self.name, ("samples", key), self._scan_samples, cache)

    def _first(self) -> list[bytes]:
        content, start, size = self._piece(0, 0, min(self._shards[0].samples, 16))[:3]
        return [bytes(content[a : a + n]) for a, n in zip(start, size, strict=True)]

    def _scan_samples(self) -> Iterator[np.ndarray]:
        last = 0
        for n, shard in enumerate(self._shards):
            first = 0
            while first < shard.samples:
                stop = self._stop(n, first)
                _, _, size, dtype = self._piece(n, first, stop)
                ends = np.cumsum(size // dtype.itemsize) + last
                last, first = int(ends[-1]), stop
                yield ends

    def _stop(self, shard: int, first: int) -> int:
        """Returns up to which sample a piece of bounded size goes, from `first` on."""
        offsets = self._offsets(shard, first, min(first + (1 << 16), self._shards[shard].samples))
        more = int(np.searchsorted(offsets, offsets[0] + _SCAN, side="right")) - 1
        return first + max(more, 1)

    def _offsets(self, shard: int, first: int, stop: int) -> np.ndarray:
        """Returns where samples [first, stop] of a shard begin, the one after the last too."""
        file, samples = self._files[shard], self._shards[shard].samples
        content = file.read(4 * first + 4, 4 * stop + 8)
        offsets = np.frombuffer(content, "<u4").astype(np.int64)
        low = 4 * samples + 8
        if (np.diff(offsets) < 0).any() or offsets[0] < low or offsets[-1] > file.size:
            raise self._damaged(shard, first)
        return offsets

    def _piece(self, shard: int, first: int, stop: int) -> Any:
        """Returns bytes of samples [first, stop) of a shard, and where in them the tokens are."""
        offsets = self._offsets(shard, first, stop)
        content = self._files[shard].read(int(offsets[0]), int(offsets[-1]))
        found = self._layout.parse(content, offsets[:-1] - offsets[0], offsets[1:] - offsets[0])
        if found is None or (found[2] is not None and found[2].kind not in "iu"):
            raise self._damaged(shard, first)
        return content, *found

    def _damaged(self, shard: int, first: int) -> DataError:
        return DataError(
            f"{self._files[shard].name}: sample {first} or one after it is not what {INDEX} says;"
            f" {_AGAIN}"
        )

    def arrays(self, first: int, stop: int) -> Iterator[np.ndarray]:
        """Yields the ids of samples [first, stop)."""
        while first < stop:
            shard = int(np.searchsorted(self._samples, first, side="right"))
            before = int(self._samples[shard - 1]) if shard else 0
            end = min(stop, int(self._samples[shard]))
            content, start, size, dtype = self._piece(shard, first - before, end - before)
            for at, length in zip(start.tolist(), size.tolist(), strict=True):
                yield np.frombuffer(content, dtype, length // dtype.itemsize, at)
            first = end

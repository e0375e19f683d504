"""Many short reads of a zarr 3 array on a local disk, without decoding whole chunks each time.

An array of which each file is a shard of chunks that are not compressed and carry a CRC-32C can be
read by byte ranges: the bytes of items lie where arithmetic says. A chunk is read whole and checked
when it is touched for the first time; then only what is asked for is read. Arrays of any other
layout are read by tensorstore alone.
"""

import functools
import os
import struct
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np

from emo_jax.errors import one_line
from emo_jax.files.waiting import AwayError, SpoiltError

_CRC_BYTES = 4
_ENTRY = struct.Struct("<QQ")  # offset and size of a chunk, in the index at the end of a shard
_MOST_OPEN = 64  # files kept open, of one array
_MOST_OPEN_IN_ALL = 256  # above it, an array closes its files after each read
_BYTES_CRC = ["bytes", "crc32c"]
_all_open: set[int] = set()  # file descriptors of all arrays


def layout_of(spec: dict[str, Any]) -> tuple[int, int] | None:
    """Returns items per shard and per chunk, if an array's shards can be read by byte ranges.

    Args:
      spec: tensorstore's spec of the array.
    """
    metadata = spec.get("metadata", {})
    try:
        (codec,) = metadata["codecs"]
        (shard,) = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        inner = codec["configuration"]
        (chunk,) = inner["chunk_shape"]
        plain = (
            codec["name"] == "sharding_indexed"
            and inner.get("index_location", "end") == "end"
            and metadata["chunk_key_encoding"]["name"] == "default"
            and all(
                [c["name"] for c in inner[codecs]] == _BYTES_CRC
                and inner[codecs][0]["configuration"]["endian"] == "little"
                for codecs in ("codecs", "index_codecs")
            )
        )
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    return (shard, chunk) if plain and shard % chunk == 0 else None


class LocalShards:
    """Reads an array's items by byte ranges. One thread at a time may use it.

    Args:
      folder: folder of the array, with its shards in `c/`.
      shard, chunk: items in each.
      dtype: of an item.
    """

    def __init__(self, folder: str, shard: int, chunk: int, dtype: np.dtype):
        self._folder, self._shard, self._chunk = folder, shard, chunk
        self._dtype = dtype.newbyteorder("<")
        self._width = dtype.itemsize
        self._chunks = shard // chunk
        self._stride = chunk * self._width + _CRC_BYTES
        self._open: dict[int, int] = {}  # file descriptors by shard, the oldest first
        self._checked: dict[int, bytearray] = {}  # chunks of each shard that were checked

    def close(self) -> None:
        """Closes all files, and forgets what was checked."""
        self._close_down_to(0)
        self._checked.clear()

    def _close_down_to(self, most: int) -> None:
        while len(self._open) > most:
            fd = self._open.pop(next(iter(self._open)))
            _all_open.discard(fd)
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def read_rows(self, starts_N: Sequence[int], length: int) -> np.ndarray:
        """Returns (N, length) items, `length` from each start, which must exist.

        Raises:
          AwayError: a file cannot be read.
          SpoiltError: a chunk or an index is damaged.
        """
        found = np.empty((len(starts_N), length), self._dtype)
        whole = found.data.cast("B") if found.size else memoryview(b"")
        width, size, chunk = self._width, length * self._width, self._chunk
        chunks, stride, opened, checked = self._chunks, self._stride, self._open, self._checked
        at = 0
        for start in starts_N:
            number, inside = divmod(start, chunk)
            if inside + length <= chunk:  # most reads: a part of a chunk that was checked
                shard, k = divmod(number, chunks)
                fd = opened.get(shard)
                if fd is not None and checked[shard][k]:
                    into = whole[at : at + size]
                    if _read_at(fd, into, k * stride + inside * width) == size:
                        at += size
                        continue
            stop = start + length
            while start < stop:
                number, inside = divmod(start, chunk)
                count = min(chunk - inside, stop - start)
                self._read(number, inside * width, whole[at : at + count * width])
                at += count * width
                start += count
        assert at == size * len(starts_N)
        if len(_all_open) > _MOST_OPEN_IN_ALL:
            self._close_down_to(0)
        return found

    def _read(self, number: int, inside: int, into: memoryview) -> None:
        """Reads bytes of a chunk from `inside` on."""
        shard, chunk = divmod(number, self._chunks)
        try:
            fd = self._file(shard)
            begin = chunk * self._stride
            if self._checked[shard][chunk]:
                if os.preadv(fd, [into], begin + inside) != len(into):
                    raise AwayError(f"{self._name(shard)}: was cut short")
                return
            content = os.pread(fd, self._stride, begin)
        except OSError as error:
            self.close()
            raise AwayError(f"{self._name(shard)}: cannot be read ({one_line(error)})") from error
        if len(content) != self._stride:
            raise AwayError(f"{self._name(shard)}: was cut short")
        body = content[:-_CRC_BYTES]
        if google_crc32c.value(body) != int.from_bytes(content[-_CRC_BYTES:], "little"):
            raise SpoiltError(f"{self._name(shard)}: chunk {chunk} is damaged (CRC-32C)")
        into[:] = body[inside : inside + len(into)]
        self._checked[shard][chunk] = 1

    def _file(self, shard: int) -> int:
        fd = self._open.get(shard)
        if fd is not None:
            return fd
        fd = os.open(self._name(shard), os.O_RDONLY | os.O_CLOEXEC)
        try:
            if shard not in self._checked:
                self._check_index(fd, shard)
                self._checked[shard] = bytearray(self._chunks)
        except BaseException:
            os.close(fd)
            raise
        self._open[shard] = fd
        _all_open.add(fd)
        self._close_down_to(_MOST_OPEN)
        return fd

    def _check_index(self, fd: int, shard: int) -> None:
        """Checks that the chunks of a shard lie one after the other, as far as there are any."""
        size = self._chunks * _ENTRY.size + _CRC_BYTES
        end = os.fstat(fd).st_size
        index = os.pread(fd, size, max(end - size, 0))
        body = index[:-_CRC_BYTES]
        if len(index) != size or google_crc32c.value(body) != int.from_bytes(
            index[-_CRC_BYTES:], "little"
        ):
            raise SpoiltError(f"{self._name(shard)}: its index is damaged (CRC-32C)")
        if body[: (end - size) // self._stride * _ENTRY.size] != self._index(
            (end - size) // self._stride
        ):
            raise UnusualLayoutError(self._name(shard))

    @functools.lru_cache(4)  # noqa: B019 shards are alike, but for the last
    def _index(self, chunks: int) -> bytes:
        size = self._stride
        return b"".join(_ENTRY.pack(k * size, size) for k in range(chunks))

    def _name(self, shard: int) -> str:
        return f"{self._folder}/c/{shard}"


def _read_at(fd: int, into: memoryview, start: int) -> int:
    """Returns how many bytes were read; 0 if they cannot be."""
    try:
        return os.preadv(fd, (into,), start)
    except OSError:
        return 0


class UnusualLayoutError(Exception):
    """A shard whose chunks are in another order: it is read by tensorstore."""

"""Ends of documents or records that a format does not list: found by one scan, kept on disk.

    CACHE/NAME.ends   8 integers of 8 bytes (magic, version, digest of what was scanned, number of
                      ends, last of them, CRC-32 of these), then pages of 4096 int64, each with its
                      CRC-32 in 8 bytes; everything little-endian

A file is written under another name and then renamed, so two processes may scan at the same time.
It is scanned again if what it was made from has changed, or if it is damaged.
"""

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from emo_jax.data.ends import PAGE, RisingList
from emo_jax.errors import DataError, UsageError, one_line
from emo_jax.files.atomic import sync_folder
from emo_jax.files.waiting import AwayError, Patience

_MAGIC, _VERSION = 0x53444E45204F4D45, 1  # "EMO ENDS"
_HEAD = 64  # bytes
_PAGE_BYTES = (PAGE + 1) * 8
_LOG = logging.getLogger(__name__)


class FoundEnds(RisingList):
    """The ends that `find` yields, found when there is no valid file of them.

    Args:
      name: what is scanned: a path or URL.
      key: everything else that the ends depend on, such as size and time of a file.
      find: yields the ends, as rising int64 arrays of any length.
      cache: folder for them; None: a temporary one, removed with this object.

    Raises:
      UsageError: the folder cannot be written.
    """

    def __init__(
        self,
        name: str,
        key: object,
        find: Callable[[], Iterator[np.ndarray]],
        cache: Path | None,
    ):
        self._temporary = None if cache else tempfile.TemporaryDirectory(prefix="emo_ends_")
        folder = cache or Path(self._temporary.name if self._temporary else "")
        self._of, self._find, self._lasting = name, find, cache is not None
        self._digest = hashlib.sha256(repr((name, key)).encode()).digest()
        self._path = folder / f"{self._digest.hex()[:32]}.ends"
        self._scanning = threading.Lock()
        num, last = _read_head(self._path, self._digest) or self._scan()
        self._patience = Patience(DataError, away="run the same command again", spoilt="")
        super().__init__(num, last, self._read_some, f"{self._path} (documents of {name})")

    def _scan(self) -> tuple[int, int]:
        """Finds the ends and writes the file; returns their number and the last of them."""
        folder = self._path.parent
        _LOG.info("%s: looking for its documents, once", self._of)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(self._path, self._digest, self._find(), lasting=self._lasting)
        except OSError as error:
            raise UsageError(
                f"{folder}: cannot keep where documents of {self._of} end ({one_line(error)});"
                " give another folder"
            ) from error
        head = _read_head(self._path, self._digest)
        if head is None:
            raise DataError(
                f"{self._path}: was changed while it was written; run the same command again"
            )
        return head

    def _read_some(self, first: int, stop: int) -> np.ndarray:
        found = self._pages_of(first, stop)
        if found is None:
            with self._scanning:
                found = self._pages_of(first, stop)  # another thread may have scanned
                if found is None:
                    _LOG.warning("%s: damaged, is made again", self._path)
                    if self._scan() != (self.num, self.last):
                        raise DataError(f"{self._of}: was changed while it was in use")
                    found = self._pages_of(first, stop)
        if found is None:
            raise DataError(f"{self._path}: damaged once more; give another disk")
        return found

    def _pages_of(self, first: int, stop: int) -> np.ndarray | None:
        """Returns ends [first, stop); None if a page with them is damaged."""
        low, high = first // PAGE, -(-stop // PAGE)
        end = _HEAD + min(self.num, high * PAGE) * 8 + high * 8
        content = self._patience.read(lambda: self._bytes(_HEAD + low * _PAGE_BYTES, end))
        parts = []
        for at in range(0, len(content), _PAGE_BYTES):
            page = content[at : at + _PAGE_BYTES]
            if zlib.crc32(page[:-8]) != int.from_bytes(page[-8:], "little"):
                return None
            parts.append(np.frombuffer(page[:-8], "<i8"))
        return np.concatenate(parts)[first - low * PAGE : stop - low * PAGE].astype(np.int64)

    def _bytes(self, start: int, stop: int) -> bytes:
        # Another process that looked too may have put the same content in its place.
        try:
            with self._path.open("rb") as file:
                file.seek(start)
                content = file.read(stop - start)
        except OSError as error:
            raise AwayError(f"{self._path}: cannot be read ({one_line(error)})") from error
        if len(content) != stop - start:
            raise AwayError(f"{self._path}: was cut short while it was in use")
        return content


def _read_head(path: Path, digest: bytes) -> tuple[int, int] | None:
    """Returns number of ends and the last one; None if there is no such file, or another."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            head = file.read(_HEAD)
            size = file.seek(0, os.SEEK_END)
    except OSError:
        return None
    if len(head) < _HEAD:
        return None
    magic, version, _, _, num, last, _, crc = np.frombuffer(head, "<u8").tolist()
    known = (magic, version, head[16:32]) == (_MAGIC, _VERSION, digest[:16])
    whole = size == _HEAD + num * 8 + -(-num // PAGE) * 8
    return (num, last) if known and whole and zlib.crc32(head[:-8]) == crc else None


def _write(path: Path, digest: bytes, ends: Iterator[np.ndarray], *, lasting: bool) -> None:
    fd, temporary = tempfile.mkstemp(prefix=".ends.", dir=path.parent)
    try:
        with open(fd, "wb") as file:
            file.write(bytes(_HEAD))
            num, last, waiting = 0, 0, np.zeros(0, np.int64)
            for some in ends:
                waiting = np.concatenate([waiting, some])
                for _ in range(len(waiting) // PAGE):
                    _write_page(file, waiting[:PAGE])
                    waiting = waiting[PAGE:]
                if len(some):
                    num, last = num + len(some), int(some[-1])
            if len(waiting):
                _write_page(file, waiting)
            numbers = np.array([_MAGIC, _VERSION], "<u8").tobytes() + digest[:16]
            numbers += np.array([num, last, 0], "<u8").tobytes()
            file.seek(0)
            file.write(numbers + zlib.crc32(numbers).to_bytes(8, "little"))
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if lasting:
            sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _write_page(file: IO[bytes], values: np.ndarray) -> None:
    content = values.astype("<i8").tobytes()
    file.write(content + zlib.crc32(content).to_bytes(8, "little"))

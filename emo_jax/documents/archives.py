"""Streaming reads of files that may be compressed (.gz, .zst); a truncated file is an error."""

import gzip
import io
import zlib
from pathlib import Path
from typing import IO, Any

import zstandard

from emo_jax.documents.locations import is_remote, open_binary
from emo_jax.errors import DataError, one_line
from emo_jax.files.json_files import NotReadableError

PACKED = (".gz", ".zst")
READ_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError, NotReadableError)
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"  # a zstd skippable frame, after one byte 0x50..0x5f
# A 4-byte zstd block can expand to 128 KiB, so one step yields at most 64 MiB.
_STEP = 1 << 11
# Text usually compresses tenfold. A file of a few KB that unpacks for hours is not text.
GROWTH, ALWAYS = 1000, 1 << 26  # gzip's maximum expansion; the size that any file may unpack to


def packing(path: Path) -> str:
    """Returns `.gz` or `.zst` if a file's name ends so, in any case, else an empty string."""
    suffix = path.suffix.lower().replace(".tgz", ".gz")
    return suffix if suffix in PACKED else ""


def unreadable(path: Path, error: BaseException) -> DataError:
    """Returns the error to show a user for one of READ_ERRORS."""
    reason = getattr(error, "strerror", None) or one_line(error)
    there = is_remote(path) or path.is_file()
    advice = "copy it again or leave it out" if there else "save what it gives in a file"
    return DataError(f"{path}: cannot be read ({reason}); {advice}")


def open_packed(path: Path, block: int | None = None) -> IO[bytes]:
    """Opens a file for reading, decompressing it if its name ends in .gz or .zst.

    Memory use does not grow with the uncompressed size. Reading raises one of READ_ERRORS if the
    file is damaged or truncated.

    Args:
      block: see `locations.open_binary`.

    Raises:
      NotReadableError: not a regular file, or not compressed as its name says.
      OSError: it cannot be opened.
    """
    file = open_binary(path, block)
    kind = packing(path)
    if not kind:
        return file
    start = file.read(4)
    file.seek(0)
    if kind == ".gz" and start.startswith(_GZIP):
        unpacked = gzip.GzipFile(fileobj=file, mode="rb")
        return io.BufferedReader(_Bounded(unpacked, file), 1 << 20)
    if kind == ".zst" and (start == _ZSTD or start[1:] == _SKIPPABLE):
        return io.BufferedReader(_Bounded(_ZstdReader(file), file), 1 << 20)
    file.close()
    raise NotReadableError(f"not packed as its name says ({kind})")


def _zstd_frame() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()


class _Bounded(io.RawIOBase):
    """A decompressed stream that fails once it is larger than any text of that file size."""

    def __init__(self, unpacked: Any, file: IO[bytes]):
        self._unpacked, self._file, self._given = unpacked, file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._unpacked.readinto(buffer)
        self._given += size
        if self._given > max(ALWAYS, GROWTH * self._file.tell()):
            raise NotReadableError(
                f"grows to more than {GROWTH} times its size, as no text does; unpack it, if it is"
                " what it should be"
            )
        return size

    def close(self) -> None:
        self._unpacked.close()
        self._file.close()  # GzipFile leaves it open
        super().close()


class _ZstdReader(io.RawIOBase):
    """The frames of a .zst file; unlike zstandard's own reader, it detects truncation."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._frame = _zstd_frame()
        self._ready = memoryview(b"")
        self._inside = False  # a frame has started but not ended

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._frame.unused_data or self._file.read(_STEP)
            if self._frame.eof:
                self._frame = _zstd_frame()
                self._inside = False
            if not block:
                if self._inside:
                    raise EOFError("the compressed stream is cut short")
                return 0
            self._inside = True
            self._ready = memoryview(self._frame.decompress(block))
            self._inside = not self._frame.eof
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()

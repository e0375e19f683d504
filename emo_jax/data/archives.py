"""Files that may be packed (.gz, .zst), read as a stream; one that is cut short is an error."""

import gzip
import io
import zlib
from pathlib import Path
from typing import IO, Any

import zstandard

from emo_jax.errors import DataError, one_line
from emo_jax.files.json_files import NotReadableError, open_regular

PACKED = (".gz", ".zst")
READ_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError, NotReadableError)
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"  # of zstd too, behind a byte 0x50..0x5f
# A zstd block of 4 bytes may stand for 128 KiB: at most 64 MiB come of a step.
_STEP = 1 << 11
# Of text ten times is usual. A packed file of some KB that goes on for hours is no text.
GROWTH, ALWAYS = 1000, 1 << 26  # times its size, as gzip at most; what any file may grow to


def packing(path: Path) -> str:
    """`.gz` or `.zst` where a file's name ends so, in capitals too; else nothing."""
    suffix = path.suffix.lower()
    return suffix if suffix in PACKED else ""


def unreadable(path: Path, error: BaseException) -> DataError:
    """What a user is told of one of READ_ERRORS."""
    reason = getattr(error, "strerror", None) or one_line(error)
    advice = "copy it again or leave it out" if path.is_file() else "save what it gives in a file"
    return DataError(f"{path}: cannot be read ({reason}); {advice}")


def open_packed(path: Path) -> IO[bytes]:
    """A file for reading, unpacked where its name ends in .gz or .zst.

    What is held does not grow with what it unpacks to. Reading raises one of READ_ERRORS where the
    file is damaged or cut short.

    Raises:
      NotReadableError: not a regular file, or not packed as its name says.
      OSError: it cannot be opened.
    """
    file = open_regular(path)
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
    """What is unpacked of a file, as long as it is no more than the file can hold of text."""

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
        self._file.close()  # which a GzipFile leaves open
        super().close()


class _ZstdReader(io.RawIOBase):
    """Frames of a .zst file; unlike zstandard's own reader it notices a file cut short."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._frame = _zstd_frame()
        self._ready = memoryview(b"")
        self._inside = False  # a frame has begun and not ended

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

"""Files that may be packed (.gz, .zst), read as a stream; one that is cut short is an error."""

import gzip
import io
from pathlib import Path
from typing import IO, Any

import zstandard

PACKED = (".gz", ".zst")


def open_packed(path: Path) -> IO[bytes]:
    """A file for reading, unpacked where it ends in .gz or .zst."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstdReader(path), 1 << 20)
    return path.open("rb")


def _zstd_frame() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()


class _ZstdReader(io.RawIOBase):
    """Frames of a .zst file; unlike zstandard's own reader it notices a file cut short."""

    def __init__(self, path: Path):
        self._file = path.open("rb")
        self._frame = _zstd_frame()
        self._ready = b""
        self._inside = False  # a frame has begun and not ended

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._frame.unused_data or self._file.read(1 << 18)
            if self._frame.eof:
                self._frame = _zstd_frame()
                self._inside = False
            if not block:
                if self._inside:
                    raise EOFError("the compressed stream is cut short")
                return 0
            self._inside = True
            self._ready = self._frame.decompress(block)
            self._inside = not self._frame.eof
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()

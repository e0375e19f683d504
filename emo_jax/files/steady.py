"""Local files that must not change between being opened and the last partial read."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from emo_jax.errors import one_line
from emo_jax.files.waiting import AwayError, Patience, SpoiltError


class _Mark(NamedTuple):
    """Tells a file from another one of the same name, without reading it."""

    number: int  # kept by a file that is moved away and back
    size: int
    changed_ns: int


def _mark(found: os.stat_result) -> _Mark:
    return _Mark(found.st_ino, found.st_size, found.st_mtime_ns)


class SteadyFiles:
    """Files of a folder whose content is known by digest.

    Args:
      sha256: digest of each file, by its path in the folder; None if unknown: then any change
        spoils what is read.

    Raises:
      OSError: one of them does not exist.
    """

    def __init__(self, folder: Path, sha256: Mapping[str, str | None]):
        self.folder, self._sha256 = os.fspath(folder), sha256
        self._marks = {name: _mark(os.stat(f"{self.folder}/{name}")) for name in sha256}

    def check(self, *names: str) -> None:
        """Returns if these files are still the same.

        Raises:
          AwayError: one is missing, or has another size: it may be on its way back.
          SpoiltError: one was replaced by another.
        """
        for name in names:
            known = self._marks.get(name)
            if known is None:
                continue
            path = f"{self.folder}/{name}"
            try:
                found = _mark(os.stat(path))
                if found == known:
                    continue
                if found.size != known.size:
                    raise AwayError(f"{path}: has {found.size} bytes, had {known.size}")
                same = self._sha256[name] == _digest(path)
            except FileNotFoundError:
                raise AwayError(f"{path}: is not there any more") from None
            except OSError as error:
                raise AwayError(f"{path}: cannot be read ({one_line(error)})") from error
            if not same:
                raise SpoiltError(f"{path}: was replaced or changed while it was in use")
            self._marks[name] = found  # copied back


def _digest(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class SteadyFile:
    """A file that is read by byte ranges and opened anew for each.

    It is not memory-mapped: a process is killed when it reads a mapped file that was truncated.

    Args:
      patience: how long to wait while it is unavailable, and what to raise afterwards.

    Raises:
      OSError: it does not exist.
    """

    def __init__(self, path: Path, patience: Patience):
        self.path, self._patience = path, patience
        self._mark = _mark(path.stat())

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self._mark.size

    @property
    def stamp(self) -> str:
        """Differs once the file was written again."""
        return str(self._mark.changed_ns)

    def read(self, start: int, stop: int) -> bytearray:
        """Returns bytes [start, stop), which must be inside the file.

        Raises:
          EmoError: it stays unavailable, was truncated, or was changed.
        """
        return self._patience.read(lambda: self._read(start, stop))

    def _read(self, start: int, stop: int) -> bytearray:
        content = bytearray(stop - start)
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                found = _mark(os.fstat(fd))
                if found.size != self._mark.size:
                    raise AwayError(
                        f"{self.path}: has {found.size} bytes, had {self._mark.size} when it was"
                        " opened"
                    )
                if found.changed_ns != self._mark.changed_ns:
                    raise SpoiltError(f"{self.path}: was replaced or changed while it was in use")
                left, at = memoryview(content), start
                while left:
                    done = os.preadv(fd, [left], at)
                    if done == 0:
                        raise AwayError(f"{self.path}: was cut short while it was read")
                    left, at = left[done:], at + done
            finally:
                os.close(fd)
        except FileNotFoundError:
            raise AwayError(f"{self.path}: is not there any more") from None
        except OSError as error:
            raise AwayError(f"{self.path}: cannot be read ({one_line(error)})") from error
        return content

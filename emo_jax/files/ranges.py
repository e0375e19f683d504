"""Files that are read by byte ranges, on a local disk or in object storage (gs://, s3://).

tensorstore reads ranges; fsspec lists patterns and says how long an object is, which tensorstore
does not. Both follow `AWS_ENDPOINT_URL`, and take credentials from where AWS's and Google's own
tools do.
"""

import functools
import glob
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import tensorstore as ts

from emo_jax.errors import DataError, UsageError, clipped, one_line
from emo_jax.files import remote
from emo_jax.files.remote import is_remote
from emo_jax.files.steady import SteadyFile
from emo_jax.files.waiting import AwayError, Patience, RefusedError, SpoiltError

_KINDS = "not a local path, gs://BUCKET/NAME or s3://BUCKET/NAME"
_AT_ONCE = 32  # requests, when many objects are opened
_LISTING: dict[str, Any] = {
    "connect_timeout": 10,
    "read_timeout": 30,
    "retries": {"max_attempts": 1},
}

T = TypeVar("T")


class Ranges(Protocol):
    """A file whose bytes are read by ranges, in any number of threads."""

    @property
    def name(self) -> str:
        """Path or URL."""
        ...

    @property
    def size(self) -> int:
        """Size in bytes."""
        ...

    @property
    def stamp(self) -> str:
        """Differs once the file was written again."""
        ...

    def read(self, start: int, stop: int) -> bytes | bytearray:
        """Returns bytes [start, stop), which must be inside the file."""
        ...


def local_path(location: str) -> Path:
    """Returns the path of a local file that may be named by a file:// URL."""
    return Path(location.removeprefix("file://"))


def open_ranges(location: str | os.PathLike[str], patience: Patience) -> Ranges:
    """Opens a file for reading by ranges.

    Args:
      location: a local path, or a gs:// or s3:// URL.
      patience: how long to wait while it is unavailable, and what to raise afterwards.

    Raises:
      UsageError: no such file, or a kind of URL that is not read.
      EmoError: of `patience`, if an object store does not answer.
    """
    text = os.fspath(location)
    if is_remote(text):
        return _RemoteFile(text, patience)
    path = local_path(text)
    if not os.path.isfile(path):  # nor is a name that is too long
        raise UsageError(f"{clipped(str(path), 300)}: no such file")
    return SteadyFile(path, patience)


def expand(pattern: str, patience: Patience) -> list[str]:
    """Returns the sorted names of the files that a pattern such as `s3://b/dclm/*.npy` fits.

    A name without wildcards is returned as it is, whether or not such a file exists.

    Raises:
      UsageError: nothing fits, or it is a URL that holds a secret.
    """
    remote.refuse_secret(pattern)
    if not glob.has_magic(pattern):
        return [pattern]
    if is_remote(pattern):
        scheme = pattern.partition("://")[0]
        path = pattern.partition("://")[2]
        found = patience.read(
            lambda: _asked(pattern, lambda: _filesystem(scheme).glob(path, detail=True))
        )
        names: list[str] = [_Listed(f"{scheme}://{name}", found[name]) for name in sorted(found)]
    else:
        names = sorted(glob.glob(str(local_path(pattern)), recursive=True))
    if not names:
        raise UsageError(f"{clipped(pattern, 300)}: no file fits this pattern")
    return names


def exists(location: str, patience: Patience) -> bool:
    """Tells whether there is such a file; a folder is none."""
    if not is_remote(location):
        return os.path.isfile(local_path(location))
    return _info(location, patience) is not None


def read_all(location: str | os.PathLike[str], limit: int, patience: Patience) -> bytes:
    """Returns the content of a small file.

    Raises:
      UsageError: no such file.
      DataError: it is longer than `limit` bytes.
    """
    file = open_ranges(location, patience)
    if file.size > limit:
        raise DataError(
            f"{file.name}: {file.size} bytes, more than the {limit} that are read of it"
        )
    return bytes(file.read(0, file.size))


def map_files(names: list[str], use: Callable[[str], T]) -> list[T]:
    """Returns `use(name)` for every name, in order; those of object stores many at a time."""
    if not any(map(is_remote, names)):
        return [use(name) for name in names]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(use, names))


@functools.cache
def _context() -> ts.Context:
    return remote.context()


class _Listed(str):
    """A URL with what a listing said about it, so that it is not asked for again."""

    def __new__(cls, url: str, info: dict[str, Any]) -> "_Listed":
        made = super().__new__(cls, url)
        made.info = info
        return made

    info: dict[str, Any]


class _RemoteFile:
    """An object that must not be replaced between being opened and the last read."""

    def __init__(self, url: str, patience: Patience):
        self.name, self._patience = str(url), patience
        if not re.match("(gs|s3)://[^/]", url):
            raise UsageError(f"{clipped(url, 300)}: {_KINDS}")
        self._spec = remote.kvstore_of_file(url)
        info = url.info if isinstance(url, _Listed) else _info(url, patience)
        if info is None:
            raise UsageError(f"{clipped(url, 300)}: no such file")
        self.size = int(info["size"])
        known = (info.get(key) for key in ("ETag", "etag", "generation", "mtime", "LastModified"))
        self.stamp = str(next((value for value in known if value), ""))
        self._kvstore: ts.KvStore | None = None
        self._generation: bytes | None = None  # of the object that was read first

    def read(self, start: int, stop: int) -> bytes:
        """Returns bytes [start, stop), which must be inside the object.

        Raises:
          EmoError: it stays unavailable, was cut, or was replaced by another.
        """
        return self._patience.read(lambda: self._read(start, stop)) if stop > start else b""

    def _read(self, start: int, stop: int) -> bytes:
        if self._kvstore is None:
            self._kvstore = remote.open_kvstore(self.name, self._spec, _context())
        found = remote.answer(self._kvstore.read("", byte_range=slice(start, stop)), self.name)
        if found.state != "value":
            raise AwayError(f"{self.name}: is not there any more")
        generation = found.stamp.generation
        if self._generation is None:
            self._generation = generation
        if generation != self._generation:
            raise SpoiltError(f"{self.name}: was replaced or changed while it was in use")
        if len(found.value) != stop - start:
            raise AwayError(
                f"{self.name}: bytes {start} to {stop} were asked for, {len(found.value)} came"
            )
        return found.value


def _info(url: str, patience: Patience) -> dict[str, Any] | None:
    """Returns what fsspec knows of an object; None if there is none."""
    scheme, _, path = url.partition("://")

    def ask() -> dict[str, Any] | None:
        try:
            return _filesystem(scheme).info(path)
        except FileNotFoundError:
            return None

    info = patience.read(lambda: _asked(url, ask))
    return None if info is None or info.get("type") == "directory" else info


def _asked(location: str, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except UsageError:
        raise
    except PermissionError as error:
        raise RefusedError(
            f"{location}: cannot be listed ({one_line(error)}); give this process keys that may"
            " read and list it"
        ) from error
    except Exception as error:  # each library behind fsspec has errors of its own
        raise AwayError(f"{location}: cannot be listed ({one_line(error)})") from error


def _filesystem(scheme: str) -> Any:
    """Returns fsspec's file system, one for all threads."""
    if scheme not in ("gs", "s3"):
        raise UsageError(f"{scheme}://: {_KINDS}")
    try:
        import fsspec

        return fsspec.filesystem(scheme, **remote.fsspec_options(scheme, **_LISTING))
    except ImportError as error:
        raise UsageError(
            f"{scheme}://: needs a library that is not installed ({one_line(error)});"
            " pip install 'emo-jax[remote]'"
        ) from error

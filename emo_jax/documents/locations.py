"""Files and folders of inputs, on a disk or in an object store (`gs://`, `s3://`, any of fsspec).

A local path is a plain `Path`; a URL is a `universal_pathlib.UPath`, which has the same methods.
What the store cannot give for a moment is waited for, see `files.waiting`. Keys, regions and
endpoints are taken from the environment, as the store's own tools do: `AWS_ENDPOINT_URL` names
another server that speaks S3.
"""

import contextlib
import glob
import io
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from emo_jax.errors import DataError, EmoError, UsageError, one_line
from emo_jax.files.json_files import open_regular
from emo_jax.files.remote import fsspec_options, refuse_secret
from emo_jax.files.waiting import AwayError, Patience, SpoiltError, wait_seconds

FILE, FOLDER, OTHER = "file", "folder", "other"
BLOCK = 1 << 23  # bytes that are asked of a store at once
_AT_ONCE = 32  # objects that are looked at
_ASKED_FOR = 5.0  # seconds in which the first question about an address is asked again
_CHECK = "check the address, the credentials and the endpoint"
_EXTRA = "pip install 'emo-jax[remote]'"
# What waiting does not help.
_FINAL = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(ImportError, ValueError, KeyError, NotImplementedError),
)
_KEYS = ("Credentials", "Expired")  # in the names of errors, which no class stands for
_BUGS = (TypeError, AttributeError, NameError, AssertionError)

A = TypeVar("A")
T = TypeVar("T")


def is_remote(path: str | os.PathLike[str] | Path) -> bool:
    """Returns whether a path is in an object store."""
    return "://" in str(path)


def location(text: str) -> Path:
    """Returns the path of a file or folder; for a URL, something with the methods of a `Path`.

    Raises:
      UsageError: a store that is not known, or whose library is not installed; or the URL holds a
        secret.
    """
    refuse_secret(text)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    if not is_remote(text):
        return Path(text)
    try:
        from upath import UPath
    except ImportError:
        raise UsageError(f"{text}: needs the extra remote; {_EXTRA}") from None
    protocol = text.partition("://")[0]
    # What the library logs as an error is said once, in ours.
    if protocol in ("gs", "gcs"):
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    try:
        found = UPath(text, **_settings(protocol))
        found.fs  # noqa: B018 - connects, in some stores
    except ImportError as error:
        raise UsageError(f"{text}: needs the extra remote ({one_line(error)}); {_EXTRA}") from None
    except ValueError:
        raise UsageError(
            f"{text}: {protocol}:// is no store that is known; give s3://, gs:// or a path"
        ) from None
    except Exception as error:  # each store's library has errors of its own
        raise _cannot_be_read(text, error) from error
    return cast(Path, found)


def _settings(protocol: str) -> dict[str, Any]:
    """Returns what fsspec must be told about a store."""
    # s3fs tries five times what botocore does, and then we wait.
    retries = {"mode": "standard", "total_max_attempts": 2}
    return fsspec_options(protocol, retries=retries)


def what_is(path: Path) -> str:
    """Returns `FILE`, `FOLDER` or `OTHER` (such as a pipe, or a dangling link); "" for nothing.

    Raises:
      DataError: the store does not say.
    """
    if not is_remote(path):
        if path.is_file() or path.is_dir():
            return FILE if path.is_file() else FOLDER
        return OTHER if os.path.lexists(path) else ""
    remote = cast(Any, path)

    def kind() -> str:
        try:
            found = remote.fs.info(remote.path)
        except FileNotFoundError:
            return ""
        return FOLDER if found["type"] == "directory" else FILE

    return _ask(path, kind)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns the errors of a store's library into a DataError of one line."""
    try:
        yield
    except (EmoError, *_BUGS):
        raise
    except Exception as error:  # each store's library has errors of its own
        if not is_remote(path):
            raise
        raise _cannot_be_read(path, error) from error


def why(error: BaseException) -> str:
    """Returns what went wrong, in words of a store's library."""
    strerror = getattr(error, "strerror", None)
    if isinstance(error, FileNotFoundError):
        return "no such object or bucket"
    if isinstance(error, PermissionError):
        return f"not allowed: {one_line(strerror or error)}"
    return one_line(strerror or error) or type(error).__name__


def _cannot_be_read(path: Path | str, error: BaseException) -> DataError:
    return DataError(f"{path}: cannot be read ({why(error)}); {_CHECK}")


def size_of(path: Path) -> int:
    """Returns the bytes of a file."""
    if not is_remote(path):
        return path.stat().st_size
    return _patience().read(lambda: _attempt(path, lambda: path.stat().st_size))


def open_binary(path: Path, block: int | None = None) -> IO[bytes]:
    """Opens a regular file for reading.

    Args:
      block: bytes that are asked of a store at once, `BLOCK` if not given; a local file is read as
        it is asked for.

    Raises:
      NotReadableError: not a regular file.
      OSError: it cannot be opened.
      DataError: it is in a store, and cannot be opened.
    """
    if not is_remote(path):
        return open_regular(path)
    return io.BufferedReader(_Remote(path), block or BLOCK)


def _patience() -> Patience:
    return Patience(DataError, away="check the address and the network", spoilt="read it again")


def _ask(path: Path, do: Callable[[], T]) -> T:
    """Asks the first question about an address, which may be wrong: not for long.

    s3fs does not ask again when HEAD is answered with 503, which says nothing more.
    """
    seconds = min(_ASKED_FOR, wait_seconds())
    patience = Patience(DataError, away=_CHECK, spoilt=_CHECK, seconds=seconds)
    return patience.read(lambda: _attempt(path, do, (*_KEYS, "EndpointConnection")))


def _attempt(path: Path, do: Callable[[], T], final: tuple[str, ...] = _KEYS) -> T:
    """Calls a store's library, and says in the errors of `Patience` what it raises."""
    try:
        return do()
    except _BUGS:
        raise
    except Exception as error:  # each store's library has errors of its own
        text, kind = f"{path}: cannot be read ({why(error)})", type(error).__name__
        if isinstance(error, _FINAL) or any(part in kind for part in final):
            raise SpoiltError(text) from error
        raise AwayError(text) from error


class _Remote(io.RawIOBase):
    """An object of a store, read by ranges. A range that fails is asked for again.

    fsspec and the libraries below it try again a few times; after that, `Patience` waits. A range
    is used only if it is complete, and of the object that was opened. While what is read in order
    is used, the range behind it is on its way.
    """

    def __init__(self, path: Path):
        self._path, self._at, self._expected = path, 0, -1
        self._ahead: tuple[int, int, Future[bytes]] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._patience = _patience()
        self._file, self._size = self._patience.read(lambda: _attempt(path, self._open))

    def _open(self) -> tuple[Any, int]:
        remote = cast(Any, self._path)
        # Without a cache of its own: only what is asked for is read, and kept by the caller.
        file = remote.fs.open(remote.path, "rb", cache_type="none", block_size=BLOCK)
        size = getattr(file, "size", None)
        return file, remote.fs.info(remote.path)["size"] if size is None else size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("a negative position")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = self._left(self._at, len(buffer))
        if wanted:
            buffer[:wanted] = self._take(self._at, wanted)
            in_order = self._at == self._expected
            self._at = self._expected = self._at + wanted
            after = self._left(self._at, len(buffer))
            if in_order and after:
                self._thread = self._thread or ThreadPoolExecutor(1)
                future = self._thread.submit(self._fetch, self._at, after)
                self._ahead = self._at, after, future
        return wanted

    def _left(self, start: int, size: int) -> int:
        return max(0, min(size, self._size - start))

    def _take(self, start: int, size: int) -> bytes:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if ahead[:2] == (start, size):
                return ahead[2].result()
            wait([ahead[2]])  # the file has one position
        return self._fetch(start, size)

    def _fetch(self, start: int, size: int) -> bytes:
        return self._patience.read(lambda: _attempt(self._path, lambda: self._range(start, size)))

    def _range(self, start: int, size: int) -> bytes:
        self._file.seek(start)
        found = self._file.read(size)
        if len(found) != size:
            raise OSError(f"{len(found)} of {size} bytes at {start}")
        return found

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):
            if self._thread is not None:
                self._thread.shutdown()
            self._file.close()
        super().close()


def concurrently(do: Callable[[A], T], items: Iterable[A], remote: bool) -> Iterator[T]:
    """Yields `do(item)` in the order of the items; in a store, many are asked for at once."""
    if not remote:
        yield from map(do, items)
        return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(do, items)


# --- listing --------------------------------------------------------------------------------------


def matches(pattern: str) -> list[str]:
    """Returns the files and folders that a pattern such as `s3://data/train-*.parquet` matches.

    They are sorted. What is hidden is matched only by a pattern that says so. `**` matches files
    only, else a folder would be read as well as the files in it.
    """
    if not is_remote(pattern):
        found = sorted(glob.glob(pattern, recursive=True))
        return [n for n in found if not os.path.isdir(n)] if "**" in pattern else found
    root = location(pattern)
    fs = cast(Any, root).fs
    listed = _ask(root, lambda: fs.glob(pattern, detail=True))
    names = [
        fs.unstrip_protocol(name.rstrip("/"))
        for name, info in listed.items()
        if not ("**" in pattern and info["type"] == "directory")
    ]
    if "/." not in pattern:
        fixed = len(fixed_part(pattern))
        names = [name for name in names if "/." not in name[fixed:]]
    return sorted(set(names))


def fixed_part(pattern: str) -> str:
    """Returns the folder in front of the first wildcard of a URL."""
    return re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")[0]


def list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Returns the names of the folders and the files in a folder of a store, both sorted."""
    remote = cast(Any, folder)
    found = _patience().read(lambda: _attempt(folder, lambda: remote.fs.ls(remote.path, True)))
    here = remote.path.rstrip("/")
    folders, files = set[str](), set[str]()
    for entry in found:
        path = entry["name"].rstrip("/")
        if path != here:  # an empty object that stands for the folder
            (folders if entry["type"] == "directory" else files).add(path.rpartition("/")[2])
    return sorted(folders), sorted(files)

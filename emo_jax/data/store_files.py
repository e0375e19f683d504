"""The files of a token store, local or remote."""

import hashlib
import os
import stat
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from emo_jax.data.store_manifest import MANIFEST
from emo_jax.errors import DataError, one_line
from emo_jax.files.arrays import Files
from emo_jax.files.remote import (
    BLOCK_BYTES,
    Content,
    RemoteFiles,
    RemoteFolder,
    is_remote,
    kvstore,
)
from emo_jax.files.steady import SteadyFiles
from emo_jax.files.waiting import Patience, SpoiltError, wait_unless

_AT_ONCE = 8  # files compared at the same time
_SMALL_BYTES = 1 << 26  # read by one thread


def store_url(path: str, name: str) -> Any:
    """Returns the name that tensorstore uses for the folder `name` of a store."""
    if is_remote(path):
        return kvstore(f"{path.rstrip('/')}/{name}")
    if "://" in path:
        return f"{path.rstrip('/')}/{name}/"
    return {"driver": "file", "path": f"{os.path.abspath(path)}/{name}/"}


def store_patience() -> Patience:
    """Returns how the files of a store are waited for."""
    return Patience(
        DataError,
        away="bring the store back and run the same command again",
        spoilt="copy the store again or prepare it again",
    )


class StoreFiles:
    """The files of a store, local or remote.

    Args:
      location: a folder or a URL.

    Attributes:
      folder: the local folder; None if it is remote.
    """

    def __init__(self, location: str):
        self.location = location
        self._remote = RemoteFolder(location) if is_remote(location) else None
        self.folder = None if self._remote else Path(location.removeprefix("file://"))
        self._patience = store_patience()
        self._manifest: Content | None = None

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file; None if it does not exist."""
        if self._remote is None:
            file = Path(self.folder or "", name)
            return file.read_bytes() if file.is_file() else None
        folder = self._remote
        found = self._patience.read(lambda: folder.read(name))
        if name == MANIFEST:
            self._manifest = found
        return None if found is None else found.value

    def check_sizes(self, files: dict[str, Any]) -> None:
        """Checks that every file exists, and its size.

        A remote store is listed once. Without fsspec and its library for this kind of URL, the
        listing has no sizes.
        """
        if self._remote is not None:
            sizes = self._patience.read(self._remote.sizes)
            for name, expected in files.items():
                if name not in sizes:
                    raise self._damaged(name, "missing")
                if sizes[name] not in (None, expected["bytes"]):
                    raise self._wrong_size(name, sizes[name], expected["bytes"])
            return
        base = os.fspath(self.folder or "")
        for name, expected in files.items():
            try:
                status = os.stat(f"{base}/{name}")
            except (OSError, ValueError):  # a name that no file can have
                raise self._damaged(name, "missing") from None
            if not stat.S_ISREG(status.st_mode):  # a pipe would block, a device never ends
                raise self._damaged(name, "not a regular file")
            if status.st_size != expected["bytes"]:
                raise self._wrong_size(name, status.st_size, expected["bytes"])

    def steady(self, files: dict[str, Any], manifest: bytes) -> Files:
        """Returns the files in their present state, to be checked while they are in use."""
        if self._remote is not None:
            if self._manifest is None:
                raise ValueError("read the manifest first")
            return RemoteFiles(self._remote, MANIFEST, self._manifest)
        known = {name: expected["sha256"] for name, expected in files.items()}
        known[MANIFEST] = hashlib.sha256(manifest).hexdigest()
        return SteadyFiles(Path(self.folder or ""), known)

    def check_digests(self, files: dict[str, Any]) -> None:
        """Raises DataError if a file's content does not match its SHA-256."""
        for name, why in self.compare(files):
            if why:
                raise self._damaged(name, why)

    def compare(self, files: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """Reads every file, several at once, and compares its SHA-256 with the manifest's.

        Yields:
          In the order of `files`, the name, and what is wrong with it ("": nothing).

        Raises:
          DataError: a remote one stays unavailable.
        """
        if sum(expected["bytes"] for expected in files.values()) < _SMALL_BYTES:
            yield from ((name, self._compare(name, expected)) for name, expected in files.items())
            return
        closed = threading.Event()

        def compare(name: str, expected: dict[str, Any]) -> str:
            with wait_unless(closed.is_set):
                return self._compare(name, expected)

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="digests") as pool:
            ahead: deque[tuple[str, Future[str]]] = deque()
            try:
                for name, expected in files.items():
                    ahead.append((name, pool.submit(compare, name, expected)))
                    if len(ahead) > 2 * _AT_ONCE:  # no more: there may be 100 000
                        first, found = ahead.popleft()
                        yield first, found.result()
                for first, found in ahead:
                    yield first, found.result()
            finally:
                closed.set()
                pool.shutdown(cancel_futures=True)

    def _compare(self, name: str, expected: dict[str, Any]) -> str:
        read = self._digest if self._remote is None else self._remote_digest
        try:
            same = read(name, expected["bytes"]) == expected["sha256"]
        except FileNotFoundError:
            return "missing"
        except OSError as error:
            return f"cannot be read: {one_line(error)}"
        except SpoiltError:
            same = False
        return "" if same else "content differs from its checksum"

    def _digest(self, name: str, size: int) -> str:
        with Path(self.folder or "", name).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def _remote_digest(self, name: str, size: int) -> str:
        """Raises SpoiltError if the file is shorter."""
        digest, folder = hashlib.sha256(), self._remote
        assert folder is not None

        def block(start: int, stop: int) -> bytes | SpoiltError | None:
            try:
                return folder.read_range(name, start, stop)
            except SpoiltError as error:
                return error

        for start in range(0, size, BLOCK_BYTES):
            stop = min(start + BLOCK_BYTES, size)
            found = self._patience.read(partial(block, start, stop))
            if found is None:
                raise FileNotFoundError(name)
            if isinstance(found, SpoiltError):
                raise found
            digest.update(found)
        return digest.hexdigest()

    def _wrong_size(self, name: str, size: Any, expected: int) -> DataError:
        return self._damaged(name, f"{size} bytes, should be {expected}")

    def _damaged(self, name: str, why: str) -> DataError:
        return DataError(
            f"{self.location}/{name}: damaged ({why}); copy the store again or prepare it again"
        )

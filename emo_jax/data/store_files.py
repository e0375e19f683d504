"""The files of a token store, local or remote."""

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

import tensorstore as ts

from emo_jax.data.store_manifest import MANIFEST
from emo_jax.errors import DataError
from emo_jax.files.steady import SteadyFiles


def store_url(path: str, name: str) -> Any:
    """Returns the name that tensorstore uses for the folder `name` of a store."""
    if "://" in path:
        return f"{path.rstrip('/')}/{name}/"
    return {"driver": "file", "path": f"{os.path.abspath(path)}/{name}/"}


def _result(future: Any, where: str) -> Any:
    """Waits for a result; a tensorstore error, which names the file, becomes a DataError."""
    try:
        return future.result()
    except (ValueError, OSError) as error:
        raise DataError(
            f"{where}: cannot be read ({str(error).splitlines()[0]}); copy the store again or"
            " prepare it again"
        ) from error


class StoreFiles:
    """The files of a store, local or remote."""

    def __init__(self, location: str):
        self.location = location
        remote = "://" in location and not location.startswith("file://")
        self.folder = None if remote else Path(location.removeprefix("file://"))

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file; None if it does not exist."""
        if self.folder is not None:
            file = self.folder / name
            return file.read_bytes() if file.is_file() else None
        got = _result(self._kvstore().read(name), self.location)
        return got.value if got.state == "value" else None

    def _kvstore(self) -> Any:
        return _result(ts.KvStore.open(self.location.rstrip("/") + "/"), self.location)

    def check_sizes(self, files: dict[str, Any]) -> None:
        """Checks that every file exists and, on a local disk where this is cheap, its size."""
        if self.folder is None:
            found = {key.decode() for key in _result(self._kvstore().list(), self.location)}
            for name in files:
                if name not in found:
                    raise self._damaged(name, "missing")
            return
        for name, expected in files.items():
            try:
                status = (self.folder / name).stat()
            except OSError:
                raise self._damaged(name, "missing") from None
            if not stat.S_ISREG(status.st_mode):  # a pipe would block, a device never ends
                raise self._damaged(name, "not a regular file")
            size = status.st_size
            if size != expected["bytes"]:
                raise self._damaged(name, f"{size} bytes, should be {expected['bytes']}")

    def steady(self, files: dict[str, Any], manifest: bytes) -> SteadyFiles | None:
        """Returns the local files in their present state; None for a remote store."""
        if self.folder is None:
            return None
        known = {name: expected["sha256"] for name, expected in files.items()}
        return SteadyFiles(self.folder, {**known, MANIFEST: hashlib.sha256(manifest).hexdigest()})

    def check_digests(self, files: dict[str, Any]) -> None:
        """Raises DataError if a file's content does not match its SHA-256."""
        for name, expected in files.items():
            if self.folder is not None:
                with (self.folder / name).open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
            else:
                digest = hashlib.sha256(self.read(name) or b"").hexdigest()
            if digest != expected["sha256"]:
                raise self._damaged(name, "content differs from its checksum")

    def _damaged(self, name: str, why: str) -> DataError:
        return DataError(
            f"{self.location}/{name}: damaged ({why}); copy the store again or prepare it again"
        )

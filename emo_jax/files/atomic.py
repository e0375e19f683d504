"""Files that are never half written, and folders that appear only with their content."""

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, TypeVar

from etils import epath

from emo_jax.errors import UsageError

_UNFINISHED = re.compile(r"\.(.+?)(?:\.[0-9a-f]{8})?\.tmp")  # without digits: of earlier versions
_LEFT_SECONDS = 3600.0  # no file of ours takes as long to write

P = TypeVar("P", Path, epath.Path)


def unfinished(path: P) -> P:
    """Returns a new name next to `path` for its content until that is complete.

    No two processes get the same, on whatever hosts, so none takes what another is writing.
    """
    return path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"


def finished_name(name: str) -> str:
    """Returns the name of what a file by this name becomes; itself, for one that is finished."""
    found = _UNFINISHED.fullmatch(name)
    return found[1] if found else name


def _remove_left_over(path: Path) -> None:
    """Removes what killed processes left of a file."""
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name == path.name or finished_name(entry.name) != path.name:
                continue
            age = time.time() - entry.stat(follow_symlinks=False).st_mtime
            if age > _LEFT_SECONDS:
                os.unlink(entry.path)


def write_atomic(path: epath.Path, text: str) -> None:
    """Writes a file that is either absent (or the old one) or complete, even after a power cut."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: epath.Path, content: bytes) -> None:
    """Writes bytes as `write_atomic` writes text."""
    if "://" in str(path):  # object stores publish an object only when it is complete
        path.write_bytes(content)
        return
    _remove_left_over(Path(path))
    temporary = unfinished(path)
    file = open(temporary, "xb")  # noqa: SIM115 - what is there already is not ours to remove
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Yields a text file that appears when it is complete: not at all if the body fails."""
    temporary = unfinished(path)
    stream = temporary.open("x", encoding="utf-8")
    try:
        with stream:
            yield stream
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(path: epath.Path) -> None:
    """Makes renames and new names in a local folder survive a power cut."""
    if "://" in str(path):
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def refuse_existing(folder: str | os.PathLike[str]) -> None:
    """Raises an error if a folder to be created is not empty.

    Raises:
      UsageError: it exists and is not an empty folder.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path}: is there already; give a new or empty folder")


def refuse_unmakeable(option: str, folder: str | os.PathLike[str]) -> None:
    """Raises an error if a folder cannot be created or is not empty: before the work, not after.

    Raises:
      UsageError: says which of the two.
    """
    refuse_existing(folder)
    above = Path(folder).resolve().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UsageError(f"{option} {folder}: {above} cannot be written; give another folder")

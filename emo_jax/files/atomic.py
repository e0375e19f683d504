"""Files that are never half written, and folders that appear only with their content."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from etils import epath

from emo_jax.errors import UsageError


def write_atomic(path: epath.Path, text: str) -> None:
    """Writes a file that is either absent (or the old one) or complete, even after a power cut."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: epath.Path, content: bytes) -> None:
    """Writes bytes as `write_atomic` writes text."""
    if "://" in str(path):  # object stores publish an object only when it is complete
        path.write_bytes(content)
        return
    temporary = path.parent / f".{path.name}.tmp"
    # Left by a killed run; or a link that someone else put in their folder, to one of our files.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    with open(temporary, "xb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Yields a text file that appears when it is complete: not at all if the body fails."""
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8") as stream:
            yield stream
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


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

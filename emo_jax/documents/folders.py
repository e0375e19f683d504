"""The files of a folder, in a fixed order, on a disk or in an object store."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from emo_jax.documents.file_kinds import kind_of
from emo_jax.documents.locations import is_remote, list_folder
from emo_jax.documents.records import UNKNOWN_DOMAIN
from emo_jax.errors import DataError


def walk(path: Path, left: Callable[[Path, str], None]) -> Iterator[tuple[Path, str, str]]:
    """Yields (path, name, domain) of every file under a folder, except hidden ones.

    Links are followed, unless they lead to something that is read anyway.
    """
    if is_remote(path):
        yield from _walk_store(path, path)
        return
    root = path.resolve()
    seen = {_identity(root)}
    for folder, subfolders, files in os.walk(path, onerror=_unlisted, followlinks=True):
        here = Path(folder)
        entered = []
        for name in sorted(s for s in subfolders if not s.startswith(".")):
            below = here / name
            check_there(below)
            inside = below.is_symlink() and _hidden_in(root, below) is False
            if inside or _identity(below) in seen:
                left(below, "a link to a folder that is read anyway")
                continue
            seen.add(_identity(below))
            entered.append(name)
        subfolders[:] = entered
        for name in sorted(f for f in files if not f.startswith(".")):
            file = here / name
            mode = check_there(file)
            if not stat.S_ISREG(mode):
                left(file, "a pipe, socket or device")
                continue
            if file.is_symlink() and _hidden_in(root, file) is False and kind_of(file.resolve()):
                left(file, "a link to a file that is read anyway")
                continue
            yield _named(path, file)


def _walk_store(path: Path, folder: Path) -> Iterator[tuple[Path, str, str]]:
    folders, files = list_folder(folder)
    for name in files:
        if not name.startswith("."):
            yield _named(path, folder / name)
    for name in folders:
        if not name.startswith("."):
            yield from _walk_store(path, folder / name)


def _named(path: Path, file: Path) -> tuple[Path, str, str]:
    """Returns (file, name, domain) of a file under a folder."""
    relative = file.relative_to(path)
    domain = relative.parts[0] if len(relative.parts) > 1 else UNKNOWN_DOMAIN
    return file, relative.as_posix(), domain


def _hidden_in(root: Path, link: Path) -> bool | None:
    """Returns whether a link's target is hidden below `root`; None if it is not below it."""
    target = link.resolve()
    if not target.is_relative_to(root):
        return None
    return any(part.startswith(".") for part in target.relative_to(root).parts)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def check_there(path: Path) -> int:
    """Returns the mode of a file or folder; a dangling link is an error, not an absence."""
    if is_remote(path):
        return 0
    try:
        return path.stat().st_mode
    except OSError as error:
        what = "a link to nothing" if path.is_symlink() else f"cannot be read ({error.strerror})"
        raise DataError(f"{path}: {what}; mend it or leave it out") from error


def _unlisted(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: cannot be listed ({error.strerror}); allow it or leave it out"
    )

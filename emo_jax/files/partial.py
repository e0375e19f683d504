"""Folders for unfinished work, locked while the process that makes them runs.

They are next to what they become, under a hidden name. A process that is killed leaves its folder;
the next one that makes the same thing finds it unlocked and removes it.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from emo_jax.files.atomic import finished_name


@contextlib.contextmanager
def partial_folder(target: Path, kind: str) -> Iterator[Path]:
    """Yields a new folder `.NAME.<random>.KIND` next to `target`; removes it if it still exists."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name never used before: pids repeat in containers.
    stem = f".{target.name}.{secrets.token_hex(8)}"
    unlocked = target.parent / f"{stem}.new"
    folder = target.parent / f"{stem}.{kind}"
    unlocked.mkdir()
    try:
        with _lock(unlocked):
            # Under a name that `remove_left_over` looks for, it is always locked.
            unlocked.rename(folder)
            yield folder
    finally:
        shutil.rmtree(unlocked, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, if the file system has locks; it ends with the process."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def remove_left_over(target: Path, kinds: Collection[str], holds: Collection[str]) -> list[str]:
    """Removes partial folders of `target` left by killed processes; returns notes for the user.

    Only folders that have such a name, contain nothing but `holds`, and are not locked are removed.
    A folder whose state cannot be determined is named and left.
    """
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{16}}\.({'|'.join(kinds)})")
    notes = []
    try:
        found = sorted(p for p in target.parent.iterdir() if name.fullmatch(p.name))
    except OSError:
        return []
    for folder in found:
        if folder.is_symlink() or not folder.is_dir():
            continue
        try:
            fd = os.open(folder, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not {finished_name(p.name) for p in folder.iterdir()} <= set(holds):
                continue
            shutil.rmtree(folder)
            notes.append(f"note: removed {folder}, left by a command that was killed")
        except BlockingIOError:
            continue  # its process is still running
        except OSError as error:
            notes.append(
                f"note: {folder} was left by another command ({error.strerror}); remove it if none"
                " is running"
            )
        finally:
            os.close(fd)
    return notes

"""Folders that work is done in before it is whole: locked while their maker runs.

They lie beside what they become, under a hidden name. A process that is killed leaves its folder;
the next one that makes the same thing finds it without a lock and removes it.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path


@contextlib.contextmanager
def partial_folder(target: Path, kind: str) -> Iterator[Path]:
    """A new folder `.NAME.<random>.KIND` beside `target`; removed at the end if still there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name nobody had: pids come again in containers.
    stem = f".{target.name}.{secrets.token_hex(8)}"
    unlocked = target.parent / f"{stem}.new"
    folder = target.parent / f"{stem}.{kind}"
    unlocked.mkdir()
    try:
        with _lock(unlocked):
            # Under a name that `remove_left_over` looks at it is never without its lock.
            unlocked.rename(folder)
            yield folder
    finally:
        shutil.rmtree(unlocked, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, where the file system has locks; ends with the process."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def remove_left_over(target: Path, kinds: Collection[str], holds: Collection[str]) -> list[str]:
    """Removes partial folders of `target` whose makers were killed; returns notes for the user.

    Only those are touched that have the name of one, hold nothing but `holds`, and whose lock is
    free. What cannot be decided is named and left.
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
            if not {p.name for p in folder.iterdir()} <= set(holds):
                continue
            shutil.rmtree(folder)
            notes.append(f"note: removed {folder}, left by a command that was killed")
        except BlockingIOError:
            continue  # its maker is at work
        except OSError as error:
            notes.append(
                f"note: {folder} was left by another command ({error.strerror}); remove it if none"
                " is running"
            )
        finally:
            os.close(fd)
    return notes

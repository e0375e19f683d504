"""The folders of an unfinished `emo prepare`, found again by the same command.

.NAME.<hash of the command>.prepare/   next to the store NAME, locked while its process runs
  store/      what becomes the store
  done/       NAME.json: the outcome of each finished task
  failed/     NAME.json: why a task failed
  runs/ …     what tasks write; with `--scratch DIR`, all but store/ is in DIR instead
"""

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from emo_jax.errors import UsageError

KIND = "prepare"
LOCK = "lock"
WORKERS = "workers"


class Scratch(NamedTuple):
    """Where a command works: `work` for what is between inputs and store, `store` for the store."""

    home: Path
    work: Path

    @property
    def store(self) -> Path:
        """The folder that becomes the store."""
        return self.home / "store"

    def remove(self) -> None:
        """Removes everything."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.rmtree(self.home, ignore_errors=True)

    def has_work(self) -> bool:
        """Returns whether a task has been finished."""
        return next((self.work / "done").glob("*.json"), None) is not None


@contextlib.contextmanager
def open_scratch(
    target: Path, command: str, elsewhere: str | os.PathLike[str] | None
) -> Iterator[Scratch]:
    """Yields the folders of a command, locked.

    Args:
      target: the store to make.
      command: hash of the command: 16 hexadecimal digits.
      elsewhere: folder for the large part; None: next to the store.

    Raises:
      UsageError: another process makes the same store.
      OSError: they cannot be made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    name = f".{target.name}.{command}.{KIND}"
    home = target.parent / name
    is_new = not home.exists()
    home.mkdir(exist_ok=True)
    work = home if elsewhere is None else Path(elsewhere).absolute() / name
    with contextlib.ExitStack() as stack:
        _lock(stack, home, target)
        for other in others(target):
            if other != home and is_used(other):
                if is_new:
                    shutil.rmtree(home)
                raise in_use(target)
        for folder in ("done", "failed"):
            (work / folder).mkdir(parents=True, exist_ok=True)
        yield Scratch(home, work)


def others(target: Path) -> list[Path]:
    """Returns the folders that commands made for this store, sorted."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{16}}\.{KIND}")
    with contextlib.suppress(OSError):
        return sorted(
            p
            for p in target.parent.iterdir()
            if pattern.fullmatch(p.name) and p.is_dir() and not p.is_symlink()
        )
    return []


def in_use(target: Path) -> UsageError:
    """Returns the error for a store that another process makes."""
    return UsageError(
        f"{target}: another emo prepare is making this store; wait for it, or give another folder"
    )


def is_used(home: Path) -> bool:
    """Returns whether the process that works in a folder is still running, if that can be told."""
    return is_locked(home / LOCK)


def lock_until_exit(path: Path) -> None:
    """Locks a new file as long as this process runs."""
    path.parent.mkdir(exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(fd, fcntl.LOCK_EX)  # waits for one who only asks whether it is locked


def is_locked(path: Path) -> bool:
    """Returns whether a process has locked a file, if that can be told."""
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without locks
    finally:
        os.close(fd)


def _lock(stack: contextlib.ExitStack, home: Path, target: Path) -> None:
    """Holds the lock of a folder until `stack` ends, or the process."""
    fd = os.open(home / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    deadline = time.monotonic() + 1
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            # A process that asks whether the lock is held holds it for a moment.
            if time.monotonic() > deadline:
                raise in_use(target) from None
            time.sleep(0.05)
        except OSError:
            return

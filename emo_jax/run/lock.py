"""A lock: one run per workdir at a time, as far as one machine can tell."""

import logging
import os
import secrets
import socket
from pathlib import Path
from typing import Literal, NamedTuple

from emo_jax.errors import TakenOverError, UsageError, one_line
from emo_jax.files.json_files import Fields, NotReadableError, dumps, read_object
from emo_jax.run.workdir import unusable

LOCK_FILE = ".lock"
_LOG = logging.getLogger(__name__)


class _Owner(NamedTuple):
    """A process; `begun` distinguishes it from a later one with the same pid, see `_begun`."""

    host: str
    pid: int
    begun: int | None


class Look(NamedTuple):
    """What a lock says.

    `held`: by a process of this machine, which is there; `gone`: by one which is not;
    `elsewhere`: by one of another machine; `free`: by none. `since`: when it was taken, in seconds
    since 1970.
    """

    state: Literal["held", "gone", "elsewhere", "free"]
    host: str | None = None
    pid: int | None = None
    since: float = 0.0


class RunLock:
    """WORKDIR/.lock: host and process of the run that is active there.

    The lock of a process that is gone, or is on another host, is taken over: a scheduler may start
    a run elsewhere before the old process could clean up, and that one then saves nothing more
    (`check_still_ours`). So is a malformed file, with a warning.
    """

    def __init__(self, workdir: Path):
        self._path = workdir / LOCK_FILE
        self._mine: _Owner | None = None  # what we have written, while the workdir is ours

    def check(self) -> None:
        """Raises UsageError if another process on this host uses the workdir."""
        found = self.look()
        if found.state == "held" and found.pid != os.getpid():
            raise UsageError(
                f"{self._path.parent} is in use by process {found.pid} on this machine; wait"
                " for it or stop it, or give another workdir"
            )

    def look(self) -> Look:
        """Returns who uses the workdir; a malformed file is nobody's."""
        try:
            owner, since = self._owner(), self._path.stat().st_mtime
        except (UsageError, FileNotFoundError):
            owner, since = None, 0.0
        if owner is None:
            return Look("free")
        if owner.host != socket.gethostname():
            return Look("elsewhere", owner.host, owner.pid, since)
        begun = _begun(owner.pid)
        there = begun is not None and begun == owner.begun
        return Look("held" if there else "gone", owner.host, owner.pid, since)

    def acquire(self) -> None:
        """Makes the workdir ours until `release`."""
        mine = self._path.with_name(f"{LOCK_FILE}.{secrets.token_hex(4)}.tmp")
        owner = _Owner(socket.gethostname(), os.getpid(), _begun(os.getpid()))
        try:
            mine.write_text(dumps(owner._asdict()))
            try:
                os.link(mine, self._path)  # atomic, and fails if the lock exists
            except OSError:  # the lock exists, or the file system has no hard links
                self.check()
                fault = self._fault()
                os.replace(mine, self._path)
                if fault:
                    _LOG.warning("%s", fault)
            self._mine = owner
        except OSError as e:
            text = f"{self._path}: cannot be written: {one_line(e)}; mend it"
            raise unusable(self._path.parent, f"{text}, or give another workdir") from e
        finally:
            mine.unlink(missing_ok=True)

    def check_still_ours(self) -> None:
        """Raises TakenOverError if another run has acquired the workdir since we did."""
        owner = self._owner_or_none()
        if self._mine is not None and owner is not None and owner != self._mine:
            raise TakenOverError(
                f"{self._path.parent}: process {owner.pid} on {owner.host} has taken this run over"
                " and goes on with it; this process ends, and writes nothing more there"
            )

    def release(self) -> None:
        """Releases the workdir, unless another run has taken it over."""
        if self._mine is not None and self._owner_or_none() == self._mine:
            self._path.unlink(missing_ok=True)
        self._mine = None

    def _owner_or_none(self) -> _Owner | None:
        try:
            return self._owner()
        except (UsageError, OSError):  # the next run reports it
            return None

    def _fault(self) -> str:
        """Why the lock file is malformed; empty if it is not."""
        try:
            self._owner()
        except UsageError as error:
            return str(error)
        return ""

    def _owner(self) -> _Owner | None:
        """The process named in the file; None if there is no file.

        Raises:
          UsageError: it names no process.
        """
        advice = "it names no run, and is taken over"
        try:
            fields = Fields(read_object(self._path, error=UsageError, advice=advice))
            begun = None if fields.value("begun") is None else fields.integer("begun", high=2**63)
            return _Owner(fields.line("host"), fields.integer("pid", low=1), begun)
        except FileNotFoundError:
            return None
        except NotReadableError as reason:
            raise UsageError(f"{self._path}: {reason}; {advice}") from None


def _begun(pid: int) -> int | None:
    """Start time of a process, to detect a reused pid; None if the process is gone."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass  # alive, but another user's
    except (OSError, OverflowError):
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0  # no /proc here: being alive has to suffice

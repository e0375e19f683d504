"""One run in a workdir at a time, as far as one machine can know."""

import json
import os
import secrets
import socket
from pathlib import Path
from typing import Any

from emo_jax.errors import UsageError, one_line

LOCK_FILE = ".lock"


class RunLock:
    """WORKDIR/.lock: host and process of the run that is live there.

    One of a process that is gone, or of another host, is taken over: a scheduler may start a run
    elsewhere before the old process could tidy up.
    """

    def __init__(self, workdir: Path):
        self._path = workdir / LOCK_FILE
        self._held = False

    def check(self) -> None:
        """Raises UsageError where another process on this host trains there."""
        owner = self._owner()
        if owner is None or owner["host"] != socket.gethostname() or owner["pid"] == os.getpid():
            return
        begun = _begun(owner["pid"])
        if begun is not None and begun == owner["begun"]:
            raise UsageError(
                f"{self._path.parent} is in use by process {owner['pid']} on this machine; wait"
                " for it or stop it, or give another workdir"
            )

    def acquire(self) -> None:
        """Makes the workdir ours until `release`."""
        mine = self._path.with_name(f"{LOCK_FILE}.{secrets.token_hex(4)}.tmp")
        pid = os.getpid()
        try:
            mine.write_text(
                json.dumps({"host": socket.gethostname(), "pid": pid, "begun": _begun(pid)})
            )
            try:
                os.link(mine, self._path)  # whole at once, and fails where there is one
            except OSError:  # there is one, or the file system has no links
                self.check()
                os.replace(mine, self._path)
            self._held = True
        except OSError as e:
            raise UsageError(f"{self._path}: cannot be written: {one_line(e)}") from e
        finally:
            mine.unlink(missing_ok=True)

    def release(self) -> None:
        """Gives the workdir back, unless another run took it over."""
        owner = self._owner()
        if self._held and owner is not None and owner["pid"] == os.getpid():
            self._path.unlink(missing_ok=True)
        self._held = False

    def _owner(self) -> dict[str, Any] | None:
        """Who is in the file; None where there is none, or it cannot be read."""
        try:
            owner = json.loads(self._path.read_text())
            return {"host": owner["host"], "pid": int(owner["pid"]), "begun": owner["begun"]}
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _begun(pid: int) -> int | None:
    """When a process began, to tell it from a later one of the same number; None: it is gone."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass  # alive, and of another user
    except (OSError, OverflowError):
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0  # no /proc here: being alive has to do

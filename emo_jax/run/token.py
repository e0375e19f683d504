"""What the processes of a run know and nobody else: a random number in the run's folder.

It is in a file that only its owner can read, so a process that can read it has the rights of the
user who runs the others. Whoever else reaches their port cannot join or end the run.
"""

import os
import re
import secrets
import stat
from pathlib import Path

from etils import epath

from emo_jax.errors import one_line
from emo_jax.files.json_files import NotReadableError, read_regular
from emo_jax.run.workdir import TOKEN_FILE, refuse_foreign, unusable

_BYTES = 32
_FORM = re.compile(rf"[0-9a-f]{{{2 * _BYTES}}}")


def run_token(workdir: Path, *, make: bool) -> str | None:
    """Returns the token of the run in a workdir, 64 hexadecimal digits; None if it has none.

    Args:
      make: write a new one, if there is none, or if others could have read or written it.

    Raises:
      UsageError, EmoError: it cannot be written, or the folder is not a run's.
    """
    path = workdir / TOKEN_FILE
    found = _read(path, secret=make)
    if found:
        return found
    refuse_foreign(epath.Path(workdir))
    if not make:
        return None
    new = secrets.token_hex(_BYTES)
    unfinished = path.with_name(f"{TOKEN_FILE}.{secrets.token_hex(4)}.tmp")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
                f.write(new)
            unfinished.rename(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as e:
        text = f"{path}: cannot be written: {one_line(e)}; give another workdir, or the same"
        raise unusable(workdir, f"{text} EMO_TOKEN to all processes") from e
    return new


def _read(path: Path, *, secret: bool) -> str | None:
    """Returns what the file says, if it is a token; with `secret`, only if it is one of ours."""
    try:
        about = path.lstat()
        others = about.st_mode & 0o077 or about.st_uid != os.getuid()
        if not stat.S_ISREG(about.st_mode) or (secret and others):
            return None
        text = read_regular(path, max_bytes=2 * _BYTES).decode("ascii", "replace")
    except (OSError, NotReadableError):
        return None
    return text if _FORM.fullmatch(text) else None

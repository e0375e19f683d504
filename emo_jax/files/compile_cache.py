"""Compiled programs kept on disk, so that the second start of a run does not compile again.

The folder is `$EMO_COMPILE_CACHE`, else that of JAX's own setting (`JAX_COMPILATION_CACHE_DIR`),
else `$XDG_CACHE_HOME/emo_jax/compiled` (`~/.cache/…`). `EMO_COMPILE_CACHE=off` keeps nothing.
"""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

OFF = "off"
MAX_BYTES = 4 * 2**30  # the programs that were not used for longest are dropped
MIN_SECONDS = 0.5  # what compiles faster than this is not kept


def folder() -> Path | None:
    """Where compiled programs are kept; None where they are not, or JAX is told where already."""
    asked = os.environ.get("EMO_COMPILE_CACHE")
    if asked == OFF or (not asked and os.environ.get("JAX_COMPILATION_CACHE_DIR")):
        return None
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = Path(asked) if asked else Path(cache) / "emo_jax" / "compiled"
    # Nobody's home, as of a user that the machine does not know: `~` stays as it is.
    return root / _processor() if root.is_absolute() or asked else None


def _processor() -> str:
    """Name of this kind of processor.

    A program compiled for the CPU uses every instruction of the machine that compiled it, and a
    home folder may be shared with older machines.
    """
    kind = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((x for x in lines if x.startswith(("flags", "Features"))), "")
        kind += "-" + hashlib.sha256(flags.encode()).hexdigest()[:12]
    return kind


def enable() -> None:
    """Tells JAX, by its environment variables: call it before JAX is imported.

    A folder that cannot be made is no error: everything works, and compiles each time.
    """
    where = folder()
    if where is None:
        return
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(where, os.W_OK):
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(where)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(MIN_SECONDS))
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MAX_BYTES))

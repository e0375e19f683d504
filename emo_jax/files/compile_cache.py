"""An on-disk cache of compiled programs, so that a run does not recompile on its second start.

The folder is `$EMO_COMPILE_CACHE`, else JAX's own setting (`JAX_COMPILATION_CACHE_DIR`), else
`$XDG_CACHE_HOME/emo_jax/compiled` (`~/.cache/…`). `EMO_COMPILE_CACHE=off` turns it off.
"""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

OFF = "off"
MAX_BYTES = 4 * 2**30  # the least recently used programs are dropped
MIN_SECONDS = 0.5  # programs that compile faster are not cached


def folder() -> Path | None:
    """Returns the cache folder; None if caching is off or JAX is told of a folder already."""
    asked = os.environ.get("EMO_COMPILE_CACHE")
    if asked == OFF or (not asked and os.environ.get("JAX_COMPILATION_CACHE_DIR")):
        return None
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = Path(asked) if asked else Path(cache) / "emo_jax" / "compiled"
    # There is no home folder, as for a user unknown to the machine: `~` stays as it is.
    return root / _processor() if root.is_absolute() or asked else None


def _processor() -> str:
    """Returns a name for this kind of processor.

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
    """Sets JAX's environment variables for the cache; call it before JAX is imported.

    A folder that cannot be created is not an error: everything works, but compiles each time.
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

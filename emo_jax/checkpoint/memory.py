"""Memory of the host that saves and restores have freed, and that glibc would keep for later.

Shards up to 32 MB are cut from heaps of threads, and stay there when freed: over 20 saves, or while
a state is read, that was another copy of the state. Other C libraries do as they like.
"""

import contextlib
import ctypes
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_APART = 2**20  # bytes from which memory is a mapping of its own, which is gone when it is freed
_LATER = 2**25  # what glibc itself grows the limit to, on 64 bits


def give_back_memory() -> None:
    """Gives freed memory back to the system."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
    """What is freed meanwhile goes back to the system at once; it costs time to get it anew."""
    give_back_memory()
    _set(_MMAP_THRESHOLD, _APART)
    try:
        yield
    finally:
        # A limit that was set stays: from now on they are those that glibc ends up with by itself.
        _set(_MMAP_THRESHOLD, _LATER)
        _set(_TRIM_THRESHOLD, 2 * _LATER)
        give_back_memory()


def _set(which: int, value: int) -> None:
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(which, value)

"""Memory of the host: what malloc does with what is freed.

A process whose model runs on the CPU keeps it (`keep`). XLA asks malloc for a step's memory at
each step, and glibc gives pieces so large back to the system when the step ends, so that every page
of the next step is a page fault: 355 000 of them for the model of `experiments/bench_cpu.py`
(docs/benchmarks.md).

Other processes give back what saves and restores have freed (`nothing_kept`). Shards up to 32 MB
are cut from heaps of threads, and stay there when freed: over 20 saves, or while a state is read,
that was another copy of the state.

Other C libraries than glibc do as they like.
"""

import contextlib
import ctypes
import glob
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from emo_jax.parallel import libtpu

SWITCH = "EMO_KEEP_MEMORY"

# mallopt(3) and madvise(2)
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
_NEVER = -1
_HUGE_PAGES = 14
_APART = 2**20  # bytes from which memory is a mapping of its own, which is gone when it is freed
_LATER = 2**25  # what glibc itself grows the limit to, on 64 bits

_kept = False  # by `keep`, for the rest of the process


def keep() -> bool:
    """Has freed memory stay with this process; call it before JAX is imported.

    It acts with glibc on Linux, where there is no accelerator, unless `EMO_KEEP_MEMORY` is 0. The
    process then holds as much memory as it ever needed at once. All allocations come from one heap
    (the threads that JAX starts would each make one otherwise, and those give back), whose
    addresses, not its memory, are reserved up to 3/4 of the machine's memory, so that it can be in
    huge pages.

    Returns:
      whether it did.
    """
    global _kept
    if os.environ.get(SWITCH, "1") == "0" or not sys.platform.startswith("linux"):
        return False
    if os.environ.get("JAX_PLATFORMS") != "cpu" and _may_have_accelerators():
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "gnu_get_libc_version"):
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER))
    _kept = all([_set(name, value) for name, value in settings])
    libc.malloc.argtypes, libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    libc.free.argtypes = (ctypes.c_void_p,)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    # What is freed here stays in the heap, untouched. Where the system allows less, the heap still
    # keeps what it gets, in small pages.
    page = os.sysconf("SC_PAGE_SIZE")
    libc.free(libc.malloc(os.sysconf("SC_PHYS_PAGES") * page // 4 * 3))
    for start, end in _heap():
        start = -(-start // page) * page
        libc.madvise(start, end - start, _HUGE_PAGES)
    return _kept


def give_back() -> None:
    """Gives freed memory back to the system, unless it is kept."""
    if not _kept:
        with contextlib.suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
    """What is freed meanwhile goes back to the system at once; it costs time to get it anew.

    Where all is kept, nothing changes.
    """
    if _kept:
        yield
        return
    give_back()
    _set(_MMAP_THRESHOLD, _APART)
    try:
        yield
    finally:
        # A limit that was set stays: from now on they are those that glibc ends up with by itself.
        _set(_MMAP_THRESHOLD, _LATER)
        _set(_TRIM_THRESHOLD, 2 * _LATER)
        give_back()


def _set(which: int, value: int) -> bool:
    with contextlib.suppress(AttributeError, OSError, TypeError):
        return bool(ctypes.CDLL(None).mallopt(which, value))
    return False


def _may_have_accelerators() -> bool:
    return libtpu.may_have_tpus() or bool(glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/kfd"))


def _heap() -> list[tuple[int, int]]:
    """Addresses of the process's heap."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = (line.split()[0].split("-") for line in lines if line.endswith("[heap]"))
    return [(int(start, 16), int(end, 16)) for start, end in ranges]

"""Memory of a process whose model runs on the CPU: kept between steps, in huge pages.

XLA asks malloc for a step's memory anew at each step, and glibc gives such large pieces back to the
system when the step ends. Every page of the next step is then a page fault: 355 000 of them, and a
quarter of the time, for the model of `experiments/bench_cpu.py` (docs/benchmarks.md).
"""

import ctypes
import glob
import os
import sys
from pathlib import Path

from emo_jax.parallel import libtpu

SWITCH = "EMO_KEEP_MEMORY"

# Parameters of mallopt, from glibc's malloc.h, and an advice of madvise, from Linux's mman.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = -1
_MADV_HUGEPAGE = 14


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
    if os.environ.get(SWITCH, "1") == "0" or not sys.platform.startswith("linux"):
        return False
    if os.environ.get("JAX_PLATFORMS") != "cpu" and _may_have_accelerators():
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "gnu_get_libc_version"):
        return False
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER))
    if not all(libc.mallopt(name, value) for name, value in settings):
        return False
    libc.malloc.argtypes, libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    libc.free.argtypes = (ctypes.c_void_p,)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    # What is freed here stays in the heap, untouched. Where the system allows less, the heap still
    # keeps what it gets, in small pages.
    page = os.sysconf("SC_PAGE_SIZE")
    libc.free(libc.malloc(os.sysconf("SC_PHYS_PAGES") * page // 4 * 3))
    for start, end in _heap():
        start = -(-start // page) * page
        libc.madvise(start, end - start, _MADV_HUGEPAGE)
    return True


def _may_have_accelerators() -> bool:
    return libtpu.may_have_tpus() or bool(glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/kfd"))


def _heap() -> list[tuple[int, int]]:
    """Addresses of the process's heap."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = (line.split()[0].split("-") for line in lines if line.endswith("[heap]"))
    return [(int(start, 16), int(end, 16)) for start, end in ranges]

"""Memory that stays with a process."""

import json
import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource, sys
from emo_jax.parallel import host_memory
kept = host_memory.keep()
import numpy as np

def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

bytes_ = 64 * 2**20
np.empty(bytes_, np.uint8).fill(1)
with host_memory.nothing_kept():  # as when a checkpoint is restored
    np.empty(bytes_, np.uint8).fill(1)
before = faults()
for _ in range(4):
    np.empty(bytes_, np.uint8).fill(1)
print(json.dumps([kept, faults() - before]))
"""
GLIBC = platform.libc_ver()[0] == "glibc"


def run(**env: str) -> tuple[bool, int]:
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"} | env,
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(json.loads(out.stdout))


@pytest.mark.skipif(not GLIBC, reason="glibc's malloc")
def test_what_is_freed_is_used_again_without_page_faults():
    kept, faults = run(JAX_PLATFORMS="cpu", EMO_KEEP_MEMORY="1")
    assert kept and faults < 100
    kept, faults = run(JAX_PLATFORMS="cpu", EMO_KEEP_MEMORY="0")
    assert not kept and faults > 100  # at most a few hundred huge pages, or 65 000 small ones

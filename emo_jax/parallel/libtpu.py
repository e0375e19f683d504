"""libtpu on machines without TPUs: installed, but not used, or used to compile for others."""

import glob
import os
from pathlib import Path

# It must not look for TPUs, query a metadata server, lock out other processes, or write logs. JAX
# loads it on every machine where it is installed, and without these it prints six lines there.
WITHOUT_TPUS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any existing type
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
_GOOGLE = "0x1ae0"  # PCI vendor
_NOT_TPUS = ("0x01", "0x02")  # PCI classes of storage and network, which Google's machines have too


def silence_without_tpus() -> None:
    """Keeps libtpu quiet on a machine that has no TPU; call it before JAX is imported.

    Where there may be one, or somebody asks for one, nothing changes: errors are shown.
    """
    asked = "tpu" in os.environ.get("JAX_PLATFORMS", "") or "JAX_FORCE_TPU_INIT" in os.environ
    if not asked and not may_have_tpus():
        for name, value in WITHOUT_TPUS.items():
            os.environ.setdefault(name, value)


def may_have_tpus(root: Path = Path("/")) -> bool:
    """Whether this machine may have TPUs: a device node, or an accelerator of Google's.

    Args:
      root: of the file system; for tests.
    """
    # Of generations up to v4, and of later ones.
    if glob.glob(f"{root}/dev/accel[0-9]*") or glob.glob(f"{root}/dev/vfio/[0-9]*"):
        return True
    for vendor in root.glob("sys/bus/pci/devices/*/vendor"):
        try:
            kind = vendor.with_name("class").read_text()
            if vendor.read_text().strip() == _GOOGLE and not kind.startswith(_NOT_TPUS):
                return True
        except OSError:  # the device is gone, or hidden
            continue
    return False

"""XLA's flags in tests: programs are compiled fast rather than well."""

from importlib.metadata import version
from typing import Any

FLAGS = "--xla_backend_optimization_level=0"
# Options of a program whose rounding matters to the last bit: fused kernels as users have them.
USUAL: dict[str, Any] = {}
# The older way to make fused kernels compiles in 0.4 of the time. Later versions lack the flag,
# and XLA ends a process for one that it does not know.
if version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
    USUAL["xla_cpu_use_fusion_emitters"] = True

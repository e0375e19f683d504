"""XLA's flags in tests: programs are compiled fast rather than well."""

from importlib.metadata import version

FLAGS = "--xla_backend_optimization_level=0"
# The older way to make fused kernels compiles in 0.4 of the time. Later versions lack the flag,
# and XLA ends a process for one that it does not know.
if version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"

"""The shape used to compare training speed on a CPU; not a model to keep.

emo bench train --config experiments/bench_cpu.py
emo bench train --config experiments/bench_cpu.py:emo --against experiments/bench_cpu.py:standard

Hardware and hours: two CPU cores, minutes. Figures: docs/benchmarks.md.
"""

from ml_collections import ConfigDict

from emo_jax.config import presets


def get_config(arg: str = "emo") -> ConfigDict:
    return presets.bench_cpu(arg or "emo")

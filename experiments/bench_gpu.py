"""Four layers of the 1b14b shape, to measure the speed of one GPU; not a model to keep.

emo bench train --config experiments/bench_gpu.py:emo,tokamax

Argument: `emo` or `std` (standard mixture of experts), and `tokamax` or `ragged_dot`, the expert
kernels. Hardware: one 80 GB GPU. experiments/bench_gpu.sh runs everything that is reported, in ten
minutes.
"""

from ml_collections import ConfigDict

from emo_jax.config import presets
from emo_jax.errors import ConfigError

MODELS = {"emo": presets.emo_1b14b, "std": presets.stdmoe_1b14b}
KERNELS = ("tokamax", "ragged_dot")


def get_config(arg: str = "emo,tokamax") -> ConfigDict:
    model, _, kernels = (arg or "emo,tokamax").partition(",")
    if model not in MODELS or kernels not in KERNELS:
        raise ConfigError(
            f"config argument {arg!r}: must be one of {', '.join(MODELS)}, a comma, and one of"
            f" {', '.join(KERNELS)}"
        )
    config = MODELS[model]()
    config.name = f"bench_gpu_{model}_{kernels}"
    config.model.num_layers = 4
    # The same attention, so that only the pools are compared.
    config.model.attention = "document"
    config.moe.backend = kernels
    config.optimizer.first_moment_dtype = "bfloat16"
    config.train.batch_size = 8
    config.train.micro_batches = 1
    return config

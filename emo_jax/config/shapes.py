"""Tiny dense models, and what they are trained as when they are made into experts."""

from ml_collections import ConfigDict

from emo_jax.config.presets import emo_tiny, stdmoe_tiny
from emo_jax.errors import ConfigError

SPLITS = ("dense", "standard", "emo")


def split_tiny(arg: str = "emo") -> ConfigDict:
    """A dense seed, and what its split is trained as: 4 of 16 experts, as in LLaMA-MoE.

    - `dense`: the seed, with 1024 neurons in each layer.
    - `standard`: its split (`emo upcycle --experts 16 --top-k 4`) without pools.
    - `emo`: the same with pools of 4 to 16 experts.

    A token uses as many neurons of the split as in `emo_tiny`.
    """
    if arg not in SPLITS:
        raise ConfigError(f"config argument {arg!r}: must be one of {', '.join(SPLITS)}")
    config = emo_tiny() if arg == "emo" else stdmoe_tiny()
    config.name = f"split_tiny_{arg}"
    if arg == "dense":
        config.moe = None
        config.model.mlp_dim = 1024
        return config
    config.moe.update(
        {
            "num_experts": 16,
            "top_k": 4,
            "expert_dim": 64,
            "num_shared_experts": 0,
            "normalize_picks": True,
        }
    )
    if arg == "emo":
        config.moe.pool.update({"min_size": 4, "max_size": 16, "eval_size": 8})
        config.init.expected_changes = ("moe.pool",)
    return config

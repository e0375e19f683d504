"""Models that EMO is compared with, at the size of `presets.modularity_tiny` (docs/baselines.md).

Each has that model's width, layers, data, steps and active parameters a token, about 3.7 M tokens.
"""

from ml_collections import ConfigDict

from emo_jax.config.presets import modularity_tiny
from emo_jax.errors import ConfigError

LABEL_KINDS = ("table", "learned", "soft")
LOSS_FREE = ("sign", "quantile")
SPLITS = ("dense", "standard", "emo")
_SHARE = 16  # experts of a label: a quarter of modularity_tiny's


def _standard(name: str) -> ConfigDict:
    config = modularity_tiny("standard")
    config.name = name
    return config


def _choice(arg: str, allowed: tuple[str, ...]) -> str:
    if arg not in allowed:
        raise ConfigError(f"config argument {arg!r}: must be one of {', '.join(allowed)}")
    return arg


def switch_tiny() -> ConfigDict:
    """Switch (arXiv 2101.03961): top-1 of 16 experts as wide as four of EMO's, none shared."""
    config = _standard("switch_tiny")
    config.moe.update(
        {
            "num_experts": 16,
            "top_k": 1,
            "num_shared_experts": 0,
            "expert_dim": 256,
            "capacity_factor": 1.25,
            "input_jitter": 0.01,
            # 0.01 in each layer, as in the paper: ours is divided by the number of layers.
            "load_balance_weight": 0.01 * config.model.num_layers,
            "router_z_weight": 0.0,
        }
    )
    config.train.eval_keep = (8, 4, 2)
    return config


def mixtral_tiny() -> ConfigDict:
    """Mixtral's (arXiv 2401.04088): top-2 of 8, weights that sum to 1, none shared, GQA.

    Experts are as wide as two of EMO's, so that a token uses as much; all of them have a quarter of
    the parameters of EMO's.
    """
    config = _standard("mixtral_tiny")
    config.model.num_kv_heads = 2  # of 4 heads of queries
    config.moe.update(
        {
            "num_experts": 8,
            "top_k": 2,
            "num_shared_experts": 0,
            "expert_dim": 128,
            "normalize_picks": True,
            "router_z_weight": 0.0,
        }
    )
    config.train.eval_keep = (4, 2)
    return config


def labels_tiny(arg: str = "table") -> ConfigDict:
    """Pools given by the domains of documents, of a quarter of the experts.

    Args:
      arg: `table`: each domain has its own; `learned`: those that the router has favoured there so
        far; `soft`: a domain's experts get a larger logit, and all can be used.
    """
    kind = _choice(arg, LABEL_KINDS)
    config = _standard(f"labels_tiny_{kind}")
    config.moe.pool.update({"kind": f"label_{'bias' if kind == 'soft' else kind}", "size": _SHARE})
    if kind == "learned":
        config.moe.pool.label_rate = 0.02
    elif kind == "soft":
        config.moe.pool.label_bias = 2.0
    return config


def lossfree_tiny(arg: str = "sign") -> ConfigDict:
    """The standard model balanced by a bias on sigmoid scores instead of a loss.

    Args:
      arg: `sign` (DeepSeek-V3, arXiv 2412.19437) or `quantile` (Kimi K3's quantile balancing).
    """
    rule = _choice(arg, LOSS_FREE)
    config = _standard(f"lossfree_tiny_{rule}")
    config.moe.update(
        {
            "gate": "sigmoid",
            "normalize_picks": True,
            "score_bias": rule,
            "load_balance_weight": 0.0,
        }
    )
    if rule == "sign":
        # Ten times the paper's, for a run of a thousandth of its steps.
        config.moe.bias_rate = 0.01
    return config


def split_tiny(arg: str = "emo") -> ConfigDict:
    """A dense seed, and what its split is trained as: 4 of 16 experts, as in LLaMA-MoE.

    Args:
      arg: `dense`: the seed, with 1024 neurons in each layer; `standard`: its split (`emo upcycle
        --experts 16 --top-k 4`) without pools; `emo`: the same with pools of 4 to 16 experts.
    """
    part = _choice(arg, SPLITS)
    config = modularity_tiny("emo" if part == "emo" else "standard")
    config.name = f"split_tiny_{part}"
    if part == "dense":
        config.moe = None
        config.model.mlp_dim = 1024
        config.train.eval_keep = ()
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
    config.train.eval_keep = (8, 4)
    if part == "emo":
        config.moe.pool.update({"min_size": 4, "max_size": 16, "eval_size": 8})
        config.init.expected_changes = ("moe.pool",)
    return config

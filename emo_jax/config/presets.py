"""Named shapes and recipes as `ConfigDict`s; experiment files and commands call these.

Sources: SPEC 1.1 (shapes), SPEC 4 (optimiser, schedule, batch). The tiny models keep the big one's
proportions: 64 experts, one of them shared, so that keeping 8 experts is 12.5 %.
"""

import math
from typing import NamedTuple

from ml_collections import ConfigDict

from emo_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    ModelConfig,
    MoeConfig,
    OptimizerConfig,
    PoolConfig,
    TrainConfig,
    from_config_dict,
    to_dict,
)
from emo_jax.config.extended import extended_config
from emo_jax.errors import ConfigError

TOKENS_130B = 130_000_000_000
TOKENS_1T = 1_000_000_000_000
TOKENS_ANNEAL = 50_000_000_000


def as_config_dict(config: Config) -> ConfigDict:
    """All fields of a config, so that any of them can be overridden on the command line."""
    return ConfigDict(to_dict(config), convert_dict=True)


def steps_of(num_tokens: int, batch_size: int, seq_len: int) -> int:
    """Steps of batches of `batch_size` windows until `num_tokens` have been seen."""
    return math.ceil(num_tokens / (batch_size * seq_len))


class _Length(NamedTuple):
    num_tokens: int
    keep_every: int  # steps between permanent checkpoints
    eval_every: int


def _length(arg: str) -> _Length:
    """What the argument of a 1b14b file determines (SPEC 4)."""
    lengths = {"130b": _Length(TOKENS_130B, 5000, 250), "1t": _Length(TOKENS_1T, 20_000, 2500)}
    if arg not in lengths:
        raise ConfigError(f"config argument {arg!r}: must be one of {', '.join(lengths)}")
    return lengths[arg]


def _model_1b(**changes) -> ModelConfig:
    """The 1b family: width 2048, 16 layers, the dolma2 tokenizer's vocabulary."""
    return ModelConfig(
        vocab_size=100_278,
        num_layers=16,
        embed_dim=2048,
        num_heads=16,
        head_dim=128,
        remat="full",
        **changes,
    )


def _run_1b(
    name: str,
    *,
    model: ModelConfig,
    moe: MoeConfig | None,
    length: _Length,
    eos_starts_next_pool: bool = False,
    weight_decay: float = 0.1,
    skip_window: int = 0,
) -> ConfigDict:
    batch_size, seq_len = 1024, 4096
    return as_config_dict(
        Config(
            name=name,
            model=model,
            moe=moe,
            data=DataConfig(seq_len=seq_len, eos_starts_next_pool=eos_starts_next_pool),
            optimizer=OptimizerConfig(weight_decay=weight_decay, skip_window=skip_window),
            train=TrainConfig(
                steps=steps_of(length.num_tokens, batch_size, seq_len),
                batch_size=batch_size,
                micro_batches=2,
                eval_every=length.eval_every,
            ),
            checkpoint=CheckpointConfig(save_every=100, keep_every=length.keep_every),
        )
    )


def emo_1b14b(arg: str = "130b") -> ConfigDict:
    """EMO 1b14b: 127 routed and 1 shared expert, pools of 8..128; arg: `130b` or `1t` tokens."""
    pool = PoolConfig(kind="uniform", min_size=8, max_size=128, eval_size=32)
    return _run_1b(
        f"emo_1b14b_{arg}",
        model=_model_1b(attention="document"),
        moe=MoeConfig(num_experts=128, top_k=8, expert_dim=1024, pool=pool),
        length=_length(arg),
        eos_starts_next_pool=True,
    )


def stdmoe_1b14b(arg: str = "130b") -> ConfigDict:
    """Standard MoE of the same shape; attention crosses documents, as in the reference."""
    return _run_1b(
        f"stdmoe_1b14b_{arg}",
        model=_model_1b(attention="window"),
        moe=MoeConfig(num_experts=128, top_k=8, expert_dim=1024),
        length=_length(arg),
        eos_starts_next_pool=True,
    )


def stdmoe_1b4b() -> ConfigDict:
    """Standard MoE with 32 experts: the paper's memory-matched baseline."""
    return _run_1b(
        "stdmoe_1b4b",
        model=_model_1b(attention="window"),
        moe=MoeConfig(num_experts=32, top_k=8, expert_dim=1024),
        length=_length("130b"),
        eos_starts_next_pool=True,
    )


def dense_1b() -> ConfigDict:
    """Dense 1b: SwiGLU of hidden size 8192, weight decay 0.033, skips spikes (SPEC 4, right)."""
    return _run_1b(
        "dense_1b",
        model=_model_1b(attention="window", mlp_dim=8192),
        moe=None,
        length=_length("130b"),
        weight_decay=0.033,
        skip_window=128,
    )


def _tiny(name: str, pool: PoolConfig) -> ConfigDict:
    """A tiny model: 64 experts, one of them shared, top-k 4, float32, sized for two CPU cores."""
    return as_config_dict(
        Config(
            name=name,
            model=ModelConfig(
                vocab_size=2048,
                num_layers=3,
                embed_dim=128,
                num_heads=4,
                head_dim=32,
                compute_dtype="float32",
            ),
            moe=MoeConfig(num_experts=64, top_k=4, expert_dim=64, pool=pool),
            data=DataConfig(seq_len=256),
            optimizer=OptimizerConfig(peak_lr=4e-3, warmup_steps=40),
            train=TrainConfig(steps=200, batch_size=32, loss_chunk=256, eval_every=100),
            checkpoint=CheckpointConfig(save_every=100),
        )
    )


def emo_tiny() -> ConfigDict:
    """EMO in minutes on a laptop: pools of 4..64 routed experts, 16 for evaluation."""
    return _tiny("emo_tiny", PoolConfig(kind="uniform", min_size=4, max_size=64, eval_size=16))


def stdmoe_tiny() -> ConfigDict:
    """The standard-MoE twin of `emo_tiny`: same shape, data and attention, no pool."""
    return _tiny("stdmoe_tiny", PoolConfig())


# Routed experts in a pool, and experts of the memory-matched model: a quarter (SPEC 12, table 2).
_QUARTER = 16
ABLATIONS = (
    "emo",
    "standard",
    "matched",
    "fixed-pool",
    "no-shared",
    "local-balance",
    "window-attention",
    "standard-window",
)


def ablation_tiny(arg: str = "emo") -> ConfigDict:
    """`emo_tiny`, and variants that each change one thing.

    - `standard`: no pools.
    - `matched`: no pools, and as many experts as keeping 25 % would leave.
    - `fixed-pool`: every pool has 16 routed experts.
    - `no-shared`: 64 routed experts.
    - `local-balance`: load balance computed separately in four micro-batches.
    - `window-attention`: attention across documents; `standard-window`: the same without pools, as
      the reference's standard models were trained.
    """
    if arg not in ABLATIONS:
        raise ConfigError(f"config argument {arg!r}: must be one of {', '.join(ABLATIONS)}")
    pools = arg not in ("standard", "matched", "standard-window")
    config = emo_tiny() if pools else stdmoe_tiny()
    config.name = f"ablation_tiny_{arg}"
    if arg == "matched":
        config.moe.num_experts = _QUARTER
    elif arg == "fixed-pool":
        config.moe.pool.update({"kind": "fixed", "size": _QUARTER, "min_size": 0, "max_size": 0})
    elif arg == "no-shared":
        config.moe.num_shared_experts = 0
    elif arg == "local-balance":
        config.train.micro_batches = 4
    elif arg in ("window-attention", "standard-window"):
        config.model.attention = "window"
    return config


def modularity_tiny(arg: str = "emo") -> ConfigDict:
    """`ablation_tiny` at the size of docs/results.md: 3.7 M tokens in windows of 512."""
    config = ablation_tiny(arg)
    config.name = f"modularity_tiny_{arg}"
    config.model.vocab_size = 4096
    config.data.seq_len = 512
    config.optimizer.warmup_steps = 60
    config.train.update({"steps": 450, "batch_size": 16, "eval_every": 150, "eval_windows": 128})
    if arg != "matched":
        config.train.eval_keep = (32, 16, 8)
    config.checkpoint.update({"save_every": 100, "keep_last": 1})
    return config


def extension_tiny(arg: str = "8") -> ConfigDict:
    """Training only the new experts of an `emo_tiny`: arg is how many (SPEC 10).

    The learning rate, its warm-up over a tenth of the steps, and the absence of weight decay follow
    the reference.
    """
    return _extension(emo_tiny(), arg, steps=100, name="extension_tiny")


def extension_1b14b(arg: str = "16") -> ConfigDict:
    """Training only the new experts of an `emo_1b14b` on 10 B tokens: arg is how many."""
    return _extension(emo_1b14b(), arg, steps=2385, name="extension_1b14b")


def _extension(config: ConfigDict, arg: str, *, steps: int, name: str) -> ConfigDict:
    try:
        add = int(arg)
    except ValueError:
        add = 0
    if add < 1:
        raise ConfigError(f"config argument {arg!r}: must be how many experts were added")
    config = as_config_dict(extended_config(from_config_dict(config), add))
    config.name = f"{name}_{add}"
    config.optimizer.update(
        {
            "peak_lr": 4e-4,
            "warmup_steps": steps // 10,
            "weight_decay": 0.0,
            "frozen": ("embeddings", "attention", "norms", "shared", "old_experts"),
        }
    )
    config.train.steps = steps
    config.init.expected_changes = ("moe.pool",)  # not every layout stores the pools
    return config


# --- anneals -------------------------------------------------------------------------------------


def _anneal(
    arg: str, emo: ConfigDict, std: ConfigDict, *, decay_steps: int, name: str
) -> ConfigDict:
    """Continues training a run's last state to a learning rate of 0 (SPEC 4, 13.16): `--init all`.

    The peak is the learning rate at which the run ended. `std_to_emo` switches a standard mixture
    of experts to pools, and with them to attention within documents.
    """
    bases = {"emo": emo, "std": std, "std_to_emo": std}
    if arg not in bases:
        raise ConfigError(f"config argument {arg!r}: must be one of {', '.join(bases)}")
    config = bases[arg].copy_and_resolve_references()
    config.name = f"{name}_{arg}"
    expected = ["train.steps"]
    config.train.steps += decay_steps
    optimizer = {
        "schedule": "wsd",
        "peak_lr": config.optimizer.peak_lr * config.optimizer.final_lr_fraction,
        "final_lr_fraction": 0.0,
        "decay_steps": decay_steps,
    }
    config.optimizer.update(optimizer)
    expected += [f"optimizer.{field}" for field in optimizer]
    if arg == "std_to_emo":
        config.moe.pool = emo.moe.pool
        config.model.attention = emo.model.attention
        expected += ["moe.pool", "model.attention"]
    config.init.expected_changes = tuple(expected)
    return config


def anneal_1b14b(arg: str = "emo") -> ConfigDict:
    """50 B tokens after a 1 T run: steps 238 420 to 250 339, from 4e-4 to 0."""
    emo, std = emo_1b14b("1t"), stdmoe_1b14b("1t")
    # The number of steps is rounded down, whereas that of a run is rounded up (SPEC 4).
    decay_steps = TOKENS_ANNEAL // (emo.train.batch_size * emo.data.seq_len)
    return _anneal(arg, emo, std, decay_steps=decay_steps, name="anneal_1b14b")


def anneal_tiny(arg: str = "emo") -> ConfigDict:
    """60 steps after the 200 of `emo_tiny` or `stdmoe_tiny`."""
    return _anneal(arg, emo_tiny(), stdmoe_tiny(), decay_steps=60, name="anneal_tiny")


def bench_cpu(arg: str = "emo") -> ConfigDict:
    """The shape used to compare `emo bench train`: arg `emo`, or `standard` without pools."""
    pools = {
        "emo": PoolConfig(kind="uniform", min_size=4, max_size=32),
        "standard": PoolConfig(),
    }
    if arg not in pools:
        raise ConfigError(f"config argument {arg!r}: must be one of {', '.join(pools)}")
    return as_config_dict(
        Config(
            name=f"bench_cpu_{arg}",
            model=ModelConfig(
                vocab_size=8192,
                num_layers=4,
                embed_dim=256,
                num_heads=4,
                head_dim=64,
                compute_dtype="float32",
            ),
            moe=MoeConfig(num_experts=33, top_k=5, expert_dim=128, pool=pools[arg]),
            data=DataConfig(seq_len=512),
            optimizer=OptimizerConfig(peak_lr=1e-3, warmup_steps=0),
            train=TrainConfig(steps=1000, batch_size=16, loss_chunk=64),
        )
    )

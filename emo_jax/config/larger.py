"""Shapes beyond the reference's 14 B, planned ahead of time and trained by nobody yet.

They keep what makes EMO: one shared expert, pools from a sixteenth of the experts on, a quarter of
them in evaluations. Width, depth and experts follow published fine-grained models, whose experts
are about a quarter of the width: Qwen3-30B-A3B (2048 wide, 48 layers, 128 experts of 768, 8 used;
arXiv 2505.09388), GLM-4.5-Air (4096, 46, 128 + 1 of 1408, 8 + 1; arXiv 2508.06471) and, for the
largest, Kimi K2 (7168, 61, 384 + 1 of 2048, 8 + 1; arXiv 2507.20534). docs/larger.md has what they
take.
"""

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
)
from emo_jax.config.presets import as_config_dict, steps_of

_SEQ_LEN = 4096


def _larger(
    name: str,
    *,
    width: int,
    layers: int,
    moe: MoeConfig,
    batch_size: int,
    num_tokens: int,
) -> ConfigDict:
    # The 1b14b's peak, falling with the width, as Adam's best one does (arXiv 2203.03466).
    peak_lr = 4e-3 * 2048 / width
    return as_config_dict(
        Config(
            name=name,
            model=ModelConfig(
                vocab_size=100_278,
                num_layers=layers,
                embed_dim=width,
                num_heads=width // 128,
                head_dim=128,
                remat="full",
                attention="document",
            ),
            moe=moe,
            data=DataConfig(seq_len=_SEQ_LEN, eos_starts_next_pool=True),
            optimizer=OptimizerConfig(peak_lr=peak_lr, first_moment_dtype="bfloat16"),
            train=TrainConfig(
                steps=steps_of(num_tokens, batch_size, _SEQ_LEN),
                batch_size=batch_size,
                eval_every=1000,
            ),
            checkpoint=CheckpointConfig(save_every=250, keep_every=10_000),
        )
    )


def emo_64b() -> ConfigDict:
    """63.5 B parameters, 3.9 B active: 34 layers, 255 routed experts and 1 shared, 7 + 1 used."""
    pool = PoolConfig(kind="uniform", min_size=16, max_size=256, eval_size=64)
    return _larger(
        "emo_64b",
        width=3072,
        layers=34,
        moe=MoeConfig(num_experts=256, top_k=8, expert_dim=768, pool=pool),
        batch_size=2048,
        num_tokens=2_000_000_000_000,
    )


def emo_1t() -> ConfigDict:
    """1.03 T parameters, 36 B active: 70 layers, 383 routed experts and 1 shared, 8 + 1 used."""
    pool = PoolConfig(kind="uniform", min_size=24, max_size=384, eval_size=96)
    return _larger(
        "emo_1t",
        width=6144,
        layers=70,
        # A width that 2048 devices divide: weights are cut along it.
        moe=MoeConfig(num_experts=384, top_k=9, expert_dim=2048, pool=pool),
        batch_size=4096,
        num_tokens=10_000_000_000_000,
    )

"""A very small model and batches for it, shared by tests."""

import dataclasses

import numpy as np

from emo_jax.batch import Batch, from_documents
from emo_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    MoeConfig,
    OptimizerConfig,
    PoolConfig,
    TrainConfig,
)

UNIFORM = PoolConfig(kind="uniform", min_size=2, max_size=7, eval_size=3)
NO_POOL = PoolConfig()


def tiny_config(
    *,
    pool: PoolConfig = UNIFORM,
    num_experts: int = 8,
    num_shared_experts: int = 1,
    batch_size: int = 8,
    micro_batches: int = 1,
    load_balance_weight: float = 0.1,
    **model,
) -> Config:
    shape = dict(
        vocab_size=50,
        vocab_multiple=64,
        num_layers=2,
        embed_dim=16,
        num_heads=2,
        head_dim=8,
        init_std=0.2,  # router logits far enough apart that rounding swaps no expert
        compute_dtype="float32",
    )
    return Config(
        name="tiny",
        model=ModelConfig(**(shape | model)),
        moe=MoeConfig(
            num_experts=num_experts,
            top_k=2 + num_shared_experts,
            expert_dim=8,
            num_shared_experts=num_shared_experts,
            pool=pool,
            load_balance_weight=load_balance_weight,
        ),
        data=DataConfig(seq_len=32),
        optimizer=OptimizerConfig(warmup_steps=2, peak_lr=1e-2),
        train=TrainConfig(
            steps=10, batch_size=batch_size, micro_batches=micro_batches, loss_chunk=8
        ),
    )


def dense_config() -> Config:
    config = tiny_config()
    model = dataclasses.replace(config.model, mlp_dim=24)
    return dataclasses.replace(config, model=model, moe=None)


def tiny_batch(config: Config, *, seed: int = 0, rows: int | None = None) -> Batch:
    """Windows of several documents; the last window ends in padding."""
    rng = np.random.default_rng(seed)
    B, S = rows or config.train.batch_size, config.data.seq_len
    tokens = rng.integers(0, config.model.vocab_size, (B, S))
    starts = rng.random((B, S)) < 0.15
    segment_ids = np.cumsum(starts, axis=1) - starts[:, :1]
    segment_ids[-1, -5:] = -1
    return from_documents(tokens, segment_ids)

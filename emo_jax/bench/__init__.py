"""How fast a train step is, where its time goes, and how much memory it takes (`emo bench`)."""

from emo_jax.bench.timing import (
    ROUNDS_FOR_95,
    Interval,
    Timing,
    bench_train,
    made_up_batch,
    median_interval,
    slowdown,
)

__all__ = [
    "ROUNDS_FOR_95",
    "Interval",
    "Timing",
    "bench_train",
    "made_up_batch",
    "median_interval",
    "slowdown",
]

"""How fast the train step is, on made-up documents: tokens a second, and two configs in pairs.

The whole step is timed, as a run makes it: pools, forward, backward, optimizer. Data loading is
not: batches are made before. Several configs take turns, so that a noisy machine hurts all alike.
"""

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from emo_jax.batch import Batch, from_documents
from emo_jax.config import Config
from emo_jax.model.transformer import ModelFunctions
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.train import flops
from emo_jax.train.optimizer import make_optimizer
from emo_jax.train.state import init_state
from emo_jax.train.step import jit_train_step

DOCUMENTS_A_WINDOW = 4  # mean; with the lengths of real text the exact figure changes little
NUM_BATCHES = 4
ROUNDS_FOR_95 = 6  # fewer pairs give no interval that holds the median with 95 %


class Interval(NamedTuple):
    """A median, and bounds that hold the true one with a probability of `confidence`."""

    median: float
    low: float
    high: float
    confidence: float


@dataclass
class Timing:
    """What one config took."""

    config: Config
    first_step_seconds: float  # compiling, or reading what was kept of an earlier run
    step_seconds: list[float]  # one for each round: the median of its steps

    @property
    def tokens_per_second(self) -> list[float]:
        """Of each round."""
        tokens = self.config.train.batch_size * self.config.data.seq_len
        return [tokens / s for s in self.step_seconds]

    def as_json(self) -> dict[str, Any]:
        """Figures with their units in their names."""
        speed = self.tokens_per_second
        median = statistics.median(speed)
        return {
            "config": self.config.name,
            "tokens_per_second_median": median,
            "tokens_per_second_rounds": speed,
            "first_step_seconds": self.first_step_seconds,
            "mfu": flops.mfu(self.config, median, jax.devices()),
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "jax": jax.__version__,
            "python": platform.python_version(),
        }


def made_up_batch(config: Config, seed: int) -> Batch:
    """Random ids in documents of random length, (B,S) NumPy."""
    rng = np.random.default_rng(seed)
    shape = (config.train.batch_size, config.data.seq_len)
    starts = rng.random(shape) < DOCUMENTS_A_WINDOW / config.data.seq_len
    starts[:, 0] = False
    return from_documents(
        rng.integers(0, config.model.vocab_size, shape), np.cumsum(starts, axis=1)
    )


class _Runner:
    """One config's compiled step and its state."""

    def __init__(self, config: Config):
        mesh = mesh_lib.make_mesh(config.mesh)
        mesh_lib.check_batch(mesh, config.train.batch_size // config.train.micro_batches)
        model, optimizer = ModelFunctions(config, mesh), make_optimizer(config)
        self.config = config
        self._step = jit_train_step(config, model, optimizer)
        self._state = init_state(model, optimizer, config.seed)
        where = mesh_lib.windows_sharding(mesh)
        self._batches = [
            jax.device_put(made_up_batch(config, seed), where) for seed in range(NUM_BATCHES)
        ]
        self._done = 0

    def seconds(self) -> float:
        """Of one step, from its call to its last result."""
        batch = self._batches[self._done % NUM_BATCHES]
        self._done += 1
        start = time.perf_counter()
        self._state, metrics = self._step(self._state, batch)
        jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - start


def bench_train(
    configs: list[Config],
    *,
    rounds: int,
    steps: int,
    warmup: int = 2,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Timing]:
    """Times the train steps of some configs in turns.

    Args:
      configs: all of them must fit into memory together.
      rounds: how often each has its turn; every second round goes the other way round.
      steps: steps of a turn; their median counts.
      warmup: steps before the first round, the compiling one not counted.
    """
    runners, timings = [], []
    for config in configs:
        progress(f"{config.name}: compiling")
        runner = _Runner(config)
        first_step_seconds = runner.seconds()
        for _ in range(warmup):
            runner.seconds()
        runners.append(runner)
        timings.append(Timing(config, first_step_seconds, []))
    for i in range(rounds):
        turns = list(zip(runners, timings, strict=True))
        for runner, timing in turns if i % 2 == 0 else reversed(turns):
            timing.step_seconds.append(statistics.median(runner.seconds() for _ in range(steps)))
            progress(
                f"round {i + 1} of {rounds}: {timing.config.name}"
                f" {timing.tokens_per_second[-1]:,.0f} tokens/s"
            )
    return timings


def slowdown(ours: Timing, theirs: Timing) -> Interval:
    """How much more time `ours` takes for a token than `theirs`: +0.02 is 2 % more.

    The median over the pairs of rounds, with its distribution-free interval. Steps may be of
    different sizes.
    """
    pairs = zip(ours.tokens_per_second, theirs.tokens_per_second, strict=True)
    return median_interval([b / a - 1.0 for a, b in pairs])


def median_interval(values: list[float]) -> Interval:
    """The median and an interval of order statistics that holds it with at least 95 %.

    Each value lies below the true median with probability 1/2, whatever the distribution. Of fewer
    than six values no such interval exists: then it is the whole range, with what that holds.
    """
    from scipy.stats import binom

    ordered, n = sorted(values), len(values)
    below = int(binom.ppf(0.025, n, 0.5))
    first = max(below - 1, 0)
    confidence = 1.0 - 2.0 * float(binom.cdf(first, n, 0.5))
    return Interval(statistics.median(ordered), ordered[first], ordered[n - 1 - first], confidence)

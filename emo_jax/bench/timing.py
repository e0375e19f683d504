"""Speed of the train step on made-up documents: tokens per second, and two configs in pairs.

The whole step is timed as in a run: pools, forward, backward, optimizer. Data loading is not, as
batches are made beforehand. Several configs take turns, so that noise affects all of them alike.
"""

import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from emo_jax.batch import Batch, from_documents
from emo_jax.bench import memory
from emo_jax.bench.breakdown import Breakdown, read_profile
from emo_jax.config import Config
from emo_jax.errors import EmoError
from emo_jax.model.functions import ModelFunctions
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.training import flops
from emo_jax.training.optimizer import make_optimizer
from emo_jax.training.state import abstract_state, init_state
from emo_jax.training.step import jit_train_step

_LOG = logging.getLogger(__name__)
DOCUMENTS_A_WINDOW = 4  # mean; at the lengths of real text, the exact figure matters little
NUM_BATCHES = 4
ROUNDS_FOR_95 = 6  # fewer pairs give no interval that contains the median with 95 %


class Interval(NamedTuple):
    """A median, and bounds that contain the true one with probability `confidence`."""

    median: float
    low: float
    high: float
    confidence: float


@dataclass
class Timing:
    """Measurements of one config."""

    config: Config
    first_step_seconds: float  # includes compiling, or reading the compilation cache
    step_seconds: list[float] = field(default_factory=list)  # per round, the median of its steps
    state: memory.StateBytes | None = None
    planned_bytes: int | None = None  # for a step on one device, by the compiler
    breakdown: Breakdown | None = None

    @property
    def tokens_per_second(self) -> list[float]:
        """Tokens per second in each round."""
        tokens = self.config.train.batch_size * self.config.data.seq_len
        return [tokens / s for s in self.step_seconds]

    @property
    def mfu(self) -> float | None:
        """MFU of the median round, by SPEC 1.5; None if the device's peak is unknown."""
        median = statistics.median(self.tokens_per_second)
        return flops.mfu(self.config, median, jax.devices())

    def as_json(self) -> dict[str, Any]:
        """The figures, with units in their names."""
        speed = self.tokens_per_second
        return {
            "config": self.config.name,
            "tokens_per_second_median": statistics.median(speed),
            "tokens_per_second_rounds": speed,
            "first_step_seconds": self.first_step_seconds,
            "mfu": self.mfu,
            "flops_per_token": flops.flops_per_token(self.config),
            "state_bytes": None if self.state is None else self.state._asdict(),
            "planned_bytes": self.planned_bytes,
            "breakdown": None if self.breakdown is None else self.breakdown.as_json(),
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "jax": jax.__version__,
            "python": platform.python_version(),
        }


def made_up_batch(config: Config, seed: int) -> Batch:
    """A NumPy batch (B,S) of random ids in documents of random length."""
    rng = np.random.default_rng(seed)
    shape = (config.train.batch_size, config.data.seq_len)
    starts = rng.random(shape) < DOCUMENTS_A_WINDOW / config.data.seq_len
    starts[:, 0] = False
    return from_documents(
        rng.integers(0, config.model.vocab_size, shape), np.cumsum(starts, axis=1)
    )


class Runner:
    """One config's compiled step and its state."""

    def __init__(self, config: Config, memory_bytes: int | None = None):
        mesh = mesh_lib.make_mesh(config.mesh)
        mesh_lib.check_batch(
            mesh, config.train.batch_size // config.train.micro_batches, config.data.seq_len
        )
        model = ModelFunctions(config, mesh)
        optimizer = make_optimizer(config, model.param_shardings())
        self.config = config
        self._batches = batches(config, mesh)
        self._done = 0
        start = time.perf_counter()
        step = jit_train_step(config, model, optimizer)
        lowered = step.lower(abstract_state(model, optimizer), self._batches[0])  # type: ignore[attr-defined]
        self.compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - start
        self.planned_bytes = memory.planned_bytes(self.compiled)
        memory.refuse_too_large(self.planned_bytes, memory_bytes)
        self._state = init_state(model, optimizer, config.seed)
        self.state_bytes = memory.state_bytes(self._state)

    def seconds(self) -> float:
        """Time of one step, from the call to its last result."""
        batch = self._batches[self._done % NUM_BATCHES]
        self._done += 1
        start = time.perf_counter()
        self._state, metrics = self.compiled(self._state, batch)
        jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - start

    def profiled(self, folder: Path, steps: int) -> Breakdown:
        """Runs some steps under the profiler, which writes its trace into the folder."""
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # Python's calls would be most of the file
        with jax.profiler.trace(str(folder), profiler_options=options):
            wall_seconds = sum(self.seconds() for _ in range(steps))
        return read_profile(folder, self.compiled.as_text(), steps, wall_seconds)


def batches(config: Config, mesh: Mesh) -> list[Batch]:
    """Made-up batches on the devices."""
    where = mesh_lib.windows_sharding(mesh)
    return [jax.device_put(made_up_batch(config, seed), where) for seed in range(NUM_BATCHES)]


def bench_train(
    configs: list[Config],
    *,
    rounds: int,
    steps: int,
    warmup: int = 2,
    profiled_steps: int = 0,
    profile: Path | None = None,
    memory_bytes: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Timing]:
    """Times the train steps of some configs in turns.

    Args:
      configs: all of them must fit into memory together.
      rounds: number of turns for each; every second round is in reverse order.
      steps: steps per turn; their median counts.
      warmup: steps before the first round, not counting the one that compiles.
      profiled_steps: steps under the profiler after the last round, for a breakdown; 0: none.
      profile: folder for the traces, with subfolders 1, 2, … for several configs; None: not kept.
      memory_bytes: limit on a step's planned memory on one device; None: all there is.
      progress: called with lines about the progress.

    Raises:
      EmoError: there is no breakdown although `profile` is given; without it this is only logged.
    """
    runners, timings = [], []
    for config in configs:
        progress(f"{config.name}: compiling")
        runner = Runner(config, memory_bytes)
        first_step_seconds = runner.compile_seconds + runner.seconds()
        for _ in range(warmup):
            runner.seconds()
        runners.append(runner)
        timings.append(
            Timing(
                config,
                first_step_seconds,
                state=runner.state_bytes,
                planned_bytes=runner.planned_bytes,
            )
        )
    for i in range(rounds):
        turns = list(zip(runners, timings, strict=True))
        for runner, timing in turns if i % 2 == 0 else reversed(turns):
            timing.step_seconds.append(statistics.median(runner.seconds() for _ in range(steps)))
            progress(
                f"round {i + 1} of {rounds}: {timing.config.name}"
                f" {timing.tokens_per_second[-1]:,.0f} tokens/s"
            )
    for i, (runner, timing) in enumerate(zip(runners, timings, strict=True)):
        if not profiled_steps:
            break
        progress(f"{timing.config.name}: {profiled_steps} steps under the profiler")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) if profile is None else profile
            try:
                timing.breakdown = runner.profiled(
                    folder if len(configs) == 1 else folder / str(i + 1), profiled_steps
                )
            except EmoError as error:
                if profile is not None:
                    raise
                _LOG.warning("no breakdown of %s: %s", timing.config.name, error)
    return timings


def slowdown(ours: Timing, theirs: Timing) -> Interval:
    """How much more time per token `ours` takes than `theirs`: +0.02 is 2 % more.

    This is the median over the pairs of rounds, with its distribution-free interval. Steps may be
    of different sizes.
    """
    pairs = zip(ours.tokens_per_second, theirs.tokens_per_second, strict=True)
    return median_interval([b / a - 1.0 for a, b in pairs])


def median_interval(values: list[float]) -> Interval:
    """The median, and an interval of order statistics that contains it with at least 95 %.

    Each value lies below the true median with probability 1/2, whatever the distribution. With
    fewer than six values no such interval exists: then it is the whole range, with its confidence.
    """
    from scipy.stats import binom

    ordered, n = sorted(values), len(values)
    below = int(binom.ppf(0.025, n, 0.5))
    first = max(below - 1, 0)
    confidence = 1.0 - 2.0 * float(binom.cdf(first, n, 0.5))
    return Interval(statistics.median(ordered), ordered[first], ordered[n - 1 - first], confidence)

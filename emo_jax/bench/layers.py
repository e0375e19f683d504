"""Time and MFU of a decoder layer alone, without the head and the optimizer.

The gradients of a model with L layers and of one with 2·L are timed in alternation; the difference
is the time of L layers, forward and backward. No optimizer state is needed, so both usually fit
where a run with L layers does.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emo_jax.batch import Batch
from emo_jax.bench.timing import NUM_BATCHES, batches
from emo_jax.config import Config
from emo_jax.errors import EmoError
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.training import flops
from emo_jax.training.step import draw_pools, loss_and_grads


class LayerTime(NamedTuple):
    """Time of one decoder layer, forward and backward, per step."""

    seconds: float  # median over the rounds
    rounds: list[float]
    flops_per_second: float  # of one device, by SPEC 1.5
    mfu: float | None  # None if the device's peak is unknown


class _Gradients:
    """The compiled gradients of a config with a given number of layers."""

    def __init__(self, config: Config, num_layers: int):
        model = dataclasses.replace(config.model, num_layers=num_layers)
        config = dataclasses.replace(config, model=model)
        mesh = mesh_lib.make_mesh(config.mesh)
        functions = ModelFunctions(config, mesh)
        shardings = functions.param_shardings()
        self._params = jax.jit(lambda: functions.init(config.seed), out_shardings=shardings)()
        self._batches = batches(config, mesh)
        self._done = 0

        def gradients(params: Params, batch: Batch) -> tuple[Params, Any]:
            rows = jnp.arange(batch.tokens.shape[0])
            pools = draw_pools(config, jnp.zeros((), jnp.int32), rows)
            return loss_and_grads(params, batch, pools, config=config, model=functions)

        everywhere = mesh_lib.replicated(mesh)
        self._run = jax.jit(gradients, out_shardings=(shardings, everywhere))

    def seconds(self) -> float:
        batch = self._batches[self._done % NUM_BATCHES]
        self._done += 1
        start = time.perf_counter()
        jax.block_until_ready(self._run(self._params, batch))
        return time.perf_counter() - start


def bench_layers(
    config: Config,
    *,
    rounds: int,
    steps: int,
    progress: Callable[[str], None] = lambda _: None,
) -> LayerTime:
    """Times L and 2·L layers in alternation, with L from the config.

    Args:
      config: config of the model.
      rounds: number of turns for each.
      steps: gradients per turn; their median counts.
      progress: called with lines about the progress.
    """
    L, first = config.model.stacked_layers, config.model.dense_layers
    both = []
    for num_layers in (L, 2 * L):
        progress(f"{config.name}: compiling the gradients of {first + num_layers} layers")
        both.append(_Gradients(config, first + num_layers))
        for _ in range(2):
            both[-1].seconds()
    found = []
    for i in range(rounds):
        order = (0, 1) if i % 2 == 0 else (1, 0)
        times = {n: statistics.median(both[n].seconds() for _ in range(steps)) for n in order}
        found.append((times[1] - times[0]) / L)
        progress(f"round {i + 1} of {rounds}: {1e3 * found[-1]:.2f} ms a layer")
    seconds = statistics.median(found)
    if seconds <= 0:
        raise EmoError(
            f"{2 * L} layers took no longer than {L}: too small, or too noisy a machine; give a"
            " larger batch or more --steps"
        )
    tokens = config.train.batch_size * config.data.seq_len
    work = flops.flops_per_token_and_layer(config) * tokens / jax.device_count()
    peak = flops.peak_flops(jax.devices()[0])
    rate = work / seconds
    return LayerTime(seconds, found, rate, None if peak is None else rate / peak)

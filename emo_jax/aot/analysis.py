"""Compiling and counting a config: everything that `emo compile` reports about it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from emo_jax.aot import hlo
from emo_jax.aot.chips import Topology
from emo_jax.aot.compiler import CompiledStep, compile_step
from emo_jax.aot.counts import Counts, count
from emo_jax.aot.peak import Peak, find_peak
from emo_jax.aot.roofline import Roofline, roofline
from emo_jax.config import Config
from emo_jax.training import flops


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The analysis of a config, for one device and one step unless stated otherwise."""

    step: CompiledStep
    counts: Counts
    roofline: Roofline
    peak: Peak
    expected_rows: float  # of a device's routed experts, if routing is balanced
    seconds: float  # spent on counting

    @property
    def fits(self) -> bool:
        """Whether the step fits the device's memory."""
        return self.step.memory.total <= self.step.topology.chip.usable_hbm

    @property
    def tokens(self) -> int:
        """Tokens per step over all chips."""
        return self.step.config.train.batch_size * self.step.config.data.seq_len

    @property
    def spec_flops(self) -> float:
        """FLOPs per device by the formula used for MFU (SPEC 1.5)."""
        per_token = flops.flops_per_token(self.step.config)
        return per_token * self.tokens / self.step.topology.num_devices

    @property
    def best_mfu(self) -> float:
        """MFU if the step took the roofline's time with everything overlapped."""
        return self.spec_flops / (self.step.topology.chip.peak_flops * self.roofline.overlapped)


def analyse(
    config: Config,
    topology: Topology,
    devices: list[Any] | None = None,
    *,
    starting: Callable[[], None] = lambda: None,
) -> Analysis:
    """Compiles the train step and counts what it does; see `compile_step`."""
    step = compile_step(config, topology, devices, starting=starting)
    started = time.perf_counter()
    program = hlo.parse(step.text)
    rows = balanced_rows(config, topology.num_devices, step.mesh_shape)
    counts = count(
        program,
        step.mesh_shape,
        expected_rows=rows,
        layer_runs=config.model.stacked_layers * config.train.micro_batches,
    )
    return Analysis(
        step=step,
        counts=counts,
        roofline=roofline(counts, topology, step.mesh),
        peak=find_peak(program),
        expected_rows=rows,
        seconds=time.perf_counter() - started,
    )


def balanced_rows(config: Config, num_devices: int, mesh_shape: dict[str, int]) -> float:
    """Rows of a device's routed experts in a micro-batch, if all experts get equally many.

    Devices of a `tensor` group compute the same tokens, each with a part of the hidden size.
    """
    if config.moe is None:
        return 0.0
    tokens = config.train.batch_size * config.data.seq_len / config.train.micro_batches
    return tokens * config.moe.dispatched_picks * mesh_shape.get("tensor", 1) / num_devices

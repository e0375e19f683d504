"""What `emo bench train` shows and writes as JSON."""

import contextlib
import shutil
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from emo_jax import bench
from emo_jax.bench import breakdown as breakdown_lib
from emo_jax.bench import largest as largest_lib
from emo_jax.bench import layers, memory
from emo_jax.bench.memory import gb
from emo_jax.config import Config


def _progress(line: str) -> None:
    click.echo(line, err=True)


def whole_step(
    configs: list[Config],
    *,
    rounds: int,
    steps: int,
    breakdown: bool,
    profile: Path | None,
    memory_bytes: int | None,
) -> dict[str, Any]:
    """Times one config, or two in alternation."""
    with _appears_whole(profile) as folder:
        timings = bench.bench_train(
            configs,
            rounds=rounds,
            steps=steps,
            profiled_steps=steps if breakdown else 0,
            profile=folder,
            memory_bytes=memory_bytes,
            progress=_progress,
        )
    for timing in timings:
        _show(timing)
    peak = memory.peak()
    of = f" of {gb(peak.limit)}" if peak.limit else ""
    whose = "the fullest device" if peak.of == "device" else "this process, compiling included"
    click.echo(f"peak memory: {gb(peak.bytes)}{of} ({whose})")
    results: dict[str, Any] = {
        "configs": [timing.as_json() for timing in timings],
        "peak_memory": {"bytes": peak.bytes, "limit_bytes": peak.limit, "of": peak.of},
    }
    if len(timings) == 2:
        slower = bench.slowdown(timings[0], timings[1])
        results["slowdown"] = slower._asdict()
        click.echo(
            f"{timings[0].config.name} takes {slower.median:+.1%} time a token against"
            f" {timings[1].config.name} (median of {rounds} pairs; {slower.low:+.1%} to"
            f" {slower.high:+.1%} with {slower.confidence:.0%} confidence)"
        )
        if rounds < bench.ROUNDS_FOR_95:
            _progress(f"--rounds {bench.ROUNDS_FOR_95} or more give 95 % confidence")
    if profile is not None:
        click.echo(f"profile: {profile} (xprof --logdir {profile}, or tensorboard)")
    return results


def _show(timing: bench.Timing) -> None:
    speed, mfu = sorted(timing.tokens_per_second), timing.mfu
    of_peak = "" if mfu is None else f"MFU {mfu:.1%}; "
    click.echo(
        f"{timing.config.name}: {statistics.median(speed):,.0f} tokens/s (median of {len(speed)}"
        f" rounds, {speed[0]:,.0f} to {speed[-1]:,.0f};"
        f" {of_peak}first step {timing.first_step_seconds:.1f} s)"
    )
    if timing.state is not None:
        state, planned = timing.state, timing.planned_bytes
        in_host = f" (and {gb(state.optimizer_in_host)} in the host)"
        click.echo(
            f"  memory of a device: parameters {gb(state.parameters)}, optimizer"
            f" {gb(state.optimizer)}{in_host if state.optimizer_in_host else ''}"
            + ("" if planned is None else f"; planned for a step, all in all, {gb(planned)}")
        )
    if timing.breakdown is not None:
        breakdown_lib.show(timing.breakdown, click.echo)


def per_layer(config: Config, *, rounds: int, steps: int) -> dict[str, Any]:
    """Times one decoder layer."""
    found = layers.bench_layers(config, rounds=rounds, steps=steps, progress=_progress)
    of_peak = "" if found.mfu is None else f", MFU {found.mfu:.1%}"
    L = config.model.stacked_layers
    click.echo(
        f"{config.name}: a decoder layer takes {1e3 * found.seconds:.2f} ms, forward and backward:"
        f" {found.flops_per_second / 1e12:.3g} TFLOP/s a device{of_peak} (gradients of {2 * L}"
        f" layers less those of {L}; median of {rounds} rounds, {1e3 * min(found.rounds):.2f} to"
        f" {1e3 * max(found.rounds):.2f} ms)"
    )
    return {"config": config.name, "layer": found._asdict()}


def largest(
    config: Config, file: str, overrides: Sequence[str], memory_bytes: int | None
) -> dict[str, Any]:
    """Finds the largest batch; only its number goes to standard output."""
    found, figures = largest_lib.largest_batch(
        config, file, overrides, memory_bytes=memory_bytes, progress=_progress
    )
    click.echo(found)
    return {"config": config.name, "largest_batch": found, "figures": figures}


@contextlib.contextmanager
def _appears_whole(folder: Path | None) -> Iterator[Path | None]:
    """Yields a temporary folder, which gets its final name when it is finished."""
    if folder is None:
        yield None
        return
    unfinished = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)

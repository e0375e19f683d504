"""emo verify, emo bench."""

import json
import statistics
from pathlib import Path

import click

from emo_jax.cli.app import Command, cli, command, refuse_unwritable
from emo_jax.errors import EmoError


@command("emo verify --json verify.json")
@click.argument("case_dir", required=False)
@click.option(
    "--json", "json_file", default=None, help="Write the errors and limits to this new file."
)
def verify(case_dir: str | None, json_file: str | None) -> None:
    """Hold this machine's numerics against golden numbers of the PyTorch reference."""
    if json_file:
        refuse_unwritable("--json", Path(json_file))  # before minutes of work
    from emo_jax.verify import verify_cases
    from emo_jax.workdir import write_atomic

    results, failed = verify_cases(Path(case_dir) if case_dir else None, show=click.echo)
    if json_file:
        write_atomic(Path(json_file), json.dumps(results, indent=2) + "\n")
    if failed:
        raise EmoError(f"{failed} quantities are beyond their limits")


@cli.group(no_args_is_help=False)
def bench() -> None:
    """Measure speed on this machine."""


@bench.command(
    "train",
    cls=Command,
    epilog="emo bench train --config experiments/bench_cpu.py",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.option("--config", required=True, help="Experiment file, with its argument after a colon.")
@click.option("--against", default=None, help="Another one, to be timed in turns with the first.")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Turns of each config.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=3, show_default=True, help="Steps of a turn."
)
@click.option("--json", "json_file", default=None, help="Write the figures to this new file.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def bench_train(
    config: str,
    against: str | None,
    rounds: int,
    steps: int,
    json_file: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Tokens a second of the whole train step, on made-up documents.

    OVERRIDES change the config, and that of --against: --config.model.num_layers=8.
    """
    from emo_jax import bench
    from emo_jax.configfile import load_config
    from emo_jax.workdir import write_atomic

    if json_file:
        refuse_unwritable("--json", Path(json_file))
    files = [config] if against is None else [config, against]
    configs = [load_config(file, overrides) for file in files]
    timings = bench.bench_train(
        configs, rounds=rounds, steps=steps, progress=lambda line: click.echo(line, err=True)
    )
    results: dict = {"configs": [timing.as_json() for timing in timings]}
    for timing in timings:
        speed = sorted(timing.tokens_per_second)
        click.echo(
            f"{timing.config.name}: {statistics.median(speed):,.0f} tokens/s (median of {rounds}"
            f" rounds, {speed[0]:,.0f} to {speed[-1]:,.0f};"
            f" first step {timing.first_step_seconds:.1f} s)"
        )
    if against is not None:
        slower = bench.slowdown(*timings)
        results["slowdown"] = slower._asdict()
        click.echo(
            f"{timings[0].config.name} takes {slower.median:+.1%} time a token against"
            f" {timings[1].config.name} (median of {rounds} pairs; {slower.low:+.1%} to"
            f" {slower.high:+.1%} with {slower.confidence:.0%} confidence)"
        )
        if rounds < bench.ROUNDS_FOR_95:
            click.echo(f"--rounds {bench.ROUNDS_FOR_95} or more give 95 % confidence", err=True)
    if json_file:
        write_atomic(Path(json_file), json.dumps(results, indent=2) + "\n")

"""emo verify, emo bench."""

from pathlib import Path

import click

import emo_jax
from emo_jax.cli.app import Command, Number, cli, command, refuse_unwritable
from emo_jax.errors import EmoError, UsageError
from emo_jax.files.json_files import dumps
from emo_jax.parallel import host_memory


@command("emo verify --json verify.json\nemo verify hf/tiny --against runs/tiny")
@click.argument("folder", required=False, metavar="[CASE_DIR|HF_DIR]")
@click.option(
    "--against",
    default=None,
    metavar="WORKDIR",
    help="The run, or WORKDIR@STEP, that the Hugging Face folder HF_DIR was exported from: every"
    " tensor, the config and the tokenizer are compared, with a line for each difference.",
)
@click.option("--json", "json_file", default=None, help="Write what was found to this new file.")
def verify(folder: str | None, against: str | None, json_file: str | None) -> None:
    """Hold this machine's numerics against golden numbers of the PyTorch reference, or a Hugging
    Face folder against the run it came from."""
    if json_file:
        refuse_unwritable("--json", Path(json_file))  # before minutes of work
    found = emo_jax.verify(folder, against=against, quiet=False)
    if json_file:
        from emo_jax.files.atomic import write_atomic

        write_atomic(Path(json_file), dumps(found.results, indent=2) + "\n")
    if not found.ok:
        raise EmoError(found.summary)


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
@click.option(
    "--breakdown/--no-breakdown",
    default=True,
    help="Where the time goes, by part of the model, from a profile of the steps of a turn.",
)
@click.option(
    "--profile",
    "profile",
    default=None,
    metavar="DIR",
    help="Keep that profile in this new folder; xprof and TensorBoard show it.",
)
@click.option(
    "--per-layer",
    is_flag=True,
    help="Instead: time and MFU of one decoder layer, without head and optimizer, as the gradients"
    " of twice the config's layers less those of its layers.",
)
@click.option(
    "--largest-batch",
    is_flag=True,
    help="Instead: print the largest batch that fits, found by doubling train.batch_size, each try"
    " in a process of its own.",
)
@click.option(
    "--memory",
    type=Number(min=0, min_open=True),
    default=None,
    metavar="GB",
    help="What a step may take on one device, instead of what there is.",
)
@click.option("--json", "json_file", default=None, help="Write the figures to this new file.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def bench_train(
    config: str,
    against: str | None,
    rounds: int,
    steps: int,
    breakdown: bool,
    profile: str | None,
    per_layer: bool,
    largest_batch: bool,
    memory: float | None,
    json_file: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Tokens a second, MFU, memory and a breakdown of the whole train step.

    Documents are made up; the data pipeline is not timed. OVERRIDES change the config, and that of
    --against: --config.model.num_layers=8.
    """
    host_memory.keep()
    instead = [
        name for name, on in (("--per-layer", per_layer), ("--largest-batch", largest_batch)) if on
    ]
    others = [name for name, on in (("--against", against), ("--profile", profile)) if on]
    if instead and len(instead + others) > 1:
        raise UsageError(f"{' and '.join(instead + others)}: give one of them")
    if profile and not breakdown:
        raise UsageError("--profile and --no-breakdown: give one of them")
    from emo_jax.bench import report
    from emo_jax.config.file import load_config
    from emo_jax.files.atomic import refuse_existing, write_atomic

    if json_file:
        refuse_unwritable("--json", Path(json_file))
    if profile:
        refuse_existing(profile)
    files = [config] if against is None else [config, against]
    configs = [load_config(file, overrides) for file in files]
    memory_bytes = None if memory is None else int(memory * 1e9)
    if largest_batch:
        results = report.largest(configs[0], config, overrides, memory_bytes)
    elif per_layer:
        results = report.per_layer(configs[0], rounds=rounds, steps=steps)
    else:
        results = report.whole_step(
            configs,
            rounds=rounds,
            steps=steps,
            breakdown=breakdown,
            profile=None if profile is None else Path(profile),
            memory_bytes=memory_bytes,
        )
    if json_file:
        write_atomic(Path(json_file), dumps(results, indent=2) + "\n")

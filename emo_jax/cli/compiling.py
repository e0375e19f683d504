"""emo compile."""

import sys
from functools import partial
from pathlib import Path

import click

from emo_jax.cli.app import command, refuse_unwritable
from emo_jax.errors import EmoError, UsageError
from emo_jax.files.json_files import dumps

_WIDTH = 200  # of a log: no line is broken


@command(
    "emo compile --config experiments/emo_tiny.py --topology v5e:2x2",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    name="compile",
)
@click.option("--config", required=True, help="Experiment file, with its argument after a colon.")
@click.option(
    "--topology",
    required=True,
    help="Chips of a slice: v5p:4x4x4, v5e:16x16, v6e:8x8, or as clouds name it: v5p-128, v5e-256.",
)
@click.option(
    "--slices", type=click.IntRange(min=1), default=1, show_default=True, help="How many of them."
)
@click.option("--json", "json_file", default=None, help="Write all figures to this new file.")
@click.option("--hlo", "hlo_file", default=None, help="Write the program to this new file.")
@click.option(
    "--search", is_flag=True, help="Try meshes, remat and micro-batches; print what fits."
)
@click.option(
    "--search-limit",
    type=click.IntRange(min=1),
    default=24,
    show_default=True,
    help="Programs that --search compiles at most.",
)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def compile_(
    config: str,
    topology: str,
    slices: int,
    json_file: str | None,
    hlo_file: str | None,
    search: bool,
    search_limit: int,
    overrides: tuple[str, ...],
) -> None:
    """Compile the train step for TPUs that are not here: memory, FLOPs, network, time at best.

    Needs no accelerator; needs the extra tpu-aot. OVERRIDES change the config, as for emo train:
    --config.mesh.expert=4.
    """
    from emo_jax.aot import compiler

    for option, file in (("--json", json_file), ("--hlo", hlo_file)):
        if file:
            refuse_unwritable(option, Path(file))
    if search and hlo_file:
        raise UsageError("--hlo is one program's: leave out --search")
    compiler.prepare_environment()
    from emo_jax.aot import chips, report
    from emo_jax.config.file import load_config

    asked = chips.parse_topology(topology, slices)
    loaded = load_config(config, overrides)
    compiler.require_libtpu()
    from emo_jax.aot import analysis
    from emo_jax.aot.search import search as run_search
    from emo_jax.files.atomic import write_atomic
    from emo_jax.files.progress import Progress

    with Progress("compile") as progress:
        if search:
            tried = run_search(
                loaded,
                asked,
                limit=search_limit,
                show=lambda line: progress.show(line, always=True),
            )
        else:
            line = f"{loaded.name} for {asked.size}; a minute or more"
            starting = partial(progress.show, line, always=True)
            try:
                found = analysis.analyse(loaded, asked, starting=starting)
            except compiler.DoesNotFitError as error:
                hint = report.what_would_fit(loaded, error, asked)
                raise EmoError(f"{loaded.name} on {asked} {error}; {hint}") from error
    if search:
        fitting = [one for one in tried if one.found is not None]
        if not fitting:
            why = tried[-1].reason if tried else "no mesh divides the model and the batch"
            raise EmoError(f"nothing fits of {len(tried)} that were tried: {why}")
        _show(report.search_table(tried))
        figures: object = report.search_json(tried)
    else:
        _show(*report.tables(found))
        figures = report.to_json(found)
        if hlo_file:
            write_atomic(Path(hlo_file), found.step.text)
    if json_file:
        write_atomic(Path(json_file), dumps(figures, indent=1) + "\n")


def _show(*parts: object) -> None:
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    for part in parts:
        console.print(part)

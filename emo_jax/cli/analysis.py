"""emo activations, emo cluster, emo explore, emo report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import emo_jax
from emo_jax.cli.app import TRUST, Number, command, refuse_unwritable
from emo_jax.errors import UsageError, listed
from emo_jax.parallel import host_memory

_SAMPLE = [
    click.option("--split", default="test", show_default=True, help="Of the store."),
    click.option(
        "--tokens",
        type=click.IntRange(min=1),
        default=200_000,
        show_default=True,
        help="To look at, evenly over the domains.",
    ),
    click.option(
        "--max-length",
        type=click.IntRange(min=1),
        default=512,
        show_default=True,
        help="Tokens of a document, the first ones.",
    ),
    click.option(
        "--min-length",
        type=click.IntRange(min=1),
        default=32,
        show_default=True,
        help="Shorter documents are left out.",
    ),
    click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the documents."
    ),
    click.option(
        "--max-domains",
        type=click.IntRange(min=1),
        default=100,
        show_default=True,
        help="By name, the largest of the store; all others are one.",
    ),
]


def _sample_options(function: Callable) -> Callable:
    for option in reversed(_SAMPLE):
        function = option(function)
    return function


def _settings(**options: Any) -> Any:
    from emo_jax.analysis.sample import SampleSettings

    return SampleSettings(**options)


@command("emo activations runs/tiny --data store --output activations/tiny")
@click.argument("model")
@click.option("--data", required=True, metavar="STORE", help="Token store.")
@click.option("--output", required=True, help="Folder to make.")
@_sample_options
def activations(model: str, data: str, output: str, **sample: Any) -> None:
    """Write what the router says of every token of a sample, for all layers.

    MODEL is a run's workdir, WORKDIR@STEP, or a Hugging Face folder. Router probabilities are
    without a pool, attention is within documents. The folder holds zarr arrays; two models with the
    same tokenizer, store and options see the same tokens.
    """
    host_memory.keep()
    found = emo_jax.activations(model, data, output, **sample, quiet=False)
    if missing := found.sample["missing"]:
        short = f"no document of {sample['min_length']} tokens was found of {listed(missing, 20)}"
        click.echo(f"emo: {short}", err=True)
    click.echo(
        f"{output}: {found.num_tokens:,} tokens of {len(found.doc_ends_D):,} documents,"
        f" {found.num_layers} layers, {found.num_routed} routed experts"
    )


@command("emo cluster activations/tiny --clusters 32")
@click.argument("folders", nargs=-1, required=True)
@click.option(
    "--clusters",
    type=click.IntRange(min=2),
    default=32,
    show_default=True,
    help="Of tokens, and of documents.",
)
@click.option(
    "--layer", type=int, default=None, help="One layer with experts, from 0; else all together."
)
@click.option("--per-layer", is_flag=True, help="Every layer by itself, too.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--output", default=None, help="Folder to make: all figures, and every row's group.")
def cluster(
    folders: tuple[str, ...],
    clusters: int,
    layer: int | None,
    per_layer: bool,
    seed: int,
    output: str | None,
) -> None:
    """Group tokens and documents by the experts they use, and say what the groups are about.

    FOLDERS are of emo activations. Of each model: how many domains the groups tell apart
    (normalised mutual information, purity), how far they are apart (silhouette), and whether they
    are words rather than topics (entropy of token types, information about them).
    """
    if layer is not None and per_layer:
        raise UsageError("--layer and --per-layer: give one of them")
    from emo_jax.analysis.cluster_table import cluster_table

    cluster_table(folders, clusters, layer=layer, per_layer=per_layer, seed=seed, output=output)


@command("emo explore runs/emo runs/standard --data store --output page.html")
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL2]")
@click.option("--data", required=True, metavar="STORE", help="Token store.")
@click.option("--output", required=True, metavar="FILE", help="Page to write.")
@_sample_options
@click.option(
    "--clusters",
    type=click.IntRange(min=2),
    default=32,
    show_default=True,
    help="Of tokens.",
)
@click.option(
    "--document-clusters",
    type=click.IntRange(min=2),
    default=None,
    help="Of documents; one for each domain, and 8 at least, if not given.",
)
@click.option(
    "--ablate",
    type=click.IntRange(min=0),
    default=4,
    show_default=True,
    help="Experts of each domain and layer that the loss is measured without.",
)
@click.option(
    "--eval-windows",
    type=click.IntRange(min=0),
    default=128,
    show_default=True,
    help="To choose experts on and to measure losses on; 0: no losses on the page.",
)
@click.option(
    "--max-mb",
    type=Number(min=1),
    default=15.0,
    show_default=True,
    help="Size of the page: layers that do not fit are left out of the documents; with one that"
    " does not fit, nothing is written.",
)
@click.option(
    "--figures", default=None, metavar="DIR", help="Also as SVG and PNG, in a new folder."
)
@TRUST
def explore(
    models: tuple[str, ...],
    data: str,
    output: str,
    clusters: int,
    document_clusters: int | None,
    ablate: int,
    eval_windows: int,
    max_mb: float,
    figures: str | None,
    trust: bool,
    **sample: Any,
) -> None:
    """Write one page that shows what each expert knows: open it in a browser, offline.

    Clusters and their topics, experts by domain, a card of every expert, documents coloured by
    expert or cluster, what is lost with fewer experts. Two models are shown side by side on the
    same documents.
    """
    host_memory.keep()
    refuse_unwritable("--output", Path(output))
    from emo_jax.explorer.explore import ExploreSettings
    from emo_jax.explorer.explore import explore as run

    settings = ExploreSettings(
        token_clusters=clusters,
        document_clusters=document_clusters or 0,
        ablate=ablate,
        eval_windows=eval_windows,
        max_bytes=int(max_mb * 1e6),
    )
    sample_settings = _settings(**sample)
    size = run(
        *(models, data, output, sample_settings, settings),
        pictures=figures,
        trust=trust,
        quiet=False,
    )
    click.echo(f"{output}: {size / 1e6:.1f} MB")


@command("emo report runs/emo")
@click.argument("workdir")
@click.option("--output", default=None, metavar="FILE", help="[default: WORKDIR/report.html]")
def report(workdir: str, output: str | None) -> None:
    """Write one page about a run: open it in a browser, offline.

    Losses, domains, fewer experts, routing, optimizer, speed, goodput, config and environment, from
    what the run has logged; it may still be training. A report that is there is made anew.
    """
    from emo_jax.report.page import write_report
    from emo_jax.report.run import read_run

    run = read_run(workdir)
    file = Path(output) if output else Path(workdir) / "report.html"
    if not file.exists():
        refuse_unwritable("--output", file)
    size = write_report(run, file)
    click.echo(f"{file}: step {run.last_step:,}, {size / 1e6:.1f} MB")

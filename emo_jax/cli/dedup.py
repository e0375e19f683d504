"""emo data dedup."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from emo_jax.cli.app import Command, Number, console, refuse_unwritable
from emo_jax.cli.inspect import data
from emo_jax.errors import BREAKS, UsageError, clipped
from emo_jax.files.json_files import dumps

if TYPE_CHECKING:
    from rich.table import Table

    from emo_jax.data.store import TokenStore
    from emo_jax.preparation.dedup import DedupReport

_DOMAINS = 40  # listed


@data.command("dedup", cls=Command, epilog="emo data dedup store --output duplicates.txt")
@click.argument("store")
@click.option(
    "--against", default=None, metavar="STORE2", help="The held-out documents of another store."
)
@click.option(
    "--near",
    type=Number(min=0, max=1),
    default=0.8,
    show_default=True,
    help="Least Jaccard similarity of the 5-grams of near duplicates; 0: exact ones only.",
)
@click.option(
    "--output", default=None, help="Write the ids of these training documents to this new file."
)
@click.option("--json", "json_file", default=None, help="Write all figures to this new file.")
def dedup(
    store: str, against: str | None, near: float, output: str | None, json_file: str | None
) -> None:
    """Training documents that are held-out ones too, exactly or nearly.

    The split train of STORE is compared with its splits select and test. emo prepare --drop-ids
    FILE leaves out the documents that --output lists.
    """
    for option, file in (("--output", output), ("--json", json_file)):
        if file:
            refuse_unwritable(option, Path(file))
    from emo_jax.data.store import TokenStore
    from emo_jax.files.atomic import whole_file, write_atomic
    from emo_jax.files.progress import Progress
    from emo_jax.preparation.dedup import DedupReport, find_duplicates

    ours = TokenStore.open(store, verify=False)
    theirs = None if against is None else TokenStore.open(against, verify=False)
    if output and not _keeps_ids(ours):
        raise UsageError(
            f"--output: {store} keeps no ids of documents; prepare it again with this emo_jax"
        )
    report, nameless = DedupReport(near), 0
    with ExitStack() as stack:
        progress = stack.enter_context(Progress("dedup"))
        lines = stack.enter_context(whole_file(Path(output))) if output else None
        for found in find_duplicates(ours, theirs, near=near, report=report, show=progress.show):
            if lines is None:
                continue
            if found.id and not BREAKS.search(found.id):
                lines.write(f"{found.id}\n")
            else:
                nameless += 1
    out = console()
    for shown in _tables(report):
        out.print(shown)
    if nameless:
        click.echo(f"dedup: {nameless:,} of these have no id that fits on a line", err=True)
    if json_file:
        write_atomic(Path(json_file), dumps(report.to_json(), ensure_ascii=False, indent=1) + "\n")


def _keeps_ids(store: "TokenStore") -> bool:
    return any(any(stream.document_ids(0, 1)) for stream in store.streams("train"))


def _tables(report: "DedupReport") -> Iterator["Table | str"]:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    if report.duplicates:
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("domain")
        for name in ("exact", f"near (≥ {report.near:g})") if report.near else ("exact",):
            table.add_column(name, justify="right")
        names = {*report.exact, *report.nearly}
        counts = {n: (report.exact.get(n, 0), report.nearly.get(n, 0)) for n in names}
        for name in sorted(names, key=lambda n: (-sum(counts[n]), n))[:_DOMAINS]:
            shown = counts[name] if report.near else counts[name][:1]
            table.add_row(escape(clipped(name)), *(f"{count:,}" for count in shown))
        yield table
        yield "the first of them:"
        table = Table(box=box.SIMPLE_HEAD)
        for name in ("document", "id", "repeats", "its id", "similarity"):
            table.add_column(
                name, justify="right" if name in ("document", "similarity") else "left"
            )
        for one in report.examples:
            similar = "equal" if one.exact else f"{one.similarity:.2f}"
            where = f"{one.split} {one.of_document:,}"
            cells = (escape(clipped(cell)) for cell in (one.id, where, one.of_id))
            table.add_row(f"{one.document:,}", *cells, similar)
        yield table
    exact, nearly = sum(report.exact.values()), sum(report.nearly.values())
    near = f" and {nearly:,} near" if report.near else ""
    speed = report.documents / max(report.seconds, 1e-9)
    yield (
        f"{exact:,} exact{near} duplicates among {report.documents:,} training documents, of"
        f" {report.held_out:,} held-out ones ({speed:,.0f} documents/s; index of"
        f" {report.held_out * report.bytes_each / 1e6:,.1f} MB)"
    )
    if report.crowded:
        yield (
            f"{report.crowded:,} documents resemble very many held-out ones, and were compared with"
            " the likeliest only"
        )

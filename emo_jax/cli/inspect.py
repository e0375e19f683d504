"""emo data show, trace, check, stats."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emo_jax.cli.app import Command, cli, console, refuse_unwritable
from emo_jax.config.names import PACKINGS, SPLIT_NAMES
from emo_jax.errors import EmoError, UsageError, escaped, listed
from emo_jax.files.json_files import dumps

if TYPE_CHECKING:
    from emo_jax.config import Config, DataConfig

_SHOWN = 40  # documents of a trace


@cli.group(no_args_is_help=False)
def data() -> None:
    """Look at tokens: what there is, what a window holds, what a run has read."""


def data_command(name: str, example: str) -> Callable:
    """Decorator: a subcommand of `emo data` that takes DATA, or `--config` with overrides."""
    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    return data.command(name, cls=Command, epilog=example, context_settings=settings)


CONFIG = click.option(
    "--config",
    "config_file",
    default=None,
    metavar="FILE",
    help="Experiment file, with its argument after a colon: the data of its runs, a mixture too.",
)
# Overrides look like options, and DATA may come before or after them.
WORDS = click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[DATA] [OVERRIDES]")
WORDS_MANY = click.argument(
    "words", nargs=-1, type=click.UNPROCESSED, metavar="[DATA…] [OVERRIDES]"
)


def split_words(words: tuple[str, ...], config_file: str | None) -> tuple[list[str], list[str]]:
    """Returns the names of data, and the overrides of a config.

    Raises:
      UsageError: an override of no config.
    """
    overrides = [word for word in words if word.startswith("-")]
    if overrides and config_file is None:
        raise UsageError(
            f"{overrides[0]}: no such option; a field of a config takes --config FILE beside it"
        )
    return [word for word in words if not word.startswith("-")], overrides


def data_of(config_file: str | None, words: tuple[str, ...]) -> "tuple[DataConfig, Config | None]":
    """Returns the data that the words of a command line name, and the config, if they name one.

    Raises:
      UsageError: no data, or two.
    """
    from emo_jax.config import DataConfig
    from emo_jax.config.file import load_config

    names, overrides = split_words(words, config_file)
    if len(names) > 1:
        raise UsageError(f"{names[1]}: only one DATA can be looked at; name it alone")
    if config_file is None:
        if not names:
            raise UsageError("no data; give a token store, token files, or --config FILE")
        return DataConfig(store=names[0]), None
    config = load_config(config_file, overrides)
    if names:
        config = replace(config, data=replace(config.data, store=names[0], sources=()))
    if not config.data.stores:
        raise UsageError(
            f"{config_file}: names no data; give DATA, or --config.data.store=STORE too"
        )
    return config.data, config


@data_command("show", "emo data show store --window 17 --seq-len 512 --text")
@click.option("--window", type=click.IntRange(min=0), required=True, help="Its number, from 0.")
@CONFIG
@click.option("--seq-len", type=click.IntRange(min=2), default=None, help="Tokens of a window.")
@click.option("--packing", type=click.Choice(PACKINGS), default=None, help="See data.packing.")
@click.option("--split", type=click.Choice(SPLIT_NAMES), default="train", show_default=True)
@click.option("--text", is_flag=True, help="All of the text, document after document.")
@WORDS
def show(
    window: int,
    config_file: str | None,
    seq_len: int | None,
    packing: str | None,
    split: str,
    text: bool,
    words: tuple[str, ...],
) -> None:
    """A window with its documents, segments, pools and loss, decoded.

    DATA is a token store or token files, whose windows are numbered as they lie there. With
    --config, windows are numbered in the order in which a run reads them.
    """
    from emo_jax.data.sources import open_data
    from emo_jax.data.window_view import view_window

    data_config, config = data_of(config_file, words)
    given = {"seq_len": seq_len, "packing": packing}
    changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    data_config = replace(data_config, **changed)
    source = open_data(data_config)
    if config is None:
        from emo_jax.data.windows import open_windows

        windows, number = open_windows(data_config, split=split, source=source), window
        if number >= len(windows):
            raise UsageError(
                f"--window {window}: split {split} has windows 0..{len(windows) - 1:,}"
            )
        title = f"window {number:,} of {len(windows):,}, {data_config.store}, {split}"
    else:
        import numpy as np

        from emo_jax.data.run_windows import open_run_windows

        in_order = open_run_windows(replace(config, data=data_config), source, split=split)
        if window >= in_order.length:
            raise UsageError(f"--window {window}: the run has windows 0..{in_order.length - 1:,}")
        (which,), (local,) = in_order.locate(np.array([window]))
        windows, number = in_order.parts[which], int(local)
        step = window // config.train.batch_size + 1
        title = f"window {window:,} of the run, in step {step:,}: {in_order.names[which]}, {split},"
        title += f" its window {number:,} of {len(windows):,}"
    found = view_window(windows, number, f"{title}; S = {windows.seq_len}, {windows.packing}")
    out = console()
    out.print(found.title, markup=False)
    out.print(found.table())
    if text:
        out.print(found.text())


class _Steps(click.ParamType):
    name = "A:B"

    def convert(self, value, param, ctx) -> tuple[int, int]:
        """The first and the last step."""
        if isinstance(value, tuple):
            return value
        first, colon, last = str(value).partition(":")
        if not colon or not first.isdecimal() or not last.isdecimal():
            self.fail(f"{value} is not two steps, as in 100:120", param, ctx)
        return int(first), int(last)


@data.command("trace", cls=Command, epilog="emo data trace runs/tiny --step 120 --json read.jsonl")
@click.argument("workdir")
@click.option("--step", type=click.IntRange(min=1), default=None, help="As in metrics.jsonl.")
@click.option("--last", type=click.IntRange(min=1), default=None, help="The last so many steps.")
@click.option("--steps", type=_Steps(), default=None, help="From one step to another.")
@click.option("--row", type=click.IntRange(min=0), default=None, help="This row of the batch only.")
@click.option(
    "--json", "json_file", default=None, help="Write all to this new file, a line for a document."
)
def trace(
    workdir: str,
    step: int | None,
    last: int | None,
    steps: tuple[int, int] | None,
    row: int | None,
    json_file: str | None,
) -> None:
    """The documents that a step of a run read: ids, domains, and which of their tokens.

    WORKDIR is all that is needed; the stores that its config names must be where they were, and
    hold what they held.
    """
    if json_file:
        refuse_unwritable("--json", Path(json_file))
    from emo_jax.files.atomic import whole_file
    from emo_jax.files.progress import Progress
    from emo_jax.training.trace import Trace, steps_asked

    run = Trace.open(workdir)
    asked = steps_asked(run, step=step, last=last, steps=steps)
    run.places(asked[0]), run.places(asked[-1])  # refuses before anything is made
    if asked[-1] > run.last:
        click.echo(f"trace: step {asked[-1]} is not done yet; this is what it will read", err=True)
    count, tokens, shown = 0, 0, _trace_table()
    with ExitStack() as stack:
        stream = stack.enter_context(whole_file(Path(json_file))) if json_file else None
        progress = stack.enter_context(Progress("trace"))
        for number in asked:
            for read in run.read(number, row):
                count += 1
                tokens += read.part.columns[1] - read.part.columns[0]
                if stream is not None:
                    stream.write(dumps(read.to_json(), ensure_ascii=False) + "\n")
                if count <= _SHOWN:
                    _add_row(shown, read)
            progress.show(f"step {number:,} of {asked[-1]:,}, {count:,} documents")
    console().print(shown)
    for one in run.passed.all:
        click.echo(f"{one}: the steps above have not read them")
    left = f"; {count - _SHOWN:,} more are not listed" if count > _SHOWN else ""
    left += ", give --json FILE" if left and not json_file else ""
    click.echo(f"{len(asked):,} steps, {count:,} documents, {tokens:,} tokens{left}")


def _trace_table():
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("step", "row", "columns", "document", "its tokens"):
        table.add_column(name, justify="right")
    for name in ("id", "domain", "stream"):
        table.add_column(name, overflow="fold")
    return table


def _add_row(table, read) -> None:
    from rich.markup import escape

    from emo_jax.errors import clipped

    part = read.part
    whole = "" if part.length is None else f" of {part.length:,}"
    cells = (
        *(str(read.step), str(part.row), f"{part.columns[0]}..{part.columns[1] - 1}"),
        *("" if part.document is None else f"{part.document:,}",),
        *(f"{part.tokens[0]:,}..{part.tokens[1] - 1:,}{whole}", part.id, part.domain, part.stream),
    )
    table.add_row(*(escape(clipped(cell)) for cell in cells))


@data_command("check", "emo data check store other_store")
@CONFIG
@WORDS_MANY
def check(config_file: str | None, words: tuple[str, ...]) -> None:
    """Every checksum and the structure of all documents; a line for each fault.

    DATA are token stores and token files. Whatever is in them is read. The exit code is 1 if there
    is a fault. Ids that several documents have are noted, and are no fault.
    """
    from emo_jax.config import DataConfig
    from emo_jax.config.file import load_config
    from emo_jax.data.check import Checked, check_data
    from emo_jax.files.progress import Progress

    names, overrides = split_words(words, config_file)
    config = DataConfig() if config_file is None else load_config(config_file, overrides).data
    names = names or list(config.stores)
    if not names:
        raise UsageError("no data; give token stores, token files, or --config FILE")
    faults: dict[str, int] = {}
    with Progress("check") as progress:
        for name in names:
            seen = Checked()
            for line in check_data(name, config, seen, progress.show):
                faults[name] = faults.get(name, 0) + 1
                click.echo(escaped(line))
            for line in seen.notes:
                click.echo(f"note: {escaped(line)}")
            if name not in faults:
                click.echo(f"{name}: no fault ({seen.summary()})")
    if faults:
        total = sum(faults.values())
        raise EmoError(
            f"{total:,} fault{'s' * (total > 1)} in {listed(faults)}; copy or prepare again what"
            " is named above"
        )


@data_command("stats", "emo data stats store --plot store.png")
@CONFIG
@click.option(
    "--lengths/--no-lengths",
    default=True,
    show_default=True,
    help="Of documents: read where each ends, unless the preparation kept a histogram.",
)
@click.option("--plot", default=None, help="Draw a chart to this new file, .png or .svg.")
@click.option("--json", "json_file", default=None, help="Write all figures to this new file.")
@WORDS
def stats(
    config_file: str | None,
    lengths: bool,
    plot: str | None,
    json_file: str | None,
    words: tuple[str, ...],
) -> None:
    """Documents, tokens and lengths, by split, domain, input and source.

    DATA is a token store or token files. With --config and without DATA: all that the runs of an
    experiment read, and how much of each source.
    """
    for option, file in (("--plot", plot), ("--json", json_file)):
        if file:
            refuse_unwritable(option, Path(file))
    if plot and Path(plot).suffix not in (".png", ".svg"):
        raise UsageError(f"--plot {plot}: must end in .png or .svg")
    from emo_jax.data.stats import describe_data
    from emo_jax.files.atomic import write_atomic
    from emo_jax.files.progress import Progress
    from emo_jax.report import charts, data_stats

    data_config, config = data_of(config_file, words)
    with Progress("stats") as progress:
        found = describe_data(data_config, config, measure=lengths, show=progress.show)
    out = console()
    for shown in data_stats.tables(found):
        out.print(shown)
    if plot:
        charts.write_figure(data_stats.chart(found), Path(plot))
    if json_file:
        sources = [one.to_json() for one in found]
        write_atomic(Path(json_file), dumps({"sources": sources}, indent=1) + "\n")

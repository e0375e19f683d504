"""What data hold, as tables with bars of text and as a chart."""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import add

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from rich import box
from rich.markup import escape
from rich.table import Table

from emo_jax.data.lengths import Lengths
from emo_jax.data.stats import Count, DataStats, total
from emo_jax.errors import clipped
from emo_jax.report import charts

_BAR = 40  # characters
_FEW = 10  # sources, each with tables of its own
_LISTED = 100  # inputs, files, sources
_IN_CHART = 16  # domains or sources
_FEWEST_ROWS = 6  # room for so many, that few bars are no blocks


def tables(stats: Sequence[DataStats]) -> Iterator[str | Table]:
    """Yields what to print: for each of a few sources its tables; then those of a mixture."""
    for one in stats if len(stats) <= _FEW else ():
        yield from _tables_of(one)
    if len(stats) > 1:
        yield _mixture(stats)
        if (lengths := _all_lengths(stats)) is not None:
            yield from _histogram(lengths, "all sources: documents by length, in tokens")


def _tables_of(one: DataStats) -> Iterator[str | Table]:
    tokenizer = f", tokenizer {one.tokenizer[:12]}" if one.tokenizer else ""
    size = "" if one.num_bytes is None else f", {one.num_bytes / 1e6:,.1f} MB"
    yield (
        f"[bold]{escape(clipped(one.name))}[/bold]: {one.kind} {one.fingerprint[:12]}{size};"
        f" vocabulary {one.vocab_size:,}, eos {one.eos_id}, pad {one.pad_id}{tokenizer}"
    )
    yield _counts({"all": one.total} | dict(one.splits), "split")
    if one.domains:
        yield _by_split(one)
    if len(one.parts) > 1:
        kind = "input" if one.kind == "token store" else "file"
        parts = dict(list(one.parts.items())[:_LISTED])
        if left := list(one.parts.values())[_LISTED:]:
            parts[f"{len(left):,} more"] = total(left)
        yield _counts(parts, kind)
    if one.lengths is not None and one.lengths.count:
        yield from _histogram(one.lengths, "documents by length, in tokens")
    if one.packing:
        yield escape(one.packing)
    if one.dropped:
        named = ", ".join(f"{count:,} {name}" for name, count in one.dropped.items())
        yield f"left out at preparation: {escape(clipped(named, 400))}"


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False)


def _counts(counts: Mapping[str, Count], what: str) -> Table:
    table = _table()
    table.add_column(what)
    for name in ("documents", "tokens", "share", "mean length"):
        table.add_column(name, justify="right")
    every = max([count.tokens for name, count in counts.items() if name == "all"], default=0)
    every = every or total(counts.values()).tokens
    for name, count in counts.items():
        table.add_row(escape(clipped(name)), *_cells(count, every))
    return table


def _cells(count: Count, every: int) -> tuple[str, ...]:
    mean = f"{count.tokens / count.documents:,.1f}" if count.documents else ""
    documents = "" if count.documents is None else f"{count.documents:,}"
    return documents, f"{count.tokens:,}", f"{count.tokens / max(every, 1):.1%}", mean


def _by_split(one: DataStats) -> Table:
    table, every = _table(), one.total.tokens
    table.add_column("domain")
    for name in ("documents", "tokens", "share", "mean length"):
        table.add_column(name, justify="right")
    splits = list(one.splits) if len(one.splits) > 1 else []
    for split in splits:
        table.add_column(f"{split} tokens", justify="right")
    rows = [(name, total(by_split.values()), by_split) for name, by_split in one.domains.items()]
    for name, count, by_split in sorted(rows, key=lambda row: -row[1].tokens):
        of_splits = (f"{by_split[split].tokens:,}" for split in splits)
        table.add_row(escape(clipped(name)), *_cells(count, every), *of_splits)
    return table


def _mixture(stats: Sequence[DataStats]) -> Table:
    table = _table()
    table.add_column("source")
    for name in ("documents", "tokens", "of all", "share of the run", "epochs", "used up at step"):
        table.add_column(name, justify="right")
    every = sum(one.total.tokens for one in stats)
    for one in sorted(stats, key=lambda one: -one.total.tokens)[:_LISTED]:
        plan = one.planned
        read = ("", "", "")
        if plan is not None:
            used = "" if plan.exhausted is None else f"{plan.exhausted:,}"
            read = (f"{plan.share:.1%}", f"{plan.epochs:.2f}", used)
        table.add_row(escape(clipped(one.name)), *_cells(one.total, every)[:3], *read)
    if len(stats) > _LISTED:
        table.add_row(f"{len(stats) - _LISTED:,} smaller ones are not listed")
    return table


def _histogram(lengths: Lengths, title: str) -> Iterator[str | Table]:
    about = "" if lengths.exact else "about "
    median = f"median {about}{lengths.median:,.0f}" if lengths.median is not None else ""
    last = 2 ** (lengths.used[-1] + 1)
    longest = f"below {last:,}" if lengths.longest is None else f"{lengths.longest:,}"
    yield f"{title}: {median}, longest {longest}"
    table = _table()
    table.add_column("tokens", justify="right")
    table.add_column("documents", justify="right")
    table.add_column("")
    if lengths.tokens is not None:
        table.add_column("of all tokens", justify="right")
    most = int(lengths.documents.max())
    for i in lengths.used:
        count = int(lengths.documents[i])
        bar = "#" * max(round(_BAR * count / most), 1 if count else 0)
        cells = [_bin(i), f"{count:,}", bar]
        if lengths.tokens is not None:
            cells.append(f"{int(lengths.tokens[i]) / int(lengths.tokens.sum()):.1%}")
        table.add_row(*cells)
    yield table


def _bin(i: int) -> str:
    return str(1) if i == 0 else f"{2**i:,}..{2 ** (i + 1) - 1:,}"


def _all_lengths(stats: Sequence[DataStats]) -> Lengths | None:
    found = [one.lengths for one in stats if one.lengths is not None]
    return reduce(add, found) if len(found) == len(stats) else None


@charts.styled
def chart(stats: Sequence[DataStats]) -> Figure:
    """Returns documents (and tokens, where known) by length, and tokens by domain or source."""
    figure, (left, right) = charts.new(width=8.4, height=3.2, columns=2)
    lengths = _all_lengths(stats)
    if lengths is None or not lengths.count:
        left.text(0.5, 0.5, "lengths are not known", ha="center", va="center")
        left.set_axis_off()
    else:
        _draw_lengths(left, lengths)
    named = _bars(stats)
    names = charts.short_names([name for name, _ in named])
    right.barh(range(len(named)), [tokens for _, tokens in named], color=charts.COLOURS[0])
    right.set_yticks(range(len(named)), names)
    right.set_ylim(max(len(named), _FEWEST_ROWS) - 0.5, -0.5)
    right.set_axisbelow(True)
    right.grid(axis="y", visible=False)
    right.xaxis.set_major_formatter(FuncFormatter(_short_number))
    right.xaxis.set_major_locator(MaxNLocator(nbins=5))
    right.set_xlabel("tokens")
    return figure


def _draw_lengths(ax, lengths: Lengths) -> None:
    used = list(lengths.used)
    shares = {"documents": lengths.documents} | (
        {} if lengths.tokens is None else {"tokens": lengths.tokens}
    )
    width = 0.8 / len(shares)
    for n, (name, counts) in enumerate(shares.items()):
        at = [i - 0.4 + (n + 0.5) * width for i in range(len(used))]
        heights = [counts[i] / counts.sum() for i in used]
        ax.bar(at, heights, width, label=name, color=charts.COLOURS[n])
    ax.set_axisbelow(True)
    step = -(-len(used) // 9)
    ax.set_xticks(range(0, len(used), step), [_power(i) for i in used[::step]])
    ax.set_xlabel("tokens of a document, at least")
    ax.set_ylabel("share" if len(shares) > 1 else "share of documents")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(axis="x", visible=False)
    if len(shares) > 1:
        ax.legend(loc="best")


def _bars(stats: Sequence[DataStats]) -> list[tuple[str, int]]:
    """Returns the names and tokens to draw: of sources, or domains, or splits; largest first."""
    one = stats[0]
    counts = {other.name: other.total for other in stats}
    if len(stats) == 1:
        by_domain = {name: total(by_split.values()) for name, by_split in one.domains.items()}
        counts = by_domain or dict(one.splits)
    largest = sorted(counts.items(), key=lambda item: -item[1].tokens)
    shown = [(name, count.tokens) for name, count in largest[:_IN_CHART]]
    rest = sum(count.tokens for _, count in largest[_IN_CHART:])
    return [*shown, (f"{len(largest) - _IN_CHART} others", rest)] if rest else shown


def _power(i: int) -> str:
    """A power of two as context lengths are written: 4k is 4096."""
    return f"{2 ** (i % 10)}{'kMGT'[i // 10 - 1] if i >= 10 else ''}"


def _short_number(value: float, position: int = 0) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"

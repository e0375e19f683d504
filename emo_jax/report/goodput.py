"""The wall time of a run as a chart and tables: which start spent how long on what."""

import datetime
from collections.abc import Sequence

from matplotlib.figure import Figure

from emo_jax.report import charts
from emo_jax.run.goodput import BADPUT, CAUSES, STEPS, Account, Span

MOST_STARTS = 40  # in the chart and in the table: the last ones
_ORDER = ("startup", "restart", "compile", STEPS, "lost_work", "input_wait", "save_stall")
_COLOURS = {  # those that stand next to each other are far apart
    "startup": charts.INK,
    "restart": charts.INK,
    "compile": charts.COLOURS[4],
    STEPS: charts.COLOURS[2],
    "lost_work": charts.COLOURS[1],
    "input_wait": charts.COLOURS[5],
    "save_stall": charts.COLOURS[0],
    "evaluation": charts.COLOURS[3],
    "other": charts.GRID,
}
_UNITS = ((172_800, 86_400, "days"), (7_200, 3_600, "hours"), (120, 60, "minutes"))


def shown_spans(times: Account) -> Sequence[Span]:
    """The last starts, as many as can be told apart."""
    return times.spans[-MOST_STARTS:]


@charts.styled
def timeline(times: Account) -> Figure:
    """A bar for each start, at its place in the wall time of the run, divided by cause.

    A bar begins with the time in which no process ran. Within a bar, the order of the causes is
    fixed: it says how much, not when.
    """
    spans = shown_spans(times)
    size, unit = _unit(spans[-1].ends - spans[0].begins)
    figure, (ax,) = charts.new(height=1.3 + 0.16 * max(4, len(spans)))
    order = [*_ORDER, *(name for name in CAUSES if name not in _ORDER)]
    for row, span in enumerate(spans):
        left = span.begins / size
        for name in order:
            if (width := span.seconds[name] / size) > 0:
                ax.barh(row, width, left=left, height=0.8, color=_COLOURS[name], linewidth=0)
                left += width
    there = [name for name in order if any(span.seconds[name] > 0 for span in spans)]
    first = next((n for n in there if n in ("startup", "restart")), None)
    for name in there:
        if name == "restart" and first == "startup":
            continue  # of the same colour
        label = "startup, restart" if name == first and "restart" in there else name
        ax.bar(0, 0, color=_COLOURS[name], label=label.replace("_", " "))
    ax.set_xlim(spans[0].begins / size, spans[-1].ends / size)
    ax.set_ylim(len(spans) - 0.5, -0.5)  # the first start is at the top
    step = -(-len(spans) // 10)
    ax.set_yticks(range(0, len(spans), step), [f"{span.start + 1}" for span in spans[::step]])
    ax.grid(False, axis="y")
    ax.set_axisbelow(True)
    ax.set_xlabel(f"wall time, {unit}")
    ax.set_ylabel("start")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def cause_rows(times: Account) -> list[list[str]]:
    """Rows of a table: cause, time, share of the wall time, what it is."""
    rows = [["goodput: steps", *_amount(times.seconds[STEPS], times.wall), "steps that were kept"]]
    for name, what in BADPUT.items():
        title = f"badput: {name.replace('_', ' ')}"
        rows.append([title, *_amount(times.seconds[name], times.wall), what])
    return [*rows, ["all", *_amount(times.wall, times.wall), "since the run began"]]


def start_rows(times: Account) -> list[list[str]]:
    """Rows of a table: start, when, from which step to which, wall time, shares, how it ended."""
    rows = []
    for span in shown_spans(times):
        wall = span.ends - span.begins
        began = span.last.time - span.last.total
        when = datetime.datetime.fromtimestamp(began, datetime.UTC).isoformat(" ", "minutes")
        ended = "" if span.last.outcome == "running" else span.last.outcome
        if not ended:
            ended = "no end yet" if span is times.spans[-1] else "killed"
        rows.append(
            [
                str(span.start + 1),
                when.removesuffix("+00:00"),
                f"{span.first:,} to {span.step:,}",
                clock(wall),
                _percent(span.seconds[STEPS], wall),
                clock(span.down),
                clock(span.seconds["lost_work"]),
                ended,
            ]
        )
    return rows


def clock(seconds: float) -> str:
    """A time as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600:,}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _amount(seconds: float, wall: float) -> tuple[str, str]:
    return clock(seconds), _percent(seconds, wall)


def _percent(seconds: float, wall: float) -> str:
    return f"{100 * seconds / wall:.1f} %" if wall > 0 else "–"


def _unit(seconds: float) -> tuple[int, str]:
    return next(((size, unit) for least, size, unit in _UNITS if seconds >= least), (1, "seconds"))

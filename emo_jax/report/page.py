"""The report as one HTML file: charts in the page's colours, and their numbers as tables.

Nothing is fetched and no script runs. Everything that comes from a run (domain names, config
values) is escaped text.
"""

import datetime
import html
import importlib.resources
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emo_jax import __version__
from emo_jax.errors import UsageError
from emo_jax.files.atomic import write_atomic
from emo_jax.files.trees import flatten
from emo_jax.report import charts, goodput
from emo_jax.report.run import Points, Run
from emo_jax.run.metrics_file import METRICS_FILE

MARK = "<!-- emo_jax report -->"  # a file with this mark may be replaced
MOST_LINES = 16  # domains in a chart
MOST_ROWS = 200  # domains in a table
LOSS_FIELDS = {
    "ce_loss": "training, cross-entropy",
    "loss": "training, with all auxiliary losses",
    "heldout_loss": "held out",
}
ROUTING = {
    "load_imbalance": ("load imbalance", "tokens of the busiest routed expert over the mean"),
    "experts_used": ("experts used", "routed experts that a token of the step picked"),
    "token_entropy": ("router entropy", "nats a token, within the document's pool"),
    "token_entropy_no_pool": ("router entropy without a pool", "nats a token"),
    "pool_size": ("pool size", "routed experts of a document's pool, mean"),
    "dropped": ("picks dropped", "share beyond the capacity of experts"),
    "load_balance_loss": ("load-balancing loss", "before its weight; 1 is balanced"),
    "shared_balance_loss": ("load-balancing loss of shared experts", "as above"),
    "router_z_loss": ("router z-loss", "before its weight"),
}
_CSS = importlib.resources.files("emo_jax.report") / "report.css"


class Section(NamedTuple):
    """A heading and the HTML below it."""

    name: str
    title: str
    body: str


def write_report(run: Run, output: Path) -> int:
    """Writes the page; returns its size in bytes.

    Raises:
      UsageError: `output` exists and is not a report; it is left unchanged.
    """
    if output.exists() and MARK not in _beginning(output):
        raise UsageError(f"{output}: is there already and is no report; give another --output")
    text = page(run)
    write_atomic(output, text)
    return len(text.encode("utf-8"))


def _beginning(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(1000).decode("utf-8", "replace")


def page(run: Run) -> str:
    """Returns the whole page."""
    parts = (_losses, _domains, _keep, _sources, _routing, _optimizer, _speed, _goodput)
    made = [section(run) for section in parts]
    sections = [*(s for s in made if s is not None), _config(run), _environment(run)]
    name = html.escape(str(run.config.get("name", run.path.name)))
    links = "".join(f'<li><a href="#{s.name}">{s.title}</a></li>' for s in sections)
    bodies = "".join(
        f'<section id="{s.name}" aria-labelledby="h-{s.name}"><h2 id="h-{s.name}">{s.title}</h2>'
        f"{s.body}</section>\n"
        for s in sections
    )
    today = datetime.date.today().isoformat()
    return (
        f'<!doctype html>\n{MARK}\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src'
        " 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{name}</title>\n<style>\n{_CSS.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n<header><h1>{name}</h1>{_tiles(run)}</header>\n"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main>\n{bodies}</main>\n'
        f"<footer>emo_jax {__version__} · made {today} · step {run.last_step:,}</footer>\n"
        "</body>\n</html>\n"
    )


def _tiles(run: Run) -> str:
    since = f" since step {run.first_step:,}" if run.first_step else ""
    values = {
        "steps": f"{run.last_step:,} of {run.config['train']['steps']:,}",
        f"tokens{since}": _large(run.tokens),
        "training loss": _nats(run.last("ce_loss")),
        "held-out loss": _nats(run.last("heldout_loss")),
    }
    for size in run.ways("pool"):
        values[f"held-out loss, pool of {size}"] = _nats(run.last(f"heldout_loss (pool={size})"))
    speeds = run.points("tokens_per_second")[1]
    if speeds:
        values["tokens/s, median"] = f"{statistics.median(speeds):,.0f}"
    shares = run.points("mfu")[1]
    if shares:
        values["MFU, median"] = f"{100 * statistics.median(shares):.1f} %"
    if run.times.goodput is not None:
        values["goodput"] = f"{100 * run.times.goodput:.1f} %"
    if len(run.starts) > 1:
        values["starts"] = f"{len(run.starts)}"
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in values.items())
    return f'<dl class="tiles">{cells}</dl>'


def _losses(run: Run) -> Section:
    series = {text: run.points(name) for name, text in LOSS_FIELDS.items()}
    for size in run.ways("pool"):
        series[f"held out, pool of {size}"] = run.points(f"heldout_loss (pool={size})")
    series = {name: points for name, points in series.items() if points[0]}
    return Section("losses", "Losses", _line_chart(series, "loss, nats a token"))


def _domains(run: Run) -> Section | None:
    losses = run.domains()
    if not losses:
        return None
    shown, note = _most(losses)
    last_step = max(steps[-1] for steps, _ in losses.values())
    rows = []
    for name in sorted(losses, key=lambda name: _order(losses[name])):
        steps, values = losses[name]
        # Windows, and so domains, may change: an earlier step's value is not shown as the last one.
        last = values[-1] if steps[-1] == last_step else None
        change = None if last is None else last - values[0]
        rows.append([name, _nats(values[0]), _nats(last), _signed(change)])
    rows, left_out = _ends(rows)
    table = _table(["domain", "first", "last", "change"], rows)
    text = f"At step {last_step:,}, nats a token. {note} {left_out}".rstrip()
    chart = _line_chart(shown, "held-out loss, nats a token")
    return Section("domains", "Domains", f"{chart}{_paragraph(text)}{table}")


def _keep(run: Run) -> Section | None:
    if run.config.get("moe") is None:
        return None
    means = {n: run.points(f"heldout_rise (keep={n})") for n in run.ways("keep")}
    means = {n: points for n, points in means.items() if points[0]}
    if not means:
        body = _paragraph(
            "Not measured while this run trained: set train.eval_keep, as in"
            " --config.train.eval_keep=32,16,8."
        )
        return Section("keep", "Fewer experts", body)
    titles, columns = ["domain"], []
    for n, (steps, _) in means.items():
        # A run may be resumed with other keeps or windows: a column is for one step, and says so.
        last = steps[-1]
        titles.append(f"keep {n}" if last == run.last_evaluation else f"keep {n}, step {last:,}")
        domains = run.domains("heldout_rise", f"(keep={n})")
        columns.append({name: ys[-1] for name, (xs, ys) in domains.items() if xs[-1] == last})
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(_signed(column.get(name)) for column in columns)] for name in names]
    rows, left_out = _ends(rows)
    rows.append(["mean", *(_signed(values[-1]) for _, values in means.values())])
    text = (
        "Rise of the held-out loss over that of all experts, nats a token, when each domain keeps"
        " only so many experts of each layer, shared ones counted; chosen on the select split."
        f" {left_out}"
    ).rstrip()
    chart = _line_chart({f"keep {n}": of for n, of in means.items()}, "rise, nats a token")
    body = f"{_paragraph(text)}{chart}{_table(titles, rows)}"
    return Section("keep", "Fewer experts", body)


def _sources(run: Run) -> Section | None:
    shares = run.domains("source_share")
    if not shares:
        return None
    percent = {n: (steps, [100 * share for share in of]) for n, (steps, of) in shares.items()}
    shown, note = _most(percent)
    order = sorted(shares, key=lambda name: -shares[name][1][-1])
    rows, left_out = _ends([[name, f"{percent[name][1][-1]:.2f} %"] for name in order])
    chart = _line_chart(shown, "share of the windows read so far, %")
    text = f"Of the windows read until step {run.last_step:,}. {note} {left_out}".rstrip()
    table = _table(["source", "share"], rows)
    return Section("sources", "Sources", f"{chart}{_paragraph(text)}{table}")


def _routing(run: Run) -> Section | None:
    parts = []
    for name, (title, unit) in ROUTING.items():
        series = run.layers(name)
        if not series:
            continue
        shown, note = _most(series)
        text = _paragraph(f"{unit[0].upper()}{unit[1:]}. {note}")
        parts.append(f"<h3>{title}</h3>{_line_chart(shown, title)}{text}")
    rounds = run.points("dispatch_rounds")
    if rounds[0]:
        chart = _line_chart({"rounds": rounds}, "rounds")
        text = "In which tokens travel to experts on other devices: the most of any layer."
        parts.append(f"<h3>rounds of dispatch</h3>{chart}<p>{text}</p>")
    if not parts:
        return None
    return Section("routing", "Routing", f'<div class="pairs">{_each(parts)}</div>')


def _optimizer(run: Run) -> Section | None:
    names = {
        "grad_norm": "gradient norm",
        "learning_rate": "learning rate",
        "skipped_steps": "skipped steps",
    }
    parts = [
        f"<h3>{title}</h3>{_line_chart({title: run.points(name)}, title)}"
        for name, title in names.items()
        if run.points(name)[0]
    ]
    if not parts:
        return None
    return Section("optimizer", "Optimizer", f'<div class="pairs">{_each(parts)}</div>')


def _speed(run: Run) -> Section | None:
    speed, share = run.points("tokens_per_second"), run.points("mfu")
    if not speed[0]:
        return None
    parts = [f"<h3>tokens a second</h3>{_line_chart({'speed': speed}, 'tokens/s')}"]
    if share[0]:
        percent = (share[0], [100 * value for value in share[1]])
        parts.append(f"<h3>model FLOPs utilisation</h3>{_line_chart({'MFU': percent}, '%')}")
    return Section("speed", "Speed", f'<div class="pairs">{_each(parts)}</div>')


def _goodput(run: Run) -> Section | None:
    times = run.times
    if not times.wall:
        return None
    text = (
        "Where the wall time went, as process 0 has it. Goodput is the share in steps that were"
        " kept, badput the rest. A bar is a start, with the time before it in which nothing ran;"
        " its parts say how much, not when."
    )
    causes, rows = goodput.cause_rows(times), goodput.start_rows(times)
    says = "wall time by cause: " + "; ".join(f"{row[0]} {row[2]}" for row in causes)
    chart = f"<figure>{charts.inline_svg(goodput.timeline(times), says)}</figure>"
    left_out = len(times.spans) - len(rows)
    note = f"The last {len(rows)} of {len(times.spans):,} starts." if left_out else ""
    titles = ["start", "began, UTC", "steps", "wall time", "goodput", "down", "lost work", "end"]
    body = f"{_paragraph(text)}{chart}{_table(['cause', 'time', 'share', 'what it is'], causes)}"
    return Section("goodput", "Goodput", f"{body}{_paragraph(note)}{_table(titles, rows)}")


def _config(run: Run) -> Section:
    rows = [[name, _value(value)] for name, value in flatten(run.config, ".").items()]
    return Section("config", "Config", _details("All fields", _table(["field", "value"], rows)))


def _environment(run: Run) -> Section:
    rows = []
    for start in run.starts:
        machine, git = start["environment"], start.get("git") or {}
        devices = f"{machine['devices']} × {machine['device_kind']}"
        changed = " with changes" if git.get("dirty") else ""
        commit = git["commit"][:12] + changed if git.get("commit") else "–"
        who = [start["step"], start["time"], devices, machine["processes"], machine["emo_jax"]]
        libraries = ", ".join(f"{name} {of}" for name, of in machine["libraries"].items())
        rows.append([*map(str, who), commit, machine["python"], libraries])
    titles = ["from step", "time", "devices", "processes", "emo_jax", "commit", "Python"]
    table = _table([*titles, "libraries"], rows)
    data = run.starts[-1].get("data", {}) if run.starts else {}
    text = f"Data: {data['store']}, fingerprint {data['fingerprint'][:12]}." if data else ""
    return Section("environment", "Environment", f"{_paragraph(text)}{table}")


# --- pieces --------------------------------------------------------------------------------------


def _line_chart(series: Mapping[str, Points], y: str) -> str:
    if not series:
        return _paragraph("Not logged.")
    figure, (ax,) = charts.new()
    named = dict(zip(charts.short_names(list(series), 36), series.values(), strict=True))
    charts.lines(ax, named, x="step", y=y)
    ends = "; ".join(
        f"{name} {_plain(ys[0])} to {_plain(ys[-1])}" for name, (_, ys) in series.items()
    )
    steps = [step for xs, _ in series.values() for step in xs]
    says = f"{y}, steps {min(steps)} to {max(steps)}: {ends}"
    return f"<figure>{charts.inline_svg(figure, says)}</figure>"


def _most(series: Mapping[str, Points]) -> tuple[dict[str, Points], str]:
    """Selects the lowest and the highest last values if there are too many series for a chart."""
    if len(series) <= MOST_LINES:
        return dict(series), ""
    order = sorted(series, key=lambda name: _order(series[name]))
    half = MOST_LINES // 2
    shown = {name: series[name] for name in [*order[:half], *order[-half:]]}
    return shown, f"The chart shows the lowest and the highest {half} of {len(series)}."


def _ends(rows: list[list[str]]) -> tuple[list[list[str]], str]:
    """Returns the first and last rows of a long table, and a note about the others."""
    if len(rows) <= MOST_ROWS:
        return rows, ""
    half = MOST_ROWS // 2
    left_out = f"The table has the first and the last {half} of {len(rows):,}: {METRICS_FILE} all."
    return [*rows[:half], *rows[-half:]], left_out


def _order(points: Points) -> tuple[bool, float]:
    """Sort key: the last value; NaN comes last."""
    last = points[1][-1]
    return (True, 0.0) if math.isnan(last) else (False, last)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in titles)
    body = "".join(
        "<tr>"
        + f'<th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    # A table too wide for a small window scrolls by itself, also from the keyboard.
    return (
        f'<div class="wide" tabindex="0" role="group" aria-label="{html.escape(titles[0])}: table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _details(title: str, body: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{body}</details>"


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text.strip())}</p>" if text.strip() else ""


def _each(parts: Sequence[str]) -> str:
    return "".join(f"<div>{part}</div>" for part in parts)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    if value is None:
        return "–"
    return "nan" if math.isnan(value) else f"{value:+.4f}".replace("-", "−")


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _large(count: int) -> str:
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:,}"

"""Matplotlib charts in one style, for pages and papers.

A page's charts take the page's colours: `inline_svg` names them as CSS variables, so that one
drawing serves light and dark mode. `write_figures` writes the same chart as SVG and PNG.
"""

import html
import io
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from emo_jax.files.atomic import write_bytes_atomic

# Okabe and Ito: distinguishable for the colour-blind, on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b")
DASHES = ("-", "--", ":", "-.")
INK, GRID = "#1b1f24", "#d8dee4"
_VARIABLES = {INK: "--ink", GRID: "--grid"} | {c: f"--c{n}" for n, c in enumerate(COLOURS)}
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # names are not formulas
    "svg.hashsalt": "emo_jax",  # the same chart gives the same file
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}

# Applied to everything that draws: texts and legends get their style when created, not shown.
styled = matplotlib.rc_context(_STYLE)

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # name: (x, y)


@styled
def new(width: float = 6.4, height: float = 2.8, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Returns an empty figure (size in inches) and its axes; no window, no global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def line_style(n: int) -> dict[str, Any]:
    """Returns the style of the n-th line: all colours, then all colours dashed, and so on."""
    return {
        "color": COLOURS[n % len(COLOURS)],
        "linestyle": DASHES[n // len(COLOURS) % len(DASHES)],
    }


@styled
def lines(ax: Axes, series: Series, *, x: str, y: str) -> None:
    """Draws a line for each series, with markers if it has few points."""
    for n, (name, (xs, ys)) in enumerate(series.items()):
        marker = "o" if len(xs) <= 8 else None
        style = line_style(n)
        ax.plot(xs, ys, label=name, linewidth=1.2, marker=marker, ms=3, **style)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if len(series) > 1:
        few = len(series) <= 4
        ax.legend(loc="best") if few else ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


@styled
def heat_map(
    ax: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    *,
    x: str,
    label: str,
    columns: Sequence[str] | None = None,
    colours: str = "YlGnBu",
) -> None:
    """Draws rows by columns; NaN is blank. The palette darkens evenly and prints well in grey."""
    top = np.max(values, initial=0.0, where=~np.isnan(values)) or 1.0  # all blank: any scale works
    image = ax.imshow(
        values, aspect="auto", cmap=colours, interpolation="nearest", vmin=0, vmax=top
    )
    ax.grid(False)
    ax.set_yticks(range(len(rows)), rows)
    if columns is None:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    else:
        ax.set_xticks(range(len(columns)), columns, rotation=60, ha="right")
    ax.set_xlabel(x)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.03, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)


def short(name: str, most: int = 24) -> str:
    """Returns a name that fits next to a chart, without characters that XML cannot contain."""
    shown = "".join(char if char.isprintable() else "·" for char in name)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def short_names(names: Sequence[str], most: int = 24) -> list[str]:
    """Shortens names so that no two are alike; those that start alike show their ends too."""
    shown = [short(name, most) for name in names]
    twice = {text for text, count in Counter(shown).items() if count > 1}
    ends = [short(name, len(name)) for name in names]
    keep = most // 3
    shown = [
        f"{end[: most - keep - 1]}…{end[-keep:]}" if text in twice and len(end) > most else text
        for text, end in zip(shown, ends, strict=True)
    ]
    seen: Counter[str] = Counter()
    for n, text in enumerate(shown):
        seen[text] += 1
        if seen[text] > 1:
            shown[n] = f"{text} ({seen[text]})"
    return shown


def inline_svg(figure: Figure, says: str) -> str:
    """Returns a chart as part of a page, with `says` as its description for screen readers."""
    # Text stays text: it can be searched and copied, and uses the page's font.
    svg = _drawn(figure, "svg", {"svg.fonttype": "none"}, transparent=True).decode("utf-8")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r"<[^>]*>", _with_variables, svg)  # in tags only: a name may look like a colour
    # Group names repeat in every chart of the page; nothing refers to them.
    svg = re.sub(r'<g id="[\w.]+">', "<g>", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(says)}" ', 1)


def _with_variables(tag: re.Match[str]) -> str:
    text = tag[0]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


def write_figures(figures: Mapping[str, Figure], folder: Path) -> None:
    """Writes each figure as NAME.svg and NAME.png (200 dpi), on white."""
    for name, figure in figures.items():
        for kind in ("svg", "png"):
            write_figure(figure, folder / f"{name}.{kind}")


def write_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as .svg or .png (200 dpi), on white."""
    settings = {"svg.fonttype": "path"}  # looks the same without the font
    kind = path.suffix.removeprefix(".")
    write_bytes_atomic(path, _drawn(figure, kind, settings, facecolor="white", dpi=200))


def _drawn(figure: Figure, kind: str, style: dict[str, str], **settings: Any) -> bytes:
    stream = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None  # the same chart gives the same file
    with matplotlib.rc_context(_STYLE | style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box is drawn instead
        figure.savefig(stream, format=kind, metadata=metadata, **settings)
    return stream.getvalue()

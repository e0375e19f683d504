"""Means with intervals over seeds and domains, markdown tables and plots, for the reports."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DRAWS = 10_000  # bootstrap samples


def interval(table: np.ndarray, of: Callable[[np.ndarray], Any] = np.nanmean) -> tuple[float, ...]:
    """A statistic of a (seeds, domains) table, and the middle 95 % of its bootstrap.

    Both seeds and domains are resampled with replacement.
    """
    rng = np.random.default_rng(0)
    seeds, domains = table.shape[:2]
    drawn = [
        of(table[rng.integers(seeds, size=seeds)][:, rng.integers(domains, size=domains)])
        for _ in range(DRAWS)
    ]
    return float(of(table)), *map(float, np.nanpercentile(drawn, [2.5, 97.5]))


def with_gaps(rows: Iterable[Sequence[float | None]]) -> np.ndarray:
    """Rows of numbers as a table; NaN where nothing was measured."""
    return np.array([[math.nan if x is None else x for x in row] for row in rows])


def shown(table: np.ndarray, sign: bool = True) -> str:
    """The mean and its interval as `+0.123 (+0.100 to +0.150)`."""
    form = "{:+.3f}" if sign else "{:.3f}"
    mean, low, high = (form.format(x) for x in interval(table))
    return f"{mean} ({low} to {high})"


AIMS = ("aim", "found (in the aim's unit)", "")  # head of a table of aims


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def paired(of: Callable[..., Any], *tables: np.ndarray) -> tuple[float, ...]:
    """`interval` for a statistic of several tables, resampling the same seeds and domains."""
    return interval(np.stack(tables, axis=-1), lambda t: of(*np.moveaxis(t, -1, 0)))


def ratio(over: np.ndarray, under: np.ndarray) -> float:
    """The ratio of the means."""
    return float(np.nanmean(over) / np.nanmean(under))


def axes(width: float = 6.4, height: float = 3.8, rows: int = 1) -> tuple[Any, Any]:
    """A figure, in inches, and its axes: an array of them if there are several rows."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.hashsalt": "emo_jax", "font.size": 10, "svg.fonttype": "path"})
    figure, found = pyplot.subplots(rows, figsize=(width, height), layout="constrained")
    for one in figure.axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", alpha=0.3)
    return figure, found


def label_points(axes: Any, points: Mapping[str, tuple[float, float]], size: float = 8) -> None:
    """Writes names beside points: on the left where another point is on the right.

    They are moved up where they would cover each other. To be called when everything else is drawn:
    places are those of the axes as they are then.
    """
    axes.figure.canvas.draw()
    per_pixel = 72 / axes.figure.dpi
    at = {name: axes.transData.transform(xy) * per_pixel for name, xy in points.items()}
    gap, step = 0.75 * size, 1.15 * size
    taken: list[tuple[float, float, float]] = []  # of names: left, right, height; all in points
    for name, (x, y) in sorted(at.items(), key=lambda item: item[1][1]):
        width = 0.6 * size * len(name)
        covers = any(x + gap < px < x + gap + width and abs(py - y) < gap for px, py in at.values())
        left, up = (x - gap - width if covers else x + gap), y
        for begin, end, other in sorted(taken, key=lambda label: label[2]):
            if begin < left + width and left < end and abs(other - up) < step:
                up = other + step
        taken.append((left, left + width, up))
        line = {"arrowstyle": "-", "color": "#bbbbbb", "lw": 0.7, "shrinkA": 0, "shrinkB": 3}
        axes.annotate(
            name,
            points[name],
            xytext=(-gap if covers else gap, up - y),
            textcoords="offset points",
            fontsize=size,
            ha="right" if covers else "left",
            va="center",
            arrowprops=line if up - y > size / 2 else None,
        )


def save_plot(figure: Any, file: Path) -> None:
    """Writes a plot as SVG."""
    # No metadata, so that the same figures give the same file.
    figure.savefig(file, metadata={"Date": None, "Creator": None}, facecolor="white")

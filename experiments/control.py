r"""The knobs of docs/control.md as a curve: loss with all experts against the rise with a few.

    python experiments/control.py --output runs/control --results docs/results/control

Trains and measures each variant of `VARIANTS` that has no result: seed 0, the tokens of
modularity.py (3.7 M), whose runs of EMO and the standard MoE are not made again. One JSON file
each; an interrupted run goes on from its checkpoint. Then writes control_results.md, two folders
above the results, and a plot from what there is.

Besides the knobs: four learning rates for EMO and the standard MoE, to see whether one of them was
trained at the wrong one, and the best of them for a knob. Learning rates are compared on the split
`select`, never on `test`, which is why those at the usual rate are trained again.
"""

import itertools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
import modularity
import numpy as np
from modularity_plots import COLOURS
from report_tools import axes as new_axes
from report_tools import label_points, markdown, save_plot, with_gaps

from emo_jax import evaluate, train
from emo_jax.checkpoint.manifest import versions
from emo_jax.config import Config, control, from_config_dict, to_dict
from emo_jax.errors import EmoError, UsageError
from emo_jax.files.atomic import write_atomic

# Fixed before any of these losses was seen, but for what was added later: a quarter of the learning
# rate, when half of it had the lower loss on select; spans of 16, and half the rate with spans of
# 64, when the loss had fallen with the length of spans. Whose pools, and factor of the rate.
PAIR = ("emo", "standard")
RATES = {"quarter": 0.25, "half": 0.5, "usual": 1.0, "double": 2.0}
RATED = {  # whose pools, and name of the rate
    f"{arm}-{rate}-rate": (arm, rate)
    for arm, rate in (*itertools.product(PAIR, RATES), ("span-64", "half"))
}
KNOBS = tuple(name for name in control.KNOBS if name not in PAIR)
VARIANTS: Mapping[str, tuple[str, float]] = {
    **{name: (name, 1.0) for name in KNOBS},
    **{name: (arm, RATES[rate]) for name, (arm, rate) in RATED.items()},
}
KEEPS = ("25%", "12.5%")
MEASURED = {"windows": modularity.WINDOWS, "keeps": [*KEEPS], "method": modularity.METHOD}


def config_of(variant: str, stores: modularity.Stores, steps: int | None = None) -> Config:
    """The config of a variant's run."""
    knob, factor = VARIANTS[variant]
    config = control.control_tiny(knob)
    if steps is not None:
        config.train.steps = steps
        config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, steps)
    config.optimizer.peak_lr *= factor
    config.name = f"control_{variant}"
    config.data.store = str(stores.trained.resolve())
    return from_config_dict(config)


def losses_of(workdir: Path, store: Path, split: str, keep: tuple[str, ...]) -> dict[str, Any]:
    """Losses by domain, with all experts and with a part of them chosen on the split `select`."""
    options = {"split": split, "keep": keep, "method": modularity.METHOD}
    found = evaluate(workdir, store, windows=modularity.WINDOWS, **options).losses
    return {
        "domains": found.domains,
        **{
            way.removeprefix("keep="): modularity.numbers(found.loss_M(way))
            for way in found.ce_sum_CM
        },
    }


def perform(
    variant: str, output: Path, results: Path, stores: modularity.Stores, steps: int | None = None
) -> None:
    """Trains and measures one variant, unless its result exists."""
    config, file = config_of(variant, stores, steps), results / f"{variant}.json"
    made_of = {"config": modularity.config_digest(config), "measured": MEASURED}
    if modularity.is_there(file, made_of):
        return
    print(f"== {variant}: {config.train.steps} steps", flush=True)
    workdir = output / "runs" / config.name
    train(config, workdir, quiet=False)
    result = {
        "variant": variant,
        **made_of,
        "given": {"pool": to_dict(config)["moe"]["pool"], "peak_lr": config.optimizer.peak_lr},
        "versions": versions(),
        "select": losses_of(workdir, stores.trained, "select", ()),
        "test": losses_of(workdir, stores.trained, "test", KEEPS),
    }
    results.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(result, indent=1) + "\n")


# --- the page -------------------------------------------------------------------------------------


class Point(NamedTuple):
    """Mean losses of a variant."""

    select: float | None  # with all experts, on the split `select`; None: not measured
    full: float  # with all experts, on `test`, as the rises
    rises: list[float]  # with a part of them


def point(result: Mapping[str, Any]) -> Point:
    """The means of a result."""
    test, select = result["test"], result.get("select")
    full = with_gaps([test["full"]])
    return Point(
        None if select is None else float(np.nanmean(with_gaps([select["full"]]))),
        float(np.nanmean(full)),
        [float(np.nanmean(with_gaps([test[str(k)]]) - full)) for k in modularity.SMALL_KEEPS],
    )


def known(arm: str, folder: Path) -> Point:
    """The same of a run of modularity.py."""
    found = json.loads((folder / f"modularity-{arm}-0.json").read_text(encoding="utf-8"))
    losses = found["trained"]["losses"]
    return point({"test": {name.removeprefix("layerwise "): row for name, row in losses.items()}})


def points(results: Path) -> dict[str, Point]:
    """All that has been measured, by name."""
    found = {arm: known(arm, results.parent) for arm in PAIR}
    for name in VARIANTS:
        if (file := results / f"{name}.json").exists():
            found[name] = point(json.loads(file.read_text(encoding="utf-8")))
    return found


def page(found: Mapping[str, Point]) -> str:
    """The page, with an empty row for what has not been run."""
    base = found["standard"].full

    def cells(name: str, *, rate: bool) -> list[str]:
        if name not in found:
            return ["–"] * 4
        select, full, rises = found[name]
        changes = [f"{rise:+.3f}" for rise in rises]
        if rate:
            return [f"{select:.3f}", f"{full:.3f}", *changes]
        return [f"{full:.3f}", f"{100 * (full / base - 1):+.2f}", *changes]

    knobs = [[name, *cells(name, rate=False)] for name in (*PAIR, *KNOBS)]
    rates = [[*of, *cells(name, rate=True)] for name, of in RATED.items()]
    kept = ["rise at 25\N{NO-BREAK SPACE}%", "rise at 12.5\N{NO-BREAK SPACE}%"]
    return (
        Path(__file__)
        .with_suffix(".md")
        .read_text(encoding="utf-8")
        .format(
            done=sum(name in found for name in VARIANTS),
            planned=len(VARIANTS),
            knobs=markdown(["", "loss", "over the standard MoE's, %", *kept], knobs),
            rates=markdown(["model", "learning rate", "loss on select", "loss", *kept], rates),
        )
    )


def plot(found: Mapping[str, Point], file: Path) -> None:
    """Loss against the rise at 12.5 %: above, the knobs; below, the learning rates."""
    figure, (above, below) = new_axes(height=8, rows=2)
    above.set_title("knobs, at the usual rate", fontsize=10)
    knobs = {name: (name, found[name]) for name in (*PAIR, *KNOBS) if name in found}
    _scatter(above, knobs)
    below.set_title("learning rates", fontsize=10)
    rates = {", ".join(of): (of[0], found[name]) for name, of in RATED.items() if name in found}
    _scatter(below, rates)
    save_plot(figure, file)


def _scatter(axes: Any, named: Mapping[str, tuple[str, Point]]) -> None:
    """Points with their names; each has the colour of an arm."""
    places = {name: (point.rises[-1], point.full) for name, (_, point) in named.items()}
    for name, (arm, _) in named.items():
        known = {"color": COLOURS[arm], "zorder": 3} if arm in COLOURS else {"color": "#777777"}
        axes.plot(*places[name], "o", **known)
    axes.axvline(0, color="#cccccc", linewidth=1, zorder=0)
    axes.set_xlabel("rise of the loss with 12.5 % of the experts, nats")
    axes.set_ylabel("loss with all experts, nats")
    axes.margins(x=0.16, y=0.1)
    label_points(axes, places)


@click.command()
@click.option("--output", required=True, type=click.Path(path_type=Path), help="For workdirs.")
@click.option("--results", required=True, type=click.Path(path_type=Path), help="For the figures.")
@click.option("--only", default="", help="Names of variants, as decay,domain.")
@click.option("--page-only", is_flag=True, help="Run nothing.")
def main(output: Path, results: Path, only: str, page_only: bool) -> None:
    """Runs what is missing, and writes the page."""
    wanted = only.split(",") if only else [*VARIANTS]
    try:
        if unknown := [name for name in wanted if name not in VARIANTS]:
            raise UsageError(f"--only {unknown[0]}: must be some of {', '.join(VARIANTS)}")
        if not page_only:
            stores = modularity.make_stores(output)
            for variant in wanted:
                perform(variant, output, results, stores)
    except EmoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    results.mkdir(parents=True, exist_ok=True)
    file = results.parent.parent / "control_results.md"
    found = points(results)
    file.write_text(page(found), encoding="utf-8")
    plot(found, results / "curve.svg")
    click.echo(f"{file}: {len(found)} points")


if __name__ == "__main__":
    main()

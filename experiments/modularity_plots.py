"""The plots of docs/results.md: see modularity_report.py."""

from pathlib import Path

import numpy as np
from modularity_figures import NAMES, SHARES, Runs
from report_tools import axes as new_axes
from report_tools import interval, save_plot

COLOURS = {"emo": "#0b7a75", "standard": "#c8553d"}


def plot_keep(runs: Runs, file: Path) -> None:
    """Plots the rise against the share of experts kept; dashed: domains held out of training."""
    figure, axes = new_axes()
    places = [0, 1, 2, 3]
    for arm, colour in COLOURS.items():
        for store, style in (("trained", "-"), ("held_out", "--")):
            found = [(0.0, 0.0, 0.0)]
            found += [interval(runs.rises(arm, f"layerwise {k}", store)) for k in SHARES]
            mean, low, high = np.array(found).T
            label = NAMES[arm] + (", domains never trained on" if store == "held_out" else "")
            axes.plot(places, mean, style, marker="o", color=colour, label=label)
            if store == "trained":
                axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xticks(places, ["100 %", *SHARES.values()])
    axes.set_xlabel("experts kept in every layer")
    axes.set_ylabel("rise of the loss, nats a token")
    axes.legend(frameon=False)
    save_plot(figure, file)


def plot_training(runs: Runs, file: Path) -> None:
    """Plots the rise during training."""
    figure, axes = new_axes()
    for arm, colour in COLOURS.items():
        for keep, style in ((16, "-"), (8, "--")):
            name = f"heldout_rise (keep={keep})"
            watched = [run["while_training"] for run in runs.of(arm)]
            steps = [record["step"] for record in watched[0]]
            mean = np.mean([[record[name] for record in records] for records in watched], axis=0)
            label = f"{NAMES[arm]}, {SHARES[keep]} kept"
            axes.plot(steps, mean, style, marker="o", color=colour, label=label)
    axes.set_xlabel("training step")
    axes.set_ylabel("rise of the held-out loss, nats")
    axes.legend(frameon=False)
    save_plot(figure, file)

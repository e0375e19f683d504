"""The page's pictures as files for papers, drawn from the page's own numbers."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from emo_jax import charts

MOST_DOMAINS = 40  # rows of a heat map that can still be read


def figures(domains: Sequence[str], models: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """Every picture under the name of its file, without ending.

    Args:
      domains: names, in the order of the models' numbers; empty: only what needs none is drawn.
      models: the page's parts about them, one or two.
    """
    names = [charts.short(name) for name in domains[:MOST_DOMAINS]]
    made: dict[str, Figure] = {}
    for n, model in enumerate(models):
        letter = f"{'ab'[n]}-" if len(models) > 1 else ""
        prefix = letter + re.sub(r"[^\w.-]+", "_", model["name"])
        for kind in ("token", "document"):
            if names:
                made[f"{prefix}-{kind}-clusters"] = _clusters(model, kind, names)
        for layer in range(model["layers"] if names else 0):
            use_MR = np.array(model["use"][layer])[: len(names)]
            made[f"{prefix}-experts-layer-{layer}"] = _heat(
                use_MR, names, f"expert of layer {layer}", "mean router probability"
            )
            similar_MM = np.array(model["similarity"][layer])[: len(names), : len(names)]
            made[f"{prefix}-similarity-layer-{layer}"] = _heat(
                similar_MM, names, f"layer {layer}", "cosine of experts used", columns=names
            )
    if any(model["keep"] for model in models):
        made["keep"] = _keep(models, domains)
    return made


def _heat(values: np.ndarray, rows: Sequence[str], x: str, label: str, **settings: Any) -> Figure:
    figure, (ax,) = charts.new(6.4, 1.2 + 0.2 * len(rows) + (1.0 if "columns" in settings else 0))
    charts.heat_map(ax, values, rows, x=x, label=label, **settings)
    return figure


def _clusters(model: dict[str, Any], kind: str, names: Sequence[str]) -> Figure:
    clusters = model[f"{kind}_clusters"]["clusters"]
    counts_CM = np.array([cluster["domains"] for cluster in clusters], float)
    shares_CM = (counts_CM / np.maximum(counts_CM.sum(1, keepdims=True), 1))[:, : len(names)]
    # Clusters of one domain side by side.
    order = np.lexsort((-shares_CM.max(axis=1), shares_CM.argmax(axis=1)))
    rows = [f"{c}  {charts.short(clusters[c]['label'], 30)}" for c in order]
    return _heat(shares_CM[order], rows, "", f"share of the cluster's {kind}s", columns=names)


def _keep(models: Sequence[dict[str, Any]], domains: Sequence[str]) -> Figure:
    shown = [model for model in models if model["keep"]]
    figure, axes = charts.new(3.6 * len(shown) + 0.6, 3.0, columns=len(shown))
    for ax, model in zip(axes, shown, strict=True):
        keeps = model["keep"]["keeps"]
        loss_MK = np.array(model["keep"]["loss"], float)
        rise_MK = loss_MK - loss_MK[:, :1]
        each = ax.plot(keeps, rise_MK.T, color=charts.GRID, linewidth=0.8)
        mean = rise_MK.mean(axis=0)
        (line,) = ax.plot(keeps, mean, color=charts.COLOURS[0], linewidth=2, marker="o", ms=4)
        ax.legend([line, each[0]], [f"mean of {len(domains)} domains", "each domain"])
        ax.set_xscale("log", base=2)
        ax.set_xticks(keeps, [str(keep) for keep in keeps])
        ax.minorticks_off()
        ax.set_xlabel("experts kept in each layer")
        ax.set_title(charts.short(model["name"]))
    top = max(ax.get_ylim()[1] for ax in axes)
    low = min(ax.get_ylim()[0] for ax in axes)
    for ax in axes:
        ax.set_ylim(low, top)
    axes[0].set_ylabel("rise of the loss, nats a token")
    return figure

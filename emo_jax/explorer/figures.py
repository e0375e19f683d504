"""The page's figures as files for papers, drawn from the page's own numbers.

What was not measured is null on the page, NaN here, and blank in the figure.

Legend: M domains, L layers, R routed experts, C clusters, K numbers of experts kept.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from emo_jax.report import charts

MOST_DOMAINS = 40  # rows of a heat map that are still legible
_BY_LAYER = (  # name of the file, field of the page, label of the scale
    ("entropy", "domain_entropy", "entropy of the experts used, bits"),
    ("experts-used", "domain_experts", "experts above their even share"),
)


def figures(domains: Sequence[str], models: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """Returns every figure by its file name without extension.

    Args:
      domains: names, in the order of the models' numbers; if empty, nothing is drawn.
      models: the page's parts about them, one or two.
    """
    if not domains:
        return {}
    names = charts.short_names(domains[:MOST_DOMAINS])
    cut = f"first {len(names)} of {len(domains)} domains" if len(names) < len(domains) else ""
    made: dict[str, Figure] = {}
    for n, model in enumerate(models):
        letter = f"{'ab'[n]}-" if len(models) > 1 else ""
        prefix = letter + re.sub(r"[^\w.-]+", "_", model["name"])
        for kind in ("token", "document"):
            made[f"{prefix}-{kind}-clusters"] = _clusters(model, kind, names, cut)
        for name, field, label in _BY_LAYER:
            values_ML = np.array(model[field], float).T[: len(names)]
            made[f"{prefix}-{name}"] = _heat(values_ML, names, _joined("layer", cut), label)
        for layer in range(model["layers"]):
            there = len(model["experts"][layer])
            use_MR = np.array(model["use"][layer], float)[: len(names), :there]
            x = _joined(f"expert of layer {layer}", cut)
            label = "mean router probability"
            made[f"{prefix}-experts-layer-{layer}"] = _heat(use_MR, names, x, label)
            similar_MM = np.array(model["similarity"][layer], float)[: len(names), : len(names)]
            x, label = _joined(f"layer {layer}", cut), "cosine of experts used"
            made[f"{prefix}-similarity-layer-{layer}"] = _heat(
                similar_MM, names, x, label, columns=names
            )
    rises = {n: rise_MK for n, model in enumerate(models) if len(rise_MK := _rises(model))}
    if rises:
        made["keep"] = _keep([models[n] for n in rises], list(rises.values()))
    return made


def _joined(x: str, cut: str) -> str:
    return f"{x}; {cut}" if cut else x


def _heat(values: np.ndarray, rows: Sequence[str], x: str, label: str, **settings: Any) -> Figure:
    figure, (ax,) = charts.new(6.4, 1.2 + 0.2 * len(rows) + (1.0 if "columns" in settings else 0))
    charts.heat_map(ax, values, rows, x=x, label=label, **settings)
    return figure


def _clusters(model: dict[str, Any], kind: str, names: Sequence[str], cut: str) -> Figure:
    clusters = model[f"{kind}_clusters"]["clusters"]
    counts_CM = np.array([cluster["domains"] for cluster in clusters], float)
    shares_CM = (counts_CM / np.maximum(counts_CM.sum(1, keepdims=True), 1))[:, : len(names)]
    # Puts clusters of the same domain next to each other.
    order = np.lexsort((-shares_CM.max(axis=1), shares_CM.argmax(axis=1)))
    rows = [f"{c}  {charts.short(clusters[c]['label'], 30)}" for c in order]
    return _heat(shares_CM[order], rows, cut, f"share of the cluster's {kind}s", columns=names)


def _rises(model: dict[str, Any]) -> np.ndarray:
    """Returns rises of domains measured at every keep: a mean over varying domains would jump."""
    if not model["keep"]:
        return np.empty((0, 0))
    loss_MK = np.array(model["keep"]["loss"], float)
    return (loss_MK - loss_MK[:, :1])[np.isfinite(loss_MK).all(axis=1)]


@charts.styled
def _keep(models: Sequence[dict[str, Any]], rises: Sequence[np.ndarray]) -> Figure:
    figure, axes = charts.new(3.6 * len(models) + 0.6, 3.0, columns=len(models))
    for ax, model, rise_MK in zip(axes, models, rises, strict=True):
        keeps, count = model["keep"]["keeps"], len(rise_MK)
        each = ax.plot(keeps, rise_MK.T, color=charts.GRID, linewidth=0.8)
        mean = rise_MK.mean(axis=0)
        (line,) = ax.plot(keeps, mean, color=charts.COLOURS[0], linewidth=2, marker="o", ms=4)
        of = f"{count} domains" if count > 1 else "1 domain"
        ax.legend([line, each[0]], [f"mean of {of}", "each domain"])
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

"""What is logged of a step, and the file it goes to.

Legend: L layers, E experts, R routed experts.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.config import Config
from emo_jax.files.json_files import Fields
from emo_jax.files.json_lines import json_line, mend_lines, read_lines, warn_of_bad

METRICS_FILE = "metrics.jsonl"
_UNKNOWN = ("mfu",)  # null where the peak of the device is not known


def summarize(config: Config, metrics: dict[str, Any]) -> dict[str, Any]:
    """Host values of a step's metrics as JSON: scalars, and a list over layers where it says so.

    Units: losses in nats, entropies in nats a token, pool sizes in routed experts, load imbalance
    is the busiest routed expert's tokens over their mean, masked labels and windows are shares
    0..1. Where windows are masked, `ce_loss` is over their tokens too (SPEC 5.5), and
    `ce_loss_per_label` is not.
    """
    record: dict[str, Any] = {
        name: float(metrics[name])
        for name in ("loss", "ce_loss", "lm_z_loss", "grad_norm", "learning_rate")
    }
    record |= {n: round(float(metrics[n]), 6) for n in ("masked_labels", "masked_windows")}
    if record["masked_windows"] and (labels := float(metrics["labels"])):
        record["ce_loss_per_label"] = record["ce_loss"] * float(metrics["loss_tokens"]) / labels
    record |= {n: int(metrics[n]) for n in ("skipped", "skipped_steps") if n in metrics}
    if "expert_counts" not in metrics:
        return record
    moe = config.moe
    assert moe is not None
    counts_LR = np.asarray(metrics["expert_counts"])[:, : moe.num_routed_experts]
    layers = range(config.model.num_layers)
    there_L = np.array([moe.experts_in(n) - moe.num_shared_experts for n in layers])
    imbalance_L = counts_LR.max(axis=1) / np.maximum(counts_LR.sum(axis=1) / there_L, 1e-9)
    record["router_aux_loss"] = float(metrics["router_aux_loss"])
    if moe.receive_factor:  # without a bound none is ever dropped
        record["dropped_picks"] = int(np.asarray(metrics["dropped"]).sum())
    by_layer = {
        "load_balance_loss": metrics["load_balance_loss"],
        "router_z_loss": metrics["router_z_loss"],
        "load_imbalance": imbalance_L,
        "experts_used": (counts_LR > 0).sum(axis=1),
        "token_entropy": metrics["token_entropy"],
        "token_entropy_no_pool": metrics["document_entropy"],
        "pool_size": metrics["pool_size"],
    }
    for name, values_L in by_layer.items():
        record[f"{name}_by_layer"] = [round(float(v), 6) for v in np.asarray(values_L)]
    return record


class MetricsFile:
    """One JSON object a line in WORKDIR/metrics.jsonl; `step` is the steps done after it."""

    def __init__(self, workdir: Path, *, resume_step: int):
        """Opens for appending; records of steps that the resumed run will do again are dropped."""
        self.path = workdir / METRICS_FILE
        if os.path.lexists(self.path):  # what a link leads to is not ours to write
            lines = read_lines(self.path, _check)
            mend_lines(self.path, lines, [r for r in lines.records if r["step"] <= resume_step])
        self._file = self.path.open("a", buffering=1)

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record; null stands for a number that is not finite."""
        self._file.write(json_line(record))

    def close(self) -> None:
        """Flushes and closes the file."""
        self._file.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """All records of a run; what is none is left out, and named in the log."""
    lines = read_lines(workdir / METRICS_FILE, _check)
    warn_of_bad(workdir / METRICS_FILE, lines)
    return lines.records


def number_in(record: Mapping[str, Any], name: str) -> float | None:
    """A number of a record; NaN where it was not finite, None where nothing was measured."""
    if name not in record or (record[name] is None and name in _UNKNOWN):
        return None
    return _number(record[name])


def numbers_in(record: Mapping[str, Any], name: str) -> list[float] | None:
    """The same of a list over layers."""
    values = record.get(name)
    if not isinstance(values, list):
        return None
    found = [number for value in values if (number := _number(value)) is not None]
    return found if found and len(found) == len(values) else None


def _number(value: Any) -> float | None:
    if value is None:
        return math.nan
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_one else None


def _check(record: dict[str, Any]) -> None:
    Fields(record).integer("step")

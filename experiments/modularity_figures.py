"""The figures that modularity.py wrote, by arm and seed."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from report_tools import with_gaps

SHARES = {32: "50 %", 16: "25 %", 8: "12.5 %"}
NAMES = {
    "emo": "EMO",
    "standard": "standard MoE",
    "matched": "standard MoE with 16 experts",
    "fixed-pool": "EMO, pools of 16",
    "no-shared": "EMO, no shared expert",
    "local-balance": "EMO, balance of each micro-batch",
    "window-attention": "EMO, attention across documents",
    "standard-window": "standard MoE, attention across documents",
}
COMPARED = ("emo", "standard", "matched")


class Runs:
    """All figures, by arm and seed."""

    def __init__(self, folder: Path):
        files = sorted(folder.glob("modularity-*.json"))
        if not files:
            raise click.UsageError(f"{folder}: no modularity-*.json; run modularity.py first")
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        self.arms = [arm for arm in NAMES if any(run["arm"] == arm for run in found)]
        if missing := [arm for arm in COMPARED if arm not in self.arms]:
            raise click.UsageError(f"{folder}: no runs of {', '.join(missing)}; run modularity.py")
        # The same seeds for all arms that are compared.
        seeds = {arm: {run["seed"] for run in found if run["arm"] == arm} for arm in COMPARED}
        both = set.intersection(*seeds.values())
        if not both:
            raise click.UsageError(f"{folder}: {', '.join(COMPARED)} have no seed in common")
        self.all = [run for run in found if run["arm"] not in COMPARED or run["seed"] in both]

    def of(self, arm: str) -> list[dict[str, Any]]:
        """An arm's runs, by seed."""
        return sorted((r for r in self.all if r["arm"] == arm), key=lambda r: r["seed"])

    def losses(self, arm: str, way: str, store: str = "trained") -> np.ndarray:
        """Losses (seeds, domains); NaN where nothing was measured."""
        return with_gaps(run[store]["losses"][way] for run in self.of(arm))

    def rises(self, arm: str, way: str, store: str = "trained") -> np.ndarray:
        """Rises (seeds, domains)."""
        return self.losses(arm, way, store) - self.losses(arm, "full", store)

"""Losses of several stores side by side, in bits per byte: a perplexity suite.

The stores are the sources. Of a source, bits per byte are over all its bytes, and also a mean over
its domains. Of the suite, `micro` is over all bytes of all sources, `macro` the mean over the
sources, each of which counts the same whatever its size.

Legend: M domains.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from emo_jax.config import Config
from emo_jax.evals.by_domain import FULL, DomainLosses
from emo_jax.evals.report import cells, heading, number, plain, to_json


@dataclasses.dataclass(frozen=True, eq=False)
class Suite:
    """Losses of a model on one split of several stores.

    Attributes:
      sources: losses of each store, by its name; all with counts of bytes.
      about: model, data, split and versions.
      title: title of the table.
      config: config of the model.
    """

    sources: dict[str, DomainLosses]
    about: dict[str, Any]
    title: str
    config: Config

    @property
    def ways(self) -> tuple[str, ...]:
        """Ways of running the model, see `DomainLosses.ce_sum_CM`."""
        return tuple(next(iter(self.sources.values())).ce_sum_CM)

    def micro(self, way: str) -> float:
        """Bits per byte over all bytes of all complete domains; NaN if there are none."""
        nats = size = 0.0
        for losses in self.sources.values():
            assert losses.bytes_M is not None
            nats += float(losses.ce_sum_CM[way][losses.complete_M].sum())
            size += float(losses.bytes_M[losses.complete_M].sum())
        return nats / size / math.log(2) if size else math.nan

    def macro(self, way: str) -> float:
        """Mean over the sources of their bits per byte; NaN if one has none."""
        return float(np.mean([losses.overall(way)[1] for losses in self.sources.values()]))

    def to_json(self) -> dict[str, Any]:
        """All figures; None for what was not measured and for a loss that is not finite."""
        return self.about | {
            "sources": {name: to_json(losses) for name, losses in self.sources.items()},
            "bits_per_byte": {
                way: {"micro": number(self.micro(way)), "macro": number(self.macro(way))}
                for way in self.ways
            },
        }

    def table(self) -> Table:
        """One row per source, one column per way of running the model, in bits per byte."""
        out = Table(title=self.title, box=box.SIMPLE_HEAD, padding=(0, 0), collapse_padding=True)
        out.add_column("source", no_wrap=True)
        for name in ("domains", "tokens", "bytes", "mean of\ndomains"):
            out.add_column(name, justify="right")
        for way in self.ways:
            dense = self.config.moe is None
            out.add_column("bits/byte" if dense else heading(way, self.config), justify="right")
        sizes = np.zeros(3, np.int64)
        for name, losses in self.sources.items():
            here_M = losses.complete_M
            assert losses.bytes_M is not None
            own = np.array(
                [here_M.sum(), losses.labels_M[here_M].sum(), losses.bytes_M[here_M].sum()]
            )
            sizes += own.astype(np.int64)
            counts = [f"{int(n):,}" for n in own]
            mean = plain(_measured(losses.mean(FULL)[1]))
            shown = _row({way: losses.overall(way)[1] for way in self.ways})
            out.add_row(
                escape(name), *counts, mean, *shown, end_section=name == [*self.sources][-1]
            )
        out.add_row(
            "macro: mean of sources",
            "",
            "",
            "",
            "",
            *_row({way: self.macro(way) for way in self.ways}),
            style="bold",
        )
        every = [f"{n:,}" for n in sizes.tolist()]
        out.add_row(
            "micro: all bytes",
            *every,
            "",
            *_row({way: self.micro(way) for way in self.ways}),
            style="bold",
        )
        return out

    def __repr__(self) -> str:
        figures = ", ".join(f"{way} {self.macro(way):.4f}" for way in self.ways)
        return f"<Suite: {self.title}: macro {figures}>"


def _row(bits_of: dict[str, float]) -> list[str]:
    return cells({way: _measured(bits) for way, bits in bits_of.items()})


def _measured(bits: float) -> float | None:
    return None if math.isnan(bits) else bits

"""Losses by domain as a table for people and as JSON for programs."""

import math
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from emo_jax.config import Config
from emo_jax.evals.by_domain import FULL, WITHIN, DomainLosses

MOST_ROWS = 40  # domains shown in a table; a store may have as many as the web has sites
_RED, _YELLOW = 0.15, 0.05  # rises of the loss, nats per token


def to_json(losses: DomainLosses) -> dict[str, Any]:
    """All figures; None for what was not measured and for a loss that is not finite."""
    complete_M = losses.complete_M
    total_bytes = None if losses.bytes_M is None else int(losses.bytes_M[complete_M].sum())
    domains = {}
    for m, name in enumerate(losses.domains):
        domains[name] = {
            "tokens": int(losses.labels_M[m]),
            "bytes": None if losses.bytes_M is None else int(losses.bytes_M[m]),
            **_by_way(
                {w: (losses.loss_M(w)[m], losses.bits_M(w)[m]) for w in losses.ce_sum_CM},
            ),
        }
    return {
        "domains": domains,
        "overall": {
            "tokens": int(losses.labels_M[complete_M].sum()),
            "bytes": total_bytes,
            **_by_way({way: losses.overall(way) for way in losses.ce_sum_CM}),
        },
        "mean_of_domains": _by_way({way: losses.mean(way) for way in losses.ce_sum_CM}),
        "domains_left_out_of_overall_and_mean": _names(losses, losses.unseen_M),
        "domains_not_finite": _names(losses, losses.broken_M),
        "windows": losses.windows,
        "windows_in_split": losses.windows_there,
        "select_windows": losses.select_windows,
    }


def _names(losses: DomainLosses, which_M: np.ndarray) -> list[str]:
    """Names of the marked domains that have labels."""
    there_M = which_M & (losses.labels_M > 0)
    return [name for name, there in zip(losses.domains, there_M, strict=True) if there]


def _by_way(numbers: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """(nats per token, bits per byte) of each way of running the model, under its name."""
    out: dict[str, Any] = {}
    for way, (loss, bits) in numbers.items():
        found = {"loss_nats_per_token": number(loss), "bits_per_byte": number(bits)}
        kind, _, size = way.partition("=")
        if way == FULL:
            out |= found
        elif size:
            out.setdefault(kind, {})[size] = found
        else:
            out[kind.replace(" ", "_")] = found
    return out


def number(value: float) -> float | None:
    """A figure of the JSON; None if it is not finite."""
    return float(value) if math.isfinite(value) else None


def to_table(losses: DomainLosses, config: Config, title: str, *, with_bytes: bool = True) -> Table:
    """One row per domain, and one column per way of running the model, with its rise.

    Args:
      with_bytes: also columns of tokens and bits per byte.
    """
    out = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 0), collapse_padding=True)
    out.add_column("domain", no_wrap=True)
    if with_bytes:
        out.add_column("tokens", justify="right")
        out.add_column("bits/byte", justify="right")
    for way in losses.ce_sum_CM:
        out.add_column(heading(way, config), justify="right")
    rows = [(int(n), name) for n, name in zip(losses.labels_M, losses.domains, strict=True)]
    shown = np.sort(np.argsort(-losses.labels_M, kind="stable")[:MOST_ROWS])
    ways = list(losses.ce_sum_CM)
    for m in shown:
        shown_ways = cells({way: _shown(losses, way, int(m)) for way in ways})
        tokens, name = rows[m]
        last = m == shown[-1]
        bits = plain(None if losses.bytes_M is None or not tokens else losses.bits_M(FULL)[m])
        counts = [f"{tokens:,}", bits] if with_bytes else []
        out.add_row(escape(name), *counts, *shown_ways, end_section=bool(last))
    for name, summary in (("mean of domains", losses.mean), ("all tokens", losses.overall)):
        measured = bool(losses.complete_M.any())
        numbers = {way: summary(way) for way in ways}
        tokens = f"{int(losses.labels_M[losses.complete_M].sum()):,}"
        bits = plain(numbers[FULL][1] if measured and losses.bytes_M is not None else None)
        shown_ways = cells({way: loss if measured else None for way, (loss, _) in numbers.items()})
        counts = [tokens if summary == losses.overall else "", bits] if with_bytes else []
        out.add_row(name, *counts, *shown_ways, style="bold")
    out.caption = _caption(losses)
    return out


def _caption(losses: DomainLosses) -> str | None:
    notes = []
    if len(losses.domains) > MOST_ROWS:
        notes.append(f"the {MOST_ROWS} largest of {len(losses.domains):,} domains; --json has all")
    if left_out := _names(losses, losses.unseen_M):
        few = _first(left_out)
        notes.append(f"no tokens to choose experts by, so not in the last two rows: {few}")
    if broken := _names(losses, losses.broken_M):
        notes.append(f"the loss is not finite, the model breaks there: {_first(broken)}")
    return escape("; ".join(notes)) or None


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _shown(losses: DomainLosses, way: str, m: int) -> float | None:
    """The loss of a domain; None if it was not measured."""
    unmeasured = not losses.labels_M[m] or (way.startswith("keep=") and losses.unseen_M[m])
    return None if unmeasured else float(losses.loss_M(way)[m])


def heading(way: str, config: Config) -> str:
    """Heading of the column of a way of running the model."""
    if config.moe is None:
        return "loss"
    kind, _, size = way.partition("=")
    if way in (FULL, WITHIN):
        return f"all {config.moe.num_experts}" + (f",\n{WITHIN}" if way == WITHIN else "")
    if kind == "keep" and size.isdecimal():
        return f"{100 * int(size) / config.moe.num_experts:g} % ({size})"
    return way


def cells(loss_of: dict[str, float | None]) -> list[str]:
    """Losses, with their rise over the loss with all experts and the same attention."""
    shown = []
    for way, loss in loss_of.items():
        base = loss_of.get(WITHIN, loss_of[FULL]) if way.startswith("keep=") else loss_of[FULL]
        if loss is None or base is None or way in (FULL, WITHIN):
            shown.append(plain(loss))
        else:
            shown.append(_risen(loss, loss - base))
    return shown


def plain(value: float | None) -> str:
    """A number, or a dash if nothing was measured; `nan` and `inf` are measurements."""
    return "–" if value is None else f"{value:.3f}"


def _risen(loss: float, rise: float) -> str:
    if not math.isfinite(rise):
        return plain(loss)
    colour = "red" if rise > _RED else "yellow" if rise > _YELLOW else "green"
    return f"{loss:.3f} [{colour}]({rise:+.2f})[/{colour}]"

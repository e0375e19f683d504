"""Results of tasks as tables for people and as JSON for programs."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from emo_jax.config import Config
from emo_jax.tasks.measure import Row, grouped

_MOST_BINS = 6  # of lengths, in the table


@dataclasses.dataclass(frozen=True, eq=False)
class TaskResults:
    """What a model scores on tasks.

    Attributes:
      rows: one per task (or tasks that share a module) and number of experts kept; see
        `emo_jax.tasks.measure.Row`.
      notes: what a reader should know: parts of the data, items left out, prompts cut.
      about: model, harness, settings and versions, as written by `emo tasks --json`.
      title: title of the table.
      config: config of the model.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    about: dict[str, Any]
    title: str
    config: Config

    def table(self) -> Group:
        """The results as tables for a terminal or a notebook (`rich.print`)."""
        moe = self.config.moe
        return to_tables(self.rows, self.notes, self.title, moe.num_experts if moe else 0)

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        return self.about | to_json(self.rows, self.notes)

    def __repr__(self) -> str:
        found = ", ".join(f"{row.unit} {row.value:.4f}" for row in self.rows)
        return f"<TaskResults: {self.title}: {found}>"


def averages(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Means over the units of each word of the suite, equally weighted."""
    return [
        {
            "word": word,
            "keep": keep,
            "examples": examples,
            "units": len(some),
            "value": sum(row.value for row in some) / len(some),
            "stderr": _stderr(some),
        }
        for (word, keep, examples), some in grouped(rows).items()
    ]


def _stderr(rows: Sequence[Row]) -> float | None:
    """Standard error of a mean of independent means."""
    if any(row.stderr is None for row in rows):
        return None
    return math.sqrt(sum((row.stderr or 0.0) ** 2 for row in rows)) / len(rows)


def to_json(rows: Sequence[Row], notes: Sequence[str]) -> dict[str, Any]:
    """All figures."""
    return {
        "rows": [
            dataclasses.asdict(row)
            | {
                "by_length": [
                    {"prompt_tokens_at_most": most, "items": items, "value": value}
                    for most, items, value in row.by_length
                ]
            }
            for row in rows
        ],
        "averages": averages(rows),
        "notes": list(notes),
    }


def to_tables(rows: Sequence[Row], notes: Sequence[str], title: str, experts: int) -> Group:
    """One row per task and way, then one with their values by length of the prompt.

    Args:
      experts: number of experts in each layer of the model, shared ones included; 0: dense.
    """
    out = _table(title)
    for name in ("task", "kept", "metric"):
        out.add_column(name, no_wrap=True)
    for name in ("items", "value", "bits/byte", "examples", "tokens", "seconds"):
        out.add_column(name, justify="right", no_wrap=True)
    for n, row in enumerate(rows):
        last = n + 1 == len(rows) or rows[n + 1].unit != row.unit
        chosen = ["", ""]
        if row.calibration_tokens:
            chosen = [f"{row.examples:,}", f"{row.calibration_tokens:,}"]
        out.add_row(
            *(escape(row.unit), _kept(row.keep, experts), escape(row.metric), f"{row.items:,}"),
            *(_with_error(row.value, row.stderr), _number(row.bits_per_byte), *chosen),
            f"{row.seconds:.1f}",
            end_section=last and n + 1 < len(rows),
        )
    means = averages(rows)
    if means:
        out.add_section()
    for mean in means:
        examples = f"{mean['examples']:,}" if mean["examples"] else ""
        out.add_row(
            *(f"mean of {mean['units']}: {mean['word']}", _kept(mean["keep"], experts), "", ""),
            *(_with_error(mean["value"], mean["stderr"]), "", examples, "", ""),
            style="bold",
        )
    tables: list[Any] = [out]
    if any(len(row.by_length) > 1 for row in rows):
        tables.append(_by_length([row for row in rows if row.by_length], experts))
    tables += [f"  {escape(note)}" for note in notes]
    return Group(*tables)


def _by_length(rows: Sequence[Row], experts: int) -> Table:
    bins = sorted({most for row in rows for most, _, _ in row.by_length})
    shown = bins[-_MOST_BINS:]
    out = _table("value by tokens in the prompt (items)")
    out.add_column("task", no_wrap=True)
    out.add_column("kept", no_wrap=True)
    for most in shown:
        out.add_column(f"up to {most:,}", justify="right", no_wrap=True)
    for row in rows:
        found = {most: f"{value:.3f} ({items:,})" for most, items, value in row.by_length}
        cells = [found.get(most, "–") for most in shown]
        out.add_row(escape(row.unit), _kept(row.keep, experts), *cells)
    if len(bins) > len(shown):
        out.caption = f"the {len(shown)} longest of {len(bins)} lengths; --json has all"
    return out


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), collapse_padding=True)


def _kept(keep: int | None, experts: int) -> str:
    if not experts:
        return ""
    if keep is None or keep == experts:
        return f"all {experts}"
    return f"{100 * keep / experts:.3g} % ({keep})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _with_error(value: float, stderr: float | None) -> str:
    return f"{value:.3f}" if stderr is None else f"{value:.3f} ± {stderr:.3f}"

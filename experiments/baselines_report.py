"""docs/baselines_results.md, from the figures written by baselines.py.

    python experiments/baselines_report.py --results docs/results/baselines --output docs

Nothing is run. A run of `baselines.RUNS` without a result leaves its cells empty.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from baselines import EXAMPLES, ITEMS, RUNS, TASKS
from modularity_report import NAMES, interval, markdown, shown

KEEPS = {None: "100 %", 32: "50 %", 16: "25 %", 8: "12.5 %"}
NOTHING = "–"
WHAT = {
    "emo_next": "three of other documents of the domain",
    "emo_topic": "three of other domains. A module of the right domain knows the answer's, so more"
    " with some of the experts than with all is no better reading",
}


class Group:
    """The finished runs of an arm at a number of tokens, by seed."""

    def __init__(self, arm: str, millions: float, folder: Path):
        self.arm, self.millions = arm, millions
        runs = [run for run in RUNS if (run.arm, run.millions) == (arm, millions)]
        files = [folder / f"{run.name}.json" for run in runs]
        self.planned = len(files)
        self.runs: list[dict[str, Any]] = [
            json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()
        ]

    def losses(self, way: str) -> np.ndarray:
        """Losses of the trained domains (seeds, domains)."""
        rows = [run["trained"]["losses"][way] for run in self.runs]
        return np.array([[math.nan if x is None else x for x in row] for row in rows])

    def rises(self, keep: int) -> np.ndarray:
        """Rises of the losses with `keep` experts (seeds, domains)."""
        return self.losses(f"layerwise {keep}") - self.losses("full")

    def scores(self, group: str, keep: int | None, field: str) -> np.ndarray:
        """A figure of every task of a group (seeds, tasks), with `keep` experts; None: all."""
        count = 64 if keep is None else keep
        return np.array(
            [
                [
                    row[field]
                    for row in run["tasks"]
                    if row["unit"].startswith(f"{group}_") and row["keep"] == count
                ]
                for run in self.runs
            ]
        )


def groups(folder: Path) -> Iterator[Group]:
    """All arms, in the order of their runs."""
    for arm, millions in dict.fromkeys((run.arm, run.millions) for run in RUNS):
        yield Group(arm, millions, folder)


def _named(group: Group) -> list[str]:
    done = f"{len(group.runs)} of {group.planned}"
    return [NAMES.get(group.arm, group.arm), f"{group.millions:g} M", done]


def losses_table(found: list[Group]) -> str:
    """Losses of whole models, and the rises with a part of the experts."""
    rows = []
    for group in found:
        cells = [NOTHING] * 4
        if group.runs:
            cells = [shown(group.losses("full"), sign=False)]
            cells += [shown(group.rises(keep)) for keep in (32, 16, 8)]
        rows.append([*_named(group), *cells])
    return markdown(
        ["model", "tokens", "seeds", "loss", *(f"{KEEPS[k]} kept" for k in (32, 16, 8))], rows
    )


def tasks_table(found: list[Group], task: str, field: str, form: str) -> str:
    """A figure of a group of tasks, by the share of experts kept."""
    rows = []
    for group in found:
        cells = [NOTHING] * len(KEEPS)
        if group.runs:
            cells = []
            for keep in KEEPS:
                mean, low, high = interval(group.scores(task, keep, field))
                cells.append(f"{mean:{form}} ({low:{form}} to {high:{form}})")
        rows.append([*_named(group), *cells])
    return markdown(["model", "tokens", "seeds", *KEEPS.values()], rows)


def changes_table(found: list[Group], task: str) -> str:
    """By how much accuracy falls with a part of the experts."""
    rows = []
    for group in found:
        cells = [NOTHING] * 3
        if group.runs:
            whole = group.scores(task, None, "value")
            cells = [shown(group.scores(task, keep, "value") - whole) for keep in (32, 16, 8)]
        rows.append([*_named(group), *cells])
    return markdown(["model", "tokens", "seeds", *(KEEPS[k] for k in (32, 16, 8))], rows)


def task_section(found: list[Group], task: str) -> str:
    """The tables of a group of tasks."""
    parts = [
        f"### {task}\n",
        f"Wrong choices: {WHAT[task]}. Chance is 25 %. Accuracy:\n",
        tasks_table(found, task, "value", ".3f"),
        "Change of the accuracy with a part of the experts:\n",
        changes_table(found, task),
        "Bits a byte of the right answers:\n",
        tasks_table(found, task, "bits_per_byte", ".3f"),
    ]
    return "\n".join(parts)


def page(folder: Path) -> str:
    """The page."""
    found = list(groups(folder))
    template = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    return template.format(
        done=sum(len(group.runs) for group in found),
        planned=len(RUNS),
        losses=losses_table(found),
        items=ITEMS,
        examples=EXAMPLES,
        tasks="\n".join(task_section(found, task) for task in TASKS),
    )


@click.command()
@click.option("--results", required=True, type=click.Path(path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path))
def main(results: Path, output: Path) -> None:
    """Writes baselines_results.md."""
    (output / "baselines_results.md").write_text(page(results), encoding="utf-8")
    click.echo(f"{output / 'baselines_results.md'}: {len(list(results.glob('*.json')))} results")


if __name__ == "__main__":
    main()

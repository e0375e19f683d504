"""docs/baselines_results.md, from the figures written by baselines.py and modularity.py.

    python experiments/baselines_report.py --results docs/results/baselines --output docs

Writes the page and RESULTS/loss_by_tokens.svg. Nothing is run. A run of `baselines.RUNS` without a
result leaves its cells empty. The models of 3.7 M tokens are those of docs/results.md, whose
figures are read from the folder above RESULTS.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from baseline_arms import PUBLIC
from baselines import AFTERWARDS, EXAMPLES, ITEMS, PAIR, RUNS, TASKS
from modularity_figures import NAMES as MODELS
from modularity_plots import COLOURS
from report_tools import AIMS, interval, markdown, paired, ratio, save_plot, shown, with_gaps
from report_tools import axes as new_axes

SHARES = {"50 %": 0.5, "25 %": 0.25, "12.5 %": 0.125}  # of the experts
SMALLEST = 3.7  # millions of tokens: of docs/results.md
NAMES = {arm: MODELS[arm] for arm in PAIR} | {
    "labels": "label pools",
    "mixtral": "Mixtral",
    "switch": "Switch",
    "split": "split dense (LLaMA-MoE), then pools",
    "btx": "BTX",
    "flexolmo": "FlexOlmo",
    AFTERWARDS: "EMO, pools of 64 tokens",
}
NOTHING = "–"
WHAT = {
    "emo_next": "three of other documents of the domain",
    "emo_topic": "three of other domains. A module of the right domain favours the right answer by"
    " its choice of experts alone, so that a gain over all experts is not one in reading",
}


class Group:
    """The finished runs of an arm at a number of tokens, by seed."""

    def __init__(self, arm: str, millions: float, folder: Path):
        self.arm, self.millions = arm, millions
        names = [run.name for run in RUNS if (run.arm, run.millions) == (arm, millions)]
        files = [folder / f"{name}.json" for name in names]
        if millions == SMALLEST:
            files = [folder.parent / f"modularity-{arm}-{seed}.json" for seed in (0, 1, 2)]
        self.planned = len(files)
        self.runs: list[dict[str, Any]] = [
            json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()
        ]

    @property
    def seeds(self) -> list[int]:
        """The seeds of the finished runs."""
        return [run["seed"] for run in self.runs]

    def count(self, share: float) -> int:
        """Experts that a share of them is, including shared ones."""
        return int(share * self.runs[0].get("experts", 64))

    def has(self, way: str) -> bool:
        """Whether losses were measured in a way."""
        return bool(self.runs) and way in self.runs[0]["trained"]["losses"]

    def losses(self, way: str, seeds: list[int] | None = None) -> np.ndarray:
        """Losses of the trained domains (seeds, domains)."""
        return with_gaps(
            run["trained"]["losses"][way]
            for run in self.runs
            if seeds is None or run["seed"] in seeds
        )

    def kept(self, share: float) -> str:
        """The way of keeping a share of the experts."""
        return f"layerwise {self.count(share)}"

    def scores(self, group: str, share: float, field: str) -> np.ndarray:
        """A figure of every task of a group (seeds, tasks); empty if it was not measured."""
        return np.array(
            [
                [
                    row[field]
                    for row in run["tasks"]
                    if row["unit"].startswith(f"{group}_") and row["keep"] == self.count(share)
                ]
                for run in self.runs
            ]
        )


def groups(folder: Path) -> Iterator[Group]:
    """All arms of the plan, in the order of their runs."""
    for arm, millions in dict.fromkeys((run.arm, run.millions) for run in RUNS):
        yield Group(arm, millions, folder)


def _named(group: Group) -> list[str]:
    done = f"{len(group.runs)} of {group.planned}"
    return [NAMES[group.arm], f"{group.millions:g} M", done]


HEAD = ["model", "tokens of EMO", "seeds"]


def losses_table(found: list[Group]) -> str:
    """Losses of whole models, and the rises with a part of the experts."""
    rows = []
    for group in found:
        cells = [NOTHING] * 4
        if group.runs:
            full = group.losses("full")
            cells = [shown(full, sign=False)]
            for share in SHARES.values():
                way = group.kept(share)
                cells.append(shown(group.losses(way) - full) if group.has(way) else NOTHING)
        rows.append([*_named(group), *cells])
    return markdown([*HEAD, "loss", *(f"{share} kept" for share in SHARES)], rows)


def percent(over: np.ndarray, under: np.ndarray) -> float:
    """By how many percent one mean is over another."""
    return 100 * (ratio(over, under) - 1)


def over(one: Group, way: str, other: Group, other_way: str) -> tuple[float, ...] | None:
    """Percent by which the loss of one is over that of another, over the seeds that both have.

    None: not measured.
    """
    seeds = [seed for seed in one.seeds if seed in other.seeds]
    if not seeds or not one.has(way) or not other.has(other_way):
        return None
    return paired(percent, one.losses(way, seeds), other.losses(other_way, seeds))


def _shown(found: tuple[float, ...] | None) -> str:
    if found is None:
        return NOTHING
    mean, low, high = (f"{x:+.2f}" for x in found)
    return f"{mean} ({low} to {high})"


def bits_rise(group: Group, share: float, seeds: list[int]) -> np.ndarray:
    """Rise of the right answers' bits a byte with a share of the experts (seeds, tasks)."""
    part, whole = (group.scores(TASKS[0], s, "bits_per_byte") for s in (share, 1.0))
    return (part - whole)[[group.seeds.index(seed) for seed in seeds]]


def aims_table(found: list[Group]) -> str:
    """The aims that were set beforehand, what was found, and whether it meets them."""
    at = {(group.arm, group.millions): group for group in found}
    rows = []

    def row(aim: str, result: tuple[float, ...] | None, most: float) -> None:
        verdict = "" if result is None else "met" if result[0] <= most else "**missed**"
        rows.append([aim, _shown(result), verdict])

    if {("emo", 15), ("standard", 15)} <= at.keys():
        result = over(at["emo", 15], "full", at["standard", 15], "full")
        aim = "EMO's loss over the standard MoE's at 15 M tokens, at most +1 %"
        row(aim, result, 1)
        result = over(at[AFTERWARDS, 15], "full", at["standard", 15], "full")
        row(aim.replace("EMO's loss", "The loss of EMO with pools of 64 tokens"), result, 1)
    base, standard = at.get(("emo", 7.5)), at.get(("standard", 7.5))
    if base is None or standard is None:
        return markdown(AIMS, rows)
    quarter = base.kept(0.25) if base.runs else ""
    labels = at["labels", 7.5]
    way = labels.kept(0.25) if labels.runs else ""
    aim = "EMO with 25 % of the experts over label pools with 25 %, at most +1 %"
    row(aim, over(base, quarter, labels, way), 1)
    row(aim.replace("25 %,", "25 % given the label,"), over(base, quarter, labels, "as trained"), 1)
    for arm in ("btx", "flexolmo"):
        aim = f"EMO with 25 % of the experts over the whole {NAMES[arm]} mixture, at most 0 %"
        row(aim, over(base, quarter, at[arm, 7.5], "full"), 0)
    seeds = [seed for seed in base.seeds if seed in standard.seeds]
    for name, share in SHARES.items():
        rises = [bits_rise(group, share, seeds) for group in (base, standard)] if seeds else []
        aim = (
            f"EMO's rise in bits a byte of right answers with {name} of the experts, as a fraction"
            " of the standard MoE's, at most 0.1"
        )
        row(aim, paired(ratio, *rises) if rises else None, 0.1)
    return markdown(AIMS, rows)


def against_table(found: list[Group]) -> str:
    """Each model against EMO: whole, and with a quarter of the experts of both."""
    emo = {group.millions: group for group in found if group.arm == "emo"}
    rows = []
    for group in found:
        if group.arm == "emo":
            continue
        base = emo[group.millions]
        quarter = quarter_emo = ""
        if group.runs and base.runs:
            quarter, quarter_emo = group.kept(0.25), base.kept(0.25)
        whole = _shown(over(group, "full", base, "full"))
        part = _shown(over(group, quarter, base, quarter_emo))
        rows.append([*_named(group), whole, part])
    return markdown([*HEAD, "all experts, %", "25 % kept, %"], rows)


def trained_table(found: list[Group]) -> str:
    """Losses with what acts in training only."""
    rows = []
    for group in found:
        if group.arm not in ("switch", "labels"):
            continue
        cells = [NOTHING] * 2
        if group.runs:
            cells = [shown(group.losses(way), sign=False) for way in ("full", "as trained")]
        rows.append([*_named(group), *cells])
    return markdown([*HEAD, "without", "as trained"], rows)


def stages_table(found: list[Group]) -> str:
    """What each model was trained on."""
    rows = []
    for group in found:
        if not group.runs or group.millions != 7.5:
            continue
        run = group.runs[0]
        owners = [name for name in run["tokens"] if name in run["trained"]["domains"]]
        each = ", ".join(
            f"{name} {tokens / 1e6:.2f} M"
            for name, tokens in run["tokens"].items()
            if name not in owners
        )
        if owners:
            each += f", {len(owners)} branches of {run['tokens'][owners[0]] / 1e6:.2f} M"
        rows.append([NAMES[group.arm], each, f"{run['flops'] / 1e12:.1f}", str(run["experts"])])
    return markdown(["model", "tokens", "TFLOPs", "experts"], rows)


def tasks_table(found: list[Group], task: str, field: str, form: str) -> str:
    """A figure of a group of tasks, by the share of experts kept."""
    rows = []
    for group in found:
        cells = []
        for share in (1.0, *SHARES.values()):
            scores = group.scores(task, share, field) if group.runs else np.empty(0)
            if not scores.size:
                cells.append(NOTHING)
                continue
            mean, low, high = interval(scores)
            cells.append(f"{mean:{form}} ({low:{form}} to {high:{form}})")
        rows.append([*_named(group), *cells])
    return markdown([*HEAD, "100 %", *SHARES], rows)


def changes_table(found: list[Group], task: str) -> str:
    """By how much accuracy falls with a part of the experts."""
    rows = []
    for group in found:
        cells = [NOTHING] * len(SHARES)
        if group.runs:
            whole = group.scores(task, 1.0, "value")
            parts = [group.scores(task, share, "value") for share in SHARES.values()]
            cells = [shown(part - whole) if part.size else NOTHING for part in parts]
        rows.append([*_named(group), *cells])
    return markdown([*HEAD, *SHARES], rows)


def more_tokens(folder: Path) -> str:
    """How far EMO is behind, by tokens of training, for docs/results.md."""
    return by_tokens_table(by_tokens(folder))


def losses_by_tokens(folder: Path) -> str:
    """Losses and rises of EMO and the standard MoE with more tokens, for docs/results.md."""
    arms = (*PAIR, AFTERWARDS)
    return losses_table([group for group in groups(folder) if group.arm in arms and group.runs])


def systems(folder: Path) -> str:
    """A line for every system at 7.5 M tokens, for docs/results.md."""
    return losses_table([group for group in groups(folder) if group.millions == 7.5])


def tasks_of_pair(folder: Path) -> str:
    """EMO and the standard MoE of 7.5 M tokens on tasks, for docs/results.md."""
    pair = [group for group in groups(folder) if group.arm in PAIR and group.millions == 7.5]
    pair = [group for group in pair if group.runs]
    if not pair:
        return "Not measured yet.\n"
    tables = [
        "Bits a byte of the right answers:\n",
        tasks_table(pair, TASKS[0], "bits_per_byte", ".3f"),
    ]
    for task in TASKS:
        tables += [
            f"Accuracy, `{task}` (chance is 0.25):\n",
            tasks_table(pair, task, "value", ".3f"),
        ]
    return "\n".join(tables)


def task_section(found: list[Group], task: str) -> str:
    """The tables of a group of tasks."""
    parts = [
        f"### {task}\n",
        f"Wrong choices: {WHAT[task]}. Chance is 0.25. Accuracy:\n",
        tasks_table(found, task, "value", ".3f"),
        "Change of the accuracy with a part of the experts:\n",
        changes_table(found, task),
    ]
    return "\n".join(parts)


class ByTokens(NamedTuple):
    """Percent by which EMO's loss is over the standard MoE's, with intervals."""

    millions: float  # of tokens
    seeds: int
    over: tuple[float, ...]
    with_pool: tuple[float, ...]  # EMO evaluated with its pool
    spans: tuple[float, ...] | None  # EMO whose pools are shared by 64 tokens; None: not measured


def by_tokens(folder: Path) -> list[ByTokens]:
    """EMO against the standard MoE for each number of tokens with results of both."""
    sizes = [SMALLEST, *sorted({run.millions for run in RUNS if run.arm in PAIR})]
    found = []
    for millions in sizes:
        emo, standard, spans = (Group(arm, millions, folder) for arm in (*PAIR, AFTERWARDS))
        seeds = [seed for seed in emo.seeds if seed in standard.seeds]
        if seeds:
            base = standard.losses("full", seeds)
            ways = (paired(percent, emo.losses(way, seeds), base) for way in ("full", "pool"))
            found.append(
                ByTokens(millions, len(seeds), *ways, over(spans, "full", standard, "full"))
            )
    return found


def by_tokens_table(found: list[ByTokens]) -> str:
    """The same as a table."""
    rows = [
        [f"{one.millions:g} M", str(one.seeds), *map(_shown, (one.over, one.with_pool, one.spans))]
        for one in found
    ]
    head = ["without a pool", "EMO with its pool", "pools of 64 tokens"]
    return markdown(["tokens", "seeds", *head], rows)


def plot_by_tokens(found: list[ByTokens], file: Path) -> None:
    """Plots it, with the intervals."""
    figure, axes = new_axes(height=3.2)
    sizes = [one.millions for one in found]
    for field, style, colour, label in (
        ("over", "-", COLOURS["emo"], "without a pool"),
        ("with_pool", ":", COLOURS["emo"], "EMO evaluated with its pool"),
        ("spans", "-", "#777777", "pools of 64 tokens"),
    ):
        numbers = {one.millions: getattr(one, field) for one in found if getattr(one, field)}
        if numbers:
            mean, low, high = np.array([*numbers.values()]).T
            axes.fill_between([*numbers], low, high, color=colour, alpha=0.12, linewidth=0)
            axes.plot([*numbers], mean, style, marker="o", color=colour, label=label)
    axes.legend(frameon=False)
    axes.axhline(1, color="#777777", linewidth=1, linestyle="--")
    below = dict(xytext=(0, -4), textcoords="offset points", ha="right", va="top")
    axes.annotate("aim: 1 %", (sizes[-1], 1), **below)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("million tokens of training")
    axes.set_ylabel("EMO's loss over the\nstandard MoE's, %")
    save_plot(figure, file)


def page(folder: Path) -> str:
    """The page."""
    found = list(groups(folder))
    template = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    runs = [run for group in found for run in group.runs]
    measured = [group for group in found if group.runs]
    hours = sum(sum(run["tokens"].values()) / run["tokens_per_second"] for run in runs) / 3600
    return template.format(
        done=len(runs),
        planned=len(RUNS),
        hours=f"{hours:.1f}",
        measuring=f"{sum(run['measuring_seconds'] for run in runs) / 3600:.1f}",
        stages=stages_table(found),
        public=" and ".join(PUBLIC),
        aims=aims_table(found),
        losses=losses_table(found),
        against=against_table(found),
        trained=trained_table(found),
        by_tokens=by_tokens_table(by_tokens(folder)),
        items=ITEMS,
        examples=EXAMPLES,
        bits=tasks_table(measured, TASKS[0], "bits_per_byte", ".3f"),
        tasks="\n".join(task_section(measured, task) for task in TASKS),
    )


@click.command()
@click.option("--results", required=True, type=click.Path(path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path))
def main(results: Path, output: Path) -> None:
    """Writes baselines_results.md and its plot."""
    (output / "baselines_results.md").write_text(page(results), encoding="utf-8")
    plot_by_tokens(by_tokens(results), results / "loss_by_tokens.svg")
    click.echo(f"{output / 'baselines_results.md'}: {len(list(results.glob('*.json')))} results")


if __name__ == "__main__":
    main()

r"""EMO against what it is compared with: losses and tasks, with all and with a part of the experts.

    python experiments/baselines.py --output runs/baselines --results docs/results/baselines

Makes the corpus of modularity.py, then trains and measures the first run of `RUNS` that has no
result, and so on. Each run leaves one JSON file. An interrupted one goes on from its checkpoint; a
result is never made again. For hours in the background: `nice python experiments/baselines.py …`.
How each arm is trained: baseline_arms.py.

The last stage of an arm, as a config file:

    emo train --config experiments/baselines.py:emo@7.5 --config.data.store=STORE --workdir DIR

baselines_report.py writes docs/baselines_results.md.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import modularity
from baseline_arms import ARMS, Run, config_of_arm, described, stages_of, train_stages
from ml_collections import ConfigDict

from emo_jax import evaluate, evaluate_tasks, load
from emo_jax.checkpoint.manifest import versions
from emo_jax.config import MoeConfig
from emo_jax.errors import ConfigError, EmoError, UsageError
from emo_jax.files.atomic import write_atomic
from emo_jax.quickstart.task_folder import make_tasks
from emo_jax.selection.budgets import parse_keep

# All of this was fixed before any test loss was seen, but for the arm that came out of control.py.
PAIR, AFTERWARDS = ("emo", "standard"), "spans"
OTHERS = tuple(arm for arm in ARMS if arm not in (*PAIR, AFTERWARDS))
RUNS = (
    *(Run(arm, 7.5, seed) for seed in (0, 1, 2) for arm in PAIR),
    *(Run(arm, 15, 0) for arm in PAIR),
    *(Run(arm, 7.5, 0) for arm in OTHERS),
    *(Run(arm, 15, seed) for seed in (1, 2) for arm in PAIR),
    *(Run(arm, 7.5, seed) for seed in (1, 2) for arm in OTHERS),
    *(Run(arm, 30, 0) for arm in PAIR),
    *(Run(AFTERWARDS, 7.5, seed) for seed in (0, 1, 2)),
    Run(AFTERWARDS, 15, 0),
)
TASKS = ("emo_next", "emo_topic")  # groups of `emo data tasks`, a task for each of nine domains
ITEMS = 100  # of each task
KEEPS = ("50%", "25%", "12.5%")  # where a model has that many experts
METHOD, EXAMPLES = "layerwise", 100  # items of the validation split that experts are chosen by
MEASURED = {
    "losses": modularity.MEASURED,
    "tasks": [*TASKS],
    "items": ITEMS,
    "task_keeps": ["100%", *KEEPS],
    "examples": EXAMPLES,
}


def get_config(arg: str = "emo@7.5") -> ConfigDict:
    """The config of an arm's last stage, with the FLOPs of EMO on so many million tokens."""
    arm, _, millions = (arg or "emo").partition("@")
    try:
        size = float(millions or 7.5)
        if arm not in ARMS or not 0 < size < 1e6:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"config argument {arg!r}: must be one of {', '.join(ARMS)}, and may go on with"
            " millions of tokens, as in emo@7.5"
        ) from None
    return config_of_arm(arm, size)


def keeps_of(moe: MoeConfig) -> tuple[str, ...]:
    """Those of `KEEPS` that leave a token the experts it uses."""

    def allowed(keep: str) -> bool:
        try:
            return parse_keep(keep, moe) > 0
        except UsageError:
            return False

    return tuple(filter(allowed, KEEPS))


def tasks_of(workdir: Path, folder: Path, keeps: tuple[str, ...]) -> list[dict[str, Any]]:
    """Scores of a trained run on the groups of tasks, for each number of experts kept."""
    found = evaluate_tasks(
        workdir,
        [str(file) for group in TASKS for file in sorted(folder.glob(f"{group}_*.yaml"))],
        limit=ITEMS,
        keep=("100%", *keeps),
        method=METHOD,
        examples=EXAMPLES,
        quiet=False,
    )
    names = ("unit", "keep", "items", "metric", "value", "stderr", "bits_per_byte")
    return [{name: getattr(row, name) for name in names} for row in found.rows]


def losses_of(
    run: Run, workdir: Path, stores: modularity.Stores, say: Callable[[str], None]
) -> dict[str, Any]:
    """Losses by store and domain: of EMO and the standard MoE in all ways of modularity.py.

    Of the others: with all experts, with a part, and, if a capacity or labels acted in training,
    with these.
    """
    model = load(workdir)
    if run.arm in PAIR:
        return modularity.measure(model.config, model.params, stores, run.seed, say)
    moe = model.config.moe
    assert moe is not None
    result = {}
    for name, path in stores._asdict().items():
        say(name)
        acted = bool(moe.capacity_factor) or (moe.pool.labelled and name == "trained")
        found = evaluate(
            *(model, path),
            windows=modularity.WINDOWS,
            keep=keeps_of(moe),
            method=METHOD,
            as_trained=acted,
        ).losses
        result[name] = {
            "domains": found.domains,
            "losses": {
                "labels": modularity.numbers(found.labels_M),
                **{
                    way.replace("keep=", f"{METHOD} "): modularity.numbers(found.loss_M(way))
                    for way in found.ce_sum_CM
                },
            },
        }
    return result


def perform(run: Run, output: Path, results: Path, stores: modularity.Stores, tasks: Path) -> None:
    """Trains and measures one model, unless its result exists.

    Raises:
      UsageError: the result is that of another experiment.
    """
    stages = stages_of(run, stores)
    file = results / f"{run.name}.json"
    made_of = {**described(run, stages, stores), "measured": MEASURED}
    if modularity.is_there(file, made_of):
        return
    steps = ", ".join(f"{name} {config.train.steps}" for name, config in stages)
    print(f"== {run.name}: {steps} steps", flush=True)
    workdir = train_stages(run, stages, stores, output)
    begin = time.monotonic()
    say = lambda text: print(f"   {time.monotonic() - begin:5.0f} s  {text}", flush=True)  # noqa: E731
    losses = losses_of(run, workdir, stores, say)
    say("tasks")
    moe = stages[-1].config.moe
    assert moe is not None
    scores = tasks_of(workdir, tasks, keeps_of(moe))
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").open(encoding="utf-8")]
    result = {
        **made_of,
        "tokens_per_second": modularity.median_rate(records),
        "measuring_seconds": round(time.monotonic() - begin),
        "versions": versions(),
        "tasks": scores,
        **losses,
    }
    results.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(result, indent=1) + "\n")


@click.command()
@click.option("--output", required=True, type=click.Path(path_type=Path), help="For workdirs.")
@click.option("--results", required=True, type=click.Path(path_type=Path), help="For the figures.")
@click.option("--only", default="", help="Names of runs, as emo-7.5m-0,standard-7.5m-0.")
def main(output: Path, results: Path, only: str) -> None:
    """Trains and measures the runs that have no result."""
    wanted = only.split(",") if only else [run.name for run in RUNS]
    try:
        if unknown := [name for name in wanted if name not in {run.name for run in RUNS}]:
            raise UsageError(
                f"--only {unknown[0]}: must be some of {', '.join(run.name for run in RUNS)}"
            )
        stores, tasks = modularity.make_stores(output), output / "tasks"
        if not tasks.exists():
            make_tasks(tasks)
        for run in RUNS:
            if run.name in wanted:
                perform(run, output, results, stores, tasks)
    except EmoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()

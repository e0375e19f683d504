r"""EMO against what it is compared with: losses and tasks, with all and with a part of the experts.

    python experiments/baselines.py --output runs/baselines --results docs/results/baselines

Makes the corpus of modularity.py, then trains and measures the first run of `RUNS` that has no
result, and so on. Each run leaves one JSON file. An interrupted one goes on from its checkpoint; a
result is never made again. For hours in the background: `nice python experiments/baselines.py …`.

One run alone, as a config file:

    emo train --config experiments/baselines.py:emo@7.5 --config.data.store=STORE --workdir DIR

baselines_report.py writes docs/baselines_results.md.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import click
import modularity
from ml_collections import ConfigDict

from emo_jax import evaluate_tasks
from emo_jax.checkpoint.manifest import versions
from emo_jax.config import Config, from_config_dict, presets
from emo_jax.data.store import TokenStore
from emo_jax.errors import EmoError, UsageError
from emo_jax.files.atomic import write_atomic
from emo_jax.quickstart.task_folder import make_tasks
from emo_jax.training.loop import Trainer


class Run(NamedTuple):
    """A model to train: an arm, millions of tokens, and a seed."""

    arm: str
    millions: float
    seed: int

    @property
    def name(self) -> str:
        """Of its workdir and its result."""
        return f"{self.arm}-{self.millions:g}m-{self.seed}"


# All of this was fixed before any test loss was seen.
RUNS = tuple(Run(arm, 7.5, seed) for seed in (0, 1, 2) for arm in ("emo", "standard"))
TASKS = ("emo_next", "emo_topic")  # groups of `emo data tasks`, a task for each of nine domains
ITEMS = 100  # of each task
TASK_KEEPS = ("100%", "50%", "25%", "12.5%")
METHOD, EXAMPLES = "layerwise", 100  # items of the validation split that experts are chosen by
MEASURED = {
    "losses": modularity.MEASURED,
    "tasks": [*TASKS],
    "items": ITEMS,
    "task_keeps": [*TASK_KEEPS],
    "examples": EXAMPLES,
}


def get_config(arg: str = "emo@7.5") -> ConfigDict:
    """The config of an arm, trained on so many million tokens."""
    arm, _, millions = arg.partition("@")
    config = presets.modularity_tiny(arm)
    train = config.train
    tokens = round(float(millions or 7.5) * 1e6)
    train.steps = presets.steps_of(tokens, train.batch_size, config.data.seq_len)
    train.eval_every = 300
    return config


def config_of(run: Run, stores: modularity.Stores) -> Config:
    """The config of a run; the seed also orders the data."""
    config = get_config(f"{run.arm}@{run.millions:g}")
    config.name, config.seed, config.data.seed = run.name, run.seed, run.seed
    config.data.store = str(stores.trained.resolve())
    return from_config_dict(config)


def tasks_of(workdir: Path, folder: Path) -> list[dict[str, Any]]:
    """Scores of a trained run on the groups of tasks, for each number of experts kept."""
    found = evaluate_tasks(
        workdir,
        [str(file) for group in TASKS for file in sorted(folder.glob(f"{group}_*.yaml"))],
        limit=ITEMS,
        keep=TASK_KEEPS,
        method=METHOD,
        examples=EXAMPLES,
        quiet=False,
    )
    names = ("unit", "keep", "items", "metric", "value", "stderr", "bits_per_byte")
    return [{name: getattr(row, name) for name in names} for row in found.rows]


def perform(run: Run, output: Path, results: Path, stores: modularity.Stores, tasks: Path) -> None:
    """Trains and measures one model, unless its result exists.

    Raises:
      UsageError: the result is that of another experiment.
    """
    file, config = results / f"{run.name}.json", config_of(run, stores)
    made_of = {
        "arm": run.arm,
        "seed": run.seed,
        "tokens": config.train.steps * config.train.batch_size * config.data.seq_len,
        "config": modularity.config_digest(config),
        "measured": MEASURED,
        "store": TokenStore.open(stores.trained).fingerprint,
    }
    if modularity.is_there(file, made_of):
        return
    print(f"== {run.name}: {config.train.steps} steps", flush=True)
    workdir = output / "runs" / run.name
    state = Trainer(config, workdir).run()
    begin = time.monotonic()
    say = lambda text: print(f"   {time.monotonic() - begin:5.0f} s  {text}", flush=True)  # noqa: E731
    losses = modularity.measure(config, state.params, stores, run.seed, say)
    say("tasks")
    scores = tasks_of(workdir, tasks)
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

"""`emo tasks`: which tasks, in which ways, and the rows that come of it."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

from jax.sharding import Mesh

from emo_jax.config import Config
from emo_jax.config.names import METHODS
from emo_jax.errors import UsageError
from emo_jax.model.params import Params
from emo_jax.selection.budgets import parse_keep
from emo_jax.tasks.choosing import TASK, ChoosingSettings, open_store
from emo_jax.tasks.harness import TaskSource
from emo_jax.tasks.lm import EmoLM
from emo_jax.tasks.measure import MeasureSettings, Row, Unit, measure
from emo_jax.tasks.suite import suite
from emo_jax.tokenizer.base import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Arguments of `emo_jax.evaluate_tasks`."""

    tasks: tuple[str, ...]
    suite: tuple[str, ...] = ()
    include_path: tuple[str, ...] = ()
    few_shot: int | None = None
    limit: int | None = None
    keeps: tuple[str, ...] = ()
    method: str = "layerwise"
    choose_on: str = TASK
    examples: tuple[int | None, ...] = (100,)
    max_tokens: int = 1_000_000
    allow_fewer: bool = False
    seed: int = 0


def run_tasks(
    config: Config,
    params: Params,
    tokenizer: Tokenizer,
    mesh: Mesh,
    settings: RunSettings,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[list[Row], list[str]]:
    """The rows of all tasks, and notes.

    Args:
      config: config of the model.
      params: its parameters, on the host.
      tokenizer: its tokenizer.
      mesh: where to run.
      settings: what to run.
      progress: called with lines about the progress.

    Raises:
      UsageError, DataError: see `emo_jax.evaluate_tasks`.
    """
    choosing = check(config, settings)
    source = TaskSource(settings.include_path)
    units = units_of(source, settings, progress)
    shown = ["tasks"]
    lm = EmoLM(
        config, params, tokenizer, mesh, progress=lambda line: progress(f"{shown[0]}: {line}")
    )
    store = None
    if choosing.keeps and choosing.on != TASK:
        store = open_store(choosing.on, lm, choosing)
    rows: list[Row] = []
    notes: list[str] = []

    def say(line: str) -> None:
        shown[0] = line
        progress(line)

    measured = MeasureSettings(few_shot=settings.few_shot, limit=settings.limit)
    for unit in units:
        found = measure(lm, unit, measured, choosing, store=store, progress=say, note=notes.append)
        rows += found
        if most := max(row.cut for row in found):
            notes.append(
                f"{unit.name}: {most:,} prompts were cut from the left to the window of"
                f" {lm.max_length:,} tokens"
            )
    return rows, notes


def check(config: Config, settings: RunSettings) -> ChoosingSettings:
    """What is asked of the choice, checked before anything is loaded.

    Raises:
      UsageError: no tasks, or a setting that the model does not allow.
    """
    if not settings.tasks and not settings.suite:
        raise UsageError("no tasks; give --tasks NAME,PATH.yaml or --suite emo")
    if settings.keeps and config.moe is None:
        raise UsageError(f"--keep {settings.keeps[0]}: {config.name} is dense, it has no experts")
    if settings.method not in METHODS:
        raise UsageError(f"--method {settings.method}: must be one of {', '.join(METHODS)}")
    if not settings.examples or any(n is not None and n < 1 for n in settings.examples):
        raise UsageError("--examples: must be numbers above 0, or all")
    fewer, moe = settings.allow_fewer, config.moe
    keeps = [parse_keep(text, moe, allow_fewer=fewer) for text in settings.keeps] if moe else []
    return ChoosingSettings(
        keeps=tuple(dict.fromkeys(keeps)),
        method=settings.method,
        on=settings.choose_on,
        numbers=tuple(dict.fromkeys(settings.examples)),
        max_tokens=settings.max_tokens,
        allow_fewer=fewer,
        seed=settings.seed,
    )


def units_of(
    source: TaskSource, settings: RunSettings, progress: Callable[[str], None]
) -> list[Unit]:
    """The rows asked for, with their tasks loaded.

    Raises:
      UsageError: a task is in two of them.
    """
    units = []
    for row in suite(settings.suite):
        progress(f"loading {row.name}")
        tasks = [task for name in row.tasks for task in source.load(name, row.changes)]
        units.append(
            Unit(
                name=row.name,
                tasks=tasks,
                word=row.word,
                rule=row.rule,
                metric=row.metric,
                filter=row.filter,
                averaged=row.averaged,
            )
        )
    for name in settings.tasks:
        progress(f"loading {name}")
        tasks = source.load(name)
        units.append(Unit(name=_name(name, tasks), tasks=tasks))
    names = Counter(task.task_name for unit in units for task in unit.tasks)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UsageError(f"{twice[0]}: asked for twice; leave it out of --tasks or --suite")
    return units


def _name(given: str, tasks: Sequence) -> str:
    """Of a file, the name of its task."""
    return tasks[0].task_name if len(tasks) == 1 else given

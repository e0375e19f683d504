"""Runs tasks through the harness, with the whole model and with modules.

Every figure is the harness's own: its prompts, its filters, its metrics. What is added: the pooled
accuracy of tasks that share a module, accuracy by length, and bits a byte of the gold answer.
"""

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from emo_jax.errors import DataError
from emo_jax.selection.examples import Examples
from emo_jax.tasks.choosing import ChoosingSettings, modules, task_examples
from emo_jax.tasks.parts import Parts, Rule, parts_of
from emo_jax.tasks.scoring import Gold, gold_choice, gold_of

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from emo_jax.tasks.lm import EmoLM

FEW_SHOT_SEED = 1234  # the harness's own default
# What is reported of a task that has several metrics, the first that it has.
_PREFERRED = ("acc", "exact_match", "f1", "em", "bits_per_byte", "word_perplexity", "perplexity")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Unit:
    """Tasks that share one module: a row of the table for each way of running the model.

    Attributes:
      word: the word of the suite that it belongs to; "": none.
      rule: see `emo_jax.tasks.parts`.
      metric, filter: what is reported; "": the first that there is.
      averaged: counts in the average of the word.
    """

    name: str
    tasks: "Sequence[Task]"
    word: str = ""
    rule: Rule = "splits"
    metric: str = ""
    filter: str = ""
    averaged: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of a unit in one way.

    Attributes:
      unit, word, averaged: see `Unit`.
      keep: number of experts kept in each layer, shared ones included; None: all, and none chosen.
      examples, calibration_tokens: what the experts were chosen by.
      items: number of items measured on.
      metric: name of what is reported, with its filter after a comma if it has one.
      value: its mean over the items, or the harness's own aggregate.
      stderr: standard error of that mean; None where it is no mean.
      by_length: (largest number of prompt tokens, items, value) of each bin that has items.
      bits_per_byte: of the gold answers; None if there are none.
      cut: number of prompts that were truncated from the left to the window.
      seconds: to choose and to measure.
      metrics: all of the harness's figures, by task.
    """

    unit: str
    word: str
    averaged: bool
    keep: int | None
    examples: int
    calibration_tokens: int
    items: int
    metric: str
    value: float
    stderr: float | None
    by_length: tuple[tuple[int, int, float], ...]
    bits_per_byte: float | None
    cut: int
    seconds: float
    metrics: Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """How tasks are run.

    Attributes:
      few_shot: number of examples in a prompt; None: as each task says. A task that says 0 keeps
        it, as in the harness.
      limit: items of each task, the first ones; None: all.
    """

    few_shot: int | None = None
    limit: int | None = None


def measure(
    lm: "EmoLM",
    unit: Unit,
    settings: MeasureSettings,
    choosing: ChoosingSettings,
    *,
    store: Examples | None = None,
    progress: Callable[[str], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """The rows of a unit: the whole model, or each of the modules asked for.

    Args:
      lm: the model.
      unit: the tasks.
      store: examples to choose by; None: the tasks' own.
      progress: called with lines about the progress.
      note: called with what a reader should know.
    """
    for task in unit.tasks:
        set_shots(task, settings.few_shot)
        seed_shots(task)
    own = bool(choosing.keeps) and store is None and choosing.method != "random"
    parts = [parts_of(task, unit.rule, choosing=own) for task in unit.tasks]
    if not choosing.keeps:
        begun = time.monotonic()
        return [_row(lm, unit, parts, settings, progress, begun, keep=None)]
    begun = time.monotonic()
    if store is None and choosing.method == "random":
        examples = Examples([], unit.name, "")
    elif store is not None:
        examples = store
    else:
        pool = task_examples(lm, unit.name, unit.tasks, parts, choosing)
        examples = pool.examples
        note(f"{unit.name}: experts are chosen on {parts[0].said}")
        if pool.equal:
            note(
                f"{unit.name}: {pool.equal} items to choose by were left out, since the same items"
                " are measured on"
            )
    found = []
    for module in modules(lm, examples, choosing, lambda s: progress(f"{unit.name}, {s}")):
        lm.keep_LR = module.kept_LR
        found.append(
            _row(
                *(lm, unit, parts, settings, progress, begun),
                keep=module.keep,
                examples=module.number,
                calibration_tokens=module.tokens,
            )
        )
        begun = time.monotonic()
    lm.keep_LR = None
    return found


def set_shots(task: "Task", few_shot: int | None) -> None:
    """Sets a task's number of few-shot examples, where it does not say 0 itself."""
    own = task.config.num_fewshot
    if own is None or (few_shot is not None and own != 0):
        task.set_config("num_fewshot", few_shot or 0)


def seed_shots(task: "Task") -> None:
    """The examples that are drawn from here on are the same every time."""
    task.set_fewshot_seed(FEW_SHOT_SEED)


def _row(
    lm: "EmoLM",
    unit: Unit,
    parts: Sequence[Parts],
    settings: MeasureSettings,
    progress: Callable[[str], None],
    begun: float,
    **way: Any,
) -> Row:
    shown = unit.name if way["keep"] is None else f"{unit.name}, {way['keep']} experts"
    progress(shown)
    lm.cut.clear()
    results = run_harness(lm, unit.tasks, parts, settings.limit)
    metric, filter_ = _reported(unit, results)
    golds = gold_answers(lm, unit.tasks, results["samples"])
    name = metric if filter_ == "none" else f"{metric},{filter_}"
    values, lengths = [], []
    for task in unit.tasks:
        for sample in results["samples"][task.task_name]:
            if sample["filter"] == filter_:
                values.append(sample[metric])
                lengths.append(lm.length_of(golds.prompts[task.task_name, sample["doc_id"]]))
    if any(isinstance(value, tuple | list | dict) for value in values):
        # The harness aggregates it in a way of its own, such as perplexity.
        value, stderr = _aggregate(unit, results, f"{metric},{filter_}"), None
        by_length: tuple[tuple[int, int, float], ...] = ()
    else:
        scores = np.asarray(values, np.float64)
        value, stderr = float(scores.mean()), standard_error(scores)
        by_length = _by_length(scores, np.asarray(lengths))
    return Row(
        unit=unit.name,
        word=unit.word,
        averaged=unit.averaged,
        items=len(values),
        metric=name,
        value=value,
        stderr=stderr,
        by_length=by_length,
        bits_per_byte=golds.bits_per_byte,
        cut=len(lm.cut),
        seconds=time.monotonic() - begun,
        metrics={
            name: {k: v for k, v in found.items() if isinstance(v, int | float)}
            for name, found in results["results"].items()
        },
        **({"examples": 0, "calibration_tokens": 0} | way),
    )


def run_harness(
    lm: "EmoLM", tasks: "Sequence[Task]", parts: Sequence[Parts], limit: int | None
) -> dict[str, Any]:
    """What the harness's `evaluate` returns, with samples, for the items to measure on.

    Raises:
      DataError: a task has none.
    """
    from lm_eval import evaluator

    chosen: dict[str, list[int]] = {}
    for task, part in zip(tasks, parts, strict=True):
        seed_shots(task)
        there = len(task.eval_docs) if part.measuring is None else len(part.measuring)
        if not there:
            raise DataError(f"{task.task_name}: no items to measure on; give data that has some")
        if part.measuring is not None:
            chosen[task.task_name] = part.measuring[:limit].tolist()
        elif limit is not None and limit < there:
            chosen[task.task_name] = list(range(limit))
    named = {task.task_name: task for task in tasks}
    found = evaluator.evaluate(lm, {"tasks": named}, samples=chosen or None, bootstrap_iters=0)
    assert found is not None
    return dict(found)


def _reported(unit: Unit, results: Mapping[str, Any]) -> tuple[str, str]:
    """The metric to report, and its filter."""
    first = results["results"][unit.tasks[0].task_name]
    keys = [key for key in first if "," in key and "_stderr" not in key]
    if unit.metric:
        wanted = [k for k in keys if k.startswith(f"{unit.metric},")]
        wanted = [k for k in wanted if k.endswith(f",{unit.filter}")] or wanted
    else:
        wanted = [k for name in _PREFERRED for k in keys if k.startswith(f"{name},")]
    metric, _, filter_ = (wanted or keys)[0].partition(",")
    return metric, filter_


def _aggregate(unit: Unit, results: Mapping[str, Any], key: str) -> float:
    """The harness's figure, as a mean over tasks weighted by their items."""
    found = [results["results"][task.task_name] for task in unit.tasks]
    sizes = [one["sample_len"] for one in found]
    return float(np.average([one[key] for one in found], weights=sizes))


def standard_error(values: np.ndarray) -> float | None:
    """Of a mean, from the sample's standard deviation, as the harness has it; None for one item."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def _by_length(values: np.ndarray, tokens: np.ndarray) -> tuple[tuple[int, int, float], ...]:
    """Means of items whose prompts have up to a power of two of tokens."""
    bins = 2 ** np.ceil(np.log2(np.maximum(tokens, 16))).astype(int)
    return tuple(
        (int(most), int((bins == most).sum()), float(values[bins == most].mean()))
        for most in np.unique(bins)
    )


@dataclasses.dataclass
class GoldAnswers:
    """Log-likelihoods of gold answers.

    Attributes:
      nats: their sum.
      bytes: of the answers, with the delimiter before them.
      prompts: by task and number of the item.
    """

    nats: float = 0.0
    bytes: int = 0
    prompts: dict[tuple[str, int], str] = dataclasses.field(default_factory=dict)

    @property
    def bits_per_byte(self) -> float | None:
        """Bits a byte; None without answers."""
        return -self.nats / math.log(2) / self.bytes if self.bytes else None


def gold_answers(
    lm: "EmoLM", tasks: "Sequence[Task]", samples: Mapping[str, list[dict[str, Any]]]
) -> GoldAnswers:
    """Log-likelihoods of the gold answers: those the task asked for, or else asked for here."""
    from lm_eval.api.instance import Instance

    found, asked = GoldAnswers(), []
    for task in tasks:
        seen = set()
        for sample in samples[task.task_name]:
            if sample["doc_id"] in seen:  # once, however many filters
                continue
            seen.add(sample["doc_id"])
            requests, said = sample["arguments"], sample["resps"]
            gold = gold_of(task, sample["doc"], requests, requests[0][0])
            found.prompts[task.task_name, sample["doc_id"]] = gold.prompt
            if not gold.answer:
                continue
            found.bytes += len(gold.answer.encode())
            nats = _said(task, sample["doc"], said)
            if nats is None:
                asked.append(gold)
            else:
                found.nats += nats
    by_hand = [Instance("loglikelihood", {}, tuple(gold), 0) for gold in _askable(asked)]
    if by_hand:
        found.nats += sum(nats for nats, _ in lm.loglikelihood(by_hand))
    return found


def _said(task: "Task", doc: Any, said: Sequence[Any]) -> float | None:
    """The log-likelihood of the gold answer, if the task's own requests have it."""
    if task.OUTPUT_TYPE == "multiple_choice":
        return float(said[gold_choice(task, doc)][0][0])
    if task.OUTPUT_TYPE == "loglikelihood":
        return float(said[0][0][0])
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        first = said[0][0]
        return float(first[0] if isinstance(first, tuple | list) else first)
    return None


def _askable(golds: Sequence[Gold]) -> list[Gold]:
    return [gold for gold in golds if gold.answer.strip()]


def grouped(rows: Sequence[Row]) -> dict[tuple, list[Row]]:
    """Rows of the units that count, by (word, experts kept, examples asked for)."""
    found: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        if row.word and row.averaged:
            found[row.word, row.keep, row.examples].append(row)
    return found

"""Choosing a module for some tasks: by their own items, or by a domain of a token store.

Legend: L layers, R routed experts, N tokens of a document.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from emo_jax.config import moe_of
from emo_jax.data.store import TokenStore
from emo_jax.errors import DataError, UsageError
from emo_jax.selection.budgets import budgets
from emo_jax.selection.examples import (
    Examples,
    examples_of,
    split_location,
    store_examples,
    take,
)
from emo_jax.selection.scores import choose_by_examples
from emo_jax.tasks.parts import Parts, key_of, shuffled
from emo_jax.tasks.scoring import Gold, gold_of

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from emo_jax.tasks.lm import EmoLM

TASK = "task"  # of --choose-on: each task's own items
_SELECT = "select"  # the split of a store


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoosingSettings:
    """How modules are chosen.

    Attributes:
      keeps: numbers of experts to keep in each layer, shared ones included.
      method: one of `emo_jax.config.names.Method`.
      on: TASK, or a token store with a domain after a colon, or without one.
      numbers: of examples, one module each; None: all.
      max_tokens: of all examples.
      allow_fewer: allow keeping fewer than top-k.
      seed: for the order of a task's items, and for "random".
    """

    keeps: tuple[int, ...] = ()
    method: str = "layerwise"
    on: str = TASK
    numbers: tuple[int | None, ...] = (100,)
    max_tokens: int = 1_000_000
    allow_fewer: bool = False
    seed: int = 0


class Module(NamedTuple):
    """Experts that were chosen."""

    keep: int
    number: int  # of examples
    tokens: int  # in them
    kept_LR: np.ndarray  # bool


class Pool(NamedTuple):
    """Examples to choose by, and what was left out of them."""

    examples: Examples
    equal: int  # items left out, since they are measured on


def task_examples(
    lm: "EmoLM",
    name: str,
    tasks: Sequence["Task"],
    parts: Sequence[Parts],
    settings: ChoosingSettings,
) -> Pool:
    """Items of the choosing parts with their few-shot prompts and gold answers, in ids.

    Raises:
      DataError: there are none, or fewer than asked for.
    """
    measured = {
        key_of(task, doc)
        for task, part in zip(tasks, parts, strict=True)
        for doc in _measured(task, part)
    }
    equal = 0

    def documents() -> Iterator[np.ndarray]:
        nonlocal equal
        for n, doc in shuffled(parts, settings.seed):
            if key_of(tasks[n], doc) in measured:
                equal += 1
                continue
            prompt, answer = prompted(tasks[n], doc)
            ids = lm.joined(prompt, answer)
            yield np.asarray(ids[-lm.max_length :], np.int32)

    wanted = None if None in settings.numbers else max(n for n in settings.numbers if n is not None)
    found, full = take(documents(), wanted, settings.max_tokens)
    if not found or (wanted is not None and len(found) < wanted and full):
        raise DataError(
            f"{name}: {len(found)} items to choose experts by within {settings.max_tokens:,}"
            f" tokens, not {wanted or 'any'}; ask for fewer --examples, or raise --max-tokens"
        )
    return Pool(examples_of(found, name), equal)


def _measured(task: "Task", part: Parts) -> Iterable[Any]:
    docs = task.eval_docs
    return docs if part.measuring is None else (docs[int(i)] for i in part.measuring)


def prompted(task: "Task", doc: Any) -> Gold:
    """The gold answer of an item after its few-shot prompt."""
    prompt = task.fewshot_context(
        doc, num_fewshot=task.config.num_fewshot or 0, gen_prefix=task.doc_to_prefix(doc)
    )
    name = task.task_name
    made = task.construct_requests(doc=doc, ctx=prompt, metadata=(name, 0, 1))
    requests = made if isinstance(made, list) else [made]
    return gold_of(task, doc, [request.args for request in requests], prompt)


def open_store(location: str, lm: "EmoLM", settings: ChoosingSettings) -> Examples:
    """Examples of the split "select" of a token store, for all tasks alike.

    Raises:
      UsageError: no such store or domain, or it was made with another tokenizer.
    """
    path, domain = split_location(location, os.path.exists)
    store = TokenStore.open(path)
    try:
        store.check_tokenizer(lm.tokenizer_name)
    except DataError as error:
        raise UsageError(str(error)) from error
    numbers = settings.numbers
    wanted = None if None in numbers else max(n for n in numbers if n is not None)
    return store_examples(
        store,
        _SELECT,
        domain=domain,
        number=wanted,
        max_tokens=settings.max_tokens,
        or_fewer=True,  # as of a task's items
    )


def modules(
    lm: "EmoLM",
    examples: Examples,
    settings: ChoosingSettings,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Module]:
    """Yields a module for every number of experts and of examples, each chosen when asked for."""
    config = lm.model.config
    moe = moe_of(config)
    there = len(examples.documents)
    numbers = dict.fromkeys(there if n is None else min(n, there) for n in settings.numbers)
    for keep, number in itertools.product(settings.keeps, numbers):
        if keep == moe.num_experts:
            if number != next(iter(numbers)):
                continue
            whole_LR = np.ones((config.model.stacked_layers, moe.num_routed_experts), bool)
            yield Module(keep, 0, 0, whole_LR)
            continue
        some = examples.first(number)
        choice = choose_by_examples(
            lm.model,
            lm.params,
            some,
            budgets(config, [keep], allow_fewer=settings.allow_fewer),
            method=settings.method,
            pad_id=lm.pad_id,
            seed=settings.seed,
            progress=functools.partial(_say, progress, keep),
        )
        if not np.isfinite(choice.scores_LMR).all():
            raise DataError(
                f"{examples.source}: the scores of its examples are not finite, so no experts can"
                " be chosen: the model breaks on them"
            )
        random = settings.method == "random"
        used = (0, 0) if random else (number, some.tokens)
        yield Module(keep, *used, choice.kept_LMR[:, 0])


def _say(progress: Callable[[str], None], keep: int, line: str) -> None:
    progress(f"choosing {keep} experts: {line}")

"""Which items of a task experts are chosen by, and which it is measured on: never the same.

Parts of MMLU and MMLU-Pro are those of SPEC 7.5, which cut the split that others report on; the
order within a shuffled split is that of `datasets.Dataset.shuffle(seed=0)`.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from emo_jax.errors import DataError

if TYPE_CHECKING:
    from lm_eval.api.task import Task

Rule = Literal["splits", "mmlu", "mmlu_pro"]
_SHUFFLE = 0  # the seed
_MMLU_PRO_PRUNE = 100  # items that the reference keeps apart for choosing


class Cut(NamedTuple):
    """Items of one split, by number."""

    choosing: np.ndarray
    measuring: np.ndarray


def cut_mmlu(items: int) -> Cut:
    """The first 60 % of the shuffled split for choosing, the rest for measuring."""
    order = np.random.default_rng(_SHUFFLE).permutation(items)
    first = items * 6 // 10
    return Cut(order[:first], np.sort(order[first:]))


def cut_mmlu_pro(items: int) -> Cut:
    """100 and 40 % of the rest of the shuffled split for choosing, 60 % of the rest for measuring.

    A split of no more than 100 items is cut as MMLU's.
    """
    if items <= _MMLU_PRO_PRUNE:
        return cut_mmlu(items)
    order = np.random.default_rng(_SHUFFLE).permutation(items)
    last = (items - _MMLU_PRO_PRUNE) * 6 // 10
    return Cut(order[: items - last], np.sort(order[items - last :]))


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """Items of a task.

    Attributes:
      choosing: documents with the numbers of those to choose experts by.
      measuring: numbers of the documents to measure on; None: all of the evaluated split.
      said: where they come from.
    """

    choosing: tuple[tuple[Sequence[Any], np.ndarray], ...]
    measuring: np.ndarray | None
    said: str


def parts_of(task: "Task", rule: Rule = "splits", *, choosing: bool = False) -> Parts:
    """The parts of a task.

    Args:
      task: a task of the harness.
      rule: "splits" chooses by the training and validation splits; where there is none but the
        split that is measured on, that one is cut as MMLU's. The other two are SPEC 7.5.
      choosing: experts will be chosen; else a task without other splits is measured whole.
    """
    docs = task.eval_docs
    if rule == "mmlu":
        cut = cut_mmlu(len(docs))
        more = task.dataset.get("validation", [])
        parts = ((docs, cut.choosing), (more, np.arange(len(more))))
        return Parts(parts, cut.measuring, "60 % of test and validation; measured on 40 % of test")
    if rule == "mmlu_pro":
        cut = cut_mmlu_pro(len(docs))
        said = "100 items and 40 % of the rest of test; measured on 60 % of the rest"
        return Parts(((docs, cut.choosing),), cut.measuring, said)
    found, names = [], []
    if task.has_training_docs():
        found.append(task.training_docs())
        names.append("train")
    if task.has_test_docs() and task.has_validation_docs():
        found.append(task.validation_docs())
        names.append("validation")
    if found or not choosing:
        return Parts(
            tuple((some, np.arange(len(some))) for some in found), None, " and ".join(names)
        )
    cut = cut_mmlu(len(docs))
    said = "60 % of the only split; measured on the other 40 %"
    return Parts(((docs, cut.choosing),), cut.measuring, said)


def shuffled(parts: Sequence[Parts], seed: int = 0) -> Iterator[tuple[int, Any]]:
    """Yields (number of the task, document) of all tasks' choosing parts, in one shuffled order."""
    where = [
        (n, docs, int(i))
        for n, part in enumerate(parts)
        for docs, numbers in part.choosing
        for i in numbers
    ]
    for at in np.random.default_rng(seed).permutation(len(where)).tolist():
        n, docs, i = where[at]
        yield n, docs[i]


def key_of(task: "Task", doc: Any) -> str:
    """What makes two items the same: their question, their choices and their answer."""
    choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else None
    told = [task.doc_to_text(doc), choices, task.doc_to_target(doc)]
    return json.dumps(told, default=str, ensure_ascii=False)


def check_items(name: str, count: int, what: str) -> None:
    """Raises DataError if there are no items."""
    if not count:
        raise DataError(f"{name}: no items {what}; give data that has some, or leave it out")

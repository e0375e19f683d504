"""Items of tasks as requests that are made once and measured again and again, as in training."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from emo_jax.errors import DataError
from emo_jax.selection.examples import take
from emo_jax.tasks.choosing import prompted
from emo_jax.tasks.encoding import Encoder
from emo_jax.tasks.likelihoods import Likelihood
from emo_jax.tasks.measure import seed_shots, set_shots
from emo_jax.tasks.parts import Parts, parts_of, shuffled
from emo_jax.tasks.rows import Request, cut_left
from emo_jax.tasks.scoring import gold_choice

if TYPE_CHECKING:
    from lm_eval.api.task import Task


@dataclasses.dataclass(frozen=True)
class _Item:
    task: int
    first: int  # of its requests
    count: int
    gold: int  # among them
    bytes: int  # of the gold answer
    chosen: bool  # it is answered by a choice


class TaskItems:
    """The first items of some tasks.

    Attributes:
      names: of the tasks; the number of a task is the domain of its requests.
      requests: of all items.

    Args:
      tasks: of the harness.
      encoder: for the texts.
      window: tokens of a request's input; longer ones are cut from the left.
      most: items of each task.
      choosing: experts will be chosen, so a task of one split is cut in two.

    Raises:
      DataError: a task has no items, or one of them has nothing to predict within the window.
    """

    def __init__(
        self,
        tasks: "Sequence[Task]",
        encoder: Encoder,
        window: int,
        most: int,
        *,
        choosing: bool = False,
    ):
        self.names = tuple(task.task_name for task in tasks)
        self.requests: list[Request] = []
        self._items: list[_Item] = []
        self._tasks, self._encoder, self._window = tasks, encoder, window
        self._parts: list[Parts] = []
        for number, task in enumerate(tasks):
            set_shots(task, None)
            seed_shots(task)
            part = parts_of(task, choosing=choosing)
            self._parts.append(part)
            docs = task.eval_docs
            numbers = range(len(docs)) if part.measuring is None else part.measuring
            if not len(numbers):
                raise DataError(
                    f"{task.task_name}: no items to measure on; give data that has some"
                )
            for n in list(numbers)[:most]:
                self._add(number, task, docs[int(n)])

    def _add(self, number: int, task: "Task", doc: Any) -> None:
        texts, gold, chosen = _texts_of(task, doc)
        pairs = self._encoder.pairs(texts)
        if any(not 0 < len(ids) <= self._window for _, ids in pairs):
            raise DataError(
                f"{task.task_name}: an answer has no tokens, or more than the window of"
                f" {self._window}: {texts[0][1][:60]!r}"
            )
        size = len(texts[gold][1].encode())
        self._items.append(_Item(number, len(self.requests), len(pairs), gold, size, chosen))
        self.requests += [
            cut_left(Request(prompt, ids, number), self._window) for prompt, ids in pairs
        ]

    def choosing(self, most: int, max_tokens: int) -> list[list[np.ndarray]]:
        """Documents of each task to choose experts by: items that are not measured on, in ids."""
        return [self._documents(n, most, max_tokens) for n in range(len(self._tasks))]

    def _documents(self, number: int, most: int, max_tokens: int) -> list[np.ndarray]:
        def documents():
            for _, doc in shuffled([self._parts[number]]):
                ((prompt, ids),) = self._encoder.pairs([_gold(self._tasks[number], doc)])
                yield np.asarray([*prompt, *ids][-self._window :], np.int32)

        return take(documents(), most, max_tokens)[0]

    def scores(self, found: Sequence[Likelihood]) -> dict[str, dict[str, float]]:
        """By task: `bits_per_byte` of gold answers, and `accuracy` where items have choices."""
        out: dict[str, dict[str, float]] = {}
        for number, name in enumerate(self.names):
            items = [item for item in self._items if item.task == number]
            gold = sum(found[item.first + item.gold].nats for item in items)
            size = sum(item.bytes for item in items)
            out[name] = {"bits_per_byte": -gold / math.log(2) / max(size, 1)}
            answered = [
                int(np.argmax([found[item.first + i].nats for i in range(item.count)])) == item.gold
                for item in items
                if item.chosen
            ]
            if answered:
                out[name]["accuracy"] = sum(answered) / len(answered)
        return out


def _gold(task: "Task", doc: Any) -> tuple[str, str]:
    """The prompt of an item and its gold answer."""
    prompt, answer = prompted(task, doc)
    return prompt, answer


def _texts_of(task: "Task", doc: Any) -> tuple[list[tuple[str, str]], int, bool]:
    """Prompts and answers of an item, which is gold, and whether they are choices."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return [_gold(task, doc)], 0, False
    prompt = task.fewshot_context(
        doc, num_fewshot=task.config.num_fewshot or 0, gen_prefix=task.doc_to_prefix(doc)
    )
    made = task.construct_requests(doc=doc, ctx=prompt, metadata=(task.task_name, 0, 1))
    choices = len(task.doc_to_choice(doc))
    return [request.args[:2] for request in made[:choices]], gold_choice(task, doc), True

"""Answers of tasks: the gold one, and F1 of a text that was generated (SPEC 7.5)."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from lm_eval.api.task import Task

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normal_words(text: str) -> list[str]:
    """Words of an answer, as SQuAD compares them: no case, no punctuation, no articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def word_f1(text: str, gold: str) -> float:
    """Harmonic mean of precision and recall of an answer's words."""
    ours, theirs = normal_words(text), normal_words(gold)
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def f1_against(
    golds: Callable[[Any], Sequence[str]], *, leave_one_out: bool = False
) -> Callable[[Any, list[str]], dict]:
    """A task's `process_results`: the best F1 and exact match of its first line over the golds.

    Args:
      golds: the gold answers of an item.
      leave_one_out: the mean over the golds of the best among the others, as people are scored in
        CoQA.
    """

    def process_results(doc: Any, results: list[str]) -> dict[str, float]:
        text = results[0].strip().split("\n")[0]
        given = list(golds(doc)) or [""]
        f1 = [word_f1(text, gold) for gold in given]
        same = [float(normal_words(text) == normal_words(gold)) for gold in given]
        return {"f1": _best(f1, leave_one_out), "exact_match": _best(same, leave_one_out)}

    return process_results


def _best(scores: list[float], leave_one_out: bool) -> float:
    if not leave_one_out or len(scores) == 1:
        return max(scores)
    return sum(max(scores[:n] + scores[n + 1 :]) for n in range(len(scores))) / len(scores)


class Gold(NamedTuple):
    """The gold answer, and the prompt before it."""

    prompt: str
    answer: str


def gold_of(task: "Task", doc: Any, requests: Sequence[tuple[Any, ...]], prompt: Any) -> Gold:
    """The gold answer of an item, as the harness puts it after a prompt.

    Args:
      task: the task.
      doc: the item.
      requests: arguments of the item's requests.
      prompt: what `task.fewshot_context` returns.
    """
    kind = task.OUTPUT_TYPE
    if kind == "multiple_choice":
        return Gold(*requests[gold_choice(task, doc)][:2])
    if kind == "loglikelihood":
        return Gold(*requests[0][:2])
    if kind == "loglikelihood_rolling":
        return Gold("", requests[0][0])
    target = task.doc_to_target(doc)
    if isinstance(target, list):
        target = target[0] if target else ""
    if task.config.doc_to_choice is not None and isinstance(target, int):
        target = task.doc_to_choice(doc)[target]
    target = str(target)
    spaced = target[:1].isspace() or prompt[-1:].isspace()
    return Gold(prompt, target if spaced else f"{task.config.target_delimiter}{target}")


def gold_choice(task: "Task", doc: Any) -> int:
    """Index of the gold answer among the choices; the first of several."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, list):
        gold = gold[0]
    return task.doc_to_choice(doc).index(gold) if isinstance(gold, str) else int(gold)

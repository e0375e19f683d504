"""Made items with the columns that the hub's data sets have, and the suite's tasks on them.

The YAML is the harness's own: `dataset_path` and `data_files` are all that is replaced.
"""

import json
from pathlib import Path

from harness_files import WORDS

from emo_jax.tasks.suite import MMLU_PRO_CATEGORIES, SuiteTask


def _words(n: int, count: int = 6) -> str:
    return " ".join(WORDS[(n + i * (n % 5 + 1)) % len(WORDS)] for i in range(count))


def _answers(n: int) -> dict:
    return {"input_text": [_words(n + t, 2) for t in range(3)], "turn_id": [1, 2, 3]}


def _drop_answer(n: int) -> dict:
    return {
        "number": str(n) if n % 2 else "",
        "date": {"day": "", "month": "", "year": ""},
        "spans": [] if n % 2 else [_words(n, 1)],
    }


def _drop_lists(n: int) -> dict:
    one = _drop_answer(n)
    return {name: [value] for name, value in one.items()}


_CHOICES = {"text": ["court", "oven", "salt", "flour"], "label": ["A", "B", "C", "D"]}
_FIVE = {"text": ["court", "oven", "salt", "flour", "law"], "label": ["A", "B", "C", "D", "E"]}


def _mmlu(n: int) -> dict:
    return {"question": _words(n), "choices": WORDS[:4], "answer": n % 4, "subject": "x"}


ROWS = {
    "arc_easy": lambda n: {"question": _words(n), "choices": _CHOICES, "answerKey": "ABCD"[n % 4]},
    "boolq": lambda n: {"passage": _words(n, 9), "question": _words(n), "idx": n, "label": n % 2},
    "hellaswag": lambda n: {
        "ind": n,
        "activity_label": "Baking",
        "ctx_a": _words(n),
        "ctx_b": "then",
        "ctx": f"{_words(n)} then",
        "endings": [_words(n + i, 3) for i in range(4)],
        "label": str(n % 4),
    },
    "commonsense_qa": lambda n: {
        "question": _words(n),
        "question_concept": "court",
        "choices": _FIVE,
        "answerKey": "ABCDE"[n % 5],
    },
    "openbookqa": lambda n: {
        "question_stem": _words(n),
        "choices": _CHOICES,
        "answerKey": "ABCD"[n % 4],
    },
    "piqa": lambda n: {
        "goal": _words(n),
        "sol1": _words(n, 2),
        "sol2": _words(n, 3),
        "label": n % 2,
    },
    "social_iqa": lambda n: {
        "context": _words(n),
        "question": _words(n, 3),
        **{f"answer{a}": _words(n + i, 2) for i, a in enumerate("ABC")},
        "label": str(n % 3 + 1),
    },
    "winogrande": lambda n: {
        "sentence": f"The {_words(n, 2)} and _ {_words(n, 3)}",
        "option1": "court",
        "option2": "oven",
        "answer": str(n % 2 + 1),
    },
    "squad": lambda n: {
        "id": str(n),
        "title": "Law",
        "context": _words(n, 9),
        "question": _words(n),
        "answers": {"text": [_words(n, 2)], "answer_start": [0]},
    },
    "coqa": lambda n: {
        "id": str(n),
        "source": "made",
        "story": _words(n, 9),
        "questions": _answers(n),
        "answers": _answers(n + 1),
        "additional_answers": {"0": _answers(n + 2)},
    },
    "nq_open": lambda n: {"question": _words(n), "answer": [_words(n, 2), _words(n, 3)]},
    "triviaqa": lambda n: {
        "question": _words(n),
        "answer": {"aliases": [_words(n, 2)], "value": _words(n, 2)},
    },
    "drop": lambda n: {
        "section_id": "s",
        "query_id": str(n),
        "passage": _words(n, 9),
        "question": _words(n),
        "answer": _drop_answer(n),
        "validated_answers": _drop_lists(n),
    },
    "gsm8k": lambda n: {"question": _words(n), "answer": f"{_words(n)}\n#### {n}"},
}
ROWS["arc_challenge"] = ROWS["arc_easy"]


def _row(name: str, n: int) -> dict:
    if name.startswith("mmlu_pro_"):
        category = MMLU_PRO_CATEGORIES[n % len(MMLU_PRO_CATEGORIES)].replace("_", " ")
        return {
            "question": _words(n),
            "options": WORDS[:10],
            "answer": "ABCDEFGHIJ"[n % 10],
            "answer_index": n % 10,
            "cot_content": "A: Let's think step by step. The answer is (A).",
            "category": category,
        }
    return _mmlu(n) if name.startswith("mmlu_") else ROWS[name](n)


def local_changes(folder: Path, name: str, items: int) -> dict:
    """What replaces a task's data by made items, in every split that the hub has."""
    splits = ("dev", "validation", "test") if name.startswith("mmlu_") else ("train", "validation")
    if name in ("arc_easy", "arc_challenge", "openbookqa", "gsm8k"):
        splits = (*splits, "test")
    files = {}
    for at, split in enumerate(splits):
        kind = "mmlu_pro" if name.startswith("mmlu_pro_") else name
        path = folder / f"{kind}_{split}.jsonl"
        if not path.exists():
            made = (_row(name, n + at * 1000) for n in range(items))
            path.write_text("".join(json.dumps(row) + "\n" for row in made))
        files[split] = str(path)
    return {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}


def name_of(task: str) -> str:
    """Of a task, which may be the path of its YAML."""
    return Path(task).stem


def made_local(row: SuiteTask, folder: Path, items: int) -> dict[str, dict]:
    """The changes of a row's tasks, on made items."""
    return {
        task: {**row.changes, **local_changes(folder, name_of(task), items)} for task in row.tasks
    }

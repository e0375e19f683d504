"""The paper's tasks as words: MC9, Gen5, GSM8K, and MMLU and MMLU-Pro by category (SPEC 7.5).

Each is the harness's own task with a few fields changed. Where its prompt, data or metric is not
the reference's, docs/tasks.md says so.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emo_jax.errors import UsageError
from emo_jax.tasks.parts import Rule
from emo_jax.tasks.scoring import f1_against

MMLU_SUBJECTS = {
    "biology": ("college_biology", "high_school_biology"),
    "business": ("business_ethics", "management", "marketing"),
    "chemistry": ("college_chemistry", "high_school_chemistry"),
    "computer_science": (
        *("college_computer_science", "computer_security"),
        *("high_school_computer_science", "machine_learning"),
    ),
    "culture": ("human_sexuality", "sociology"),
    "economics": (*("econometrics", "high_school_macroeconomics", "high_school_microeconomics"),),
    "engineering": ("electrical_engineering",),
    "geography": ("high_school_geography",),
    "health": (
        *("anatomy", "clinical_knowledge", "college_medicine", "human_aging"),
        *("medical_genetics", "nutrition", "professional_medicine", "virology"),
    ),
    "history": (
        *("high_school_european_history", "high_school_us_history"),
        *("high_school_world_history", "prehistory"),
    ),
    "law": ("international_law", "jurisprudence", "professional_law"),
    "math": (
        *("abstract_algebra", "college_mathematics", "elementary_mathematics"),
        *("high_school_mathematics", "high_school_statistics"),
    ),
    "philosophy": (
        *("formal_logic", "logical_fallacies", "moral_disputes", "moral_scenarios"),
        *("philosophy", "world_religions"),
    ),
    "physics": (*("astronomy", "college_physics", "conceptual_physics", "high_school_physics"),),
    "politics": (
        *("high_school_government_and_politics", "public_relations", "security_studies"),
        "us_foreign_policy",
    ),
    "psychology": ("high_school_psychology", "professional_psychology"),
    "other": ("global_facts", "miscellaneous", "professional_accounting"),
}
MMLU_PRO_CATEGORIES = (
    *("biology", "business", "chemistry", "computer_science", "economics", "engineering"),
    *("health", "history", "law", "math", "philosophy", "physics", "psychology", "other"),
)
LEFT_OUT = "other"  # of the averages of MMLU and MMLU-Pro

_ACCURACY = {"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}
_F1 = {
    "metric_list": [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("f1", "exact_match")
    ]
}
_LETTERS = "ABCDEFGHIJ"
_SQUAD, _COQA = (str(Path(__file__).with_name(f"{name}.yaml")) for name in ("squad", "coqa"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteTask:
    """A row of the suite: tasks of the harness that share one module.

    Attributes:
      word: the part of the suite.
      name: name of the row.
      tasks: names, or YAML files, of the harness.
      changes: fields of their YAML that are replaced.
      rule: how items are divided, see `emo_jax.tasks.parts`.
      metric, filter: what is reported, and of which of the task's filters; "": the first.
      averaged: counts in the average of the word.
    """

    word: str
    name: str
    tasks: tuple[str, ...]
    changes: Mapping[str, Any]
    rule: Rule = "splits"
    metric: str = "acc"
    filter: str = ""
    averaged: bool = True


def _mc9() -> list[SuiteTask]:
    cloze = {
        "doc_to_text": "Question: {{question.strip()}}\nAnswer:",
        "doc_to_target": "{{choices.label.index(answerKey)}}",
        "doc_to_choice": "{{choices.text}}",
    }
    names = (
        *("arc_easy", "arc_challenge", "boolq", "hellaswag", "commonsense_qa", "openbookqa"),
        *("piqa", "social_iqa", "winogrande"),
    )
    return [
        SuiteTask(
            word="mc9",
            name=name,
            tasks=(name,),
            changes=_ACCURACY
            | {"num_fewshot": 5, "fewshot_split": "train"}
            | (cloze if name == "commonsense_qa" else {}),
        )
        for name in names
    ]


def _gen5() -> list[SuiteTask]:
    squad = f1_against(lambda doc: doc["answers"]["text"])
    naturalqs = f1_against(lambda doc: doc["answer"])
    triviaqa = f1_against(lambda doc: doc["answer"]["aliases"])
    shots = {"num_fewshot": 5, "fewshot_split": "train"}
    rows: dict[str, tuple[str, dict[str, Any]]] = {
        "squad": (_SQUAD, {"process_results": squad} | shots | _F1),
        "coqa": (
            _COQA,
            {
                "process_docs": coqa_turns,
                "doc_to_text": coqa_prompt,
                "process_results": f1_against(coqa_answers, leave_one_out=True),
                "num_fewshot": 0,
            }
            | _F1,
        ),
        "naturalqs": ("nq_open", {"process_results": naturalqs} | shots | _F1),
        "triviaqa": (
            "triviaqa",
            {"process_results": triviaqa, "dataset_name": "rc.wikipedia.nocontext"} | shots | _F1,
        ),
        "drop": ("drop", {"doc_to_target": "{{answers[0]|join(', ')}}"} | shots),
    }
    return [
        SuiteTask(word="gen5", name=name, tasks=(task,), changes=changes, metric="f1")
        for name, (task, changes) in rows.items()
    ]


def _gsm8k() -> list[SuiteTask]:
    return [
        SuiteTask(
            word="gsm8k",
            name="gsm8k",
            tasks=("gsm8k",),
            changes={"num_fewshot": 8},
            metric="exact_match",
            filter="flexible-extract",
        )
    ]


def _mmlu() -> list[SuiteTask]:
    return [
        SuiteTask(
            word="mmlu",
            name=f"mmlu {category}",
            tasks=tuple(f"mmlu_{subject}" for subject in subjects),
            changes={"num_fewshot": 5},
            rule="mmlu",
            averaged=category != LEFT_OUT,
        )
        for category, subjects in MMLU_SUBJECTS.items()
    ]


def _mmlu_pro() -> list[SuiteTask]:
    return [
        SuiteTask(
            word="mmlu_pro",
            name=f"mmlu_pro {category}",
            tasks=(f"mmlu_pro_{category}",),
            changes=_ACCURACY
            | {
                "output_type": "multiple_choice",
                "description": "The following are multiple choice questions (with answers) about"
                f" {category.replace('_', ' ')}.\n\n",
                "doc_to_text": letters_prompt,
                "doc_to_choice": lambda doc: list(_LETTERS[: len(doc["options"])]),
                "doc_to_target": "answer_index",
                "fewshot_config": {"sampler": "first_n"},
                "num_fewshot": 5,
                "filter_list": None,
                "generation_kwargs": None,
            },
            rule="mmlu_pro",
            averaged=category != LEFT_OUT,
        )
        for category in MMLU_PRO_CATEGORIES
    ]


_WORDS = {"mc9": _mc9, "gen5": _gen5, "gsm8k": _gsm8k, "mmlu": _mmlu, "mmlu_pro": _mmlu_pro}
WORDS = ("emo", *_WORDS)  # emo: all of them


def suite(words: Sequence[str]) -> list[SuiteTask]:
    """The rows of some words, each once.

    Raises:
      UsageError: no such word.
    """
    if unknown := [word for word in words if word not in WORDS]:
        raise UsageError(f"--suite {unknown[0]}: must be one of {', '.join(WORDS)}")
    wanted = list(_WORDS) if "emo" in words else list(dict.fromkeys(words))
    return [row for word in wanted for row in _WORDS[word]()]


def letters_prompt(doc: Mapping[str, Any]) -> str:
    """A question with its options by letter, as MMLU's are."""
    options = zip(_LETTERS, doc["options"], strict=False)
    lines = [f"{letter}. {option.strip()}" for letter, option in options]
    return "\n".join([doc["question"].strip(), *lines, "Answer:"])


def coqa_turns(dataset: Any) -> Any:
    """An item for every question of a conversation, with those before it; CoQA's has the last."""

    def turns(batch: dict[str, list]) -> dict[str, list]:
        made: dict[str, list] = {name: [] for name in batch}
        for row in range(len(batch["story"])):
            doc = {name: values[row] for name, values in batch.items()}
            for turn in range(1, len(doc["questions"]["input_text"]) + 1):
                for name, value in doc.items():
                    made[name].append(_first(value, turn) if name in _BY_TURN else value)
        return made

    return dataset.map(turns, batched=True)


def coqa_prompt(doc: Mapping[str, Any]) -> str:
    """The story, and the conversation up to the last question."""
    asked, said = doc["questions"]["input_text"], doc["answers"]["input_text"][:-1]
    turns = [f"Q: {q}\n\nA: {a}\n\n" for q, a in zip(asked, said, strict=False)]
    return f"{doc['story']}\n\n{''.join(turns)}Q: {asked[-1]}\n\nA:"


def coqa_answers(doc: Mapping[str, Any]) -> list[str]:
    """Answers to the last question: the one of the conversation, and those of others."""
    more = (doc.get("additional_answers") or {}).values()
    return [part["input_text"][-1] for part in (doc["answers"], *more) if part["input_text"]]


_BY_TURN = ("questions", "answers", "additional_answers")


def _first(value: Any, turns: int) -> Any:
    """The first turns of a record of lists, or of records of lists."""
    if isinstance(value, dict):
        return {name: _first(part, turns) for name, part in value.items()}
    return value[:turns] if isinstance(value, list) else value

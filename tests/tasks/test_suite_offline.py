"""Every task of the suite runs on made items, without a network, through the harness's own YAML."""

import datasets
import harness_files
import numpy as np
import pytest
import suite_items
from hf_folders import make_model  # noqa: F401

import emo_jax
from emo_jax.tasks import run
from emo_jax.tasks.choosing import prompted
from emo_jax.tasks.harness import TaskSource
from emo_jax.tasks.measure import FEW_SHOT_SEED
from emo_jax.tasks.parts import cut_mmlu, parts_of
from emo_jax.tasks.suite import MMLU_PRO_CATEGORIES, MMLU_SUBJECTS, suite

pytestmark = pytest.mark.system

# One of each kind; the others differ in their subject alone.
SOME = ("mmlu biology", "mmlu_pro law", "mmlu_pro other")
ROWS = [row for row in suite(["emo"]) if row.word in ("mc9", "gen5", "gsm8k") or row.name in SOME]


@pytest.fixture(scope="module")
def source():
    return TaskSource()


@pytest.fixture(scope="module")
def loaded(source, tmp_path_factory):
    """Tasks by the name of their row; the suite's on 20 items, MMLU-Pro's on as many a category."""
    folder = tmp_path_factory.mktemp("items")
    found = {}
    for row in ROWS:
        items = 20 * len(MMLU_PRO_CATEGORIES) if row.word == "mmlu_pro" else 20
        changes = suite_items.made_local(row, folder, items)
        found[row.name] = [t for task, c in changes.items() for t in source.load(task, c)]
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_items_become_prompts_with_their_answers(loaded, row):
    for task in loaded[row.name]:
        task.set_fewshot_seed(FEW_SHOT_SEED)
        doc = task.eval_docs[0]
        prompt, answer = prompted(task, doc)
        assert answer.strip() and answer.strip() not in ("None", "[]"), (prompt, answer)
        shots = row.changes["num_fewshot"]
        assert task.config.num_fewshot == shots
        asked = task.doc_to_text(doc)
        if isinstance(asked, str):
            assert prompt.count("\n\n") >= shots - 1 or row.name == "naturalqs"
            assert prompt.endswith(asked.rstrip()) or row.name in ("coqa", "drop")


def test_prompts_are_those_of_the_paper(loaded):
    def first(name):
        (task, *_) = loaded[name]
        task.set_fewshot_seed(FEW_SHOT_SEED)
        return prompted(task, task.eval_docs[0])

    prompt, answer = first("mmlu biology")
    head = "The following are multiple choice questions (with answers) about college biology.\n\n"
    assert prompt.startswith(head) and prompt.endswith("\nAnswer:") and answer == " A"
    prompt, answer = first("mmlu_pro law")
    assert prompt.startswith(head.replace("college biology", "law")) and "\nJ. " in prompt
    prompt, answer = first("commonsense_qa")
    assert "A. " not in prompt and answer == " court"
    prompt, answer = first("gsm8k")
    assert prompt.count("#### ") == 8 and "####" in answer


def test_coqa_has_an_item_for_every_question(loaded):
    (task,) = loaded["coqa"]
    assert len(task.eval_docs) == 3 * 20
    assert [len(task.eval_docs[n]["answers"]["input_text"]) for n in range(3)] == [1, 2, 3]


def test_all_of_it_is_measured_with_a_module(make_model, loaded, tmp_path, monkeypatch):  # noqa: F811
    folder = harness_files.export(make_model, tmp_path / "model")
    some = ("arc_easy", "boolq", "winogrande", "squad", "gsm8k", *SOME)
    rows = [row for row in ROWS if row.name in some]
    for name in ("squad", "gsm8k"):
        for task in loaded[name]:
            task.config.generation_kwargs["max_gen_toks"] = 8
    by_task = {t: [task] for r in rows for t, task in zip(r.tasks, loaded[r.name], strict=True)}
    monkeypatch.setattr(run, "suite", lambda words: rows)
    monkeypatch.setattr(TaskSource, "load", lambda self, name, changes=None: by_task[name])
    found = emo_jax.evaluate_tasks(folder, suite="emo", keep="5", method="random", limit=4)
    assert [row.unit for row in found.rows] == [row.name for row in rows]
    metrics = {row.unit: row.metric for row in found.rows}
    assert metrics["squad"] == "f1" and metrics["arc_easy"] == "acc"
    assert metrics["gsm8k"] == "exact_match,flexible-extract"
    means = {mean["word"]: mean["units"] for mean in found.to_json()["averages"]}
    assert means == {"mc9": 3, "gen5": 1, "gsm8k": 1, "mmlu": 1, "mmlu_pro": 1}


# --- parts ---------------------------------------------------------------------------------------

# Rows of the hub's splits that the paper chooses by (training, validation) and measures on.
SIZES = {
    "arc_easy": ({"train": 2251, "validation": 570, "test": 2376}, 2821),
    "arc_challenge": ({"train": 1119, "validation": 299, "test": 1172}, 1418),
    "boolq": ({"train": 9427, "validation": 3270}, 9427),
    "commonsense_qa": ({"train": 9741, "validation": 1221}, 9741),
    "openbookqa": ({"train": 4957, "validation": 500, "test": 500}, 5457),
    "piqa": ({"train": 16113, "validation": 1838}, 16113),
    "social_iqa": ({"train": 33410, "validation": 1954}, 33410),
    "winogrande": ({"train": 40398, "validation": 1267}, 40398),
    "gsm8k": ({"train": 7473, "test": 1319}, 7473),
}


@pytest.mark.parametrize("name", SIZES)
def test_parts_have_the_sizes_of_the_paper(source, name):
    counts, choosing = SIZES[name]
    row = suite_items.ROWS[name](1)

    def dataset(**_):
        made = {k: datasets.Dataset.from_list([row] * n) for k, n in counts.items()}
        return datasets.DatasetDict(made)

    (suited,) = (row for row in ROWS if row.name == name)
    changes = {**suited.changes, "custom_dataset": dataset, "num_fewshot": 0}
    (task,) = source.load(name, changes)
    parts = parts_of(task, choosing=True)
    assert sum(len(numbers) for _, numbers in parts.choosing) == choosing
    assert parts.measuring is None and len(task.eval_docs) == list(counts.values())[-1]


def test_a_category_of_mmlu_is_cut_by_subject_with_the_validation_split(loaded):
    parts = [parts_of(task, "mmlu") for task in loaded["mmlu biology"]]
    assert len(parts) == len(MMLU_SUBJECTS["biology"]) == 2
    for task, part in zip(loaded["mmlu biology"], parts, strict=True):
        assert [len(numbers) for _, numbers in part.choosing] == [12, 20]
        assert len(part.measuring) == 8
        order = task.eval_docs.add_column("n", list(range(20))).shuffle(seed=0)["n"]
        assert order[:12] == cut_mmlu(20).choosing.tolist()
        assert np.intersect1d(part.choosing[0][1], part.measuring).size == 0

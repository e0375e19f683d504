"""`emo tasks` on a small model and tasks in files: figures, choosing, lines for bad input."""

import json

import harness_files
import numpy as np
import pytest
from hf_folders import make_model  # noqa: F401
from runs import emo, emo_here, environment

import emo_jax
from emo_jax.api import tasks as api
from emo_jax.errors import DataError, UsageError

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return harness_files.write_tasks(tmp_path_factory.mktemp("tasks"), items=24)


@pytest.fixture(autouse=True)
def one_device(one_device_mesh, monkeypatch):
    """Compiles faster; other meshes are those of test_likelihoods.py and test_hf_backend.py."""
    monkeypatch.setattr(api, "eval_mesh", lambda config: one_device_mesh)


@pytest.fixture(scope="module")
def folder(make_model, tmp_path_factory):  # noqa: F811
    return harness_files.export(make_model, tmp_path_factory.mktemp("models") / "model")


def _named(paths, *names):
    return [str(paths[name]) for name in names]


def test_figures_are_the_harness_s_with_their_errors_and_lengths(folder, tasks, tmp_path, capsys):
    given = ",".join(_named(tasks, "words", "rolling"))
    file = tmp_path / "found.json"
    argv = ("tasks", folder, "--tasks", given, "--keep", "100%,5", "--examples", "1,3")
    assert emo_here(*argv, "--json", file) == 0
    shown = capsys.readouterr().out
    found = json.loads(file.read_text())
    rows = [(r["unit"], r["keep"], r["examples"]) for r in found["rows"]]
    ways = [(9, 0), (5, 1), (5, 3)]
    units = [f"emo_test_{n}" for n in ("words", "rolling")]
    assert rows == [(unit, *way) for unit in units for way in ways]
    first = found["rows"][0]
    right = first["metrics"]["emo_test_words"]["acc,none"]
    assert first["value"] == pytest.approx(right) and first["items"] == 24
    spread = np.sqrt(right * (1 - right) * 24 / 23 / 24)
    assert first["stderr"] == pytest.approx(spread)
    assert sum(one["items"] for one in first["by_length"]) == 24
    assert sum(o["items"] * o["value"] for o in first["by_length"]) == pytest.approx(24 * right)
    rolling = found["rows"][3]
    assert rolling["metric"] == "bits_per_byte" and rolling["stderr"] is None
    assert rolling["value"] == pytest.approx(rolling["bits_per_byte"], rel=1e-6)
    assert all(row["bits_per_byte"] > 0 for row in found["rows"])
    tokens = [row["calibration_tokens"] for row in found["rows"]]
    assert tokens[0] == 0 < tokens[1] < tokens[2]
    bits = [row["bits_per_byte"] for row in found["rows"]]
    assert all(bits[n] != bits[n + 1] for n in (0, 3))
    assert f"{right:.3f} ± {spread:.3f}" in shown and "55.6 % (5)" in shown
    assert "experts are chosen on train" in shown
    assert "prompts were cut from the left to the window of 48" in shown


def test_a_task_of_one_split_is_cut_and_equal_items_are_left_out(folder, tasks, tmp_path):
    alone = tmp_path / "alone.yaml"
    text = tasks["words"].read_text().replace("training_split: train\n", "")
    alone.write_text(text.replace("emo_test_words", "emo_alone"))
    whole = emo_jax.evaluate_tasks(folder, str(alone), few_shot=0)
    (row,) = whole.rows
    assert row.items == 24 and whole.notes == ()
    cut = emo_jax.evaluate_tasks(folder, str(alone), keep="5", examples=None)
    assert [(row.items, row.examples) for row in cut.rows] == [(24 - 14, 14)]
    assert "60 % of the only split; measured on the other 40 %" in cut.notes[0]
    again = tmp_path / "again.yaml"
    again.write_text(alone.read_text().replace("emo_alone", "emo_again") + "training_split: test\n")
    with pytest.raises(DataError, match="emo_again: 0 items to choose experts by"):
        emo_jax.evaluate_tasks(folder, str(again), keep="5")


def test_experts_may_be_chosen_on_a_store(folder, tasks, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    lines = [{"text": f"the court finds {n}", "domain": f"d{n % 2}"} for n in range(400)]
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    store = tmp_path / "store"
    assert emo_here("prepare", corpus, "--output", store, "--tokenizer", folder) == 0
    found = emo_jax.evaluate_tasks(
        folder, _named(tasks, "letters"), keep=5, choose_on=f"{store}:d1", examples=4, limit=3
    )
    assert [(row.items, row.examples) for row in found.rows] == [(3, 4)]
    # As of a task's items: all there are, where more were asked for.
    few = emo_jax.evaluate_tasks(
        folder, _named(tasks, "letters"), keep=5, choose_on=f"{store}:d1", examples=500, limit=3
    )
    assert 4 < few.rows[0].examples < 200
    with pytest.raises(UsageError, match="no domain 'd7'"):
        emo_jax.evaluate_tasks(folder, _named(tasks, "letters"), keep=5, choose_on=f"{store}:d7")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--tasks", "arc_esay"], "no such task (did you mean "),
        (["--tasks", "none/x.yaml"], "--tasks none/x.yaml: no such file"),
        ([], "no tasks; give --tasks NAME,PATH.yaml or --suite emo"),
        (["--suite", "mmmu"], "--suite mmmu: must be one of emo, mc9"),
        (["--tasks", "words", "--keep", "3"], "--keep 3: must be 4..9 experts"),
        (["--tasks", "words", "--examples", "0"], "--examples: must be numbers above 0"),
        (["--tasks", "words", "--include-path", "none"], "--include-path none: no such folder"),
        (["--tasks", "empty"], "no items"),
        (["--tasks", "half"], "a split has no items; give data that has some"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_a_line(folder, tasks, tmp_path, capsys, argv, line):
    (tmp_path / "none.jsonl").write_text("")
    (tmp_path / "empty.yaml").write_text(
        f"task: empty\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: "
        f"{tmp_path}/none.jsonl\ntest_split: test\ndoc_to_text: x\ndoc_to_target: y\n"
    )
    text = (tmp_path / "empty.yaml").read_text()
    (tmp_path / "one.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    trained = f"data_files:\n    train: {tmp_path}/one.jsonl"
    half = text.replace("data_files:", trained).replace(
        "test_split", "training_split: train\ntest_split"
    )
    (tmp_path / "half.yaml").write_text(half.replace("task: empty", "task: half"))
    files = {name: str(tmp_path / f"{name}.yaml") for name in ("empty", "half")}
    files["words"] = str(tasks["words"])
    argv = [files.get(word, word) for word in argv]
    assert emo_here("tasks", folder, *argv) in (1, 2)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("emo: ") and line in said, said


def test_without_a_network_the_line_says_how_to_give_local_files(folder, tasks, tmp_path):
    words = tasks["words"].read_text()
    data = words[words.index("dataset_path") : words.index("training_split")]
    there = words.replace(data, "dataset_path: allenai/ai2_arc\n")
    (tmp_path / "arc.yaml").write_text(there.replace("emo_test_words", "arc_easy"))
    env = environment(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    done = emo(["tasks", folder, "--tasks", "arc_easy", "--include-path", tmp_path], env)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("emo: arc_easy (data set allenai/ai2_arc): cannot be loaded (")
    assert "dataset_path: json" in line and line.endswith("give --include-path FOLDER")

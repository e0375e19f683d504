"""experiments/baselines.py and its report on a small store: they say what was measured."""

import json
import shutil

import harness_files
import numpy as np
import pytest
import runs
from test_modularity_experiment import small

from emo_jax.errors import ConfigError, UsageError

pytestmark = pytest.mark.slow  # needs lm_eval


SCRIPTS = ("modularity", "baseline_arms", "baselines", "baselines_report")
DOMAINS = ("river", "court", "cloud", "stove")


@pytest.fixture(scope="module")
def modules():
    """The scripts, by name."""
    return {name: runs.script(name) for name in SCRIPTS}


@pytest.fixture
def tiny(modules, monkeypatch):
    """The experiment with the shape of the tests' runs."""
    made = small(modules["modularity"].presets)
    monkeypatch.setattr(modules["modularity"], "WINDOWS", 8)
    monkeypatch.setattr(modules["modularity"], "EXAMPLE_TOKENS", 32)
    monkeypatch.setattr(modules["modularity"].presets, "modularity_tiny", made)
    monkeypatch.setattr(modules["baseline_arms"].baselines, "modularity_tiny", made)
    monkeypatch.setattr(modules["baselines"], "EXAMPLES", 3)


@pytest.fixture
def task_folder(modules, tmp_path):
    """One task of each group."""
    paths = harness_files.write_tasks(tmp_path / "made", items=24)
    folder = tmp_path / "tasks"
    folder.mkdir()
    for group in modules["baselines"].TASKS:
        text = paths["words"].read_text().replace("emo_test_words", f"{group}_law")
        (folder / f"{group}_law.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def store_of_four(tmp_path_factory):
    """A byte store of `DOMAINS`."""
    folder = tmp_path_factory.mktemp("four")
    draw = np.random.default_rng(0)
    lines = []
    for n in range(240):
        domain = DOMAINS[n % 4]
        text = " ".join(f"{domain}{k}" for k in draw.integers(20, size=30))
        lines.append(json.dumps({"text": text, "id": f"d{n}", "domain": domain}))
    (folder / "documents.jsonl").write_text("\n".join(lines) + "\n")
    argv = ("--output", folder / "store", "--tokenizer", "bytes")
    assert runs.emo_here("prepare", folder / "documents.jsonl", *argv) == 0
    return folder / "store"


def test_every_arm_is_trained_in_stages_that_cost_as_much(
    modules, tiny, task_folder, store_of_four, tmp_path, monkeypatch
):
    modularity, arms, baselines = (
        modules[name] for name in ("modularity", "baseline_arms", "baselines")
    )
    monkeypatch.setattr(arms, "PUBLIC", ("river",))
    stores, results = modularity.Stores(store_of_four, store_of_four), tmp_path / "results"
    planned = [baselines.Run(arm, 0.04, 0) for arm in arms.ARMS if arm != "standard"]
    monkeypatch.setattr(modules["baselines_report"], "RUNS", tuple(planned))
    for run in planned:
        baselines.perform(run, tmp_path, results, stores, task_folder)
    found = {run.arm: json.loads((results / f"{run.name}.json").read_text()) for run in planned}
    most = found["emo"]["flops"]
    for arm, result in found.items():
        assert 0.85 * most < result["flops"] <= most, arm  # whole steps, few here
        assert all(np.isfinite(result["trained"]["losses"]["full"]))
        assert len(result["tasks"]) == 2 * (1 + len(kept(result)))
    assert [*found["btx"]["tokens"]] == ["seed", *DOMAINS_OF_STORE, "mixed"]
    owners = [name for name in DOMAINS_OF_STORE if name != "river"]
    assert [*found["flexolmo"]["tokens"]] == ["seed", *owners, "mixed"]
    assert [*found["split"]["tokens"]] == ["dense", "emo"]
    assert {arm: result["experts"] for arm, result in found.items()} == {
        **{"emo": 64, "labels": 64, "mixtral": 8, "switch": 16, "split": 16},
        **{"btx": 5, "flexolmo": 4, "spans": 64},
    }
    assert kept(found["mixtral"]) == {4, 2} and kept(found["flexolmo"]) == set()
    for arm in ("switch", "labels"):
        losses = found[arm]["trained"]["losses"]
        assert losses["as trained"] != losses["full"]
    text = modules["baselines_report"].page(results)
    assert "{" not in text and "| FlexOlmo | 0.04 M | 1 of 1 |" in text

    # What was made is not made again: the branches are not read once the mixture is there.
    shutil.rmtree(tmp_path / "stages/btx-0.04m-0/branches")
    (results / "btx-0.04m-0.json").unlink()
    baselines.perform(planned[-2], tmp_path, results, stores, task_folder)
    again = json.loads((results / "btx-0.04m-0.json").read_text())
    assert again["trained"] == found["btx"]["trained"]


DOMAINS_OF_STORE = tuple(sorted(DOMAINS))


def kept(result):
    """Numbers of experts that were kept, but for all of them."""
    ways = [way.split() for way in result["trained"]["losses"]]
    return {int(way[1]) for way in ways if way[0] == "layerwise"}


@pytest.mark.parametrize("arg", ["emp", "emo@x", "emo@0", "btx@inf"])
def test_an_argument_that_is_no_arm(modules, arg):
    with pytest.raises(ConfigError, match="must be one of emo, standard, labels"):
        modules["baselines"].get_config(arg)


def test_figures_and_tables(modules, tiny, task_folder, store, tmp_path, monkeypatch):
    modularity, baselines, report = (
        modules[name] for name in ("modularity", "baselines", "baselines_report")
    )
    done = baselines.Run("emo", 0.002, 0)
    planned = (done, baselines.Run("emo", 0.002, 1), baselines.Run("standard", 0.002, 0))
    for module in (baselines, report):
        monkeypatch.setattr(module, "RUNS", planned)
    stores, results = modularity.Stores(store, store), tmp_path / "results"
    for _ in range(2):  # the second finds it there
        baselines.perform(done, tmp_path, results, stores, task_folder)
    found = json.loads((results / f"{done.name}.json").read_text())
    assert found["tokens"] == {"whole": 4 * 8 * 64} and found["arm"] == "emo"
    ways = [(row["unit"], row["keep"]) for row in found["tasks"]]
    assert ways == [(f"{g}_law", k) for g in baselines.TASKS for k in (64, 32, 16, 8)]
    monkeypatch.setattr(baselines, "EXAMPLES", 4)
    monkeypatch.setitem(baselines.MEASURED, "examples", 4)
    with pytest.raises(UsageError, match="of another experiment"):
        baselines.perform(done, tmp_path, results, stores, task_folder)

    text = report.page(results)
    assert "{" not in text and "1 of 3 runs" in text
    losses = found["trained"]["losses"]
    rise = np.mean(np.subtract(losses["layerwise 8"], losses["full"]))
    row = next(line for line in text.splitlines() if line.startswith("| EMO | 0.002 M | 1 of 2 |"))
    assert f"| {np.mean(losses['full']):.3f} (" in row and f"| {rise:+.3f} (" in row
    assert "| standard MoE | 0.002 M | 0 of 1 | – | – | – | – |" in text
    score = next(r for r in found["tasks"] if r["unit"] == "emo_topic_law" and r["keep"] == 8)
    topic = text.partition("### emo_topic")[2]
    assert f"| {score['value']:.3f} (" in topic
    bits = text.partition("## Tasks")[2].partition("### emo_next")[0]
    assert f"| {score['bits_per_byte']:.3f} (" in bits

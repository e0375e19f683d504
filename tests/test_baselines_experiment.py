"""experiments/baselines.py and its report on a small store: they say what was measured."""

import importlib.util
import json
import sys

import harness_files
import numpy as np
import pytest
import runs
from test_modularity_experiment import small

from emo_jax.errors import UsageError

pytestmark = pytest.mark.slow  # needs lm_eval


@pytest.fixture(scope="module")
def modules():
    """(modularity, baselines, baselines_report), which are scripts."""
    found = []
    for name in ("modularity", "modularity_report", "baselines", "baselines_report"):
        spec = importlib.util.spec_from_file_location(name, runs.REPO / f"experiments/{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        found.append(module)
    return found[0], found[2], found[3]


def test_figures_and_tables(modules, store, tmp_path, monkeypatch):
    modularity, baselines, report = modules
    monkeypatch.setattr(modularity, "WINDOWS", 8)
    monkeypatch.setattr(modularity, "EXAMPLE_TOKENS", 32)
    monkeypatch.setattr(modularity.presets, "modularity_tiny", small(modularity.presets))
    monkeypatch.setattr(baselines, "EXAMPLES", 3)
    done = baselines.Run("emo", 0.002, 0)
    planned = (done, baselines.Run("emo", 0.002, 1), baselines.Run("standard", 0.002, 0))
    for module in (baselines, report):
        monkeypatch.setattr(module, "RUNS", planned)
    paths = harness_files.write_tasks(tmp_path / "made", items=24)
    folder = tmp_path / "tasks"
    folder.mkdir()
    for group in baselines.TASKS:
        text = paths["words"].read_text().replace("emo_test_words", f"{group}_law")
        (folder / f"{group}_law.yaml").write_text(text)
    stores, results = modularity.Stores(store, store), tmp_path / "results"
    for _ in range(2):  # the second finds it there
        baselines.perform(done, tmp_path, results, stores, folder)
    found = json.loads((results / f"{done.name}.json").read_text())
    assert found["tokens"] == 4 * 8 * 64 and found["arm"] == "emo"
    ways = [(row["unit"], row["keep"]) for row in found["tasks"]]
    assert ways == [(f"{g}_law", k) for g in baselines.TASKS for k in (64, 32, 16, 8)]
    monkeypatch.setattr(baselines, "EXAMPLES", 4)
    monkeypatch.setitem(baselines.MEASURED, "examples", 4)
    with pytest.raises(UsageError, match="of another experiment"):
        baselines.perform(done, tmp_path, results, stores, folder)

    text = report.page(results)
    assert "{" not in text and "1 of 3 runs" in text
    losses = found["trained"]["losses"]
    rise = np.mean(np.subtract(losses["layerwise 8"], losses["full"]))
    row = next(line for line in text.splitlines() if line.startswith("| EMO | 0.002 M | 1 of 2 |"))
    assert f"| {np.mean(losses['full']):.3f} (" in row and f"| {rise:+.3f} (" in row
    assert "| standard MoE | 0.002 M | 0 of 1 | – | – | – | – |" in text
    score = next(r for r in found["tasks"] if r["unit"] == "emo_topic_law" and r["keep"] == 8)
    topic = text.partition("### emo_topic")[2]
    assert f"| {score['value']:.3f} (" in topic and f"| {score['bits_per_byte']:.3f} (" in topic

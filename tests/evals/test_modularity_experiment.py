"""experiments/modularity.py and its report on a small store: they say what was measured."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import runs

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def modules():
    """(modularity, modularity_report), which are scripts."""
    found = []
    for name in ("modularity", "modularity_report"):
        spec = importlib.util.spec_from_file_location(name, runs.REPO / f"experiments/{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        found.append(module)
    return found


def test_figures_and_tables(modules, store, tmp_path, monkeypatch, capsys):
    modularity, report = modules
    monkeypatch.setattr(modularity, "WINDOWS", 8)
    monkeypatch.setattr(modularity, "EXAMPLE_TOKENS", 32)
    monkeypatch.setattr(modularity.presets, "modularity_tiny", small(modularity.presets))
    stores, results = modularity.Stores(store, store), tmp_path / "results"
    for arm in ("emo", "standard", "matched"):
        for seed in (0, 1):
            modularity.run(arm, seed, tmp_path / "runs", results, stores, 4)
    before = {file: file.stat().st_mtime_ns for file in results.iterdir()}
    modularity.run("emo", 0, tmp_path / "runs", results, stores, 4)  # it is there
    assert before == {file: file.stat().st_mtime_ns for file in results.iterdir()}
    capsys.readouterr()

    found = json.loads((results / "modularity-emo-0.json").read_text())
    losses = found["trained"]["losses"]
    assert set(losses) >= {"full", "pool", "layerwise 8", "random 16", "one example 2 8"}
    assert found["tokens"] == 4 * 8 * 64
    full = np.array(losses["full"])
    assert np.isfinite(full).all() and (full > 1).all()
    # Of two domains, each one's partner is the other: composed once or three times is the same.
    assert losses["composed with 1 later 16"] == losses["composed with 3 later 16"]
    assert losses["composed with 2 later 16"] == losses["layerwise 16"]

    with pytest.raises(SystemExit) as ended:
        report.main(["--results", str(results), "--output", str(tmp_path)])
    assert ended.value.code == 0
    text = (tmp_path / "results.md").read_text()
    both = [json.loads((results / f"modularity-emo-{s}.json").read_text()) for s in (0, 1)]
    rise = np.mean(
        [
            np.subtract(r["trained"]["losses"]["layerwise 8"], r["trained"]["losses"]["full"])
            for r in both
        ]
    )
    assert f"{rise:+.3f} (" in text.partition("## Rise")[2]
    assert "{" not in text
    assert (results / "keep_k.svg").read_text().startswith("<?xml")


def small(presets):
    """The experiment's configs with the shape of the tests' runs, but 64 experts."""
    made = presets.modularity_tiny

    def modularity_tiny(arg):
        config = made(arg)
        for name, value in runs.TINY.items():
            section, _, field = name.partition(".")
            if section != "moe" and name != "train.eval_windows":
                config[section][field] = value
        config.moe.expert_dim = 8
        config.train.update({"eval_every": 2, "batch_size": 8})
        return config

    return modularity_tiny

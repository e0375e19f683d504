"""experiments/modularity.py and its report on a small store: they say what was measured."""

import json

import jax
import numpy as np
import pytest
import runs

from emo_jax.errors import UsageError
from emo_jax.hf import import_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def modules():
    """(modularity, modularity_report, modularity_costs), which are scripts."""
    return [runs.script(n) for n in ("modularity", "modularity_report", "modularity_costs")]


def test_figures_and_tables(modules, store, tmp_path, monkeypatch, capsys):
    modularity, report, costs = modules
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
    with pytest.raises(UsageError, match="of another experiment"):
        modularity.run("emo", 0, tmp_path / "runs", results, stores, 5)
    capsys.readouterr()

    found = json.loads((results / "modularity-emo-0.json").read_text())
    losses = found["trained"]["losses"]
    assert set(losses) >= {"full", "pool", "layerwise 8", "random 16", "one example 2 8"}
    assert found["tokens"] == 4 * 8 * 64
    assert found["trained"]["long_documents"] == [3, 3]
    one = [losses[f"one example {draw} 8"] for draw in range(3)]
    assert len({tuple(row) for row in one}) > 1  # not the same document again
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
    for aim, met in AIMS.items():  # of the three, by hand
        (line,) = [row for row in text.splitlines() if row.startswith(f"| {aim}")]
        value = float(line.split("|")[2].split()[0])
        assert ("met" in line) == (value <= met) and ("missed" in line) == (value > met), line

    # What a module costs is measured on the folder itself.
    monkeypatch.setattr(costs, "NEW_TOKENS", 8)
    folder = tmp_path / "module"
    costs.select(tmp_path / "runs/emo-0", folder, "25%", "--data", str(store), "--allow-fewer")
    cost = costs.measure(str(folder))
    params, config = import_model(folder)
    assert config.moe.num_experts == 16
    assert cost["weight_bytes"] == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert cost["tokens_per_second"] > 0
    loss = costs.loss_of(folder, store, "law")
    assert 1 < loss < 10


AIMS = {
    "EMO's loss over the standard": 1.0,
    "EMO's rise over the standard MoE's at 12.5 %, trained": 0.1,
    "EMO at 25 % over a standard": 1.0,
    "EMO's loss with two modules": 1.0,
}


def small(presets):
    """The experiment's configs with the shape of the tests' runs, but 64 experts."""
    made = presets.modularity_tiny

    def modularity_tiny(arg="emo"):
        config = made(arg)
        for name, value in runs.TINY.items():
            section, _, field = name.partition(".")
            if section != "moe" and name != "train.eval_windows":
                config[section][field] = value
        config.moe.expert_dim = 8
        config.train.update({"eval_every": 2, "batch_size": 8})
        return config

    return modularity_tiny

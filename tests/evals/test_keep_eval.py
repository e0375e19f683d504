"""`emo eval --keep`: the loss under a mask is the pruned model's, by every method."""

import json

import jax
import numpy as np
import pytest
from cases import few
from runs import emo_here
from tiny import NO_POOL, tiny_config

from emo_jax.config import MeshConfig
from emo_jax.data.store import TokenStore
from emo_jax.evals import by_domain
from emo_jax.files.trees import flatten, unflatten
from emo_jax.hf.sources import TreeSource
from emo_jax.model.functions import ModelFunctions
from emo_jax.modules.assemble import pruned
from emo_jax.parallel.mesh import make_mesh
from emo_jax.selection.budgets import Budget, budget_of
from emo_jax.tokenizer.load import load_tokenizer


@pytest.mark.parametrize(
    ("method", "keep"),
    few(
        [
            ("reap", Budget((4,), "greedy")),
            ("layerwise", 4),
            ("global", 2),
            ("aimer", Budget((5, 3))),
            ("easy_ep", 4),
            ("random", Budget((4,), "increasing")),
        ],
        3,
    ),
)
def test_masked_loss_is_the_pruned_models(store, monkeypatch, method, keep):
    config = tiny_config(pool=NO_POOL, vocab_size=259, vocab_multiple=1)
    params = jax.jit(ModelFunctions(config).init, static_argnums=0)(0)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    masks, evaluate = [], by_domain.evaluate

    def spied(*args, keep_LMR=None, **options):
        masks.append(keep_LMR)
        return evaluate(*args, keep_LMR=keep_LMR, **options)

    def losses(config, params, settings):
        split = by_domain.open_split(str(store), config, "test", load_tokenizer("bytes"))
        return by_domain.domain_losses(config, params, split, settings, mesh=mesh)

    monkeypatch.setattr(by_domain, "evaluate", spied)
    settings = by_domain.EvalSettings(keeps=(keep,), method=method, allow_fewer=True)
    masked = losses(config, params, settings).loss_M(f"keep={keep}")
    keep_LMR = masks[-1]
    counts = budget_of(keep).counts
    assert (keep_LMR.sum(axis=(0, 2)) == sum(n - 1 for n in counts) * (2 // len(counts))).all()
    for m in range(len(TokenStore.open(store).domains)):
        source, smaller = pruned(TreeSource(flatten(params)), config, keep_LMR[:, m])
        whole = {
            path: source.read(path, tuple(slice(0, n) for n in shape))
            for path, shape in source.shapes.items()
        }
        alone = losses(smaller, unflatten(whole), by_domain.EvalSettings()).loss_M(by_domain.FULL)
        np.testing.assert_allclose(masked[m], alone[m], atol=1e-5, rtol=0)


def test_shares_and_methods_of_the_command(finished_run, store, tmp_path, capsys):
    argv = ("eval", finished_run, "--data", store, "--windows", "4", "--keep", "50%,6")
    file = tmp_path / "keep.json"
    assert emo_here(*argv, "--method", "layerwise", "--json", file) == 0
    found = json.loads(file.read_text())
    assert found["keep_method"] == "layerwise"
    assert set(found["overall"]["keep"]) == {"4", "6"}
    assert emo_here(*argv, "--keep", "25%") == 2
    assert "give --allow-fewer" in capsys.readouterr().err
    assert emo_here(*argv, "--keep", "25%", "--allow-fewer") == 0


def test_budgets_by_layer_of_the_command(finished_run, store, tmp_path, refused):
    argv = ("eval", finished_run, "--data", store, "--windows", "4", "--keep-per-layer")
    file = tmp_path / "keep.json"
    assert emo_here(*argv, "mass", "--keep", "50%", "--method", "reap", "--json", file) == 0
    found = json.loads(file.read_text())
    assert (found["keep_method"], found["keep_schedule"]) == ("reap", "mass")
    assert set(found["overall"]["keep"]) == {"4"}
    file = tmp_path / "list.json"
    assert emo_here(*argv, "5,3", "--json", file) == 0
    assert set(json.loads(file.read_text())["overall"]["keep"]) == {"5,3"}
    assert "did you mean 'greedy'" in refused(2, *argv, "gredy", "--keep", "4")
    assert "3 counts, and the model has 2 layers" in refused(2, *argv, "5,3,4")
    assert "below top-k 3" in refused(2, *argv, "5,2")
    assert "9 experts in all, and --keep 4 is 8 in 2" in refused(2, *argv, "5,4", "--keep", "4")
    assert "give --keep too" in refused(2, *argv, "mass")

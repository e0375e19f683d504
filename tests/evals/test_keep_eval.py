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
from emo_jax.tokenizer.load import load_tokenizer


@pytest.mark.parametrize(
    ("method", "keep"),
    few([("layerwise", 4), ("global", 2), ("easy_ep", 4), ("random", 4)], 2),
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
    assert (keep_LMR.sum(-1) == keep - 1).all()
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

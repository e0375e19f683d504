"""The methods of choosing experts against a slow transcription of SPEC 7.2, and on a mesh."""

import dataclasses

import jax
import numpy as np
import pytest
import slow_model
from cases import few
from tiny import NO_POOL, tiny_config

from emo_jax.config import MeshConfig
from emo_jax.errors import UsageError
from emo_jax.model.functions import ModelFunctions
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.saved.selection_file import overlap
from emo_jax.selection.budgets import budgets, parse_keep
from emo_jax.selection.examples import examples_of
from emo_jax.selection.scores import choose_by_examples


def _config(**fields):
    return tiny_config(pool=NO_POOL, num_layers=3, **fields)


def _params(config):
    return jax.jit(ModelFunctions(config).init, static_argnums=0)(3)


def _documents(config, lengths=(20, 7, 32, 40, 12, 1)):
    rng = np.random.default_rng(5)
    return [rng.integers(0, config.model.vocab_size, n).astype(np.int32) for n in lengths]


def _choose(config, params, documents, routed_L, method, *, mesh=None, seed=0):
    mesh = mesh or mesh_lib.make_mesh(MeshConfig(fsdp=1), devices=jax.devices()[:1])
    model = ModelFunctions(config, mesh)
    placed, examples = (
        jax.device_put(params, model.param_shardings()),
        examples_of(documents, "test"),
    )
    return choose_by_examples(model, placed, examples, routed_L, method=method, pad_id=0, seed=seed)


@pytest.mark.parametrize("method", ["layerwise", "easy_ep", "reap", "aimer"])
@pytest.mark.parametrize("shared", few([2, 1]))
def test_scores_are_those_of_the_slow_transcription(method, shared):
    config = _config(num_shared_experts=shared)
    params = _params(config)
    documents, routed_L = _documents(config), [3, 2, 4]
    S = config.data.seq_len  # longer documents are cut into pieces
    cut = [ids[at : at + S] for ids in documents for at in range(0, len(ids), S)]
    kept, scores = getattr(slow_model, method)(config, params, cut, routed_L)
    found = _choose(config, params, documents, routed_L, method)
    np.testing.assert_allclose(found.scores_LMR[:, 0], scores, rtol=2e-5, atol=1e-7)
    for layer in range(3):
        np.testing.assert_array_equal(np.flatnonzero(found.kept_LMR[layer, 0]), kept[layer])


@pytest.mark.parametrize("method", ["reap", "aimer"])
def test_experts_that_a_layer_lacks_are_not_chosen(method):
    whole = _config()
    config = dataclasses.replace(
        whole, moe=dataclasses.replace(whole.moe, experts_per_layer=(8, 5, 3))
    )
    found = _choose(config, _params(config), _documents(config), [4, 4, 2], method)
    there_L1 = np.array([7, 4, 2])[:, None]
    assert not (found.kept_LMR[:, 0] & (np.arange(7) >= there_L1)).any()
    np.testing.assert_array_equal(found.kept_LMR.sum(-1)[:, 0], [4, 4, 2])
    assert np.isfinite(found.scores_LMR).all()


def test_an_expert_that_no_token_uses_has_the_lowest_score_of_reap():
    config = _config()
    params, documents = _params(config), _documents(config, lengths=(2,))
    scores_LR = _choose(config, params, documents, [3, 3, 3], "reap").scores_LMR[:, 0]
    assert (scores_LR >= 0).all() and (scores_LR == 0).any(axis=1).all()


def test_global_is_layerwise_until_something_is_pruned():
    config = _config()
    params, documents = _params(config), _documents(config)
    whole = _choose(config, params, documents, [7, 7, 7], "layerwise")
    once = _choose(config, params, documents, [2, 2, 2], "global")
    np.testing.assert_allclose(once.scores_LMR, whole.scores_LMR, rtol=1e-6)
    pruning = _choose(config, params, documents, [2, 2, 2], "layerwise")
    np.testing.assert_allclose(pruning.scores_LMR[0], once.scores_LMR[0], rtol=1e-6)
    assert np.abs(pruning.scores_LMR[2] - once.scores_LMR[2]).max() > 1e-2


def test_random_follows_the_seed_alone():
    config = _config()
    params, documents = _params(config), _documents(config)
    first, again, other = (
        _choose(config, params, documents, [3, 2, 7], "random", seed=seed).kept_LMR[:, 0]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first.sum(-1), [3, 2, 7])
    assert overlap(first, other) < 1
    few = _choose(config, params, documents, [1, 1, 1], "random").kept_LMR[:, 0]
    assert (few <= first).all()  # nested


@pytest.mark.parametrize("method", ["layerwise", "easy_ep", "reap", "aimer"])
@pytest.mark.parametrize(
    "sizes",
    few([MeshConfig(fsdp=2, expert=2, tensor=2), MeshConfig(fsdp=8)]),
    ids=["mixed", "fsdp"],
)
def test_the_mesh_changes_nothing(method, sizes):
    config = _config()
    params, documents = _params(config), _documents(config)
    alone = _choose(config, params, documents, [3, 2, 4], method)
    on_mesh = dataclasses.replace(config, mesh=sizes)
    mesh = mesh_lib.make_mesh(sizes)
    found = _choose(on_mesh, params, documents, [3, 2, 4], method, mesh=mesh)
    np.testing.assert_allclose(found.scores_LMR, alone.scores_LMR, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found.kept_LMR, alone.kept_LMR)


def test_counts_and_shares():
    config = _config()
    moe = config.moe
    assert [parse_keep(k, moe) for k in ("8", "100%", "50%", "37.5%")] == [8, 8, 4, 3]
    assert parse_keep("25%", moe, allow_fewer=True) == 2
    assert budgets(config, [4]) == [3, 3, 3]
    assert budgets(config, [8, 3, 4]) == [7, 2, 3]
    for text, said in (
        ("9", "must be 3..8"),
        ("25%", "give --allow-fewer"),
        ("some", "a count like 16 or a share like 25%"),
        ("1", "must be 3..8"),
    ):
        with pytest.raises(UsageError, match=said):
            parse_keep(text, moe)
    with pytest.raises(UsageError, match="2 counts, and the model has 3 layers"):
        budgets(config, [4, 4])

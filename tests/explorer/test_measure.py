"""Losses without an expert are those of a mask that leaves it out."""

import jax
import numpy as np
import pytest
from tiny import NO_POOL, tiny_batch, tiny_config

from emo_jax.config import MeshConfig
from emo_jax.evals.heldout import evaluate, make_eval_step
from emo_jax.explorer.measure import keeps_of, rises_without
from emo_jax.model.functions import ModelFunctions
from emo_jax.parallel.mesh import make_mesh


def test_one_pass_measures_an_expert_of_each_domain():
    config = tiny_config(pool=NO_POOL)
    model = ModelFunctions(config, make_mesh(MeshConfig(fsdp=1), devices=jax.devices()[:1]))
    params = jax.jit(ModelFunctions(config).init, static_argnums=0)(2)
    batch = tiny_batch(config)
    ids = np.where(batch.segment_ids >= 0, batch.segment_ids % 2, -1).astype(np.int32)
    batch = batch._replace(domain_ids=ids)
    rng = np.random.default_rng(0)
    picked_LMR = rng.random((2, 2, 7))
    picked_LMR[0, 0, 5] = 0.001  # too few to be measured
    found = rises_without(model, params, ["a", "b"], [batch], picked_LMR, most=7)
    step = make_eval_step(config, model, 2, router_probs=False)
    full_M = evaluate(step, params, [batch]).loss_M
    for layer, expert in ((0, 5), (0, 2), (1, 6)):
        keep_LMR = np.ones((2, 2, 7), bool)
        keep_LMR[layer, :, expert] = False
        rise_M = evaluate(step, params, [batch], keep_LMR=keep_LMR).loss_M - full_M
        card = found[layer][expert]
        assert card["b"] == pytest.approx(rise_M[1], abs=1e-4)
        assert ("a" in card) == ((layer, expert) != (0, 5))
        if "a" in card:
            assert card["a"] == pytest.approx(rise_M[0], abs=1e-4)


def test_the_curve_ends_at_top_k():
    assert keeps_of(tiny_config()) == [8, 6, 4, 3]
    assert keeps_of(tiny_config(num_experts=64)) == [64, 48, 32, 24, 16, 12, 8, 4]

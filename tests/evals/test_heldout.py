"""Held-out losses by domain, and the choice of experts that a domain keeps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import NO_POOL, UNIFORM, tiny_batch, tiny_config

from emo_jax.errors import UsageError
from emo_jax.evals.heldout import evaluate, make_eval_step
from emo_jax.evals.keep_k import KeepTable, keep_table
from emo_jax.model.functions import ModelFunctions
from emo_jax.selection.budgets import keep_experts

M = 3
DOMAINS = ["a", "b", "c"]


def _batches(config, count=2):
    out = []
    for seed in range(count):
        batch = tiny_batch(config, seed=seed)
        rng = np.random.default_rng(seed)
        of_document = rng.integers(0, M, 64).astype(np.int32)
        domains = np.where(batch.segment_ids >= 0, of_document[batch.segment_ids], -1)
        out.append(batch._replace(domain_ids=domains.astype(np.int32)))
    return out


def _losses_by_hand(config, params, batches, *, keep_LMR=None):
    """Mean cross-entropy of each domain's labels within their document, token by token."""
    model = ModelFunctions(config)
    losses = [[] for _ in range(M)]
    for batch in batches:
        logits = np.asarray(model.logits(params, batch, keep_LMR=keep_LMR))
        logp = logits - np.asarray(jax.nn.logsumexp(logits, axis=-1, keepdims=True))
        B, S = batch.tokens.shape
        for b in range(B):
            for t in range(S - 1):
                here, after = batch.segment_ids[b, t], batch.segment_ids[b, t + 1]
                if here >= 0 and here == after:
                    label = batch.tokens[b, t + 1]
                    losses[batch.domain_ids[b, t]].append(-logp[b, t, label])
    return np.array([np.mean(x) for x in losses]), np.array([len(x) for x in losses])


@pytest.mark.parametrize("pool", [UNIFORM, NO_POOL], ids=["emo", "standard"])
def test_loss_of_each_domain(pool):
    """Without a pool, whatever pools the model was trained with."""
    config = tiny_config(pool=pool)
    params, batches = ModelFunctions(config).init(0), _batches(config)
    step = make_eval_step(config, ModelFunctions(config), M)
    result = evaluate(step, params, batches)
    losses, labels = _losses_by_hand(config, params, batches)
    np.testing.assert_array_equal(result.labels_M, labels)
    np.testing.assert_allclose(result.loss_M, losses, rtol=1e-5)
    np.testing.assert_allclose(result.loss, (losses * labels).sum() / labels.sum(), rtol=1e-5)
    with_pool = evaluate(step, params, batches, pool_size=3)
    assert np.abs(with_pool.loss_M - losses).max() > 1e-3
    everything = evaluate(step, params, batches, pool_size=8)
    np.testing.assert_allclose(everything.loss_M, losses, rtol=1e-5)


def test_each_domain_sees_its_own_experts():
    config = tiny_config(pool=NO_POOL)
    params, batches = ModelFunctions(config).init(0), _batches(config)
    keep_LMR = np.random.default_rng(0).random((2, M, 7)).argsort(-1) < 3
    step = make_eval_step(config, ModelFunctions(config), M)
    ours = evaluate(step, params, batches, keep_LMR=keep_LMR).loss_M
    for m in range(M):  # as if every document were of this domain
        same = [b._replace(domain_ids=np.where(b.domain_ids >= 0, m, -1)) for b in batches]
        alone = jnp.asarray(np.repeat(keep_LMR[:, m : m + 1], M, axis=1))
        losses, _ = _losses_by_hand(config, params, batches, keep_LMR=alone)
        np.testing.assert_allclose(ours[m], losses[m], rtol=1e-5)
        assert np.isfinite(evaluate(step, params, same, keep_LMR=keep_LMR).loss)


def test_router_probabilities_are_summed_by_domain():
    config = tiny_config(pool=NO_POOL)
    params, batches = ModelFunctions(config).init(0), _batches(config)
    step = make_eval_step(config, ModelFunctions(config), M)
    probs_LMR = evaluate(step, params, batches).router_probs_LMR
    tokens = [sum((b.domain_ids == m).sum() for b in batches) for m in range(M)]
    np.testing.assert_allclose(probs_LMR.sum(-1), np.tile(tokens, (2, 1)), rtol=1e-5)


def test_kept_experts_are_the_best_and_count_the_shared_one():
    config = tiny_config()
    scores = np.array([[[1, 5, 3, 5, 0, 2, 4]]] * 2, np.float32)
    kept = keep_experts(scores, config, 4)
    np.testing.assert_array_equal(np.flatnonzero(kept[0, 0]), [1, 3, 6])
    assert keep_experts(scores, config, 8).all()
    for keep in (2, 9):
        with pytest.raises(UsageError, match=r"must be 3\.\.8"):
            keep_experts(scores, config, keep)
    assert keep_experts(scores, config, 2, allow_fewer=True).sum() == 2


def test_table_keeps_what_the_select_split_says():
    config = tiny_config(pool=UNIFORM)
    params = ModelFunctions(config).init(0)
    select, test = _batches(config), _batches(config, 3)[2:]
    step = make_eval_step(config, ModelFunctions(config), M)
    table = keep_table(
        config,
        step,
        params,
        domains=DOMAINS,
        select_batches=select,
        test_batches=test,
        keeps=[8, 4],
    )
    np.testing.assert_allclose(table.kept[8], table.full_M, rtol=1e-6)
    scores = evaluate(step, params, select).router_probs_LMR
    keep = keep_experts(scores, config, 4)
    expected = evaluate(step, params, test, keep_LMR=keep).loss_M
    np.testing.assert_allclose(table.kept[4], expected, rtol=1e-6)
    assert table.pool_size == 3 and table.pool_loss_M is not None
    name, means = table.rows()[-1]
    assert name == "mean"
    np.testing.assert_allclose(means[0], table.full_M.mean())
    np.testing.assert_allclose(
        table.to_json()["mean_rise"]["4"], (table.kept[4] - table.full_M).mean()
    )


def test_a_domain_that_a_split_lacks_has_no_losses():
    """`b` has no select tokens, so nothing chose its experts; `c` has no test tokens."""
    config = tiny_config(pool=UNIFORM)
    params, batches = ModelFunctions(config).init(0), _batches(config)
    without = [
        [b._replace(domain_ids=np.where(b.domain_ids == m, 0, b.domain_ids)) for b in batches]
        for m in range(M)
    ]
    said = []
    table = keep_table(
        config,
        make_eval_step(config, ModelFunctions(config), M),
        params,
        domains=DOMAINS,
        select_batches=without[1],
        test_batches=without[2],
        keeps=[4],
        progress=said.append,
    )
    np.testing.assert_array_equal(np.isnan(table.full_M), [False, False, True])
    np.testing.assert_array_equal(np.isnan(table.pool_loss_M), [False, False, True])
    np.testing.assert_array_equal(np.isnan(table.kept[4]), [False, True, True])
    assert len(said) == 4
    rows = dict(table.rows())
    np.testing.assert_array_equal(rows["mean"], rows["a"])  # the only one with every loss
    written = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert written["full"][2] is None and written["kept"]["4"][1:] == [None, None]
    np.testing.assert_allclose(written["mean_rise"]["4"], table.kept[4][0] - table.full_M[0])


def test_a_table_without_any_loss():
    nothing = np.full(2, np.nan)
    table = KeepTable(
        domains=["a", "b"],
        full_M=np.ones(2),
        kept={4: nothing},
        pool_size=0,
        pool_loss_M=None,
        tested_M=np.ones(2, bool),
        unseen_M=np.ones(2, bool),
    )
    assert np.isnan(table.rows()[-1][1]).all()
    assert table.to_json()["mean_rise"] == {"4": None}


def test_a_loss_that_is_not_finite_is_seen_in_the_means():
    nan = np.nan
    table = KeepTable(
        domains=["a", "broken", "unseen"],
        full_M=np.array([1.0, nan, 2.0]),
        kept={4: np.array([1.5, nan, nan])},
        pool_size=0,
        pool_loss_M=None,
        tested_M=np.ones(3, bool),
        unseen_M=np.array([False, False, True]),
    )
    assert np.isnan(table.rows()[-1][1]).all()
    written = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert written["mean_rise"] == {"4": None} and written["full"] == [1.0, None, 2.0]

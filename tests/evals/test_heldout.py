"""Held-out losses by domain, and the choice of experts that a domain keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import few
from tiny import NO_POOL, UNIFORM, tiny_batch, tiny_config

from emo_jax.config.names import METHODS
from emo_jax.errors import UsageError
from emo_jax.evals.heldout import evaluate, make_eval_step
from emo_jax.evals.keep import choose, losses_kept
from emo_jax.model.functions import ModelFunctions
from emo_jax.selection.budgets import keep_experts
from emo_jax.selection.scores import choose_experts

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


@pytest.mark.parametrize("method", few(METHODS, 2))
def test_experts_are_kept_as_the_select_split_says(method):
    config = tiny_config(pool=UNIFORM)
    model = ModelFunctions(config)
    params = model.init(0)
    select, test = _batches(config), _batches(config, 3)[2:]
    step = make_eval_step(config, model, M, router_probs=False)
    choice = choose(model, params, select, M, method=method)
    kept = losses_kept(choice, [8, 4, 4], lambda k: evaluate(step, params, test, keep_LMR=k))
    assert list(kept) == [8, 4]
    full = evaluate(step, params, test)
    np.testing.assert_allclose(kept[8].loss_M, full.loss_M, rtol=1e-6)
    if method == "global":
        scores = evaluate(make_eval_step(config, model, M), params, select).router_probs_LMR
        keep_LMR = keep_experts(scores, config, 4)
    else:
        keep_LMR = choose_experts(method, model, params, select, [3, 3], num_domains=M).kept_LMR
    expected = evaluate(step, params, test, keep_LMR=keep_LMR).loss_M
    np.testing.assert_allclose(kept[4].loss_M, expected, rtol=1e-6)
    assert (choice.scores_LMR is None) == (method != "global")


@pytest.mark.parametrize("method", ["global", "layerwise"])
def test_a_domain_that_a_split_lacks_has_no_losses(method):
    """`b` has no select tokens, so nothing chose its experts; `c` has no test tokens."""
    config = tiny_config(pool=UNIFORM)
    model, batches = ModelFunctions(config), _batches(config)
    params = model.init(0)
    without = [
        [b._replace(domain_ids=np.where(b.domain_ids == m, 0, b.domain_ids)) for b in batches]
        for m in range(M)
    ]
    step = make_eval_step(config, model, M, router_probs=False)
    choice = choose(model, params, without[1], M, method=method)
    kept = losses_kept(choice, [4], lambda k: evaluate(step, params, without[2], keep_LMR=k))
    np.testing.assert_array_equal(choice.unseen_M, [False, True, False])
    full = evaluate(step, params, without[2])
    np.testing.assert_array_equal(np.isnan(full.loss_M), [False, False, True])
    np.testing.assert_array_equal(np.isnan(kept[4].loss_M), [False, True, True])

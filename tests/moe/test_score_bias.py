"""Sigmoid gates, and biases on the scores that balance the load, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_router import check, two_documents

from emo_jax.config import MoeConfig
from emo_jax.moe.router import RouterTokens, choose, statistics
from emo_jax.moe.score_bias import BINS, quantile_bias, sign_bias

R = 8


def _moe(**fields):
    return MoeConfig(**dict(num_experts=R, top_k=3, expert_dim=1, num_shared_experts=0) | fields)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_router_equals_numpy(gate, normalize, biased):
    bias_R = np.linspace(-0.4, 0.4, R) if biased else None
    combine_BSR = check(_moe(gate=gate, normalize_picks=normalize), bias_R=bias_R)
    used_R = (combine_BSR > 0).sum((0, 1))
    if biased:  # which acts: the experts that it favours have more tokens
        assert used_R[4:].sum() > used_R[:4].sum() + 10


def test_a_bias_opens_no_expert_outside_the_pool():
    label_BSR = np.where(np.arange(R) < 4, 0.0, -np.inf) * np.ones((2, 10, 1))
    combine_BSR = check(
        _moe(gate="sigmoid"), bias_R=np.where(np.arange(R) < 4, -1.0, 1.0), label_BSR=label_BSR
    )
    assert not combine_BSR[..., 4:].any()


def test_sign_moves_against_the_load_and_leaves_missing_experts():
    there_R = np.arange(R) < 6
    bias_R = jnp.zeros(R).at[7].set(0.5)
    new_R = sign_bias(bias_R, jnp.array([9.0, 1, 5, 5, 5, 5, 0, 0]), there_R, 0.01)
    np.testing.assert_allclose(new_R, [-0.01, 0.01, 0, 0, 0, 0, 0, 0.5], atol=1e-8)


def _margins(moe, x_BSD, kernel_DE, bias_R, ids_BS):
    routing, probs = choose(x_BSD, kernel_DE, moe, ids_BS, bias_R=bias_R)
    tokens = RouterTokens(ids_BS, training=True)
    return statistics(routing, probs, moe, tokens, bias_R=bias_R)


def test_quantiles_balance_the_batch_they_are_of():
    """As NumPy's quantiles of the margins say, to a bin; and the load is even with the new bias."""
    moe = _moe(gate="sigmoid", score_bias="quantile")
    x_BSD = jax.random.normal(jax.random.key(0), (4, 256, 6))
    kernel_DE = jax.random.normal(jax.random.key(1), (6, R)) + jnp.linspace(-0.5, 0.5, R)
    ids_BS, bias_R = jnp.asarray(two_documents(4, 256, 40)), jnp.linspace(0.1, -0.1, R)
    load = []
    for _ in range(8):
        stats = _margins(moe, x_BSD, kernel_DE, bias_R, ids_BS)
        load.append(stats.counts_E / stats.counts_E.mean())
        valid_N = np.asarray(ids_BS >= 0).reshape(-1)
        scores_NR = np.asarray(jax.nn.sigmoid(x_BSD @ kernel_DE)).reshape(-1, R)[valid_N]
        cutoff_N1 = np.sort(scores_NR + np.asarray(bias_R), -1)[:, -4][:, None]
        wanted_R = np.quantile(cutoff_N1 - scores_NR, 3 / R, axis=0, method="inverted_cdf")
        new_R = quantile_bias(bias_R, stats.margins_RJ, num_picks=3)
        width = (float(bias_R.max() - bias_R.min()) + 2) / BINS
        np.testing.assert_allclose(new_R, wanted_R - wanted_R.mean(), atol=2 * width)
        bias_R = new_R
    assert load[0].max() > 1.3 and load[-1].max() < 1.05
    assert stats.margins_RJ.sum() == R * valid_N.sum()


def test_counts_of_micro_batches_add_up_to_those_of_the_batch():
    moe = _moe(gate="sigmoid", score_bias="quantile")
    x_BSD, kernel_DE = jax.random.normal(jax.random.key(0), (4, 16, 6)), jnp.ones((6, R))
    ids_BS, bias_R = jnp.zeros((4, 16), jnp.int32), jnp.linspace(-0.3, 0.3, R)
    whole = _margins(moe, x_BSD, kernel_DE, bias_R, ids_BS).margins_RJ
    halves = [_margins(moe, x_BSD[i : i + 2], kernel_DE, bias_R, ids_BS[i : i + 2]) for i in (0, 2)]
    np.testing.assert_array_equal(whole, halves[0].margins_RJ + halves[1].margins_RJ)

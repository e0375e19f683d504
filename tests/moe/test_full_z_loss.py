"""Pools whose probabilities are those over all experts (SPEC 6, fullzloss)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow_router

from emo_jax.config import MoeConfig, PoolConfig
from emo_jax.errors import ConfigError
from emo_jax.moe.pools import Pools

B, S, D, E, K, SIZE = 2, 10, 6, 9, 2, 4
IDS_BS = slow_router.two_documents(B, S, padded=3)


def _moe(renormalize, **fields):
    pool = PoolConfig(kind="fixed", size=SIZE, renormalize=renormalize)
    return MoeConfig(num_experts=E, top_k=K + 1, expert_dim=1, pool=pool, **fields)


def slow(x_BSD, kernel_DE):
    """Weights (B,S,R) and the two losses: a loop over tokens in float64."""
    R = E - 1
    logits_BSR = x_BSD @ kernel_DE[:, :R]
    probs_BSR = np.exp(logits_BSR) / np.exp(logits_BSR).sum(-1, keepdims=True)
    combine_BSR, counts_R, sums_R, z = np.zeros((B, S, R)), np.zeros(R), np.zeros(R), 0.0
    for b, s in np.argwhere(IDS_BS >= 0):
        mine_S = IDS_BS[b] == IDS_BS[b, s]
        pool = np.argsort(-probs_BSR[b, mine_S].mean(0), kind="stable")[:SIZE]
        p_R = np.zeros(R)
        p_R[pool] = probs_BSR[b, s, pool]
        picks = np.argsort(-p_R, kind="stable")[:K]
        combine_BSR[b, s, picks] = p_R[picks]
        counts_R[picks] += 1
        sums_R += p_R
        z += np.log(np.exp(logits_BSR[b, s]).sum()) ** 2
    valid = (IDS_BS >= 0).sum()
    return combine_BSR, R / K * (counts_R / valid * sums_R / valid).sum(), z / valid


def fast(x_BSD, kernel_DE, moe, **options):
    pools = Pools(jnp.full((B, S), SIZE))
    combine_BSR, losses = slow_router.fast(x_BSD, kernel_DE, moe, IDS_BS, pools=pools, **options)
    return combine_BSR, *losses


def _inputs():
    rng = np.random.default_rng(0)
    return rng.normal(size=(B, S, D)), rng.normal(size=(D, E))


def test_weights_losses_and_gradients_are_those_of_the_transcription():
    x, kernel = _inputs()
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(B, S, E - 1))

    def objective(found):
        combine, balance, z = found
        return (combine * weight).sum() + 0.3 * balance + 0.2 * z

    with jax.enable_x64(True):
        found = fast(jnp.asarray(x), jnp.asarray(kernel), _moe(False))
        grads = jax.grad(lambda *a: objective(fast(*a, _moe(False))), argnums=(0, 1))(x, kernel)
    for ours, theirs in zip(found, slow(x, kernel), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-7)
    for _ in range(4):
        dx, dkernel = rng.normal(size=x.shape), rng.normal(size=kernel.shape)
        ahead, behind = (objective(slow(x + h * dx, kernel + h * dkernel)) for h in (1e-6, -1e-6))
        ours = np.vdot(grads[0], dx) + np.vdot(grads[1], dkernel)
        np.testing.assert_allclose(ours, (ahead - behind) / 2e-6, rtol=1e-4)


def test_the_same_experts_are_picked_with_smaller_weights():
    x, kernel = map(jnp.asarray, _inputs())
    ours, usual = (np.asarray(fast(x, kernel, _moe(again))[0]) for again in (False, True))
    np.testing.assert_array_equal(ours > 0, usual > 0)
    assert (ours[usual > 0] < usual[usual > 0]).all()


def test_a_biased_choice_stays_in_the_pool():
    x, kernel = map(jnp.asarray, _inputs())
    moe = _moe(False, gate="sigmoid", score_bias="sign", normalize_picks=True)
    bias_R = jnp.linspace(-5, 5, E - 1)
    unbiased = np.asarray(fast(x, kernel, moe, bias_R=jnp.zeros(E - 1))[0])
    biased = np.asarray(fast(x, kernel, moe, bias_R=bias_R)[0])
    assert (biased != unbiased).any()
    for b, document in ((0, 0), (0, 1), (1, 0)):
        used = biased[b, IDS_BS[b] == document]
        assert (used > 0).any(0).sum() <= SIZE


@pytest.mark.parametrize(
    "pool",
    [
        {},
        {"kind": "fixed", "size": 4, "penalty": 2.0},
        {"kind": "label_table", "size": 4},
    ],
    ids=["no pools", "a penalty", "labels"],
)
def test_where_there_is_nothing_that_it_could_mean(pool):
    with pytest.raises(ConfigError, match=r"moe\.pool\.renormalize = False: must be True without"):
        MoeConfig(num_experts=E, top_k=3, expert_dim=1, pool=PoolConfig(renormalize=False, **pool))

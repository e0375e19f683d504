"""Shared experts of which a document uses some (SPEC 6, sharedexppool)."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow_router
from tiny import tiny_config

from emo_jax.config import MoeConfig, PoolConfig
from emo_jax.errors import ConfigError, UsageError
from emo_jax.hf.layouts import layout_for
from emo_jax.model.few_tokens import few_token_experts
from emo_jax.moe.experts import ExpertWeights, experts
from emo_jax.moe.pools import Pools
from emo_jax.moe.router import RouterTokens, Routing, choose, statistics
from emo_jax.moe.shared_pools import choose_shared, with_shared, with_shared_losses
from emo_jax.selection.budgets import parse_keep

B, S, D, R, SHARED, K, USED, SIZE = 2, 10, 6, 7, 3, 2, 2, 4
E = R + SHARED
IDS_BS = slow_router.two_documents(B, S, padded=3)
# Of the reference's twolevel_batchlb_reducedp_sharedexppool_router.py at these shapes: random `x`,
# `w` and `weight` (of `combine` in the objective), and `ends` of documents.
GOLDEN = Path(__file__).parents[1] / "golden" / "shared_pools.npz"


def _moe(**fields):
    fields = dict(pool=PoolConfig(kind="fixed", size=SIZE)) | fields
    return MoeConfig(
        num_experts=E,
        top_k=K + USED,
        expert_dim=5,
        num_shared_experts=SHARED,
        shared_picks=USED,
        **fields,
    )


def _softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def slow(x_BSD, kernel_DE, *, pooled):
    """Weights (B,S,E), balance of routed and of shared experts, z-loss, counts, in float64."""
    combine_BSE, z = np.zeros((B, S, E)), 0.0
    losses, valid = [], (IDS_BS >= 0).sum()
    for first, last, picks, size in ((0, R, K, SIZE), (R, E, USED, USED)):
        counts, sums = np.zeros(last - first), np.zeros(last - first)
        for b, s in np.argwhere(IDS_BS >= 0):
            logits = x_BSD[b] @ kernel_DE[:, first:last]
            if pooled:
                mine_S = IDS_BS[b] == IDS_BS[b, s]
                order = np.argsort(-_softmax(logits[mine_S]).sum(0), kind="stable")
            else:
                order = np.argsort(-logits[s], kind="stable")
                size = USED if first else R
            masked = np.full(last - first, -np.inf)
            masked[order[:size]] = logits[s][order[:size]]
            p = _softmax(masked)
            best = np.argsort(-p, kind="stable")[:picks]
            combine_BSE[b, s, first + best] = p[best]
            counts[best] += 1
            sums += p
            z += np.log(np.exp(masked).sum()) ** 2
        losses.append((last - first) / picks * (counts / valid * sums / valid).sum())
    return combine_BSE, *losses, z / valid, (combine_BSE > 0).sum((0, 1))


def fast(x_BSD, kernel_DE, *, pooled, ids_BS=IDS_BS):
    moe, pools = _moe(), Pools(jnp.full((B, S), SIZE)) if pooled else None
    routing, probs = choose(x_BSD, kernel_DE, moe, ids_BS, pools=pools)
    tokens = RouterTokens(ids_BS, (ids_BS >= 0).sum())
    stats = statistics(routing, probs, moe, tokens)
    shared = choose_shared(x_BSD, kernel_DE, moe, ids_BS, by_document=pooled)
    stats = with_shared_losses(stats, shared, moe, tokens)
    routing = with_shared(routing, shared, moe)
    one_hot = jax.nn.one_hot(routing.indices_BSK, E)
    combine_BSE = jnp.sum(one_hot * routing.weights_BSK[..., None], axis=2)
    losses = (stats.load_balance_loss, stats.shared_balance_loss, stats.router_z_loss)
    return combine_BSE, *losses, stats.counts_E


def _inputs():
    rng = np.random.default_rng(0)
    return rng.normal(size=(B, S, D)), rng.normal(size=(D, E))


@pytest.mark.parametrize("pooled", [True, False], ids=["documents", "tokens"])
def test_weights_losses_and_gradients_are_those_of_the_transcription(pooled):
    x, kernel = _inputs()
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(B, S, E))

    def objective(found):
        combine, balance, shared_balance, z, _ = found
        return (combine * weight).sum() + 0.3 * balance + 0.7 * shared_balance + 0.2 * z

    with jax.enable_x64(True):
        found = fast(jnp.asarray(x), jnp.asarray(kernel), pooled=pooled)
        grads = jax.grad(lambda *a: objective(fast(*a, pooled=pooled)), argnums=(0, 1))(x, kernel)
    for ours, theirs in zip(found, slow(x, kernel, pooled=pooled), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(np.asarray(found[0])[..., R:].sum(-1), IDS_BS >= 0, atol=1e-6)
    for _ in range(4):
        dx, dkernel = rng.normal(size=x.shape), rng.normal(size=kernel.shape)
        ahead, behind = (
            objective(slow(x + h * dx, kernel + h * dkernel, pooled=pooled)) for h in (1e-6, -1e-6)
        )
        ours = np.vdot(grads[0], dx) + np.vdot(grads[1], dkernel)
        np.testing.assert_allclose(ours, (ahead - behind) / 2e-6, rtol=1e-4)


def test_equal_to_the_reference():
    """Weights, losses and gradients of its sharedexppool router, in float32 and without padding."""
    golden = np.load(GOLDEN)
    ids_BS = np.stack([np.searchsorted(ends, np.arange(S), "right") for ends in golden["ends"]])

    def objective(x_BSD, w_ED):
        combine, *losses, counts = fast(x_BSD, w_ED.T, pooled=True, ids_BS=ids_BS)
        aux = jnp.dot(jnp.array([0.3, 0.7, 0.2]), jnp.array(losses))
        return (combine * golden["weight"]).sum() + aux, (combine, aux, counts)

    grads, found = jax.grad(objective, argnums=(0, 1), has_aux=True)(golden["x"], golden["w"])
    for ours, name in zip((*found, *grads), ("combine", "aux", "counts", "dx", "dw"), strict=True):
        np.testing.assert_allclose(ours, golden[name], rtol=2e-5, atol=2e-6, err_msg=name)


def test_experts_get_the_tokens_that_use_them():
    """The sum over experts, written out; and the same where a token comes alone."""
    moe, (x, kernel) = _moe(), _inputs()
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((E, D, 5), (E, D, 5), (E, 5, D))
    weights = ExpertWeights(
        *(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    )
    x = jnp.asarray(x, jnp.float32)
    combine_BSE = fast(x, jnp.asarray(kernel, jnp.float32), pooled=True)[0]
    gate, up = (jnp.einsum("bsd,edf->bsef", x, w) for w in weights[:2])
    out_BSED = jnp.einsum("bsef,efd->bsed", jax.nn.silu(gate) * up, weights.down_EFD)
    wanted = jnp.einsum("bse,bsed->bsd", combine_BSE, out_BSED)
    weights_BSK, indices_BSK = jax.lax.top_k(combine_BSE, K + USED)
    routing = Routing(weights_BSK, jnp.where(weights_BSK > 0, indices_BSK, E).astype(jnp.int32))
    np.testing.assert_allclose(experts(x, routing, weights, moe)[0], wanted, atol=1e-4)
    stacked = ExpertWeights(*(w[None] for w in weights))
    alone = few_token_experts(
        x[:, :1], Routing(*(a[:, :1] for a in routing)), stacked, jnp.asarray(0), config=moe
    )
    np.testing.assert_allclose(alone, wanted[:, :1], atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(shared_picks=4), r"moe\.shared_picks = 4: must be 0\.\.3"),
        (dict(shared_picks=-1), r"moe\.shared_picks = -1: must be 0\.\.3"),
        (dict(top_k=2), r"moe\.top_k = 2: must be 3\.\.9 \(moe\.shared_picks count"),
        (dict(top_k=10), r"moe\.top_k = 10: must be 3\.\.9"),
        (dict(extension_experts=2), r"moe\.shared_picks = 2: must be 0 where moe\.extension"),
        (dict(shared_balance_weight=-1.0), r"moe\.shared_balance_weight = -1\.0: must be at least"),
        (
            dict(shared_picks=0, top_k=5, shared_balance_weight=0.1),
            r"moe\.shared_balance_weight = 0\.1: must be 0 where",
        ),
    ],
)
def test_what_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(_moe(), **fields)


def test_a_layer_keeps_all_shared_experts_and_enough_routed_ones():
    moe = _moe()
    assert (moe.num_routed_picks, moe.fewest_experts) == (K, K + SHARED)
    assert parse_keep("5", moe) == 5
    with pytest.raises(UsageError, match=r"--keep 4: must be 5\.\.10 experts"):
        parse_keep("4", moe)


@pytest.mark.parametrize("layout", ["emo", "qwen2_moe"])
def test_no_layout_has_it(layout):
    config = dataclasses.replace(tiny_config(), moe=_moe())
    with pytest.raises(UsageError, match=rf"layout '{layout}' has no router for shared experts"):
        layout_for(config, layout)

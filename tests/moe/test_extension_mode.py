"""Steps that train what a document's likeliest experts compute, against a loop over tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_router import BALANCE, Z, two_documents
from tiny import NO_POOL, tiny_config

from emo_jax.model.functions import ModelFunctions
from emo_jax.model.moe_mlp import PerLayer
from emo_jax.moe.router import RouterTokens

B, S, NUMBER = 2, 8, 3


def _slow(mlp, x_BSD, moe, ids_BS, cotangent_BSD, chosen_BSR):
    """The objective by SPEC 10, a token and a pick at a time; choices are by `chosen_BSR`."""
    stop, R, K = jax.lax.stop_gradient, moe.num_routed_experts, moe.num_routed_picks
    logits_BSR = x_BSD @ mlp["router"]["kernel"][:, :R]
    probs_BSR = jax.nn.softmax(logits_BSR, axis=-1)
    experts = mlp["experts"]

    def expert(x_D, e, weights):
        gate, up, down = (weights[name][e] for name in ("gate", "up", "down"))
        return (jax.nn.silu(x_D @ gate) * (x_D @ up)) @ down

    total, counts_R, mean_R, z, valid = 0.0, np.zeros(R), 0.0, 0.0, (ids_BS >= 0).sum()
    for b, s in np.argwhere(ids_BS >= 0):
        same = ids_BS[b] == ids_BS[b, s]
        top = set(np.argsort(-chosen_BSR[b, same].sum(0), kind="stable")[:NUMBER])
        own_R = jnp.array([e in top for e in range(R)])
        x_D, y_D = x_BSD[b, s], 0.0
        for e in map(int, np.argsort(-chosen_BSR[b, s], kind="stable")[:K]):
            weight, out_D = probs_BSR[b, s, e], expert(x_D, e, experts)
            if e not in top:
                out_D = stop(out_D)
                weight = stop(weight) if moe.extension_detach_router else weight
            y_D = y_D + weight * out_D
            counts_R[e] += 1
        for e in range(R, moe.num_experts):
            y_D = y_D + stop(expert(x_D, e, experts))
        p_R, logits_R = probs_BSR[b, s], logits_BSR[b, s]
        if moe.extension_detach_router:
            p_R = jnp.where(own_R, p_R, stop(p_R))
            logits_R = jnp.where(own_R, logits_R, stop(logits_R))
        mean_R = mean_R + p_R / valid
        z = z + jax.nn.logsumexp(logits_R) ** 2 / valid
        total = total + y_D @ cotangent_BSD[b, s]
    balance = R / K * (counts_R / valid * mean_R).sum()
    return total + BALANCE * balance + Z * z


@pytest.mark.parametrize("detach", [False, True])
def test_value_and_gradients(detach):
    config = tiny_config(pool=NO_POOL)
    fields = dict(extension_experts=NUMBER, extension_detach_router=detach)
    moe = dataclasses.replace(config.moe, **fields)
    config = dataclasses.replace(config, moe=moe)
    model = ModelFunctions(config)
    params = model.init(3)
    mlp = jax.tree.map(lambda a: a[0], params["layers"]["mlp"])
    ids_BS, rng = two_documents(B, S, 2), np.random.default_rng(0)
    x_BSD, cotangent_BSD = rng.normal(size=(2, B, S, config.model.embed_dim)).astype(np.float32)
    cotangent_BSD[ids_BS < 0] = 0.0  # padding has an output, of its shared expert

    def fast(mlp, x_BSD, training=True):
        bound = model.bind({**params, "layers": {**params["layers"], "mlp": _stacked(mlp, params)}})
        tokens = RouterTokens(jnp.asarray(ids_BS), (ids_BS >= 0).sum(), training=training)
        out_BSD, stats = bound.layer(0).mlp(x_BSD, tokens, PerLayer())
        losses = BALANCE * stats.load_balance_loss + Z * stats.router_z_loss
        return jnp.sum(out_BSD * cotangent_BSD) + losses

    value, grads = jax.jit(jax.value_and_grad(fast, argnums=(0, 1)))(mlp, x_BSD)
    chosen_BSR = np.asarray(jax.nn.softmax(x_BSD @ mlp["router"]["kernel"][:, :-1]))
    slow = lambda mlp, x: _slow(mlp, x, moe, ids_BS, cotangent_BSD, chosen_BSR)  # noqa: E731
    wanted, wanted_grads = jax.jit(jax.value_and_grad(slow, argnums=(0, 1)))(mlp, x_BSD)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(value, fast(mlp, x_BSD, training=False), rtol=1e-5)
    flat = zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(wanted_grads), strict=True)
    for (path, ours), theirs in flat:
        scale = np.abs(theirs).max() or 1.0
        np.testing.assert_allclose(
            ours / scale, theirs / scale, atol=2e-5, err_msg=jax.tree_util.keystr(path)
        )
    assert not np.asarray(grads[0]["experts"]["down"])[-1].any()  # the shared expert


def _stacked(mlp, params):
    return jax.tree.map(lambda one, all_L: all_L.at[0].set(one), mlp, params["layers"]["mlp"])

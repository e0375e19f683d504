"""Expert compute and dispatch against an obvious loop: outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.config import MoeConfig
from emo_jax.moe import blocked, dispatch
from emo_jax.moe.experts import ExpertWeights, experts
from emo_jax.moe.router import Routing

B, S, D, F, E, K = 2, 30, 12, 7, 6, 2


def _weights(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) * 0.3, jnp.float32)  # noqa: E731
    return draw(B, S, D), ExpertWeights(draw(E, D, F), draw(E, D, F), draw(E, F, D)), rng


def obvious(x, routing, weights, s):
    """Every expert on every token, then the weighted sum of those chosen."""
    hidden = jax.nn.silu(jnp.einsum("bsd,edf->bsef", x, weights.gate_EDF)) * jnp.einsum(
        "bsd,edf->bsef", x, weights.up_EDF
    )
    out = jnp.einsum("bsef,efd->bsed", hidden, weights.down_EFD)
    chosen = jax.nn.one_hot(routing.indices_BSK, E - s) * routing.weights_BSK[..., None]
    weight = jnp.concatenate([chosen.sum(2), jnp.ones((B, S, s))], axis=-1)
    return jnp.einsum("bse,bsed->bsd", weight, out)


def _indices(kind, rng, routed):
    if kind == "all on one":
        return np.stack([np.full((B, S), 2), np.full((B, S), 0)], -1)
    if kind == "some with none":
        return np.stack([rng.integers(0, 2, (B, S)), np.full((B, S), routed - 1)], -1)
    indices = np.argsort(rng.random((B, S, routed)), axis=-1)[..., :K]
    if kind == "padding":
        indices[1, 20:] = routed  # no expert
    return indices


def _config(s, backend):
    return MoeConfig(
        num_experts=E, top_k=K + s, expert_dim=F, num_shared_experts=s, backend=backend
    )


@pytest.mark.parametrize("backend", ["blocked", "ragged_dot"])
@pytest.mark.parametrize("s", [0, 1, 2])
@pytest.mark.parametrize("kind", ["spread", "all on one", "some with none", "padding"])
def test_experts_equal_the_obvious_sum(backend, s, kind, monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK_ROWS", 8)  # several blocks an expert, cut anywhere
    x, weights, rng = _weights()
    indices = jnp.asarray(_indices(kind, rng, E - s), jnp.int32)
    pick_weights = jnp.asarray(rng.random((B, S, K)), jnp.float32)
    pick_weights = jnp.where(indices < E - s, pick_weights, 0.0)
    cotangent = jnp.asarray(rng.normal(size=(B, S, D)), jnp.float32)

    def ours(x, pick_weights, weights):
        config = _config(s, backend)
        out, _ = experts(x, Routing(pick_weights, indices), weights, config)
        return jnp.sum(out * cotangent), out

    def ref(x, pick_weights, weights):
        out = obvious(x, Routing(pick_weights, indices), weights, s)
        return jnp.sum(out * cotangent), out

    args = (x, pick_weights, weights)
    grads, out = jax.jit(jax.grad(ours, argnums=(0, 1, 2), has_aux=True))(*args)
    ref_grads, ref_out = jax.grad(ref, argnums=(0, 1, 2), has_aux=True)(*args)
    np.testing.assert_allclose(out, ref_out, atol=2e-6)
    valid = np.asarray(indices < E - s)
    np.testing.assert_allclose(
        np.where(valid, grads[1], 0), np.where(valid, ref_grads[1], 0), atol=1e-5
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        (grads[0], grads[2]),
        (ref_grads[0], ref_grads[2]),
    )


def test_rows_are_grouped_by_expert_in_token_order():
    indices = jnp.asarray([[2, 0], [1, 2], [3, 3], [0, 1]])  # 3: no expert
    perm = dispatch.sort_by_expert(indices, 3)
    np.testing.assert_array_equal(perm.token_M[:6], [0, 3, 1, 3, 0, 1])
    np.testing.assert_array_equal(perm.group_sizes_R, [2, 2, 2])
    none = dispatch.NO_ROW
    np.testing.assert_array_equal(perm.row_NK, [[4, 0], [2, 5], [none, none], [1, 3]])


def test_rows_come_back_as_sums():
    indices = jnp.asarray([[2, 0], [1, 3], [3, 3], [0, 1]])
    perm = dispatch.sort_by_expert(indices, 3)
    y = jnp.asarray([[1.0], [2.0], [4.0], [8.0], [16.0], *[[jnp.nan]] * 3])
    expected = [[17.0], [4.0], [0.0], [10.0]]
    np.testing.assert_array_equal(dispatch.sum_rows(y, perm.row_NK), expected)


def test_no_float_is_scattered():
    """The compiled blocked form holds no floating-point scatter, forward or backward."""
    x, weights, rng = _weights()
    indices = jnp.asarray(_indices("spread", rng, E - 1), jnp.int32)

    def loss(x, pick_weights, weights):
        routing = Routing(pick_weights, indices)
        return experts(x, routing, weights, _config(1, "blocked"))[0].sum()

    text = (
        jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, jnp.ones((B, S, K)), weights).as_text()
    )
    scatters = text.split('"stablehlo.scatter"')[1:]
    assert scatters  # the permutation is inverted by one, of integers
    for scatter in scatters:
        types = scatter.split("}) : (")[1].split("\n")[0]
        assert "f32" not in types, types

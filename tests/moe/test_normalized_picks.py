"""Weights that sum to 1 over a token's picks (Mixtral), against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_router import check

from emo_jax.config import MoeConfig
from emo_jax.moe.router import choose


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("experts", "top_k", "shared"), [(8, 2, 0), (7, 4, 1)])
def test_router_equals_numpy(experts, top_k, shared, normalize):
    check(
        MoeConfig(
            num_experts=experts,
            top_k=top_k,
            expert_dim=1,
            num_shared_experts=shared,
            normalize_picks=normalize,
        )
    )


def test_weights_sum_to_one_and_padding_has_none():
    moe = MoeConfig(
        num_experts=8, top_k=2, expert_dim=1, num_shared_experts=0, normalize_picks=True
    )
    x_BSD = jax.random.normal(jax.random.key(0), (1, 5, 4))
    kernel_DE = jax.random.normal(jax.random.key(1), (4, 8))
    routing, _ = choose(x_BSD, kernel_DE, moe, jnp.array([[0, 0, 0, 0, -1]]))
    np.testing.assert_allclose(routing.weights_BSK.sum(-1), [[1, 1, 1, 1, 0]], rtol=1e-6)
    # Experts that a module lacks do not change them: no softmax over all is left in the weights.
    kept_R = jnp.isin(jnp.arange(8), routing.indices_BSK[0, 0])
    module, _ = choose(x_BSD, kernel_DE, moe, jnp.array([[0, 0, 0, 0, -1]]), allowed_BSR=kept_R)
    np.testing.assert_allclose(module.weights_BSK[0, 0], routing.weights_BSK[0, 0], rtol=1e-6)

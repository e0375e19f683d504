"""Variants of the router's losses, against NumPy: by document, and over all experts."""

import jax.numpy as jnp
import numpy as np
import pytest
from slow_router import check

from emo_jax.config import MoeConfig, PoolConfig
from emo_jax.errors import ConfigError
from emo_jax.moe.losses import document_balance_loss

R = 8


def _moe(**fields):
    return MoeConfig(**dict(num_experts=R + 1, top_k=3, expert_dim=1) | fields)


def _pools():
    """(2,10,R): each document of a window has other experts, and another number of them."""
    mask_BSR = np.full((2, 10, R), -np.inf)
    for b in range(2):
        mask_BSR[b, :5, b : b + 3] = 0.0
        mask_BSR[b, 5:, b + 1 : b + 6] = 0.0
    return mask_BSR


@pytest.mark.parametrize("fields", [dict(aux_scope="all"), dict(balance_scope="document"), {}])
@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
@pytest.mark.parametrize("pooled", [False, True])
def test_losses_and_gradients_equal_numpy(fields, gate, pooled):
    check(_moe(gate=gate, **fields), label_BSR=_pools() if pooled else None)


def test_balanced_documents_give_one():
    indices_BSK = jnp.arange(12).reshape(1, 6, 2) % 4
    ids_BS = jnp.array([[0, 0, 1, 1, 1, 1]])
    probs_BSR = jnp.where(jnp.arange(R) < 4, 0.25, 0.0) * jnp.ones((1, 6, 1))
    sizes_BS = jnp.full((1, 6), 4.0)
    found = document_balance_loss(indices_BSK, probs_BSR, ids_BS, sizes_BS, loss_tokens=6.0)
    np.testing.assert_allclose(found, 1.0, rtol=1e-6)


def test_experts_of_the_pool_alone_have_no_losses_over_all():
    with pytest.raises(ConfigError, match="aux_scope = 'all': must be 'pool' where"):
        _moe(aux_scope="all", balance_scope="document", pool=PoolConfig(kind="fixed", size=4))

"""FlexOlmo's negative bias of all experts but the first, against NumPy, gradients too."""

import pytest
from slow_router import check

from emo_jax.config import MoeConfig


@pytest.mark.parametrize("bias", [-0.7, -5.0])
def test_router_equals_numpy(bias):
    moe = MoeConfig(num_experts=6, top_k=3, expert_dim=1, num_shared_experts=0, expert_bias=bias)
    check(moe)

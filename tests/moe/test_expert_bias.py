"""FlexOlmo's negative bias: that of a router which reads one more number, always 1, in NumPy."""

import numpy as np
import pytest
from slow_router import check, slow

from emo_jax.config import MoeConfig


def slow_with_bias(x_BSD, kernel_DE, moe, ids_BS):
    ones_BS1 = np.ones((*x_BSD.shape[:2], 1))
    bias_1E = np.where(np.arange(moe.num_experts) > 0, moe.expert_bias, 0.0)[None]
    longer = np.concatenate([x_BSD, ones_BS1], -1), np.concatenate([kernel_DE, bias_1E])
    return slow(*longer, moe, ids_BS)


@pytest.mark.parametrize("bias", [-0.7, -5.0])
def test_router_equals_numpy(bias):
    moe = MoeConfig(num_experts=6, top_k=3, expert_dim=1, num_shared_experts=0, expert_bias=bias)
    check(moe, slow=slow_with_bias)

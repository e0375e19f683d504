"""Switch's capacity and jitter, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_router import check

from emo_jax.config import MoeConfig, capacity_rows
from emo_jax.moe.router import Routing
from emo_jax.moe.switch import draw_seeds, jittered, within_capacity


def _moe(**fields):
    return MoeConfig(**dict(num_experts=4, top_k=1, expert_dim=1, num_shared_experts=0) | fields)


@pytest.mark.parametrize("rows", [0, 1, 2, 100])
@pytest.mark.parametrize("top_k", [1, 2])
def test_router_with_a_capacity_equals_numpy(top_k, rows):
    combine_BSR = check(_moe(top_k=top_k, normalize_picks=top_k > 1), rows=rows)
    used_B = (combine_BSR > 0).sum((1, 2))
    assert (used_B <= 4 * rows).all() if rows in (1, 2) else used_B.sum() == top_k * 17


def test_earlier_tokens_and_first_picks_come_first():
    weights = jnp.ones((1, 3, 2))
    picks = jnp.array([[[0, 1], [2, 0], [1, 0]]])
    _, kept = within_capacity(Routing(weights, picks), 3, 1)
    # Expert 0 has token 0's first pick, so that second picks find it full, and expert 1 token 2's.
    np.testing.assert_array_equal(kept, [[[0, 3], [2, 3], [1, 3]]])


def test_rows_of_a_window():
    assert capacity_rows(_moe(capacity_factor=1.25), 32) == 10
    assert capacity_rows(_moe(top_k=2, capacity_factor=1.0), 6) == 3


def test_jitter_is_a_factor_within_its_bounds_that_the_window_alone_decides():
    x_BSD = jax.random.normal(jax.random.key(0), (4, 5, 6), jnp.bfloat16)
    seeds_LB = draw_seeds(jax.random.key(1), rows=jnp.arange(4), num_layers=2)
    assert len(np.unique(seeds_LB)) == 8
    noise = jittered(x_BSD, seeds_LB[0], 0.1) / x_BSD.astype(jnp.float32)
    assert 0.9 <= noise.min() < 0.91 and 1.09 < noise.max() <= 1.1
    assert abs(noise.mean() - 1) < 0.02
    # Whatever the other windows of a batch, or of a device, are.
    some = draw_seeds(jax.random.key(1), rows=jnp.array([2, 1]), num_layers=2)
    np.testing.assert_array_equal(some, seeds_LB[:, jnp.array([2, 1])])
    np.testing.assert_array_equal(
        jittered(x_BSD[2:3], some[0, :1], 0.1), jittered(x_BSD, seeds_LB[0], 0.1)[2:3]
    )

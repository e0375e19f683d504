"""Pools given by documents' labels, against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from slow_router import check

from emo_jax.config import MoeConfig, PoolConfig
from emo_jax.moe.labels import first_favour, label_experts, label_logits, next_favour


def _moe(kind, labels, experts=9, **pool):
    return MoeConfig(
        num_experts=experts,
        top_k=3,
        expert_dim=1,
        pool=PoolConfig(kind=kind, labels=labels, **pool),
    )


def _in(config):
    return [np.flatnonzero(row).tolist() for row in label_experts(config)]


def test_domains_have_experts_at_equal_distances_or_those_given():
    assert _in(_moe("label_table", ("a", "b"), size=4)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert _in(_moe("label_table", ("a", "b", "c"), size=4)) == [
        [0, 1, 2, 3],
        [2, 3, 4, 5],
        [0, 5, 6, 7],
    ]
    assert _in(_moe("label_table", ("a=0-1", "b=1-5"))) == [[0, 1], [1, 2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("label_table", {}),
        ("label_bias", {"label_bias": 1.5}),
        ("label_learned", {"label_rate": 0.1}),
    ],
)
def test_router_equals_numpy(kind, more):
    moe = _moe(kind, ("a", "b"), size=4, **more)
    favour_MR = np.array([[3, 1, 2, 1, 1, 0, 0, 4], [0, 0, 1, 1, 1, 1, 1, 1.0]])
    table_MR = np.asarray(label_logits(moe, jnp.asarray(favour_MR)))
    # By hand: a tie goes to the lower index.
    experts_MR = np.zeros((2, 8), bool)
    for row, experts in zip(
        experts_MR,
        [[0, 1, 2, 7], [2, 3, 4, 5]] if kind == "label_learned" else [[0, 1, 2, 3], [4, 5, 6, 7]],
        strict=True,
    ):
        row[experts] = True
    wanted_MR = (
        np.where(experts_MR, 1.5, 0) if more.get("label_bias") else np.where(experts_MR, 0, -np.inf)
    )
    np.testing.assert_array_equal(table_MR, wanted_MR)
    labels_BS = np.array([[0] * 10, [1] * 6 + [0] * 4])
    combine_BSR = check(moe, label_BSR=wanted_MR[labels_BS])
    outside = combine_BSR[~experts_MR[labels_BS]]
    assert outside.any() == (kind == "label_bias")


def test_the_favour_of_a_domain_is_a_moving_average():
    moe = _moe("label_learned", ("a", "b", "c"), size=4, label_rate=0.25)
    favour_MR = first_favour(moe)
    np.testing.assert_array_equal(favour_MR, label_experts(moe) / 4)
    sums_MR = np.zeros((3, 8))
    sums_MR[0] = 10 / 8  # ten tokens, evenly over the experts
    sums_MR[2, 0] = 3  # three, sure of theirs
    new_MR = next_favour(jnp.asarray(favour_MR), jnp.asarray(sums_MR), 0.25)
    wanted_MR = favour_MR.copy()
    wanted_MR[0] = 0.75 * favour_MR[0] + 0.25 / 8
    wanted_MR[2] = 0.75 * favour_MR[2] + 0.25 * (np.arange(8) == 0)
    np.testing.assert_allclose(new_MR, wanted_MR, rtol=1e-6)

"""Budgets by layer: every schedule keeps as many experts in all, and does what its formula says."""

import dataclasses
import itertools

import numpy as np
import pytest
from tiny import NO_POOL, tiny_config

from emo_jax.config.names import KEEP_SCHEDULES
from emo_jax.errors import UsageError
from emo_jax.selection.budgets import (
    Budget,
    choose_best,
    experts_there,
    keep_experts,
    parse_budgets,
    routed_budgets,
)
from emo_jax.selection.schedules import spread

L, R = 4, 12


def masses(seed=0, layers=L):
    """Routed mass of layers that differ in how few experts hold most of it."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.dirichlet(np.full(R, a)) for a in np.geomspace(0.2, 5, layers)])


def held(mass_LR, kept_L):
    return [
        np.sort(row)[::-1][:n].sum() / row.sum() for row, n in zip(mass_LR, kept_L, strict=True)
    ]


def every_split(total, least, most):
    for kept in itertools.product(range(least, most + 1), repeat=L):
        if sum(kept) == total:
            yield kept


@pytest.mark.parametrize("schedule", KEEP_SCHEDULES)
@pytest.mark.parametrize("total", [8, 20, 33, 48])
def test_all_keep_as_many_within_the_bounds(schedule, total):
    kept = spread(schedule, total, [2, 2, 2, 2], [12, 12, 12, 12], masses())
    assert sum(kept) == total and all(2 <= n <= 12 for n in kept)


def test_linear_schedules():
    assert spread("uniform", 20, [2] * 4, [12] * 4) == [5, 5, 5, 5]
    rising = spread("increasing", 24, [1] * 4, [12] * 4)
    np.testing.assert_allclose(rising, 6 * (0.5 + np.arange(4) / 3), atol=0.51)
    assert spread("decreasing", 24, [1] * 4, [12] * 4) == rising[::-1]
    assert spread("increasing", 7, [1], [12]) == [7]
    # The bounds are kept, and the rest goes to the other layers.
    assert spread("increasing", 40, [2] * 4, [12] * 4)[-1] == 12
    assert spread("increasing", 12, [3] * 4, [12] * 4) == [3, 3, 3, 3]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("total", [9, 17, 26])
def test_mass_and_greedy_find_what_all_splits_have_best(seed, total):
    mass_LR = masses(seed)
    splits = list(every_split(total, 2, R))
    best = max(min(held(mass_LR, kept)) for kept in splits)
    found = spread("mass", total, [2] * L, [R] * L, mass_LR)
    assert min(held(mass_LR, found)) == pytest.approx(best)
    most = max(sum(held(mass_LR, kept)) for kept in splits)
    found = spread("greedy", total, [2] * L, [R] * L, mass_LR)
    assert sum(held(mass_LR, found)) == pytest.approx(most)


def test_greedy_is_a_ranking_of_all_experts():
    mass_LR = masses()
    found = spread("greedy", 20, [0] * L, [R] * L, mass_LR)
    ranks = np.sort((mass_LR / mass_LR.sum(1, keepdims=True)).ravel())[::-1]
    share_LR = mass_LR / mass_LR.sum(1, keepdims=True)
    assert found == (share_LR >= ranks[19]).sum(axis=1).tolist()


def config(**moe):
    whole = tiny_config(pool=NO_POOL, num_layers=3)
    return dataclasses.replace(whole, moe=dataclasses.replace(whole.moe, **moe))


@pytest.mark.parametrize("schedule", KEEP_SCHEDULES)
def test_each_domain_has_its_own_budget_and_the_same_sum(schedule):
    rng = np.random.default_rng(1)
    scores_LMR = rng.dirichlet(np.full(7, 0.3), size=(3, 4))
    kept = keep_experts(scores_LMR, config(), Budget((5,), schedule), mass_LMR=scores_LMR)
    np.testing.assert_array_equal(kept.sum(axis=(0, 2)), np.full(4, 12))
    assert kept.sum(-1).min() >= 2
    differ = len({tuple(column) for column in kept.sum(-1).T}) > 1
    assert differ == (schedule in ("mass", "greedy"))


def test_layers_with_fewer_experts_give_what_they_lack_to_none():
    smaller = config(experts_per_layer=(8, 8, 4))
    mass_LMR = np.full((3, 1, 7), 1.0)
    for schedule in KEEP_SCHEDULES:
        routed = routed_budgets(smaller, Budget((6,), schedule), mass_LMR)[:, 0]
        assert routed.sum() == 5 + 5 + 3 and routed[2] <= 3
        kept = choose_best(mass_LMR, experts_there(smaller), routed[:, None])
        np.testing.assert_array_equal(kept.sum(-1)[:, 0], routed)


def test_fewer_than_top_k_is_asked_for():
    budget = Budget((4,), "greedy")
    mass_LMR = np.zeros((3, 1, 7))
    mass_LMR[:, 0, 0], mass_LMR[1, 0, :] = 1, 1
    assert routed_budgets(config(), budget, mass_LMR).min() == 2
    assert routed_budgets(config(), budget, mass_LMR, allow_fewer=True).min() == 1


def test_lists_and_schedules_are_read():
    assert parse_budgets("50%", (), config()) == (Budget((4,)),)
    assert parse_budgets(["50%", 8], "mass", config()) == (
        Budget((4,), "mass"),
        Budget((8,), "mass"),
    )
    assert parse_budgets((), [3, 4, 5], config()) == (Budget((3, 4, 5)),)
    assert parse_budgets(4, ("3", "4", "5"), config()) == (Budget((3, 4, 5)),)
    assert parse_budgets((), (), config()) == ()
    assert routed_budgets(config(), Budget((3, 4, 5))).tolist() == [[2], [3], [4]]


@pytest.mark.parametrize(
    ("keep", "per_layer", "said"),
    [
        ((), "3,4", "3,4: must be a count for each layer, or one of uniform, increasing"),
        ((), ("3", "4"), "2 counts, and the model has 3 layers"),
        ((), (2, 4, 4), "--keep-per-layer 2: must be 3..8 experts.*below top-k 3 give"),
        (5, (3, 4, 5), "3,4,5: 12 experts in all, and --keep 5 is 15 in 3 layers; give one"),
        ((4, 5), (3, 4, 5), "is one model; give one --keep, or none"),
        (4, "masss", r"one of uniform, .*, greedy \(did you mean 'mass'\?\)"),
        (4, "x", "must be a count for each layer, or one of uniform, .*, greedy$"),
        ((), "mass", "spreads what --keep gives in all; give --keep too"),
        (4, ("4", "x", "4"), "--keep-per-layer x: must be whole numbers"),
        (4, ("4",), "1 counts, and the model has 3 layers"),
    ],
)
def test_bad_budgets(keep, per_layer, said):
    with pytest.raises(UsageError, match=said):
        parse_budgets(keep, per_layer, config())

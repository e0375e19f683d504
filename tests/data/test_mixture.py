import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emo_jax.config import DataConfig, SourceConfig
from emo_jax.data.mixture import Mixture, Planned, planned
from emo_jax.errors import ConfigError

MANY = 10**9  # windows; never exhausted


def mixture(*weights, steps=10**6, batch_size=8, most=None):
    sources = [
        Planned(
            f"s{k}",
            MANY,
            None if most is None else most[k],
            w if isinstance(w, tuple) else ((0, w),),
        )
        for k, w in enumerate(weights)
    ]
    return Mixture(sources, batch_size=batch_size, steps=steps)


def running_counts(plan, places, sources):
    found, counts = plan.locate(np.arange(places))
    one_hot = np.zeros((places + 1, sources), np.int64)
    one_hot[np.arange(places) + 1, found] = 1
    running = np.cumsum(one_hot, axis=0)
    np.testing.assert_array_equal(counts, running[np.arange(places), found])
    return running


weights_of = st.lists(st.floats(1e-4, 1.0), min_size=2, max_size=12)


@given(weights_of)
@settings(max_examples=60, deadline=None)
def test_shares_are_right_within_one_window_over_any_thousand(weights):
    """Whatever the weights; 7 % of a window is for the drift that serves the long run."""
    exact = np.array(weights) / sum(weights)
    running = running_counts(mixture(*weights), 12_000, len(weights))
    spans = running[1000:] - running[:-1000]
    assert np.abs(spans - 1000 * exact).max() <= 1.07
    assert np.abs(running - np.arange(12_001)[:, None] * exact).max() < 10
    batches = running[64:] - running[:-64]
    assert np.abs(batches - 64 * exact).max() < 5


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (7, 2, 1), (0.945, 0.05, 0.005), (1, 1)])
def test_weights_of_three_digits_are_right_over_any_thousand(weights):
    running = running_counts(mixture(*weights), 20_000, len(weights))
    exact = 1000 * np.array(weights) / sum(weights)
    assert np.abs(running[1000:] - running[:-1000] - exact).max() <= 1 + 1e-9


def test_a_small_weight_is_right_in_the_long_run():
    plan = mixture(1.0, 3.3e-5)
    counts = plan.counts(8_000_000)
    assert abs(counts[1] - 8_000_000 * 3.3e-5 / (1 + 3.3e-5)) < 10
    assert counts.sum() == 8_000_000


@given(
    st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.0, 1)), min_size=2, max_size=5),
    st.integers(1, 40),
    st.lists(st.one_of(st.none(), st.integers(1, 300)), min_size=5, max_size=5),
    st.integers(1, 9),
)
@settings(max_examples=80, deadline=None)
def test_counts_are_those_of_a_walk_through_stages_and_caps(weights, change, caps, batch_size):
    """No place is lost or read twice where weights change or a source reaches its cap."""
    plans = [((0, a), (change, b)) for a, b in weights]
    if not any(b for _, b in weights):
        return
    plan = mixture(*plans, steps=80, batch_size=batch_size, most=caps)
    running = running_counts(plan, plan.end, len(weights))
    for place in {0, 1, change * batch_size, plan.end // 2, plan.end}:
        if place <= plan.end:
            np.testing.assert_array_equal(plan.counts(place), running[place])
    for k, cap in enumerate(caps[: len(weights)]):
        assert cap is None or running[-1, k] <= cap
        if (gone := plan.exhausted.get(f"s{k}")) is not None:
            assert running[gone, k] == cap == running[-1, k]
            assert running[gone - 1, k] == cap - 1
    if plan.end < 80 * batch_size:  # only if nothing that has a weight is left
        left = [k for k in range(len(weights)) if f"s{k}" not in plan.exhausted]
        step = plan.end // batch_size
        assert not any(weights[k][step >= change] for k in left)


GOLDEN_SOURCES = [0, 0, 1, 0, 0, 1, 0, 0, 2, 0, 0, 0]
GOLDEN_COUNTS = [0, 1, 0, 2, 3, 1, 4, 5, 0, 6, 7, 8]


def test_the_mixture_is_the_same_for_ever():
    """These numbers must never change: runs resume by them."""
    sources, counts = mixture(0.7, 0.2, 0.1).locate(np.arange(12))
    assert sources.tolist() == GOLDEN_SOURCES
    assert counts.tolist() == GOLDEN_COUNTS


def test_what_was_read_is_told_from_what_will_be():
    prints = ["x", "y", "z"]
    before = mixture(((0, 0.5),), ((0, 0.5),), ((0, 0.0),))
    later = mixture(((0, 0.5), (100, 0.1)), ((0, 0.5),), ((100, 0.9),))
    for place in (1, 799, 800):
        assert before.fingerprint(prints, place) == later.fingerprint(prints, place)
    assert before.fingerprint(prints, 801) != later.fingerprint(prints, 801)
    other = mixture(((0, 0.6),), ((0, 0.4),), ((0, 0.0),))
    assert before.fingerprint(prints, 1) != other.fingerprint(prints, 1)
    assert before.fingerprint(["x", "q", "z"], 1) != before.fingerprint(prints, 1)


def test_a_thousand_sources_start_fast():
    import time

    rng = np.random.default_rng(0)
    weights = [
        ((0, float(w)), (2000, float(v)))
        for w, v in zip(rng.random(1000), rng.random(1000), strict=True)
    ]
    begin = time.process_time()
    plan = mixture(*weights, steps=100_000, batch_size=1024, most=[None] * 990 + [5000] * 10)
    plan.locate(np.arange(50_000_000, 50_001_024))
    assert time.process_time() - begin < 3
    assert len(plan.exhausted) == 10


def sources(*entries):
    return DataConfig(sources=tuple(SourceConfig(**e) for e in entries))


def test_entries_of_a_store_are_one_source():
    data = sources(
        {"store": "web", "weight": 0.9},
        {"store": "math", "weight": 0.1, "epochs": 2.5},
        {"store": "web", "weight": 0.2, "from_step": 50},
    )
    assert data.stores == ("web", "math")
    web, math = planned(data.sources, {"web": 100, "math": 10})
    assert web == Planned("web", 100, None, ((0, 0.9), (50, 0.2)))
    assert math == Planned("math", 10, 25, ((0, 0.1),))


def test_a_cap_below_one_window():
    data = sources({"store": "web", "weight": 1}, {"store": "math", "weight": 1, "epochs": 0.04})
    with pytest.raises(ConfigError, match=r"epochs = 0.04: less than one of the 10 windows of ma"):
        planned(data.sources, {"web": 100, "math": 10})


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([{"store": "a", "weight": -1}], r"data.sources.weight = -1.*at least 0"),
        ([{"store": "a", "weight": 1e308}], r"data.sources.weight = 1e\+308.*at most 1e\+100"),
        (
            [{"store": "a", "weight": 0}],
            r"data.sources.weight = 0.*above 0 for a source from step 0",
        ),
        ([{"store": "a", "weight": 1, "from_step": 5}], "above 0 for a source from step 0"),
        ([{"store": "", "weight": 1}], "a token store"),
        ([{"store": "a", "weight": 1}] * 2, "different for each entry of 'a'"),
        ([{"store": "a", "weight": 1, "epochs": -2}], "data.sources.epochs"),
        (
            [
                {"store": "a", "weight": 1, "domain": "x"},
                {"store": "a", "weight": 1, "domain": "y", "from_step": 1},
            ],
            "the same in all entries of 'a'",
        ),
    ],
)
def test_mixtures_that_are_none(entries, said):
    with pytest.raises(ConfigError, match=said):
        sources(*entries)


def test_a_mixture_and_a_store_exclude_each_other():
    with pytest.raises(ConfigError, match=r"empty where data\.sources is given"):
        DataConfig(store="a", sources=(SourceConfig(store="b", weight=1),))
    with pytest.raises(ConfigError, match="'shuffled' in a mixture"):
        DataConfig(order="olmo", sources=(SourceConfig(store="b", weight=1),))


def test_all_weights_zero_later():
    with pytest.raises(ConfigError, match="all weights are 0 from step 10 on"):
        mixture(((0, 1.0), (10, 0.0)), steps=20)

import grain
import numpy as np
import pytest

from emo_jax.data.order import GrainOrder, OlmoOrder, ShuffledOrder, make_order
from emo_jax.errors import ConfigError


@pytest.mark.parametrize("count", [1, 2, 3, 5, 17, 64, 1000, 65_537])
def test_every_epoch_has_every_window_once(count):
    order = ShuffledOrder(count, 3)
    for epoch in range(3):
        windows = order.windows(np.arange(count) + epoch * count)
        np.testing.assert_array_equal(np.sort(windows), np.arange(count))


GOLDEN_1000 = [810, 829, 228, 611, 151, 12, 930, 420]
GOLDEN_BIG = [320465921220, 703003549586, 51226131376, 569910433419]


def test_the_order_is_the_same_for_ever():
    """These numbers must never change: runs resume by them."""
    first = ShuffledOrder(1000, 0).windows(np.arange(8))
    assert first.tolist() == GOLDEN_1000
    big = ShuffledOrder(2**40 + 7, 2**63, "code").windows(np.array([0, 1, 2**40 + 6, 2**41 + 14]))
    assert big.tolist() == GOLDEN_BIG


def test_places_may_come_in_any_order_and_number():
    order = ShuffledOrder(777, 5)
    places = np.random.default_rng(0).integers(0, 777 * 4, 500)
    one_by_one = [int(order.windows(np.array([p]))[0]) for p in places]
    assert order.windows(places).tolist() == one_by_one


def test_seeds_names_and_epochs_have_orders_of_their_own():
    n = 500
    places = np.arange(n)
    orders = [
        ShuffledOrder(n, 0).windows(places),
        ShuffledOrder(n, 0).windows(places + n),
        ShuffledOrder(n, 1).windows(places),
        ShuffledOrder(n, 1).windows(places + n),
        ShuffledOrder(n, 0, "web").windows(places),
        ShuffledOrder(n, 2**32).windows(places),
    ]
    for i, ours in enumerate(orders):
        for theirs in orders[:i]:
            assert (ours == theirs).mean() < 0.05


def test_the_order_is_as_random_as_a_draw():
    """Positions are uniform over seeds (chi-square), neighbours are not alike."""
    n, seeds = 100, 2000
    counts = np.zeros((n, n))
    for seed in range(seeds):
        counts[np.arange(n), ShuffledOrder(n, seed).windows(np.arange(n))] += 1
    expected = seeds / n
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (n - 1) ** 2
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)
    windows = ShuffledOrder(100_000, 1).windows(np.arange(100_000))
    assert abs(np.corrcoef(windows[:-1], windows[1:])[0, 1]) < 5 / np.sqrt(100_000)


def test_beyond_2_to_the_32_windows():
    order = ShuffledOrder(2**36, 0)
    windows = order.windows(np.arange(200_000))
    assert len(np.unique(windows)) == 200_000
    assert windows.max() > 2**35


def test_grains_order_is_grains():
    import hashlib

    seed = int.from_bytes(hashlib.sha256(b"9").digest()[:4], "little")
    theirs = grain.MapDataset.range(1500).shuffle(seed=seed).repeat()
    ours = GrainOrder(1500, 9).windows(np.arange(3100))
    assert ours.tolist() == [theirs[i] for i in range(3100)]
    with pytest.raises(ConfigError, match="must be 'shuffled' above"):
        GrainOrder(2**32 + 1, 0)


def reference_order(total, seed, epoch, unit, batch_size):
    """A transcription of SPEC 5.3, for one epoch (from 1)."""
    rng = np.random.Generator(np.random.PCG64(seed=seed + epoch))
    chunks = np.arange(total // unit, dtype=np.uint32)
    rng.shuffle(chunks)
    instances = (chunks.astype(np.int64)[:, None] * unit + np.arange(unit)).reshape(-1)
    return instances[: len(instances) // batch_size * batch_size].reshape(-1, batch_size)


@pytest.mark.parametrize(("seq_len", "unit"), [(4096, 2), (8192, 1), (1024, 8)])
@pytest.mark.parametrize("batch_size", [4, 7])
def test_the_references_order_index_by_index(seq_len, unit, batch_size):
    total = 40 * unit
    order = make_order("olmo", total, seed=5, seq_len=seq_len, batch_size=batch_size)
    expected = np.concatenate(
        [reference_order(total, 5, e, unit, batch_size).reshape(-1) for e in (1, 2, 3)]
    )
    np.testing.assert_array_equal(order.windows(np.arange(len(expected))), expected)
    # One process of W takes columns rank::W: the rows of the batch, whatever W is.
    grid = reference_order(total, 5, 2, unit, batch_size)
    rows = order.epoch + 2 * batch_size + np.arange(1, batch_size, 2)
    np.testing.assert_array_equal(order.windows(rows), grid[2, 1::2])


def test_the_references_order_needs_its_sizes():
    with pytest.raises(ConfigError, match="seq_len = 3000: must divide 8192"):
        OlmoOrder(100, 0, seq_len=3000, batch_size=4)
    with pytest.raises(ConfigError, match="batch_size = 64: must be at most the 10 windows"):
        OlmoOrder(10, 0, seq_len=4096, batch_size=64)

import gc
import shutil
import threading
import time

import numpy as np
import pytest

from emo_jax.batch import Batch
from emo_jax.data.loader import Loader, heldout_batches
from emo_jax.data.run_windows import in_order
from emo_jax.data.store import TokenStore
from emo_jax.data.windows import Windows
from emo_jax.errors import ConfigError, DataError


def assert_equal(a: Batch, b: Batch):
    for field, x, y in zip(Batch._fields, a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=field)


def join(parts):
    return Batch(*(np.concatenate(field) for field in zip(*parts, strict=True)))


@pytest.fixture
def windows(store):
    return Windows(store, 64)


def make(windows, batch_size=8, seed=3, **kwargs):
    return Loader(in_order(windows, seed), batch_size=batch_size, **kwargs)


def test_an_epoch_is_a_permutation_and_the_next_another(windows):
    size = len(windows)
    rows = {windows[i].tokens.tobytes(): i for i in range(size)}
    assert len(rows) == size
    order = [rows[t.tobytes()] for t in make(windows, 2 * size).batch(0).tokens]
    first, second = order[:size], order[size:]
    assert sorted(first) == sorted(second) == list(range(size))
    assert first != second
    assert first != list(range(size))


def test_seeds_have_orders_of_their_own(windows):
    size = len(windows)
    first, other = (make(windows, seed=s).batch(0) for s in (3, 4))
    assert not np.array_equal(first.tokens, other.tokens)
    # grain's seed of epoch e is seed + e; the orders of neighbouring seeds must not coincide.
    assert not np.array_equal(make(windows, seed=3).batch(size).tokens, other.tokens)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [4, 5, 6, 7], [1, 3], [7], [0, 2, 5, 6]])
@pytest.mark.parametrize("start", [0, 24, 10_000])
def test_some_rows_are_those_of_the_whole_batch(windows, rows, start):
    part, whole = make(windows, rows=rows).batch(start), make(windows).batch(start)
    assert_equal(part, Batch(*(field[rows] for field in whole)))


def test_resume_from_one_number(windows):
    run = make(windows).iterate(0)
    whole = [next(run) for _ in range(6)]
    run.close()
    assert [consumed for consumed, _ in whole] == [8, 16, 24, 32, 40, 48]
    resumed = make(windows).iterate(whole[2][0])
    for consumed, batch in whole[3:]:
        again, same = next(resumed)
        assert again == consumed
        assert_equal(batch, same)
    resumed.close()


def test_a_changed_batch_size_goes_on_with_the_next_window(windows):
    small = [make(windows, 8).batch(start) for start in (0, 8, 16, 24, 32, 40)]
    large = [make(windows, 16).batch(start) for start in (16, 32)]
    assert_equal(join(small), join([*small[:2], *large]))


def test_batches_are_made_ahead_and_errors_come_through(windows):
    asked = []
    loader = make(windows, prefetch=2)
    original = loader.batch

    def batch(start, **settings):
        asked.append(start)
        if start == 16:
            raise DataError("broken window")
        return original(start, **settings)

    loader.batch = batch
    run = loader.iterate(0)
    next(run)
    deadline = time.monotonic() + 5
    while len(asked) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert asked == [0, 8, 16]  # two ahead, no more
    next(run)
    with pytest.raises(DataError, match="broken window"):
        next(run)
    with pytest.raises(StopIteration):
        next(run)


def test_whoever_waits_for_a_batch_may_stop(store_path, tmp_path, monkeypatch):
    """Neither the wait for a batch nor that for a store that is away outlasts the wish to stop."""
    monkeypatch.setenv("EMO_READ_WAIT", "60")
    copy = shutil.copytree(store_path, tmp_path / "copy")
    loader = make(Windows(TokenStore.open(copy), 64), prefetch=1)
    begin = time.monotonic()
    run = loader.iterate(0, stopped=lambda: time.monotonic() > begin + 1)
    next(run)
    copy.rename(tmp_path / "away")
    while next(run, None) is not None:
        pass
    assert 1 <= time.monotonic() - begin < 10


def test_closing_stops_the_background_work(windows):
    import threading

    run = make(windows).iterate(0)
    next(run)
    run.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]


@pytest.mark.parametrize("rows", [[], [8], [-1, 0]])
def test_rows_must_be_of_the_batch(windows, rows):
    with pytest.raises(ConfigError, match=r"rows .* must be some of 0\.\.7"):
        make(windows, rows=rows)
    with pytest.raises(ConfigError, match=r"config.train.batch_size = 0"):
        make(windows, batch_size=0)


def test_held_out_windows_in_order_with_a_padded_end(store):
    windows = Windows(store, 64, split="test")
    size = len(windows)
    batches = list(heldout_batches(windows, batch_size=7))
    assert len(batches) == -(-size // 7) and size % 7
    joined = join(batches)
    one_by_one = zip(*(windows[i] for i in range(size)), strict=True)
    expected = Batch(*(np.stack(field) for field in one_by_one))
    assert_equal(Batch(*(f[:size] for f in joined)), expected)
    for row in range(size, 7 * len(batches)):
        assert_equal(Batch(*(f[row : row + 1] for f in joined)), windows.padding(1))
    assert (joined.segment_ids[size:] == -1).all() and not joined.loss_mask[size:].any()
    assert [f.dtype for f in windows.padding(1)] == [f.dtype for f in windows[0]]


def test_held_out_windows_are_spread_evenly(store):
    windows = Windows(store, 16, split="test")
    size = len(windows)
    first_tokens = {windows[i].tokens.tobytes(): i for i in range(size)}
    batches = heldout_batches(windows, batch_size=5, max_windows=20)
    picked = [first_tokens[t.tobytes()] for b in batches for t in b.tokens]
    assert len(picked) == len(set(picked)) == 20
    assert picked == sorted(picked)
    assert picked[-1] >= size * 0.9
    assert max(np.diff(picked)) - min(np.diff(picked)) <= 1


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [1, 6, 7]])
def test_some_rows_of_held_out_batches(store, rows):
    windows = Windows(store, 64, split="test")
    parts = heldout_batches(windows, batch_size=8, rows=rows)
    for part, whole in zip(parts, heldout_batches(windows, batch_size=8), strict=True):
        assert_equal(part, Batch(*(field[rows] for field in whole)))


def test_a_loader_that_is_closed_or_dropped_leaves_no_thread(windows):
    def readers():
        return [t for t in threading.enumerate() if t.name.startswith("windows") and t.is_alive()]

    def make_remote(windows):
        ordered = in_order(windows, 0)
        ordered.remote = True  # several readers
        return Loader(ordered, batch_size=8)

    before = len(readers())
    with make_remote(windows) as loader:
        loader.batch(0)
        assert len(readers()) > before
    dropped = make_remote(windows)
    dropped.batch(0)
    del loader, dropped
    gc.collect()
    for thread in readers():
        thread.join(0.2)
    assert len(readers()) <= before

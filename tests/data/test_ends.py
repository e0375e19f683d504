"""Where documents end: searched in long lists, or found by a scan and kept."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emo_jax.config import DataConfig
from emo_jax.data import ends, found_ends, token_files
from emo_jax.data.ends import RisingList, segments
from emo_jax.data.found_ends import FoundEnds
from emo_jax.data.raw import RawTokens
from emo_jax.data.windows import open_source
from emo_jax.errors import DataError, UsageError


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.sampled_from([0, 0, 1, 2, 30, 5000]), min_size=1, max_size=400),
    seed=st.integers(0, 9),
)
def test_a_search_finds_what_numpy_finds(steps, seed):
    values = np.cumsum(steps).astype(np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ends, "PAGE", 4)
        patch.setattr(ends, "_KEPT", 2)
        last = int(values[-1])

        def opened():
            return RisingList(len(values), last, lambda a, b: values[a:b], "a list")

        found, some = opened(), np.random.default_rng(seed).integers(0, last + 2, 50)
        for value in [*values.tolist(), *some.tolist()]:
            expected = np.searchsorted(values, value, side="right")
            assert found.at(value) == opened().at(value) == expected
        for first in range(0, len(values), 7):
            assert found.read(first, len(values)).tolist() == values[first:].tolist()
        start = int(seed * last / 10)
        if last > start:
            documents = np.searchsorted(values, np.arange(start, last), side="right")
            expected = np.cumsum(np.diff(documents, prepend=documents[0]) > 0)
            assert segments(found, start, last).tolist() == expected.tolist()


@pytest.mark.parametrize("spoil", [lambda v: v[::-1], lambda v: np.roll(v, 6000), lambda v: v - 1])
def test_a_list_that_does_not_rise(spoil):
    values = spoil(np.arange(20_000))
    with pytest.raises(DataError, match=r"a list: (entry \d+ is less than|has -1, outside|ends)"):
        RisingList(20_000, 19_999, lambda a, b: values[a:b], "a list").check()


def write(path, num=30_000, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 40, num)  # 0 ends a document
    ids[-1] = 5
    ids.astype("<u2").tofile(path)
    return ids


CONFIG = DataConfig(raw_vocab_size=40, raw_eos_id=0)


def ends_of(ids):
    return np.append(np.flatnonzero(ids == 0) + 1, len(ids))


def test_ends_are_found_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "_SCAN", 1000)
    ids, cache = write(tmp_path / "a.npy"), tmp_path / "index"

    def opened(**fields):
        config = DataConfig(**(dict(raw_vocab_size=40, raw_eos_id=0) | fields))
        return open_source(tmp_path / "a.npy", config, cache=cache).streams("train")[0]

    stream = opened()
    assert not cache.exists()  # looked for when they are needed
    expected = ends_of(ids)
    assert stream.num_documents == len(expected)
    assert stream.document_ends(0, len(expected)).tolist() == expected.tolist()
    at = np.searchsorted(expected, np.arange(len(ids)), side="right")
    assert [stream.document_at(n) for n in range(0, len(ids), 97)] == at[::97].tolist()
    (kept,) = cache.iterdir()
    before = kept.stat().st_mtime_ns

    monkeypatch.setattr(token_files.FileStream, "_scan", lambda self: pytest.fail("scanned"))
    assert opened().document_ends(0, 9).tolist() == expected[:9].tolist()
    monkeypatch.undo()
    assert kept.stat().st_mtime_ns == before
    other = ends_of(np.where(ids == 3, 0, np.where(ids == 0, 9, ids)))
    assert opened(raw_eos_id=3).num_documents == len(other)  # not the ends of another id
    ids = write(tmp_path / "a.npy", seed=1)
    assert opened().document_ends(0, 5).tolist() == ends_of(ids)[:5].tolist()


def test_damaged_ends_are_never_used(tmp_path):
    ids, cache = write(tmp_path / "a.npy", 500_000), tmp_path / "index"
    expected = ends_of(ids)

    def opened():
        return RawTokens(
            [tmp_path / "a.npy"], vocab_size=40, eos_id=0, dtype="uint16", cache=cache
        ).streams("train")[0]

    opened().document_at(0)
    (kept,) = cache.iterdir()
    good = kept.read_bytes()
    rng = np.random.default_rng(0)
    for n in range(60):
        bad = bytearray(good)
        at = int(rng.integers(0, 64 if n % 2 else len(bad)))
        bad[at] ^= 1 << int(rng.integers(8))
        kept.write_bytes(bad[: at + 1] if n % 3 == 0 else bad)
        stream = opened()
        assert stream.document_ends(0, len(expected)).tolist() == expected.tolist()
        assert kept.read_bytes() == good  # found again
    assert [f.name for f in cache.iterdir()] == [kept.name]


def test_ends_damaged_while_in_use_are_found_again(tmp_path, caplog):
    scans = []

    def find():
        scans.append(1)
        yield np.arange(1, 20_001)

    opened = FoundEnds("a", 1, find, tmp_path)
    (kept,) = tmp_path.iterdir()
    good = kept.read_bytes()
    bad = bytearray(good)
    bad[64 + 3 * found_ends._PAGE_BYTES + 100] ^= 1
    kept.write_bytes(bad)
    assert opened.read(9000, 9003).tolist() == [9001, 9002, 9003] and len(scans) == 1
    assert opened.read(0, 20_000).tolist() == list(range(1, 20_001)) and len(scans) == 2
    assert kept.read_bytes() == good and "damaged, is made again" in caplog.text


def test_ends_that_are_found_again_and_differ(tmp_path):
    """What was scanned has changed behind our back."""
    found = [np.arange(1, 5000), np.arange(1, 5001)]
    opened = FoundEnds("a", 1, lambda: iter([found.pop(0)]), tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="a: was changed while it was in use"):
        opened.read(4500, 4501)


def test_ends_under_the_name_of_others_are_not_used(tmp_path):
    def found(key):
        ends = FoundEnds("a", key, lambda: iter([np.array([key])]), tmp_path)
        return ends.read(0, 1).tolist()

    assert found(1) == [1]
    (first,) = tmp_path.iterdir()
    assert found(2) == [2]
    (second,) = set(tmp_path.iterdir()) - {first}
    second.write_bytes(first.read_bytes())
    assert found(2) == [2]


def test_two_scans_at_once(tmp_path):
    ids, cache = write(tmp_path / "a.npy"), tmp_path / "index"
    expected, found = ends_of(ids).tolist(), []

    def scan():
        source = open_source(tmp_path / "a.npy", CONFIG, cache=cache)
        found.append(source.streams("train")[0].document_ends(0, len(expected)).tolist())

    threads = [threading.Thread(target=scan) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 6 and len(list(cache.iterdir())) == 1


def test_the_same_ends_written_again_do_not_disturb(tmp_path, monkeypatch):
    monkeypatch.setenv("EMO_READ_WAIT", "0")

    def opened():
        return FoundEnds("a", 1, lambda: iter([np.arange(1, 20_001)]), tmp_path)

    ends = opened()
    assert ends.read(0, 3).tolist() == [1, 2, 3]
    (kept,) = tmp_path.iterdir()
    kept.unlink()
    opened()  # by another process, at the same time
    assert ends.read(9000, 9003).tolist() == [9001, 9002, 9003]
    kept.write_bytes(kept.read_bytes()[:9000])
    with pytest.raises(DataError, match=r"\.ends: was cut short .*; run the same command again"):
        ends.read(15_000, 15_003)


def test_a_scan_that_fails_leaves_nothing(tmp_path):
    def find():
        yield np.arange(10_000)
        raise DataError("spoilt")

    with pytest.raises(DataError, match="spoilt"):
        FoundEnds("a", 1, find, tmp_path / "index")
    assert not list((tmp_path / "index").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file: cannot keep where documents of a end .*; give"):
        FoundEnds("a", 1, lambda: iter([np.arange(3)]), tmp_path / "file")
    none = FoundEnds("a", 1, lambda: iter([]), None)
    assert (none.num, none.at(0)) == (0, 0)
    assert found_ends._PAGE_BYTES == (ends.PAGE + 1) * 8

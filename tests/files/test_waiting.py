import logging
import os
import shutil
import threading
import time

import numpy as np
import pytest
import tensorstore as ts

from emo_jax.errors import DataError, UsageError
from emo_jax.files import waiting
from emo_jax.files.arrays import StoredArray
from emo_jax.files.steady import SteadyFile, SteadyFiles
from emo_jax.files.waiting import (
    AwayError,
    Patience,
    RefusedError,
    SpoiltError,
    wait_seconds,
    wait_unless,
)


@pytest.fixture
def waits(monkeypatch):
    """Sets how long is waited."""
    return lambda seconds: monkeypatch.setenv(waiting.VARIABLE, str(seconds))


def patience():
    return Patience(DataError, away="bring it back", spoilt="copy it again")


def test_a_minute_unless_the_environment_says_otherwise(monkeypatch, waits):
    monkeypatch.delenv(waiting.VARIABLE, raising=False)
    assert wait_seconds() == 60
    waits("2.5")
    assert wait_seconds() == 2.5
    for bad in ("soon", "-1", "nan", "inf"):
        waits(bad)
        with pytest.raises(UsageError, match=f"EMO_READ_WAIT={bad}: must be a number of seconds"):
            wait_seconds()


def test_tried_again_until_it_is_there_and_said_once(waits, caplog):
    waits(10)
    left = [AwayError("a: is not there any more")] * 3

    def attempt():
        if left:
            raise left.pop()
        return 5

    with caplog.at_level(logging.WARNING):
        assert patience().read(attempt) == 5
    first, last = caplog.messages
    assert first == "a: is not there any more; waiting up to 10 s for it"
    assert last.startswith("can be read again, after 0.")


def test_threads_that_miss_the_same_say_one_line(waits, caplog):
    waits(10)
    there, one = threading.Event(), patience()

    def attempt():
        if not there.is_set():
            raise AwayError("a: is not there any more")

    threads = [threading.Thread(target=one.read, args=(attempt,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    there.set()
    for thread in threads:
        thread.join()
    assert len(caplog.messages) == 2


def test_a_read_that_is_late_or_needs_no_file_adds_no_line(waits, caplog):
    waits(10)
    one, left = patience(), [AwayError("a: away"), AwayError("a: away")]

    def attempt():
        if left:
            assert one.read(lambda: 3) == 3  # from a cache, in the meantime
            raise left.pop()
        return 5

    begun = time.monotonic()
    assert one.read(attempt) == 5 and len(caplog.messages) == 2
    left.append(AwayError("a: away"))
    assert one.read(attempt, begun=begun) == 5  # it had failed before the other came back
    assert len(caplog.messages) == 2
    left.append(AwayError("a: away"))
    assert one.read(attempt) == 5 and len(caplog.messages) == 4


def test_what_may_not_be_read_is_an_error_at_once(waits):
    def refused():
        raise RefusedError("a: not allowed; ask for it")

    waits(60)
    begin = time.monotonic()
    with pytest.raises(DataError, match=r"^a: not allowed; ask for it$"):
        patience().read(refused)
    assert time.monotonic() - begin < 3


def test_what_stays_away_is_an_error_and_what_is_spoilt_is_one_at_once(waits):
    def away():
        raise AwayError("a: is not there any more")

    def spoilt():
        raise SpoiltError("a: damaged")

    waits(1)
    begin = time.monotonic()
    with pytest.raises(
        DataError, match=r"^a: is not there any more \(waited 1 s\); bring it back$"
    ):
        patience().read(away)
    assert 1 <= time.monotonic() - begin < 3
    waits(60)
    begin = time.monotonic()
    with pytest.raises(DataError, match=r"^a: damaged; copy it again$"):
        patience().read(spoilt)
    stop = begin + 0.5
    with wait_unless(lambda: time.monotonic() > stop), pytest.raises(DataError, match="not there"):
        patience().read(away)
    assert time.monotonic() - begin < 3


# --- files ----------------------------------------------------------------------------------------


def test_a_file_is_read_as_it_was_opened(tmp_path, waits):
    waits(0.3)
    path = tmp_path / "a"
    path.write_bytes(bytes(range(200)))
    file = SteadyFile(path, patience())
    assert file.size == 200 and file.read(10, 20) == bytes(range(10, 20))
    path.rename(tmp_path / "b")
    with pytest.raises(DataError, match=r"a: is not there any more; bring it back"):
        file.read(0, 5)
    (tmp_path / "b").rename(path)
    assert file.read(0, 3) == b"\0\1\2"
    shutil.copy2(path, tmp_path / "b")
    os.replace(tmp_path / "b", path)  # the same by name, size and time
    assert file.read(0, 3) == b"\0\1\2"
    with path.open("r+b") as f:
        f.truncate(50)
    with pytest.raises(DataError, match="has 50 bytes, had 200"):  # no SIGBUS
        file.read(100, 120)
    path.write_bytes(bytes(200))
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match=r"was replaced or changed while it was in use; copy it"):
        file.read(0, 5)


def test_files_that_are_copied_back_are_the_same_and_others_are_not(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    digest = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"  # of b"one"
    files = SteadyFiles(tmp_path, {"a": digest, "b": None})
    files.check("a", "b", "not one of them")
    (tmp_path / "a").unlink()
    with pytest.raises(AwayError, match="a: is not there any more"):
        files.check("a")
    (tmp_path / "a").write_bytes(b"on")
    with pytest.raises(AwayError, match="has 2 bytes, had 3"):
        files.check("a")
    (tmp_path / "a").write_bytes(b"one")
    files.check("a")
    (tmp_path / "a").write_bytes(b"ONE")
    with pytest.raises(SpoiltError, match="a: was replaced or changed"):
        files.check("b", "a")


# --- arrays ---------------------------------------------------------------------------------------


def _make(folder, values, chunk):
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "store_data_equal_to_fill_value": True,
    }
    array = ts.open(
        spec,
        create=True,
        dtype=values.dtype.name,
        shape=values.shape,
        chunk_layout=ts.ChunkLayout(chunk_shape=chunk),
    ).result()
    array.write(values).result()
    return array


def _open(path, **settings):
    context = ts.Context({"cache_pool": {"total_bytes_limit": 1 << 20}})
    return StoredArray(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}},
        name=str(path),
        patience=patience(),
        context=lambda: context,
        **settings,
    )


@pytest.fixture
def array(tmp_path):
    values = np.arange(1, 61, dtype=np.int32).reshape(10, 6)
    _make(tmp_path / "a", values, (4, 3))
    return values


def _files(folder):
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    return SteadyFiles(folder, dict.fromkeys(names))


def test_a_chunk_that_is_gone_is_never_zeros(array, tmp_path, waits):
    waits(0.2)
    opened = _open(tmp_path / "a", files=_files(tmp_path), folder="a")
    assert opened.shape == (10, 6) and opened.dtype == np.int32
    np.testing.assert_array_equal(opened.read(slice(0, 4)), array[:4])
    (tmp_path / "a/c/1/1").unlink()
    np.testing.assert_array_equal(opened.read((slice(4, 8), slice(0, 3))), array[4:8, :3])
    with pytest.raises(DataError, match=r"a/c/1/1: is not there any more; bring it back"):
        opened.read(slice(3, 10))
    (tmp_path / "a/c/2/0").unlink()
    without_files = _open(tmp_path / "a")  # as on an object store: its own retries are all
    with pytest.raises(DataError, match=r"a/c/2/0.* is missing\); copy it again"):
        without_files.read(slice(8, 10))


def test_absence_is_not_remembered(array, tmp_path, waits):
    waits(0.2)
    opened = _open(tmp_path / "a", files=_files(tmp_path), folder="a")
    (tmp_path / "a").rename(tmp_path / "away")
    with pytest.raises(DataError, match="is not there any more"):
        opened.read(slice(0, 10))
    (tmp_path / "away").rename(tmp_path / "a")
    np.testing.assert_array_equal(opened.read(slice(0, 10)), array)


def test_what_comes_back_in_time_is_read_and_what_is_cut_short_named(array, tmp_path, waits):
    waits(20)
    opened = _open(tmp_path / "a", files=_files(tmp_path), folder="a")
    (tmp_path / "a").rename(tmp_path / "away")
    back = threading.Timer(0.5, lambda: (tmp_path / "away").rename(tmp_path / "a"))
    back.start()
    np.testing.assert_array_equal(opened.read(slice(2, 9)), array[2:9])
    back.join()
    waits(0.2)
    opened = _open(tmp_path / "a", files=_files(tmp_path), folder="a")
    chunk = tmp_path / "a/c/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"a/c/0/0: has 43 bytes, had 48; bring it back"):
        opened.read(slice(0, 1))


def test_another_array_in_its_place_is_refused(array, tmp_path, waits):
    waits(0.2)
    opened = _open(tmp_path / "a", files=_files(tmp_path), folder="a", watched=("a/zarr.json",))
    (tmp_path / "a").rename(tmp_path / "old")
    _make(tmp_path / "a", -array, (4, 3))
    with pytest.raises(DataError, match=r"a/c/0/0: was replaced or changed while it was in use"):
        opened.read(slice(0, 1))
    with pytest.raises(DataError, match=r"nowhere.*does not exist"):
        _open(tmp_path / "nowhere", files=_files(tmp_path))

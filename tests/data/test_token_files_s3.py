"""Token files of others, read in place from a bucket of a server that fails."""

import logging
import threading
import time

import numpy as np
import pytest
from s3_proxy import FAULTS, Plan

from emo_jax.config import DataConfig
from emo_jax.data.loader import Loader
from emo_jax.data.run_windows import in_order
from emo_jax.data.windows import Windows, open_source
from emo_jax.errors import DataError
from emo_jax.files import ranges, remote
from emo_jax.files.waiting import wait_unless

pytestmark = pytest.mark.system
CONFIG = DataConfig(raw_vocab_size=300, raw_eos_id=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.mkdir()
    draw = np.random.default_rng(0)
    for name in "abc":
        draw.integers(7, 300, 10_000).astype("<u2").tofile(path / f"{name}.npy")
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """tensorstore gives up sooner, so that it is our own waiting that is seen."""
    retries = {"max_retries": 1, "initial_delay": "10ms", "max_delay": "20ms"}
    monkeypatch.setattr(remote, "_RETRIES", retries)
    ranges._context.cache_clear()
    yield
    ranges._context.cache_clear()


def batches(pattern, steps=30):
    windows = in_order(Windows(open_source(pattern, CONFIG), 64), 3)
    with Loader(windows, batch_size=8) as loader:
        return [loader.batch(8 * k) for k in range(steps)]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_fails_the_batches_are_the_same(bucket, folder, seed):
    url = bucket.upload(folder, "dclm")
    bucket.proxy.delay_seconds = 0.05
    bucket.proxy.plan = Plan(seed, 0.1 * (seed + 1), FAULTS)
    found, expected = batches(f"{url}/*.npy"), batches(f"{folder}/*.npy")
    for one, other in zip(found, expected, strict=True):
        for field, should in zip(one, other, strict=True):
            np.testing.assert_array_equal(field, should)
    assert bucket.proxy.met.total() > 5


def test_an_outage_is_waited_for_and_one_for_good_is_one_line(bucket, folder, caplog, monkeypatch):
    url = bucket.upload(folder, "dclm")
    stream = open_source(f"{url}/*.npy", CONFIG).streams("train")[0]
    good = stream.read(100, 200).tokens
    caplog.clear()
    bucket.proxy.plan = Plan(share=1, faults=("busy", "torn"))
    threading.Timer(1.5, setattr, (bucket.proxy, "plan", Plan())).start()
    np.testing.assert_array_equal(stream.read(100, 200).tokens, good)
    missed, back = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert missed.startswith(f"{url}/a.npy: cannot be read") and "waiting up to 60 s" in missed
    assert back.startswith("can be read again, after ")
    monkeypatch.setenv("EMO_READ_WAIT", "0.5")
    stream = open_source(f"{url}/*.npy", CONFIG).streams("train")[0]
    bucket.proxy.plan = Plan(share=1, faults=("busy",))
    with pytest.raises(DataError, match=rf"^{url}/a.npy: cannot be read \(ABORTED.*reduce your"):
        stream.read(100, 200)
    with pytest.raises(DataError, match=rf"^{url}/\*.npy: cannot be listed \(.*reduce your"):
        open_source(f"{url}/*.npy", CONFIG)


def test_a_server_that_says_nothing_does_not_hold_up_the_end(bucket, folder):
    url = bucket.upload(folder, "dclm")
    stream = open_source(f"{url}/*.npy", CONFIG).streams("train")[0]
    bucket.proxy.plan = Plan(share=1, faults=("hang",))
    begin = time.monotonic()
    with (
        wait_unless(lambda: time.monotonic() > begin + 0.5),
        pytest.raises(DataError, match=rf"^{url}/a.npy: no answer"),
    ):
        stream.read(100, 200)
    assert time.monotonic() - begin < 5

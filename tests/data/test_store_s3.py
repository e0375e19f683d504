"""A token store in a bucket of a real S3 server, whole and failing."""

import json
import logging
import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from s3_proxy import FAULTS, Plan

from emo_jax.data import store_writer
from emo_jax.data.loader import Loader
from emo_jax.data.run_windows import in_order
from emo_jax.data.store import TokenStore
from emo_jax.data.store_files import StoreFiles
from emo_jax.data.store_writer import SplitContent, write_store
from emo_jax.data.windows import Windows
from emo_jax.errors import DataError
from emo_jax.files import remote
from emo_jax.files.waiting import wait_unless
from emo_jax.tokenizer.load import byte_tokenizer

pytestmark = pytest.mark.system

OUTAGE = Plan(share=1, faults=("busy",))
SILENCE = Plan(share=1, faults=("hang",))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A store of many small shards and chunks."""
    patch = pytest.MonkeyPatch()
    patch.setattr(store_writer, "_SHARD_ITEMS", 2048)
    patch.setattr(store_writer, "_CHUNK_ITEMS", 256)
    path = tmp_path_factory.mktemp("sharded") / "store"
    draw = np.random.default_rng(0)
    lengths = draw.integers(2, 90, 400)
    tokens = draw.integers(3, 259, int(lengths.sum())).astype(np.uint16)
    tokens[np.cumsum(lengths) - 1] = 1
    content = SplitContent(lengths, draw.integers(0, 2, 400), [tokens])
    nothing = SplitContent(np.zeros(0), np.zeros(0), [])
    write_store(
        path,
        tokenizer=byte_tokenizer(),
        domains=["a", "b"],
        splits={"train": content, "select": nothing, "test": nothing},
    )
    patch.undo()
    assert len(list((path / "train/tokens/c").iterdir())) >= 8
    return path


@pytest.fixture
def url(bucket, sharded):
    return bucket.upload(sharded, "corpora/one")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setenv("EMO_READ_WAIT", "0.5")


@pytest.fixture
def quick(monkeypatch):
    """tensorstore gives up sooner, so that it is our own waiting that is seen."""
    retries = {"max_retries": 1, "initial_delay": "10ms", "max_delay": "20ms"}
    monkeypatch.setattr(remote, "_RETRIES", retries)


def batches(path, steps, verify=False):
    source = TokenStore.open(path, verify=verify)
    with Loader(in_order(Windows(source, 64), 3), batch_size=8) as loader:
        return [loader.batch(8 * k) for k in range(steps)]


def equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for field, should in zip(one, other, strict=True):
            np.testing.assert_array_equal(field, should)


def test_is_what_the_local_one_is(bucket, sharded, url):
    local, stored = TokenStore.open(sharded), TokenStore.open(url)
    assert stored.fingerprint == local.fingerprint
    assert stored.tokenizer().fingerprint == local.tokenizer().fingerprint
    for mine, other in zip(
        stored.documents("train", 0, 400), local.documents("train", 0, 400), strict=True
    ):
        assert mine.domain_id == other.domain_id
        np.testing.assert_array_equal(mine.tokens, other.tokens)
    equal(batches(url, 40), batches(sharded, 40))


def test_one_setting_reaches_both_clients(bucket, url, monkeypatch):
    folder = remote.RemoteFolder(url)
    assert folder.read("store.json").value == bucket.get("corpora/one/store.json")  # tensorstore
    sizes = folder.sizes()  # s3fs
    assert sizes["store.json"] == len(bucket.get("corpora/one/store.json"))
    assert {m for m, _, _ in bucket.proxy.requests} == {"GET"} and len(bucket.proxy.requests) == 2
    assert all(path.startswith(f"/{bucket.name}") for _, path, _ in bucket.proxy.requests)
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.proxy.url + "/")
    monkeypatch.delenv("AWS_REGION")
    assert remote.RemoteFolder(url).sizes() == sizes
    assert remote.RemoteFolder(url).read("store.json") == folder.read("store.json")


@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.1, 0.25, 0.4]))
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # a failure takes too long to be made smaller
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whatever_fails_the_batches_are_the_same(bucket, sharded, quick, seed, share):
    bucket.proxy.plan = Plan()
    url = bucket.upload(sharded, "faulty")
    bucket.proxy.delay_seconds = 0.05
    bucket.proxy.forget()
    bucket.proxy.plan = Plan(seed, share, FAULTS)
    equal(batches(url, 25, verify=True), batches(sharded, 25))
    assert bucket.proxy.met.total() > 0, "no fault was met"


def test_every_fault_is_met_and_outlived(bucket, sharded, url, quick):
    for fault in FAULTS:
        bucket.proxy.forget()
        bucket.proxy.plan = Plan(1, 1.0, (fault,), most=2)
        equal(batches(url, 2), batches(sharded, 2))
        assert bucket.proxy.met[fault] > 10
        bucket.proxy.plan = Plan()


def test_an_outage_is_waited_for(bucket, sharded, url, quick, caplog):
    """While opening, and while reading; with one line each."""
    expected = batches(sharded, 30)
    for fault in ("busy", "reset", "torn"):
        caplog.clear()
        bucket.proxy.plan = Plan(share=1, faults=(fault,))
        back = threading.Timer(1.5, setattr, (bucket.proxy, "plan", Plan()))
        back.start()
        source = TokenStore.open(url, verify=False)
        _one_wait(caplog, url)
        with Loader(in_order(Windows(source, 64), 3), batch_size=8) as loader:
            found = [loader.batch(0)]
            caplog.clear()
            bucket.proxy.plan = Plan(share=1, faults=(fault,))
            back = threading.Timer(1.5, setattr, (bucket.proxy, "plan", Plan()))
            back.start()
            found += [loader.batch(8 * k) for k in range(1, 30)]
            _one_wait(caplog, url)
        equal(found, expected)


def _one_wait(caplog, url):
    missed, back = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert missed.startswith(f"{url}") and missed.endswith("; waiting up to 60 s for it"), missed
    assert back.startswith("can be read again, after "), back
    assert 1.0 < float(back.split()[-2]) < 10


def test_an_outage_for_good_is_one_line(bucket, url, quick, impatient):
    source = TokenStore.open(url, verify=False)
    stream = source.streams("train")[0]
    bucket.proxy.plan = OUTAGE
    with pytest.raises(DataError) as caught:
        stream.read(0, 64)
    assert str(caught.value).startswith(f"{url}/train/") and "\n" not in str(caught.value)
    assert "Please reduce your request rate" in str(caught.value)
    assert "Error" not in str(caught.value).split("SlowDown")[1]  # no XML
    assert str(caught.value).endswith("; bring the store back and run the same command again")
    with pytest.raises(DataError, match=rf"^{url}/store.json: cannot be read \(.*bring the store"):
        TokenStore.open(url)


def test_no_server_at_all(bucket, url, quick, impatient, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(DataError, match=rf"^{url}/store.json: .*[Cc]ould not connect.*bring the"):
        TokenStore.open(url)


def test_keys_that_may_not_read_are_not_waited_for(bucket, url, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    begin = time.monotonic()
    with pytest.raises(DataError, match=rf"^{url}/store.json: .*PERMISSION_DENIED.*give this proc"):
        TokenStore.open(url)
    assert time.monotonic() - begin < 20


def test_not_a_store(bucket, url):
    for where in (f"s3://{bucket.name}/corpora", "s3://no-such-bucket/one"):
        with pytest.raises(DataError, match=rf"^{where}: not a token store \(no store.json\)"):
            TokenStore.open(where)


def test_a_server_that_says_nothing_does_not_hold_up_the_end(bucket, url, monkeypatch):
    stream = TokenStore.open(url, verify=False).streams("train")[0]
    bucket.proxy.plan = SILENCE
    begin = time.monotonic()
    with (
        wait_unless(lambda: time.monotonic() > begin + 0.5),
        pytest.raises(DataError, match=rf"^{url}/train/\w+: no answer; bring the store back"),
    ):
        stream.read(0, 64)
    assert time.monotonic() - begin < 5
    monkeypatch.setattr(remote, "_ANSWER_SECONDS", 0.5)
    back = threading.Timer(1.5, setattr, (bucket.proxy, "plan", Plan()))
    back.start()
    good = TokenStore.open(url, verify=False).streams("train")[0].read(300, 400)
    bucket.proxy.plan = Plan()
    np.testing.assert_array_equal(stream.read(300, 400).tokens, good.tokens)


CHANGES = {
    "deleted": (lambda content: None, "missing"),
    "cut": (lambda content: content[:-7], r"\d+ bytes, should be \d+"),
    "changed": (lambda content: content[:50] + b"!" + content[51:], "content differs"),
}


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("name", ["train/tokens/c/3", "tokenizer/tokenizer.json"])
def test_changed_since_it_was_prepared(bucket, url, sharded, name, how):
    """Deleted and cut are seen in the listing, without reading any of it."""
    change, why = CHANGES[how]
    changed = change((sharded / name).read_bytes())
    if changed is None:
        bucket.delete(f"corpora/one/{name}")
    else:
        bucket.put(f"corpora/one/{name}", changed)
    with pytest.raises(DataError, match=rf"^{url}/{name}: damaged \({why}.*copy the store again"):
        TokenStore.open(url, verify=how == "changed")
    wrong = [found for found, what in StoreFiles(url).compare(_listed(sharded)) if what]
    assert wrong == [name]


def _listed(path):
    return json.loads((path / "store.json").read_text())["files"]


def test_comparing_ends_when_it_is_given_up(bucket, url, sharded):
    bucket.proxy.plan = Plan(share=1, faults=("hang",), where="train/")
    comparing = StoreFiles(url).compare(_listed(sharded))
    assert next(comparing) == ("tokenizer/special_tokens_map.json", "")
    begin = time.monotonic()
    comparing.close()  # as an interrupt does
    assert time.monotonic() - begin < 3


def test_changed_and_not_verified_is_found_when_read(bucket, url, sharded):
    name = "train/tokens/c/3"
    bucket.put(f"corpora/one/{name}", CHANGES["changed"][0]((sharded / name).read_bytes()))
    stream = TokenStore.open(url, verify=False).streams("train")[0]
    stream.read(0, 256)
    with pytest.raises(DataError, match=rf"{name}.*copy the store again or prepare it again"):
        stream.read(3 * 2048, 3 * 2048 + 64)


def test_deleted_while_it_is_read(bucket, url, sharded, impatient):
    stream = TokenStore.open(url, verify=False).streams("train")[0]
    bucket.delete("corpora/one/train/tokens/c/3")
    with pytest.raises(DataError, match=r"train/tokens/c/3.*is missing.*bring the store back"):
        stream.read(3 * 2048, 3 * 2048 + 64)
    bucket.put("corpora/one/train/tokens/c/3", (sharded / "train/tokens/c/3").read_bytes())
    good = TokenStore.open(sharded).streams("train")[0].read(3 * 2048, 3 * 2048 + 64)
    np.testing.assert_array_equal(stream.read(3 * 2048, 3 * 2048 + 64).tokens, good.tokens)


def test_replaced_by_another_store_while_it_is_read(bucket, url, sharded, store_path, monkeypatch):
    monkeypatch.setattr(remote, "_RECHECK_SECONDS", 0)
    stream = TokenStore.open(url, verify=False).streams("train")[0]
    good = stream.read(0, 64)
    bucket.put("corpora/one/store.json", (sharded / "store.json").read_bytes())  # the same again
    np.testing.assert_array_equal(stream.read(0, 64).tokens, good.tokens)
    bucket.put("corpora/one/store.json", (store_path / "store.json").read_bytes())
    with pytest.raises(DataError, match=rf"^{url}/store.json: was replaced or changed while it"):
        stream.read(0, 64)


def test_requests_do_not_grow_with_the_shards(bucket, url, store_path, monkeypatch):
    """One listing page for each 1000 files; of a large store, only what is small is compared."""
    few = bucket.upload(store_path, "few")
    monkeypatch.setattr("emo_jax.data.store.VERIFY_BELOW_BYTES", 1)
    for verify in (False, None):
        counts = []
        for where in (few, url):
            bucket.proxy.forget()
            TokenStore.open(where, verify=verify).streams("train")
            counts.append(len(bucket.proxy.requests))
            assert bucket.proxy.counted("/tokens/c/") == 0
        # Manifest, listing, descriptions of 4 arrays, which we read and then tensorstore, index of
        # documents; and what is compared: the tokenizer's 3 files, and the descriptions of all
        # arrays (the first store has 3 splits of 6 arrays, the other one of 4).
        assert counts == ([11, 11] if verify is False else [11 + 3 + 18, 11 + 3 + 4])


def test_a_tokenizer_of_another_store(bucket, url, sharded):
    """Whole and of the same size, but not what made the ids."""
    content = (sharded / "tokenizer/tokenizer.json").read_bytes()
    changed = content.replace(b'"A": 68', b'"A": 69').replace(b'"B": 69', b'"B": 68')
    assert changed != content
    bucket.put("corpora/one/tokenizer/tokenizer.json", changed)
    source = TokenStore.open(url, verify=False)
    with pytest.raises(DataError, match=rf"^{url}/tokenizer: is not the tokenizer that made the"):
        source.tokenizer()

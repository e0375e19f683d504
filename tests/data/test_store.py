import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from emo_jax.data import store as store_lib
from emo_jax.data import store_stream, store_writer
from emo_jax.data.store import TokenStore
from emo_jax.data.store_writer import SplitContent, write_store
from emo_jax.errors import DataError, UsageError
from emo_jax.preparation.prepare import prepare
from emo_jax.tokenizer.load import byte_tokenizer


def records(corpus):
    return [json.loads(line) for line in corpus.read_text().splitlines()]


def test_round_trip(store, corpus):
    """Every text is in the store once, with its domain and one end of document."""
    tokenizer = store.tokenizer()
    found = []
    for split in store.splits:
        documents = store.documents(split, 0, 10**6)
        assert len(documents) == store.count(split, "documents")
        assert sum(d.tokens.size for d in documents) == store.count(split)
        for tokens, domain in documents:
            assert tokens[-1] == store.eos_id and store.eos_id not in tokens[:-1]
            found.append((tokenizer.decode(tokens), store.domains[domain]))
    assert sorted(found) == sorted((r["text"], r["domain"]) for r in records(corpus))
    for domain in store.domains:
        assert sum(store.count(s, "documents", domain) for s in store.splits) == 200


def test_some_documents_of_the_middle(store):
    everything = store.documents("train", 0, 50)
    for got, expected in zip(store.documents("train", 7, 12), everything[7:12], strict=True):
        np.testing.assert_array_equal(got.tokens, expected.tokens)
    assert store.documents("train", 10**6, 10**6 + 5) == []


def make_store(path, lengths, seed=0):
    """Tokens drawn at random; returns what the stream must give."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(3, 259, sum(lengths)).astype(np.uint16)
    ends = np.cumsum(lengths)
    tokens[ends - 1] = 1
    domains = draw.integers(0, 2, len(lengths))
    content = SplitContent(np.array(lengths), domains, np.array_split(tokens, 7))
    empty = SplitContent(np.zeros(0), np.zeros(0), [])
    write_store(
        path,
        tokenizer=byte_tokenizer(),
        domains=["a", "b"],
        splits={"train": content, "select": empty, "test": empty},
    )
    document = np.repeat(np.arange(len(lengths)), lengths)
    return tokens.astype(np.int32), document, domains[document]


def test_reads_across_shards_chunks_and_index(tmp_path, monkeypatch):
    monkeypatch.setattr(store_writer, "_SHARD_ITEMS", 256)
    monkeypatch.setattr(store_writer, "_CHUNK_ITEMS", 32)
    monkeypatch.setattr(store_stream, "INDEX_STRIDE", 4)
    lengths = np.random.default_rng(1).integers(1, 60, 101).tolist()
    tokens, document, domains = make_store(tmp_path / "s", lengths)
    store = TokenStore.open(tmp_path / "s")
    assert len(list((tmp_path / "s/train/tokens/c").iterdir())) > 5
    assert store.splits == ("train",)
    stream = store.streams("train")[0]
    edges = np.cumsum([0, *lengths])[::2].tolist()  # each side of document and index entries
    near = [min(max(e + d, 0), len(tokens)) for e in edges for d in (-1, 0, 1)]
    pairs = [(0, len(tokens)), (255, 257)] + [
        (start, stop) for start in near for stop in near if 0 < stop - start < 200
    ]
    for start, stop in pairs:
        span = stream.read(start, stop)
        np.testing.assert_array_equal(span.tokens, tokens[start:stop])
        np.testing.assert_array_equal(span.segment_ids, document[start:stop] - document[start])
        np.testing.assert_array_equal(span.domain_ids, domains[start:stop])
    with pytest.raises(IndexError):
        stream.read(0, len(tokens) + 1)


@pytest.fixture
def copy(store_path, tmp_path):
    return shutil.copytree(store_path, tmp_path / "copy")


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_flipped_byte_is_found_on_opening(copy):
    flip(copy / "train/tokens/c/0", 1000)
    with pytest.raises(DataError, match=r"train/tokens/c/0: damaged .*copy the store again"):
        TokenStore.open(copy)


@pytest.mark.parametrize("array", ["tokens", "doc_ends", "doc_domains"])
def test_flipped_byte_is_found_on_reading(copy, array):
    flip(copy / f"train/{array}/c/0", 1000)
    stream = TokenStore.open(copy, verify=False).streams("train")[0]
    with pytest.raises(DataError, match=rf"train/{array}/c/0.*prepare it again"):
        stream.read(0, 4096)


def test_cut_short_is_found_without_reading(copy):
    file = copy / "select/tokens/c/0"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"select/tokens/c/0: damaged \(\d+ bytes, should be \d+\)"):
        TokenStore.open(copy, verify=False)
    file.unlink()
    with pytest.raises(DataError, match=r"select/tokens/c/0: damaged \(missing\)"):
        TokenStore.open(copy, verify=False)


# --- while it is in use ---------------------------------------------------------------------------


def _in_use(copy):
    """A stream as training has it, with its ends cached, and what it must give."""
    good = TokenStore.open(copy).streams("train")[0].read(0, 64)
    stream = TokenStore.open(copy).streams("train")[0]
    stream.read(stream.num_tokens // 2, stream.num_tokens // 2 + 64)
    return stream, good


def test_a_store_that_is_away_is_no_zeros(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("EMO_READ_WAIT", "0.3")
    stream, good = _in_use(copy)
    copy.rename(tmp_path / "away")
    named = rf"{copy}/train/tokens/c/0: is not there any more; bring the store back and run the"
    with pytest.raises(DataError, match=named):
        stream.read(0, 64)
    with pytest.raises(DataError, match="is not there any more"):
        stream.documents(0, 3)
    (tmp_path / "away").rename(copy)
    for found, expected in zip(stream.read(0, 64)[:3], good[:3], strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_store_that_comes_back_is_read_on(copy, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("EMO_READ_WAIT", "30")
    stream, good = _in_use(copy)
    copy.rename(tmp_path / "away")
    back = threading.Timer(0.7, lambda: (tmp_path / "away").rename(copy))
    back.start()
    np.testing.assert_array_equal(stream.read(0, 64).tokens, good.tokens)
    back.join()
    waited, returned = caplog.messages
    assert waited.endswith("is not there any more; waiting up to 30 s for it")
    assert returned.startswith("can be read again, after 0.")


@pytest.mark.parametrize("verified", [True, False])
def test_another_store_in_its_place(copy, tmp_path, corpus, monkeypatch, verified):
    """As long, of the same documents, and shuffled by another seed."""
    monkeypatch.setenv("EMO_READ_WAIT", "0.3")
    monkeypatch.setattr(store_lib, "VERIFY_BELOW_BYTES", 10**9 if verified else 0)
    stream, good = _in_use(copy)
    copy.rename(tmp_path / "old")
    prepare([corpus], copy, byte_tokenizer(), seed=1)
    with pytest.raises(DataError, match=r"tokens/c/0: .*(was replaced or changed|has \d+ bytes)"):
        stream.read(0, 64)
    shutil.rmtree(copy)
    shutil.copytree(tmp_path / "old", copy, copy_function=shutil.copy)  # with times of now
    np.testing.assert_array_equal(stream.read(0, 64).tokens, good.tokens)


@pytest.mark.parametrize("array", ["tokens", "doc_ends", "doc_domains"])
def test_a_chunk_damaged_while_it_is_in_use(copy, array, monkeypatch):
    monkeypatch.setenv("EMO_READ_WAIT", "0.3")
    streams = [TokenStore.open(copy).streams("train")[0] for _ in range(3)]
    chunk = copy / f"train/{array}/c/0"
    content = chunk.read_bytes()
    for stream, damaged, why in zip(
        streams,
        (content[: len(content) // 2], content[:100] + b"\xff" + content[101:], b""),
        (r"has \d+ bytes, had \d+", "was replaced or changed", "has 0 bytes"),
        strict=True,
    ):
        chunk.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"train/{array}/c/0: {why}"):
            stream.read(0, 64)


def test_damaged_manifest(copy):
    manifest = copy / "store.json"
    content = manifest.read_text()
    for broken in (content[:-50], content.replace('"eos_id": 1', '"eos_id": 2'), "[]"):
        manifest.write_text(broken)
        with pytest.raises(DataError, match=r"store\.json: damaged manifest"):
            TokenStore.open(copy)
    manifest.write_text(content.replace('"version": 1', '"version": 2'))
    with pytest.raises(DataError, match="upgrade emo_jax"):
        TokenStore.open(copy)


def test_no_store(tmp_path):
    with pytest.raises(UsageError, match="no such token store"):
        TokenStore.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match="not a token store"):
        TokenStore.open(tmp_path)


def test_url(store_path, store):
    remote = TokenStore.open(f"file://{store_path}")
    np.testing.assert_array_equal(
        remote.streams("train")[0].read(10, 500).tokens,
        store.streams("train")[0].read(10, 500).tokens,
    )
    assert remote.tokenizer().fingerprint == store.tokenizer_fingerprint


def test_tokenizer_of_another_store(store):
    store.check_tokenizer(byte_tokenizer().fingerprint)
    with pytest.raises(DataError, match="the tokenizer is not the store's"):
        store.check_tokenizer("0" * 64)


def test_id_outside_the_vocabulary(tmp_path):
    content = SplitContent(np.array([2]), np.array([0]), [np.array([259, 1])])
    with pytest.raises(DataError, match="token id 259 is outside the vocabulary of 259"):
        write_store(
            tmp_path / "s", tokenizer=byte_tokenizer(), domains=["a"], splits={"train": content}
        )
    assert list(tmp_path.iterdir()) == []  # nothing half-made stays behind


def test_never_overwrites(store_path, corpus, tmp_path):
    before = (store_path / "store.json").read_bytes()
    with pytest.raises(UsageError, match="is a token store; give a new folder") as caught:
        prepare([corpus], store_path, byte_tokenizer())
    assert caught.value.exit_code == 2
    assert (store_path / "store.json").read_bytes() == before
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="is not empty"):
        prepare([corpus], tmp_path, byte_tokenizer())
    with pytest.raises(UsageError, match="is a file"):
        prepare([corpus], tmp_path / "mine.txt", byte_tokenizer())
    with pytest.raises(UsageError, match="write the store to a local folder"):
        prepare([corpus], "gs://bucket/store", byte_tokenizer())
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_target_that_appears_meanwhile_is_kept(tmp_path):
    def blocks():
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "theirs").write_text("keep")
        yield np.array([5, 1])

    content = SplitContent(np.array([2]), np.array([0]), blocks())
    with pytest.raises(UsageError, match="is not empty"):
        write_store(
            tmp_path / "s", tokenizer=byte_tokenizer(), domains=["a"], splits={"train": content}
        )
    assert [p.name for p in tmp_path.rglob("*")] == ["s", "theirs"]


def test_training_imports_no_tensorflow(store_path):
    program = """
import sys
import emo_jax.data.loader, emo_jax.preparation.prepare
from emo_jax.config import DataConfig
from emo_jax.data.run_windows import in_order
from emo_jax.data.windows import open_windows
windows = open_windows(DataConfig(store=sys.argv[1], seq_len=64))
loader = emo_jax.data.loader.Loader(in_order(windows, 0), batch_size=2)
loader.batch(0)
windows.source.tokenizer().encode_batch(["x"])
print([m for m in ("tensorflow", "seqio", "transformers", "torch") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(store_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

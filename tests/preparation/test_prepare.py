import json

import numpy as np
import pytest

from emo_jax.data import store_writer
from emo_jax.errors import DataError, UsageError
from emo_jax.preparation import buckets, pieces
from emo_jax.preparation import prepare as prepare_lib
from emo_jax.preparation.prepare import assign_splits, prepare
from emo_jax.tokenizer.load import byte_tokenizer


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def texts(store, split):
    return [store.tokenizer().decode(d.tokens) for d in store.documents(split, 0, 10**6)]


def test_same_input_same_store(corpus, store, tmp_path, monkeypatch):
    """Neither the size of a batch nor the order of the lines matters; the seed does."""
    shuffled = tmp_path / "shuffled.jsonl"
    shuffled.write_text("".join(reversed(corpus.read_text().splitlines(keepends=True))))
    monkeypatch.setattr(pieces, "_BATCH_CHARS", 1000)
    monkeypatch.setattr(prepare_lib, "_RUN_BYTES", 10_000)
    monkeypatch.setattr(buckets, "BUCKET_BYTES", 10_000)
    again = prepare([shuffled], tmp_path / "a", byte_tokenizer()).store
    assert again.fingerprint == store.fingerprint
    other = prepare([corpus], tmp_path / "b", byte_tokenizer(), seed=1).store
    for split in store.splits:
        assert texts(other, split) != texts(store, split)
        assert sorted(texts(other, split)) == sorted(texts(store, split))


def test_pieces_of_a_document_share_a_split(tmp_path):
    pieces = [{"text": f"{i} {k}", "id": f"d{i}~{k}"} for i in range(100) for k in range(3)]
    store = prepare(
        [write(tmp_path / "a.jsonl", pieces)],
        tmp_path / "s",
        byte_tokenizer(),
        fractions=(0.4, 0.3, 0.3),
    ).store
    owners = [{text.split()[0] for text in texts(store, split)} for split in store.splits]
    assert len(owners) == 3
    assert sum(len(o) for o in owners) == len(set.union(*owners)) == 100


def test_report(tmp_path, capsys):
    records = [{"text": "one", "domain": "b"}, {"text": ""}, {"text": "two", "domain": "a"}]
    report = prepare([write(tmp_path / "a.jsonl", records)], tmp_path / "s", "bytes", quiet=False)
    assert report.read.documents == 2
    assert report.read.skipped == {"empty document": 1}
    assert report.store.domains == ("a", "b")
    shown = capsys.readouterr()
    assert "2 documents read, 1 skipped" in shown.out
    assert "too few documents for a split 'select'" in shown.out
    assert "prepare: writing 8 tokens" in shown.err


def test_table_of_many_domains(tmp_path):
    records = [{"text": "x" * (1 + i), "domain": f"site-{i:03}"} for i in range(60)]
    path = write(tmp_path / "a.jsonl", records)
    report = prepare([path], tmp_path / "s", byte_tokenizer())
    assert report.table().count("site-") == 40
    assert "(20 smaller domains not listed)" in report.table()


def test_a_document_without_tokens_is_counted(tmp_path):
    tokenizer = byte_tokenizer()
    encode = tokenizer.encode_batch
    tokenizer.encode_batch = lambda texts: encode([text.strip("x") for text in texts])
    path = write(tmp_path / "a.jsonl", [{"text": "x"}, {"text": "yy"}])
    report = prepare([path], tmp_path / "s", tokenizer)
    assert (report.read.documents, dict(report.read.skipped)) == (1, {"no tokens": 1})
    assert report.store.count("train") == 3


def test_splits_are_ranges_of_the_hash():
    keys = np.random.default_rng(0).integers(0, 2**64, 10_000, np.uint64)
    splits, notes = assign_splits(keys, (0.9, 0.05, 0.05))
    assert not notes
    np.testing.assert_allclose(np.bincount(splits) / keys.size, (0.9, 0.05, 0.05), atol=0.01)
    # A document stays where it is when others come and go.
    fewer, _ = assign_splits(keys[::7], (0.9, 0.05, 0.05))
    np.testing.assert_array_equal(fewer, splits[::7])


@pytest.mark.parametrize(
    ("documents", "counts"), [(1, [1, 0, 0]), (2, [1, 0, 1]), (3, [1, 1, 1]), (4, [2, 1, 1])]
)
def test_small_corpora_have_every_split_if_they_can(documents, counts):
    for start in (0, 2**64 - 10):  # all of them in the range of train, or of test
        keys = np.arange(documents, dtype=np.uint64) + np.uint64(start)
        splits, notes = assign_splits(keys)
        assert sorted(np.bincount(splits, minlength=3)) == sorted(counts)
        assert (np.bincount(splits, minlength=3) > 0).tolist() == [c > 0 for c in counts]
        assert len(notes) == counts.count(0)


@pytest.mark.parametrize("fractions", [(0.9, 0.1), (1.2, -0.1, -0.1), (0.5, 0.1, 0.1)])
def test_wrong_fractions(tmp_path, fractions):
    with pytest.raises(UsageError, match="must be three numbers"):
        prepare([tmp_path], tmp_path / "s", byte_tokenizer(), fractions=fractions)


def test_no_held_out_splits(corpus, tmp_path):
    report = prepare([corpus], tmp_path / "s", byte_tokenizer(), fractions=(1, 0, 0))
    assert report.store.splits == ("train",)
    assert not report.notes


@pytest.mark.parametrize("content", ["", "not json\n"])
def test_a_failure_leaves_nothing_behind(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match="no usable document"):
        prepare([path], tmp_path / "out" / "s", byte_tokenizer())
    assert list((tmp_path / "out").iterdir()) == []


def test_full_disk(corpus, store, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_writer, "_write", full)
    with pytest.raises(DataError, match=r"cannot be written .*No space left.*free or choose"):
        prepare([corpus], tmp_path / "out" / "s", byte_tokenizer())
    assert [p.suffix for p in (tmp_path / "out").iterdir()] == [".prepare"]  # to go on from
    monkeypatch.undo()
    again = prepare([corpus], tmp_path / "out" / "s", byte_tokenizer())
    assert again.store.fingerprint == store.fingerprint and not again.documents_read
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["s"]

"""Stores whose checksums fit and whose content does not: somebody made them so."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import tensorstore as ts

from emo_jax.data.store import TokenStore
from emo_jax.data.store_manifest import checksum
from emo_jax.data.windows import Windows
from emo_jax.documents import foreign
from emo_jax.errors import DataError


@pytest.fixture
def forged(store_path, tmp_path):
    return shutil.copytree(store_path, tmp_path / "store")


def _seal(store, **changes):
    """The manifest again, with these fields and with the files as they are."""
    manifest = json.loads((store / "store.json").read_text()) | changes
    for name in manifest["files"]:
        file = store / name
        if file.is_file():
            content = file.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            manifest["files"][name] = {"bytes": len(content), "sha256": digest}
    manifest["checksum"] = checksum(manifest)
    (store / "store.json").write_text(json.dumps(manifest))


def _read_all(store):
    found = TokenStore.open(store)
    for split in found.splits:
        found.documents(split, 0, 10**6)
        windows = Windows(found, 64, split=split)
        for n in range(len(windows)):
            windows[n]
    found.tokenizer().encode_batch(["a"])


def _refused(store):
    with pytest.raises(DataError) as refused:
        _read_all(store)
    said = str(refused.value)
    assert "\n" not in said and str(store) in said
    return said


def test_as_it_was(forged):
    _seal(forged)
    _read_all(forged)


def _split(store, **changes):
    splits = json.loads((store / "store.json").read_text())["splits"]
    return {"splits": splits | {"train": splits["train"] | changes}}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vocab_size": "259"}, "vocab_size must be a whole number"),
        ({"vocab_size": 2**40}, "vocab_size must be a whole number of 1..16777216"),
        ({"eos_id": 259}, "eos_id must be a whole number of 0..258"),
        ({"pad_id": None}, "pad_id must be a whole number"),
        ({"bos_id": -1}, "bos_id must be a whole number"),
        ({"domains": []}, "domains must be names"),
        ({"domains": "law"}, "domains must be a list"),
        ({"domains": [["law"]]}, "domains must be names"),
        ({"domains": ["a", "a"]}, "domains has a name twice"),
        ({"domains": ["a", "b"]}, "has a domain 'cooking' that is none"),
        ({"files": []}, "files must be an object"),
        (
            {"files": {"../../etc/passwd": {"bytes": 1, "sha256": ""}}},
            "'../../etc/passwd' is no name",
        ),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}}, "'/etc/passwd' is no name of a"),
        ({"files": {"a": {"bytes": -1, "sha256": ""}}}, "files.a.bytes must be a whole number"),
        ({"files": {}}, "split 'train' has no tokens"),
        ({"splits": {"../train": {}}}, "there is no split '../train'"),
        ({"splits": [1]}, "splits must be an object"),
        ({"tokenizer": {}}, "tokenizer must be a string"),
        ({"tokenizer": "0" * 64}, "is not the tokenizer that made the ids"),
        ({"version": True}, "version must be a whole number"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_a_manifest_that_cannot_be(forged, changes, named):
    _seal(forged, **changes)
    assert named in _refused(forged)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokens": 2**62}, "the domains of split 'train' do not add up"),
        ({"tokens": 2**62, "domains": {}}, "train/tokens has"),
        ({"documents": 0}, "split 'train' has 0 documents of"),
        (
            {"documents": 10**9, "tokens": 10**9, "domains": {}},
            "items, the manifest says 1000000000",
        ),
        ({"domains": {"law": {"documents": "1", "tokens": 1}}}, "must be a count"),
    ],
)
def test_counts_that_cannot_be(forged, changes, named):
    _seal(forged, **_split(forged, **changes))
    assert named in _refused(forged)


def _write(store, name, change):
    array = ts.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{store}/train/{name}/"}},
        open=True,
    ).result()
    values = array.read().result()
    change(values)
    array.write(values).result()


def _set(place, value):
    return lambda values: values.__setitem__(place, value)


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("tokens", _set(5, 259), "token id 259 is outside the vocabulary of 259"),
        ("doc_ends", _set(0, 10**9), "doc_ends is no list of ends of documents"),
        ("doc_ends", _set(3, -5), "doc_ends is no list of ends of documents"),
        ("doc_ends", _set(slice(None), 1), "doc_ends is no list of ends of documents"),
        ("doc_ends", lambda v: v.__isub__(1), "doc_ends and doc_index do not belong together"),
        ("doc_domains", _set(2, 3), "doc_domains has numbers beyond 0..2"),
        ("doc_domains", _set(2, -1), "doc_domains has numbers beyond 0..2"),
        ("doc_index", _set(-1, 3), "doc_index is no list of ends of documents"),
    ],
)
def test_arrays_that_cannot_be(forged, name, change, named):
    _write(forged, name, change)
    _seal(forged)
    assert named in _refused(forged)


@pytest.mark.parametrize(
    ("name", "old", "new", "named"),
    [
        ("tokens", '"uint16"', '"float32"', "train/tokens is float32, must be uint16 or uint32"),
        ("doc_ends", '"int64"', '"float64"', "train/doc_ends is float64, must be int64"),
        ("tokens", "16384", str(2**40), "train/tokens"),  # a chunk of 2 TB
        ("doc_index", '"shape":[1]', f'"shape":[{2**40}]', "the manifest says 1"),
        ("doc_index", '"shape":[1]', '"shape":[1,1]', "train/doc_index"),
    ],
)
def test_arrays_of_another_kind(forged, name, old, new, named):
    file = forged / "train" / name / "zarr.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    _seal(forged)
    assert named in _refused(forged)


def test_what_describes_an_array_is_read_by_us_first(forged):
    """tensorstore does not count levels of JSON; these few do not harm it."""
    file = forged / "train/tokens/zarr.json"
    nested = "[" * 300 + "]" * 300
    file.write_text(f'{{"attributes": {{"a": {nested}}}, {file.read_text()[1:]}')
    ts.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{file.parent}/"}}, open=True
    ).result()
    _seal(forged)
    assert "train/tokens: cannot be read (JSON that is nested too deep)" in _refused(forged)


def test_what_is_no_file(forged):
    """A pipe would be waited for for ever, a device has no end."""
    file = forged / "train/tokens/c/0"
    manifest = json.loads((forged / "store.json").read_text())
    file.unlink()
    os.mkfifo(file)
    manifest["files"]["train/tokens/c/0"]["bytes"] = 0
    manifest["checksum"] = checksum(manifest)
    (forged / "store.json").write_text(json.dumps(manifest))
    assert "train/tokens/c/0: damaged (not a regular file)" in _refused(forged)
    del manifest["files"]["train/tokens/c/0"]
    manifest["checksum"] = checksum(manifest)
    (forged / "store.json").write_text(json.dumps(manifest))
    assert "train/tokens/c/0 is not in the manifest" in _refused(forged)


def test_a_manifest_that_is_no_file(forged):
    """Nothing is waited for, where it is asked what the folder is instead, either."""
    (forged / "store.json").unlink()
    os.mkfifo(forged / "store.json")
    assert "not a token store (no store.json)" in _refused(forged)
    assert foreign.of_folder(forged) is None


def test_another_tokenizer_in_its_place(forged, tmp_path):
    from emo_jax.tokenizer.load import train_bpe

    shutil.rmtree(forged / "tokenizer")
    train_bpe(["a b"], 258).save(forged / "tokenizer")
    _seal(forged)
    assert "is not the tokenizer that made the ids" in _refused(forged)


def test_documents_of_many_blocks_are_as_they_were(store):
    """The checks look at what is read only, and let it through."""
    found = store.documents("train", 0, 10**6)
    ids = np.concatenate([d.tokens for d in found])
    assert ids.size == store.count("train")

"""Faults that somebody put into stores and files are found, one line each."""

import json
import shutil

import numpy as np
import pytest

from emo_jax.config import DataConfig
from emo_jax.data import check
from emo_jax.data.check import Checked, check_data
from emo_jax.data.repeated_ids import repeated_ids
from emo_jax.data.store_manifest import checksum
from emo_jax.data.store_writer import SplitContent, write_store
from emo_jax.errors import UsageError
from emo_jax.tokenizer.load import byte_tokenizer

NONE = DataConfig()


def faults(location, config=NONE) -> list[str]:
    return list(check_data(str(location), config, Checked()))


def made(folder, documents: list[list[int]], lengths=None):
    """A store of these ids, whatever they are."""
    sizes = [len(ids) for ids in documents] if lengths is None else lengths
    content = SplitContent(np.array(sizes), np.zeros(len(sizes), int), [np.concatenate(documents)])
    write_store(folder, tokenizer=byte_tokenizer(), domains=["a"], splits={"train": content})
    return folder


def test_a_sound_store(store, store_path):
    seen = Checked()
    assert list(check_data(str(store_path), NONE, seen)) == []
    assert seen.documents == 600 and seen.files == len(store.manifest["files"])
    assert seen.tokens == sum(store.count(split) for split in store.splits)
    assert seen.num_bytes == store.num_bytes


def test_every_damaged_file_has_its_line(store_path, tmp_path):
    copy = shutil.copytree(store_path, tmp_path / "s")
    for name in ("train/tokens/c/0", "test/doc_ends/c/0"):
        content = bytearray((copy / name).read_bytes())
        content[50] ^= 1
        (copy / name).write_bytes(content)
    seen = Checked()
    found = list(check_data(str(copy), NONE, seen))
    assert len(found) == 2
    assert "test/doc_ends/c/0: damaged (content differs from its checksum)" in found[0]
    assert "train/tokens/c/0: damaged (content differs" in found[1]
    assert seen.notes == [f"{copy}: documents were not looked at, since files are damaged"]
    (copy / "select/tokens/c/0").unlink()
    found = faults(copy)
    assert "select/tokens/c/0: damaged (missing)" in found[0] and len(found) == 3


def test_no_end_and_an_end_inside(tmp_path):
    whole = [5, 6, 1]
    found = faults(made(tmp_path / "a", [whole, [5, 1, 7, 1], whole]))
    assert found == [f"{tmp_path}/a/train: document 1 has an end-of-document token inside"]
    found = faults(made(tmp_path / "b", [whole, whole, [5, 6, 7]]))
    assert found == [f"{tmp_path}/b/train: document 2 does not end in its end-of-document token"]
    assert faults(made(tmp_path / "c", [whole] * 9)) == []


def test_counts_of_domains_that_the_documents_have_not(store_path, tmp_path):
    """A manifest that was sealed anew: only the documents tell."""
    copy = shutil.copytree(store_path, tmp_path / "s")
    manifest = json.loads((copy / "store.json").read_text())
    counts = manifest["splits"]["train"]["domains"]
    law, music = counts["law"]["tokens"], counts["music"]["tokens"]
    counts["law"]["tokens"], counts["music"]["tokens"] = law + 1, music - 1
    manifest["checksum"] = checksum(manifest)
    (copy / "store.json").write_text(json.dumps(manifest))
    assert faults(copy) == [
        f"{copy}/train: domain 'law' has {law} tokens, the manifest says {law + 1},"
        f" 'music' has {music} tokens, the manifest says {music - 1}"
    ]


def test_documents_across_the_blocks_that_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "_BLOCK_TOKENS", 64)
    draw = np.random.default_rng(0)
    documents = [[5] * int(n) + [1] for n in draw.integers(1, 200, 300)]
    seen = Checked()
    assert list(check_data(str(made(tmp_path / "a", documents)), NONE, seen)) == []
    assert (seen.documents, seen.tokens) == (300, sum(map(len, documents)))
    for n in range(0, 300, 20):
        documents[n][0] = 1
    found = faults(made(tmp_path / "b", documents))
    assert [line.split(": ")[1] for line in found[:3]] == [
        f"document {n} has an end-of-document token inside" for n in (0, 20, 40)
    ]
    assert found[3:] == [f"{tmp_path}/b/train: more documents have one inside"]


def test_token_files(tmp_path):
    config = DataConfig(raw_vocab_size=300, raw_eos_id=1)
    tokens = np.random.default_rng(0).integers(0, 300, 2_500_000).astype(np.uint16)
    tokens.tofile(tmp_path / "a.npy")
    tokens[2_400_000] = 300
    tokens.tofile(tmp_path / "b.npy")
    seen = Checked()
    assert list(check_data(f"{tmp_path}/a.npy", config, seen)) == []
    assert seen.tokens == tokens.size
    (line,) = faults(f"{tmp_path}/*.npy", config)
    assert line.startswith(f"{tmp_path}/b.npy: token id 300 is outside the vocabulary of 300")
    (tmp_path / "c.npy").write_bytes(b"odd")
    (line,) = faults(f"{tmp_path}/c.npy", config)
    assert "c.npy: 3 bytes are not a whole number" in line


def test_what_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="no such token store"):
        faults(tmp_path / "none")
    (tmp_path / "folder").mkdir()
    assert "not a token store" in faults(tmp_path / "folder")[0]


class _Indexed:
    """A token file whose format has an index of its own."""

    name = "a.bin"

    def __init__(self, ends: list[int], num_tokens: int):
        self._ends, self.num_documents, self.num_tokens = ends, len(ends), num_tokens

    def document_ends(self, first, stop):
        return np.array(self._ends[first:stop])


@pytest.mark.parametrize("block", [2, 1 << 20])
def test_an_index_that_does_not_add_up(block, monkeypatch):
    monkeypatch.setattr(check, "_BLOCK_TOKENS", block)
    assert list(check._end_faults(_Indexed([3, 7, 7, 9], 9))) == []
    (line,) = check._end_faults(_Indexed([3, 7, 9], 10))
    assert line == "a.bin: its documents have 9 tokens by the index, the file has 10"
    (line,) = check._end_faults(_Indexed([3, 7, 6, 10], 10))
    assert line == "a.bin: document 2 ends before it begins"


@pytest.mark.system
def test_a_store_in_a_bucket(bucket, store_path, store):
    url, seen = bucket.upload(store_path, "some/store"), Checked()
    assert list(check_data(url, NONE, seen)) == []
    assert (seen.documents, seen.num_bytes) == (600, store.num_bytes)
    content = bytearray((store_path / "train/tokens/c/0").read_bytes())
    content[50] ^= 1
    bucket.put("some/store/train/tokens/c/0", bytes(content))
    bucket.delete("some/store/test/doc_ends/c/0")
    found = faults(url)
    assert [line.split(" (")[0] for line in found] == [
        f"{url}/test/doc_ends/c/0: damaged",
        f"{url}/train/tokens/c/0: damaged",
    ]


class _Named:
    """A stream of documents of which only the ids are asked for."""

    def __init__(self, name: str, ids: list[str]):
        self.name, self.num_documents, self._ids = name, len(ids), ids

    def document_ids(self, first, stop):
        return self._ids[first:stop]


@pytest.mark.parametrize("in_memory", [1 << 22, 100])
def test_repeated_ids(in_memory, monkeypatch):
    monkeypatch.setattr("emo_jax.data.repeated_ids._IN_MEMORY", in_memory)
    one, two = [f"doc-{n}" for n in range(20_000)], [f"more-{n}" for n in range(3_000)]
    assert list(repeated_ids([_Named("train", one), _Named("test", ["", "", *two])])) == []
    one[19_000], two[5], two[6] = "doc-7", "doc-7", "doc-9"
    found = sorted(repeated_ids([_Named("train", one), _Named("test", two)]))
    assert found == [
        ("doc-7", [("train", 7), ("train", 19_000), ("test", 5)]),
        ("doc-9", [("train", 9), ("test", 6)]),
    ]

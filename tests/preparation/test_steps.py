"""The bytes of a store do not depend on how the work is cut; ids, sources, duplicates, dropping."""

import gzip
import json
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from emo_jax.data import store_stream, store_writer
from emo_jax.data.store import SOURCES, TokenStore
from emo_jax.documents.document_filter import DocumentFilter
from emo_jax.errors import DataError, UsageError
from emo_jax.preparation import buckets, pieces, plan, shards
from emo_jax.preparation import prepare as prepare_lib
from emo_jax.preparation.prepare import prepare
from emo_jax.preparation.runs import INDEX, OpenRun, RunFile, write_run
from emo_jax.preparation.splits import END, shifted_edges, split_of, usual_edges
from emo_jax.tokenizer.load import byte_tokenizer


def records(count, seed=0):
    draw = random.Random(seed)
    for i in range(count):
        text = "".join(draw.choice("abcdé \n") for _ in range(draw.randint(1, 200)))
        yield {"text": f"{i}{text}", "id": f"doc/{i}~{i % 3}", "domain": f"d{draw.randint(0, 4)}"}


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def contents(folder):
    """The files of a store but `sources.json`, which names the inputs."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != SOURCES
    }


def cut(monkeypatch, draw):
    """Makes pieces, runs, bins, buckets and shards of random sizes."""
    monkeypatch.setattr(plan, "PIECE_BYTES", draw.randint(500, 50_000))
    monkeypatch.setattr(plan, "_BIN_BYTES", draw.choice([300, 5_000, 1 << 25]))
    monkeypatch.setattr(pieces, "_BATCH_CHARS", draw.randint(100, 10_000))
    monkeypatch.setattr(prepare_lib, "_RUN_BYTES", draw.randint(1_000, 100_000))
    monkeypatch.setattr(buckets, "BUCKET_BYTES", draw.randint(2_000, 400_000))
    monkeypatch.setattr(buckets, "_WHOLE_BYTES", draw.choice([0, 1 << 20]))
    monkeypatch.setattr(shards, "_GROUP_BYTES", draw.choice([0, 1 << 16]))


@pytest.mark.parametrize("seed", range(6))
def test_however_it_is_cut(tmp_path, monkeypatch, seed):
    """Whole and plain against random sizes, files, an order of their own, and other formats."""
    monkeypatch.setattr(store_writer, "_SHARD_ITEMS", 1 << 13)
    monkeypatch.setattr(store_writer, "_CHUNK_ITEMS", 1 << 9)
    monkeypatch.setattr(store_writer, "_TEXT_CHUNK_ITEMS", 1 << 10)
    monkeypatch.setattr(store_stream, "INDEX_STRIDE", 64)
    everything = list(records(700, seed))
    prepare([write(tmp_path / "all.jsonl", everything)], tmp_path / "whole", byte_tokenizer())
    draw = random.Random(seed)
    cut(monkeypatch, draw)
    draw.shuffle(everything)
    at = sorted(draw.sample(range(700), 3))
    first, second, third, last = np.split(np.array(everything, object), at)
    inputs = [
        write(tmp_path / "in/a.jsonl", first),
        write(tmp_path / "in/b.jsonl", second),
        write(tmp_path / "in/d.jsonl", last),
    ]
    (tmp_path / "in/c.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps(line) + "\n" for line in third).encode())
    )
    inputs.append(tmp_path / "in/c.jsonl.gz")
    draw.shuffle(inputs)
    prepare(inputs, tmp_path / "cut", byte_tokenizer())
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "cut")) > 20


def test_numbers_of_lines_in_parts(tmp_path, monkeypatch):
    """Ids of documents without any are FILE:LINE, also in the middle of a file."""
    texts = [json.dumps({"text": f"text {i}" * (1 + i % 40)}) for i in range(300)]
    texts[7::11] = ["", "  ", ""] * 9  # empty lines count
    texts[100] = "no json"
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n".join(texts))
    whole = prepare([tmp_path / "a.jsonl"], tmp_path / "whole", byte_tokenizer())
    for size in (150, 1_000, 7_777):
        monkeypatch.setattr(plan, "PIECE_BYTES", size)
        parts = prepare([tmp_path / "a.jsonl"], tmp_path / f"s{size}", byte_tokenizer())
        assert contents(tmp_path / f"s{size}") == contents(tmp_path / "whole")
        assert parts.read.summary() == whole.read.summary()
    assert f"{tmp_path}/a.jsonl:101: broken JSON" in "".join(whole.read.examples)


def test_row_groups_in_parts(tmp_path, monkeypatch):
    table = pa.table({"text": [f"row {i}" * 9 for i in range(500)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=23)
    prepare([tmp_path / "a.parquet"], tmp_path / "whole", byte_tokenizer())
    monkeypatch.setattr(plan, "PIECE_BYTES", 1500)
    prepare([tmp_path / "a.parquet"], tmp_path / "parts", byte_tokenizer())
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_ids_ends_and_places(store, corpus):
    domain_of = {json.loads(line)["id"]: json.loads(line) for line in corpus.open()}
    seen = []
    for split in store.splits:
        (stream,) = store.streams(split)
        D = stream.num_documents
        ids, documents = stream.document_ids(0, D), store.documents(split, 0, D)
        for name, document in zip(ids, documents, strict=True):
            assert store.tokenizer().decode(document.tokens) == domain_of[name]["text"]
        ends = stream.document_ends(0, D)
        np.testing.assert_array_equal(ends, np.cumsum([d.tokens.size for d in documents]))
        for n in (0, D // 2, D - 1):
            assert stream.document_ids(n, n + 1) == [ids[n]]
            assert stream.document_at(int(ends[n]) - 1) == n
            assert n == D - 1 or stream.document_at(int(ends[n])) == n + 1
        assert stream.document_ids(3, 3) == [] and stream.document_ends(3, 3).size == 0
        with pytest.raises(IndexError):
            stream.document_ids(0, D + 1)
        with pytest.raises(IndexError):
            stream.document_at(stream.num_tokens)
        seen += ids
    assert sorted(seen) == sorted(domain_of)


def test_a_store_without_ids(tmp_path):
    content = store_writer.SplitContent(np.array([2]), np.array([0]), [np.array([9, 1])])
    store_writer.write_store(
        tmp_path / "s", tokenizer=byte_tokenizer(), domains=["a"], splits={"train": content}
    )
    (stream,) = TokenStore.open(tmp_path / "s").streams("train")
    assert stream.document_ids(0, 1) == [""]


def test_half_of_the_ids_is_damage(store_path, tmp_path):
    copy = shutil.copytree(store_path, tmp_path / "s")
    manifest = json.loads((copy / "store.json").read_text())
    for name in [n for n in manifest["files"] if n.startswith("train/doc_id_ends")]:
        del manifest["files"][name]
    from emo_jax.data.store_manifest import checksum

    manifest["checksum"] = checksum(manifest)
    (copy / "store.json").write_text(json.dumps(manifest))
    (stream,) = TokenStore.open(copy).streams("train")
    with pytest.raises(DataError, match="train/doc_id_ends is not in the manifest"):
        stream.document_ids(0, 1)


def test_what_the_manifest_counts(tmp_path):
    a = write(tmp_path / "a.jsonl", [{"text": "x" * n, "domain": "d"} for n in (1, 2, 3, 300)])
    b = write(
        tmp_path / "b.jsonl", [{"text": "yy", "domain": "e"}, {"text": ""}, {"text": "z" * 999}]
    )
    made = prepare([b, a], tmp_path / "s", "bytes", wanted=DocumentFilter(max_chars=500))
    store = made.store
    assert store.manifest["lengths"] == {"d": [0, 2, 1, 0, 0, 0, 0, 0, 1], "e": [0, 1]}
    assert store.manifest["rejected"] == {"empty document": 1, "--max-chars 500": 1}
    counted = {str(a): {"documents": 4, "tokens": 310}, str(b): {"documents": 1, "tokens": 3}}
    assert store.sources() == counted and list(store.sources()) == [str(a), str(b)]
    assert "≥ 256" in made.lengths() and made.lengths().count("\n") == 3
    first, second = made.by_source().splitlines()[1:]
    assert first.endswith(f"{4:>14}{310:>18}") and second.endswith(f"{1:>14}{3:>18}")
    (tmp_path / "s" / SOURCES).unlink()
    assert TokenStore.open(tmp_path / "s").sources() == {}
    (tmp_path / "s" / SOURCES).write_text('{"a": {"documents": -1, "tokens": 2}}')
    with pytest.raises(DataError, match=r"sources\.json cannot be read"):
        TokenStore.open(tmp_path / "s").sources()


def test_ids_twice(tmp_path, monkeypatch):
    """The order of the documents of an id is that of a hash of their content, not of the input."""
    lines = [{"text": f"text {i}", "id": f"{i % 5}", "domain": f"{i % 2}"} for i in range(50)]
    one = prepare([write(tmp_path / "a.jsonl", lines)], tmp_path / "one", byte_tokenizer())
    (note,) = [note for note in one.notes if "earlier one" in note]
    assert note.startswith("note: 45 documents have the id of an earlier one, the first: ")
    cut(monkeypatch, random.Random(1))
    lines.reverse()
    other = prepare([write(tmp_path / "b.jsonl", lines)], tmp_path / "other", byte_tokenizer())
    assert contents(tmp_path / "other") == contents(tmp_path / "one")
    assert other.notes == one.notes


def test_drop_ids(tmp_path):
    lines = list(records(40))
    inputs = [write(tmp_path / "a.jsonl", lines)]
    (tmp_path / "drop").write_text("".join(f"{line['id']}\n" for line in lines[:10]) + "other\n")
    made = prepare(inputs, tmp_path / "s", "bytes", drop_ids=tmp_path / "drop")
    assert made.read.dropped == {"--drop-ids": 10} and made.read.documents == 30
    kept = [
        name for s in made.store.streams("train") for name in s.document_ids(0, s.num_documents)
    ]
    assert kept and not set(kept) & {line["id"] for line in lines[:10]}
    assert made.store.manifest["drop_ids"]["ids"] == 11
    (tmp_path / "drop").write_text("other\r\n")
    made = prepare(inputs, tmp_path / "t", "bytes", drop_ids=tmp_path / "drop")
    assert made.read.documents == 40
    assert "note: no document has an id of --drop-ids" in made.notes
    (tmp_path / "drop").write_text("".join(f"{line['id']}\n" for line in lines))
    with pytest.raises(DataError, match=r"no document is left \(40 dropped by --drop-ids\)"):
        prepare(inputs, tmp_path / "u", "bytes", drop_ids=tmp_path / "drop")
    (tmp_path / "drop").write_text("")  # emo data dedup found none
    made = prepare(inputs, tmp_path / "v", "bytes", drop_ids=tmp_path / "drop")
    assert made.read.documents == 40 and "drop_ids" not in made.store.manifest
    (tmp_path / "drop").write_text("\n")
    with pytest.raises(DataError, match="holds no id"):
        prepare(inputs, tmp_path / "u", "bytes", drop_ids=tmp_path / "drop")
    with pytest.raises(UsageError, match="no such file"):
        prepare(inputs, tmp_path / "u", "bytes", drop_ids=tmp_path / "nothing")
    assert not list(tmp_path.glob(".*"))


def test_edges_of_splits():
    """The usual ranges are those that a division of the key as a float gives."""
    fractions = (0.9, 0.05, 0.05)
    for edge, share in zip(usual_edges(fractions), np.cumsum(fractions), strict=False):
        assert float(edge) / 2.0**64 >= share > float(edge - 1) / 2.0**64
    keys = np.random.default_rng(0).integers(0, 2**64, 1000, np.uint64)
    edges, notes = shifted_edges(keys, fractions)
    assert not notes
    usual = split_of(keys, usual_edges(fractions))
    np.testing.assert_array_equal(split_of(keys, edges), usual)
    few = keys[:3]
    edges, notes = shifted_edges(few, fractions)
    assert sorted(split_of(few, edges).tolist()) == [0, 1, 2] and not notes
    assert split_of(few, (END, END)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("bins", [1, 2, 64])
def test_ranges_of_a_run(tmp_path, bins):
    draw = np.random.default_rng(bins)
    index = np.zeros(200, INDEX)
    index["order"] = draw.integers(0, 2**64, 200, np.uint64)
    index["order"][:3] = 0, 2**64 - 1, 2**63
    index["length"] = draw.integers(1, 9, 200)
    tokens = [np.full(n, i, np.uint16) for i, n in enumerate(index["length"])]
    ids = [b"%d" % i for i in range(200)]
    index["id_length"] = [len(name) for name in ids]
    write_run(tmp_path / "run", index, tokens, ids, bins)
    run = RunFile("run", 200, int(index["length"].sum()), int(index["id_length"].sum()))
    edges = [0, *sorted(draw.integers(0, 2**64, 9, np.uint64).tolist()), 2**63, 1 << 64]
    with OpenRun(tmp_path / "run", run, np.dtype(np.uint16), bins) as opened:
        for low, high in zip(sorted(edges)[:-1], sorted(edges)[1:], strict=True):
            part = opened.part(low, high)
            found = [i for i in range(200) if low <= int(index["order"][i]) < high]
            found.sort(key=lambda i: index["order"][i])
            want = [t for i in found for t in tokens[i].tolist()]
            assert opened.tokens(part.token_start, len(want)).tolist() == want
            text = b"".join(ids[i] for i in found)
            assert opened.ids(part.id_start, len(text)) == text
            assert part.rows["order"].tolist() == index["order"][found].tolist()

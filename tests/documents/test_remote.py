"""Documents in object stores: a real S3 server behind a proxy that fails, and fsspec's memory."""

import gzip
import io
import json
import pickle
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from s3_proxy import Plan

from emo_jax.documents import locations
from emo_jax.documents.document_filter import DocumentFilter
from emo_jax.documents.input_files import is_of_documents
from emo_jax.documents.parquet import Columns
from emo_jax.documents.read import ReadReport, find_inputs, read_documents, read_file
from emo_jax.documents.records import Documents, Fields
from emo_jax.errors import DataError, UsageError
from emo_jax.preparation.prepare import prepare
from emo_jax.tokenizer.load import byte_tokenizer

ROOT = Path(__file__).parents[2]


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()


def make_corpus(folder: Path) -> Path:
    """Every kind of file, in folders."""
    rows = pa.table(
        {"text": [f"row {i}" for i in range(2000)], "id": [f"r{i}" for i in range(2000)]}
    )
    for name, content in {
        "law/a.jsonl": lines("a", "b"),
        "law/deep/c.jsonl.gz": gzip.compress(lines("c") * 999),
        "cooking/d.jsonl.zst": zstandard.compress(lines("d") * 999),
        "lang=de #1/a+b%20é: 'x'?.jsonl": lines("names"),
        "notes.md": b"read me",
        ".hidden.jsonl": lines("hidden"),
        "README.md": b"about",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    pq.write_table(rows, folder / "law/rows.parquet", row_group_size=300)
    return folder


def read(*inputs, **settings):
    return list(read_documents(list(inputs), **settings))


@pytest.fixture
def memory(tmp_path):
    """A folder and the same in fsspec's memory."""
    folder = make_corpus(tmp_path / "corpus")
    fs = fsspec.filesystem("memory")
    for file in folder.rglob("*"):
        if file.is_file():
            fs.pipe(f"/b/corpus/{file.relative_to(folder).as_posix()}", file.read_bytes())
    yield folder, "memory://b/corpus"
    fs.rm("/b", recursive=True)


def test_a_folder_of_a_store_is_read_as_one_on_a_disk(memory):
    folder, url = memory
    there, here = ReadReport(), ReadReport()
    assert read(url, report=there) == read(folder, report=here)
    assert there.documents == 4002 and there.summary().replace(url, str(folder)) == here.summary()
    assert read(f"{url}/law/a.jsonl") == read(folder / "law/a.jsonl")
    assert read(f"file://{folder}") == read(folder)


def test_patterns(memory):
    folder, url = memory
    for pattern in ("law/*", "*/*.jsonl*", "**/*.jsonl*", "l?w/[a-b].jsonl"):
        assert read(f"{url}/{pattern}") == read(f"{folder}/{pattern}"), pattern
    with pytest.raises(UsageError, match=r"memory://b/corpus/no-\*: no file fits this pattern"):
        read(f"{url}/no-*")
    fs = fsspec.filesystem("memory")
    for name in ("train-0.jsonl", "test-0.jsonl"):
        fs.pipe(f"/b/splits/{name}", lines(name))
    for given in ("memory://b/splits", "memory://b/splits/*"):
        with pytest.raises(UsageError, match=r"memory://b/splits: holds the splits train .1 file."):
            read(given)
    assert [d.text for d in read("memory://b/splits/train*")] == ["train-0.jsonl"]


def test_ranges_in_any_order():
    """In order, the next range is on its way while another one may be asked for."""
    rng, content = random.Random(0), random.Random(1).randbytes(300_000)
    fsspec.filesystem("memory").pipe("/ranges/a", content)
    for _ in range(20):
        with locations.open_binary(locations.location("memory://ranges/a"), 1 << 12) as file:
            at = 0
            for _ in range(100):
                if rng.random() < 0.2:
                    at = file.seek(rng.randrange(len(content) + 10))
                size = rng.choice((1, 100, 4096, 5000, 20_000))
                assert file.read(size) == content[at : at + size]
                at = min(at + size, max(at, len(content)))


def test_an_answer_that_is_too_short_is_no_end(monkeypatch):
    monkeypatch.setenv("EMO_READ_WAIT", "0")
    fs = fsspec.filesystem("memory")
    fs.pipe("/short/a.txt", b"a text " * 10_000)
    documents = read_documents(["memory://short/a.txt"])
    found = locations.open_binary(locations.location("memory://short/a.txt"))
    fs.store["/short/a.txt"].truncate(100)
    with pytest.raises(DataError, match=r"short/a\.txt: cannot be read .100 of 8192 bytes at 0"):
        found.read()
    assert [len(d.text) for d in documents] == [100]  # opened as it is now


def test_files_go_to_other_processes(memory):
    _, url = memory
    columns = Columns(text="text", names={"--id-field": "id"})
    (found,) = find_inputs([url], ReadReport(), columns)
    files = pickle.loads(pickle.dumps(list(found.files())))
    made = Documents(Fields(), DocumentFilter(), ids=False, report=ReadReport())
    assert [d for f in files for d in read_file(f, made, columns, 10**6)] == read(url)


def test_addresses_that_cannot_be():
    with pytest.raises(
        UsageError, match=r"zork://a/b.jsonl: zork:// is no store that is known; give s3"
    ):
        read("zork://a/b.jsonl")
    with pytest.raises(UsageError, match=r"memory://none/a\.jsonl: no such file or folder"):
        read("memory://none/a.jsonl")


def test_a_store_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(UsageError, match=r"pip install 'emo-jax\[remote\]'"):
        read("s3://a/b.jsonl")


# --- a real server --------------------------------------------------------------------------------


@pytest.fixture
def in_s3(bucket, tmp_path):
    folder = make_corpus(tmp_path / "corpus")
    return folder, bucket.upload(folder, "data/corpus"), bucket


@pytest.mark.system
def test_folders_and_patterns_of_s3(in_s3):
    folder, url, bucket = in_s3
    bucket.put("data/corpus/law/", b"")  # as consoles make folders
    assert read(url) == read(folder) == read(url + "/")
    for pattern in ("*", "law/*", "*/*.jsonl*", "**/*.jsonl*", "law/[ab].jsonl"):
        if pattern == "*":  # notes.md too
            continue
        assert read(f"{url}/{pattern}") == read(f"{folder}/{pattern}"), pattern
    assert read(f"s3://{bucket.name}") != []


@pytest.mark.system
def test_prepare_makes_the_same_store_of_s3(in_s3, tmp_path):
    folder, url, bucket = in_s3
    tokenizer = byte_tokenizer()
    prepare([folder], tmp_path / "here", tokenizer)
    bucket.proxy.plan = Plan(seed=3, share=0.7, most=3)  # each kind is met, whatever the paths
    prepare([url], tmp_path / "there", tokenizer)
    assert bucket.proxy.met.keys() >= {"cut", "reset", "busy"}
    content = [
        {p.relative_to(f).as_posix(): p.read_bytes() for p in f.rglob("*") if p.is_file()}
        for f in (tmp_path / "here", tmp_path / "there")
    ]
    assert [list(json.loads(c.pop("sources.json"))) for c in content] == [[str(folder)], [url]]
    assert content[0] == content[1]


@pytest.mark.system
@pytest.mark.parametrize("seed", range(3))
def test_a_body_that_is_cut_gives_no_document_twice(bucket, monkeypatch, seed):
    """Cut in the middle of lines; every range more often than the libraries try."""
    texts = [f"{i} " + "word " * (i % 300) for i in range(3000)]
    bucket.put("a.jsonl", lines(*texts))
    monkeypatch.setattr(locations, "BLOCK", 1 << 18)
    url = f"s3://{bucket.name}/a.jsonl"
    documents = read_documents([url])
    bucket.proxy.plan = Plan(seed=seed, share=0.8, faults=("cut", "reset", "busy"), most=9)
    assert [d.text for d in documents] == texts
    assert bucket.proxy.met.total() > 1


@pytest.mark.system
def test_an_outage_is_waited_for_and_said(bucket, monkeypatch, caplog):
    bucket.put("a.jsonl", lines("a" * 300_000, "b"))
    url = f"s3://{bucket.name}/a.jsonl"
    monkeypatch.setenv("EMO_READ_WAIT", "8")
    documents = read_documents([url])
    bucket.proxy.plan = Plan(share=1, faults=("busy",))
    begin = time.monotonic()
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read \(.*\) .waited .* s.; check"):
        list(documents)
    assert time.monotonic() - begin < 60
    assert "waiting up to 8 s for it" in caplog.text


@pytest.mark.system
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.tar.gz", "a.txt"])
def test_an_outage_in_any_kind_of_file(bucket, tmp_path, monkeypatch, name):
    table = pa.table({"text": [f"{i} " * 5000 for i in range(1000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=50)
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, 50)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "a.arrow", "a.jpg")
        tar.add(__file__, "a.txt")
    (tmp_path / "a.txt").write_text("a text " * 99)
    bucket.put(name, (tmp_path / name).read_bytes())
    monkeypatch.setenv("EMO_READ_WAIT", "0")
    documents = read_documents([f"s3://{bucket.name}/{name}"])
    bucket.proxy.plan = Plan(share=1, faults=("busy",))
    with pytest.raises(
        DataError, match=rf"s3://.*{name}: cannot be read .Service Unavailable.*check"
    ):
        list(documents)


@pytest.mark.system
def test_what_is_not_there_is_said_in_a_line(bucket, tmp_path):
    bucket.put("a.jsonl", lines("a"))
    for url in ("s3://no-such-bucket-here/a.jsonl", f"s3://{bucket.name}/no.jsonl"):
        with pytest.raises((UsageError, DataError), match=f"{url}: no such file or folder"):
            read(url)
    with pytest.raises(UsageError, match="no file fits this pattern"):
        read(f"s3://{bucket.name}/no-*.jsonl")
    # A process of its own: clients are kept.
    env = {k: v for k, v in bucket.env.items() if "KEY" not in k}
    for extra, message in (
        (env, "credentials"),
        ({**bucket.env, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "127.0.0.1:1"),
    ):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "emo_jax.cli", "prepare", f"s3://{bucket.name}/a.jsonl"),
                *("--output", str(tmp_path / "store"), "--tokenizer", "bytes"),
            ],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **extra},
            capture_output=True,
            text=True,
        )
        assert done.returncode in (1, 2) and message in done.stderr.lower()
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.system
def test_an_object_that_changes_is_not_read_on(bucket, monkeypatch):
    monkeypatch.setattr(locations, "BLOCK", 1 << 16)
    bucket.put("a.jsonl", lines(*["old text"] * 200_000))
    documents = read_documents([f"s3://{bucket.name}/a.jsonl"])
    assert next(documents).text == "old text"
    bucket.put("a.jsonl", lines(*["new text"] * 200_000))
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read .*read it again"):
        list(documents)


@pytest.mark.system
def test_only_what_is_needed_is_asked_for(bucket, tmp_path):
    """A column of ten megabytes beside the text stays where it is; a check reads beginnings."""
    rows = 100
    table = pa.table({"text": ["t"] * rows, "image": [bytes(100_000)] * rows})
    pq.write_table(table, tmp_path / "a.parquet", compression="none", use_dictionary=False)
    bucket.put("rows/a.parquet", (tmp_path / "a.parquet").read_bytes())
    bucket.put("lines/a.jsonl", lines("x" * 1000) * 10_000)
    assert len(read(f"s3://{bucket.name}/rows")) == rows
    ranges = [part for _, path, part in bucket.proxy.requests if "a.parquet" in path and part]
    sizes = [int(r.split("-")[1]) - int(r.split("=")[1].split("-")[0]) + 1 for r in ranges]
    assert sum(sizes) < 1_000_000
    bucket.proxy.forget()
    read_documents([f"s3://{bucket.name}/lines"])
    ranges = [part for _, path, part in bucket.proxy.requests if "a.jsonl" in path and part]
    assert ranges == ["bytes=0-65535"]


@pytest.mark.system
@pytest.mark.parametrize("given", [pytest.param("", marks=pytest.mark.slow), "/*"])
def test_many_files_are_looked_at_at_once(bucket, given):
    """One after the other, with two answers or more each, they would take 80 seconds."""
    for i in range(80):
        bucket.put(f"many/{i:03}.jsonl", lines(f"{i}"))
    bucket.proxy.plan, bucket.proxy.delay_seconds = Plan(share=1, faults=("delay",)), 0.5
    begin = time.monotonic()
    documents = read_documents([f"s3://{bucket.name}/many{given}"])
    assert time.monotonic() - begin < 25
    bucket.proxy.plan = Plan()
    assert [d.text for d in documents] == [str(i) for i in range(80)]


@pytest.mark.system
def test_tar_and_arrow_in_s3(bucket, tmp_path):
    datasets.Dataset.from_dict({"text": ["x " * 1000] * 2000}).save_to_disk(tmp_path / "in/saved")
    with tarfile.open(tmp_path / "in/a.tar", "w") as tar:
        for i in range(300):
            made, content = tarfile.TarInfo(f"{i}.txt"), f"{i} ".encode() * 4000
            made.size = len(content)
            tar.addfile(made, io.BytesIO(content))
    url = bucket.upload(tmp_path / "in", "in")
    documents = read_documents([url])
    bucket.proxy.plan = Plan(seed=1, share=0.3, faults=("cut", "reset"), most=2)
    assert list(documents) == read(tmp_path / "in")
    assert bucket.proxy.met.total() > 0


def test_files_of_documents_and_stores_by_their_names():
    """`emo select --data` takes both."""
    assert is_of_documents("s3://bucket/a.jsonl.zst") and is_of_documents("gs://bucket/a.parquet")
    assert not is_of_documents("s3://bucket/store") and not is_of_documents("/none/a.jsonl")

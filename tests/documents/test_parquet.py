import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emo_jax.documents import parquet
from emo_jax.documents.document_filter import DocumentFilter
from emo_jax.documents.read import Document, ReadReport, read_documents
from emo_jax.errors import DataError, UsageError
from emo_jax.preparation.prepare import prepare
from emo_jax.tokenizer.load import byte_tokenizer

ROOT = Path(__file__).parents[2]


def write(path, records, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(records), path, **settings)
    return path


def content(folder):
    """The files of a store but the one that names the inputs."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "sources.json")
    return {p.relative_to(folder): p.read_bytes() for p in files}


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_the_store_is_that_of_the_same_jsonl(corpus, store_path, tmp_path, compression):
    records = [json.loads(line) for line in corpus.read_text().splitlines()]
    path = write(tmp_path / "a.parquet", records, compression=compression, row_group_size=70)
    report = prepare([path], tmp_path / "store", byte_tokenizer())
    assert report.read.documents == 600
    assert content(tmp_path / "store") == content(store_path)


def test_folder_of_both_kinds(tmp_path):
    rows = [{"text": "row", "id": None, "domain": ""}, {"text": "named", "id": 7, "domain": "x"}]
    write(tmp_path / "web/b.parquet", rows)
    (tmp_path / "web/a.jsonl").write_text('{"text": "line"}\n')
    assert list(read_documents([tmp_path])) == [
        Document("line", "web/a.jsonl:1", "web"),
        Document("row", "web/b.parquet:1", "web"),
        Document("named", "7", "x"),
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_fields_inside_others(tmp_path, kind):
    record = {"body": {"text": "t"}, "meta": {"key": 5, "from": {"site": "s"}}, "meta.key": "own"}
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        write(path, [record])
    else:
        path.write_text(json.dumps(record) + "\n")
    names = dict(text_field="body.text", id_field="meta.key", domain_field="meta.from.site")
    assert list(read_documents([path], **names)) == [Document("t", "own", "s")]  # the very name
    names["id_field"] = "meta.from.site"
    assert list(read_documents([path], **names)) == [Document("t", "s", "s")]


def test_only_the_columns_asked_for_are_read(tmp_path):
    record = {"text": "t", "more": "x", "meta": {"lang": "en", "junk": "x"}}
    path = write(tmp_path / "a.parquet", [record])
    columns = parquet.Columns(text="text", names={"--id-field": "id"}, language="meta.lang")
    assert list(columns.rows(path)) == [({"text": "t", "meta.lang": "en"}, "")]


def invalid_utf8() -> pa.Array:
    offsets = pa.array([0, 4, 8, 12], pa.int32()).buffers()[1]
    return pa.Array.from_buffers(
        pa.string(), 3, [None, offsets, pa.py_buffer(b"good\xff\xfe\xfd\xfcfine")]
    )


def test_bad_rows_are_counted_and_named(tmp_path):
    columns = {
        "null": (pa.array(["a", None, "b"]), "field 'text' is not a string"),
        "utf8": (invalid_utf8(), "invalid UTF-8"),
        "bytes": (pa.array([b"a", b"\xff", b"b"]), "invalid UTF-8"),
        "empty": (pa.array(["a", " \n", "b"]), "empty document"),
    }
    for name, (column, why) in columns.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"text": column}), path)
        report = ReadReport()
        assert len(list(read_documents([path], report=report))) == 2
        assert report.examples == [f"{path}:2: {why}"]
        assert dict(report.skipped) == {why: 1}
        with pytest.raises(DataError, match=f"{name}.parquet:[12]: {why}"):
            list(read_documents([path], strict=True))


def test_no_such_column_is_found_before_any_work(tmp_path):
    write(tmp_path / "a.parquet", [{"text": "x"}])
    write(tmp_path / "b.parquet", [{"content": "x", "meta": {"url": "u"}}])
    with pytest.raises(DataError, match=r"b\.parquet: no column 'text'; it has content, meta: .*"):
        read_documents([tmp_path])
    assert len(list(read_documents([tmp_path / "b.parquet"], text_field="content"))) == 1


def test_no_language_to_choose_by_is_found_before_any_work(tmp_path):
    write(tmp_path / "a.parquet", [{"text": "x", "meta": {"lang": "de"}}])
    write(tmp_path / "b.parquet", [{"text": "x", "meta": {"url": "u"}}])
    german = DocumentFilter(language_field="meta.lang", languages=("de",))
    with pytest.raises(DataError, match=r"b\.parquet: no column 'meta.lang'; .* --language-field"):
        read_documents([tmp_path], wanted=german)
    assert len(list(read_documents([tmp_path / "a.parquet"], wanted=german))) == 1
    assert len(list(read_documents([tmp_path]))) == 2  # no language asked for


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "page"])
def test_damaged_file(tmp_path, damage):
    path = write(tmp_path / "a.parquet", [{"text": "words " * 50} for _ in range(500)])
    whole = path.read_bytes()
    if damage == "page":  # the end, which is looked at first, is as it was
        path.write_bytes(whole[:4] + b"\xff" * 200 + whole[204:])
    else:
        path.write_bytes({"empty": b"", "cut": whole[:-9], "text": b"no parquet" * 9}[damage])
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet .*copy") as caught:
        list(read_documents([tmp_path]))
    assert "\n" not in str(caught.value)


def test_pyarrow_not_installed(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", [{"text": "x"}])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"a\.parquet: pyarrow .* pip install 'emo-jax\[prepare\]'"
    ):
        read_documents([tmp_path])


@pytest.mark.parametrize(
    "value", ["de", ["de", "en"], {"de": 0.9, "en": 0.1}, [("en", 0.1), ("de", 0.9)]]
)
def test_languages_as_parquet_holds_them(tmp_path, value):
    if isinstance(value, list) and isinstance(value[0], tuple):
        kind = pa.map_(pa.string(), pa.float64())
    else:
        kind = pa.array([value]).type
    table = pa.table({"text": ["a", "b"], "lang": pa.array([value, None], kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    report = ReadReport()
    german = DocumentFilter(language_field="lang", languages=("de",))
    found = list(read_documents([tmp_path], wanted=german, report=report))
    assert [d.text for d in found] == ["a"]
    assert dict(report.dropped) == {"--language: no 'lang'": 1}


READ = """
import sys
import pyarrow.parquet
from emo_jax.documents.read import read_documents
def peak():  # of this program; getrusage counts the memory of the process it was forked from
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024
before = peak()
size = sum(len(d.text) for d in read_documents([sys.argv[1]]))
print(size, peak() - before)
"""


def test_memory_does_not_grow_with_a_row_group(tmp_path):
    """One row group of 200 MB, the worst case; read whole it would take more than that."""
    path = tmp_path / "a.parquet"
    schema = pa.schema([("text", pa.string()), ("id", pa.string())])
    table = pa.table({"text": ["word " * 400] * 100_000, "id": map(str, range(100_000))}, schema)
    pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=100_000)
    assert path.stat().st_size > 200_000_000
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    size, grown = map(int, done.stdout.split())
    assert size == 200_000_000
    assert grown < 100, f"{grown} MB"

"""The tables of docs/data.md, row by row: what is found, and what is done."""

import gzip
import io
import json
import os
import re
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from emo_jax.documents.document_filter import DocumentFilter
from emo_jax.documents.read import ReadReport, read_documents
from emo_jax.errors import DataError, EmoError, UsageError
from emo_jax.preparation.prepare import prepare
from emo_jax.tokenizer.load import byte_tokenizer

DOCS = Path(__file__).parents[2] / "docs/data.md"
ROWS: dict[str, Callable[[Path], None]] = {}
ELSEWHERE = {
    # Need seqio, see test_seqio_tasks.py: test_an_end_of_document_inside_of_an_example,
    # test_examples_that_are_no_text.
    "several documents in an example of a seqio task, with ends between them",
    "an example of a seqio task with ids outside of its vocabulary",
    # Likewise: test_another_feature.
    "features of a seqio task beside the one that is read, such as `inputs`",
}
GOOD = '{"text": "good"}\n'


def row(found: str):
    def add(test):
        ROWS[found] = test
        return test

    return add


def read(*inputs, **settings):
    """(texts, report)."""
    report = ReadReport()
    return [d.text for d in read_documents(inputs, report=report, **settings)], report


def documents(path, **settings):
    return list(read_documents([path], **settings))


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def counted(path: Path, line: str | bytes, why: str) -> None:
    content = line.encode() if isinstance(line, str) else line
    write(path / "a.jsonl", GOOD.encode() + content + b"\n" + GOOD.encode())
    texts, report = read(path / "a.jsonl")
    assert texts == ["good", "good"] and dict(report.skipped) == {why: 1}
    with pytest.raises(DataError, match=re.escape(f"a.jsonl:2: {why}")):
        read(path / "a.jsonl", strict=True)


def left_out(folder: Path, what: str, *, strict: bool = True) -> None:
    """Counted beside a good file, and in the report."""
    write(folder / "good.jsonl", GOOD)
    texts, report = read(folder)
    assert texts == ["good"]
    (said,) = report.files_left_out()
    assert re.search(what, said) and said in report.summary()
    if strict:
        with pytest.raises(DataError, match="--strict"):
            read(folder, strict=True)


def refused(path: Path, message: str, kind: type[EmoError] = EmoError, **settings) -> None:
    """Before anything is read."""
    with pytest.raises(kind, match=message) as caught:
        read_documents([path], **settings)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def foreign(folder: Path, name: str, content: str | bytes, message: str) -> None:
    """Refused as an input, left out of a folder."""
    file = write(folder / name, content)
    refused(file, message)
    known = Path(name).suffix in (".png", ".mp3", ".so", ".safetensors", ".idx")
    left_out(folder, message, strict=not known)
    assert not known or read(folder, strict=True)[0] == ["good"]
    file.unlink()


def table(path: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


# --- lines and texts ------------------------------------------------------------------------------


@row("a line that is no JSON, is nested too deep, or has a number of more than 4300 digits")
def _(path):
    counted(path, '{"text": "cut', "broken JSON")
    counted(path, '{"text": ' + "[" * 9999, "JSON that is nested too deep")
    counted(path, '{"text": "", "n": ' + "1" * 4301 + "}", "JSON with a number of too many digits")


@row(
    "a line that is no object or has no text field; a text that is no string, is blank, or has half"
    " of a surrogate pair"
)
def _(path):
    counted(path, "[1]", "not a JSON object")
    counted(path, "{}", "no field 'text'")
    counted(path, '{"text": NaN}', "field 'text' is not a string")
    counted(path, '{"text": " "}', "empty document")
    counted(path, '{"text": "\\udc00"}', "half of a surrogate pair")


@row("bytes that are not UTF-8, such as Latin-1")
def _(path):
    counted(path, '{"text": "café"}'.encode("latin-1"), "invalid UTF-8")
    write(path / "texts/a.txt", "café".encode("latin-1"))
    write(path / "texts/b.txt", "fine")
    assert dict(read(path / "texts")[1].skipped) == {"invalid UTF-8": 1}


@row(
    "UTF-16 and UTF-32, with a mark, or without where they begin as JSON or with ASCII; a mark"
    " inside of the file"
)
def _(path):
    for codec in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"):
        line = '{"text": "日本 für"}\n'
        assert read(write(path / "a.jsonl", (line + line).encode(codec)))[0] == ["日本 für"] * 2
        assert read(write(path / "a.txt", "für 日本".encode(codec)))[0] == ["für 日本"]
        for text in ("日本の裁判所" * 9, "𝄞" * 40):  # of which hardly anything is ASCII
            line = f'{{"text":"{text}"}}\n'
            assert read(write(path / "a.jsonl", line.encode(codec)))[0] == [text]
    assert read(write(path / "a.jsonl", GOOD + "\ufeff" + GOOD))[0] == ["good"] * 2


@row("lines that end in LF, CR LF, or (where a file has no LF) CR; U+2028 in a line")
def _(path):
    for end in ("\n", "\r\n", "\r"):
        lines = f'{{"text": "a\u2028b\x85"}}{end}{{"text": "c"}}{end}'
        found = documents(write(path / "a.jsonl", lines))
        assert [(d.text, d.id) for d in found] == [
            ("a\u2028b\x85", "a.jsonl:1"),
            ("c", "a.jsonl:2"),
        ]


@row("the same key twice in a line")
def _(path):
    assert read(write(path / "a.jsonl", '{"text": "a", "text": "b"}'))[0] == ["b"]


@row("blank lines")
def _(path):
    found = documents(write(path / "a.jsonl", f"\n \n{GOOD}\r\n\n{GOOD}"))
    assert [d.id for d in found] == ["a.jsonl:3", "a.jsonl:6"]


@row("an id or domain that is missing, null, NaN or blank")
def _(path):
    for value in ("null", "NaN", '""', '" "'):
        line = f'{{"text": "t", "id": {value}, "domain": {value}}}'
        (found,) = documents(write(path / "a.jsonl", line))
        assert (found.id, found.domain) == ("a.jsonl:1", "unknown")
        _, report = read(path / "a.jsonl", id_field="id", domain_field="no")
        assert report.without == {"field 'no' (--domain-field)": 1}
        inner = write(path / "b.jsonl", f'{{"text": "t", "meta": {{"a": {value}}}}}')
        _, report = read(inner, domain_field="meta.a")
        assert report.without == {"field 'meta.a' (--domain-field)": 1}
    (found,) = documents(table(path / "a.parquet", text=["t"], id=[float("nan")], domain=[None]))
    assert (found.id, found.domain) == ("a.parquet:1", "unknown")


@row("an id or domain that is a number or bytes")
def _(path):
    lines = '{"text": "t", "id": 3.0, "domain": 7}\n{"text": "t", "id": 0.5, "domain": "3.0"}\n'
    found = documents(write(path / "a.jsonl", lines))
    assert [(d.id, d.domain) for d in found] == [("3", "7"), ("0.5", "3.0")]
    (found,) = documents(table(path / "a.parquet", text=["t"], id=[b"\xff\x01"], domain=[b"law"]))
    assert (found.id, found.domain) == ("ff01", "law")


@row(
    "an id or domain that is a list, an object, true or false, infinite, has NULs; a domain of more"
    " than 1000 characters"
)
def _(path):
    for value in ('["a"]', '{"a": 1}', "true", "-Infinity", '"a\\u0000"', f'"{"x" * 1001}"'):
        long = "x" in value
        line = f'{{"text": "t", "id": {0 if long else value}, "domain": {value}}}'
        report = ReadReport()
        (found,) = documents(write(path / "a.jsonl", line), report=report)
        assert (found.id, found.domain) == ("0" if long else "a.jsonl:1", "unknown")
        assert report.unnamed.total() == 2 - long
        assert all(why in report.summary() for why in report.unnamed)


@row("a line, text file, row or example above `--max-document-mb` (16)")
def _(path):
    why = "longer than 5e-05 MB (emo prepare --max-document-mb)"
    long = "word " * 20
    files = [
        write(path / "a.jsonl", GOOD + json.dumps({"text": long})),
        write(path / "a.txt.gz", gzip.compress(long.encode())),
        table(path / "a.parquet", text=["x", long]),
    ]
    texts, report = read(*files, max_document_bytes=50)
    assert texts == ["good", "x"] and dict(report.skipped) == {why: 3}
    assert len(read(*files)[0]) == 5


@row("a line of more than 1 GiB, Parquet texts of 64 MB a row")
def _(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emo_jax.documents.text_files._ENDLESS", 1 << 20)
        write(path / "a.jsonl", GOOD.encode() + b'"' + b"x" * (3 << 20))
        with pytest.raises(DataError, match=r"line 2 has more than . MB; it is no file of"):
            read(path / "a.jsonl", max_document_bytes=1000)
        patch.setattr("emo_jax.documents.parquet._LEAST_REFUSED", 0)
        file = table(path / "a.parquet", text=["x" * 4500, "y" * 4500])
        refused(file, "column 'text' has 0 MB a row; cut its texts", max_document_bytes=1000)
        assert len(read(file, max_document_bytes=4500)[0]) == 2


@row("`.gz` and `.zst`, also in capitals, of several parts")
def _(path):
    pack = {".GZ": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    for suffix, packed in pack.items():
        for name, text, expected in (
            ("a.JSONL", GOOD, ["good"] * 2),
            ("a.txt", "good\n", ["good\ngood\n"]),
        ):
            parts = packed(text.encode()) + packed(b"") + packed(text.encode())
            assert read(write(path / f"{name}{suffix}", parts))[0] == expected


@row("a packed file that is cut short, damaged, or not packed as its name says")
def _(path):
    for suffix, packed in ((".gz", gzip.compress), (".zst", zstandard.compress)):
        whole = packed(os.urandom(999).hex().encode())
        for content in (whole[:-9], whole[:4] + b"\xff" * 80 + whole[84:], GOOD.encode(), b""):
            for name in ("a.jsonl", "a.txt"):
                with pytest.raises(DataError, match=r"a\.(jsonl|txt).*: cannot be read \("):
                    read(write(path / f"{name}{suffix}", content))


@row("lines of JSON in files that are not called so, such as `part-00000`, `a.jsonl.1`, `a.txt`")
def _(path):
    other = '{"body": "a"}\n{"body": "b"}\n'
    for name in ("part-00000", "a.jsonlines", "a.jsonl-00000-of-00002", "a.txt"):
        for content in (GOOD, other):
            file = write(path / name / name, content)
            with pytest.raises(DataError, match=rf"1 x lines of JSON.*\(name it \.jsonl\).*{name}"):
                read(file.parent)
            for beside in ("good.txt", "good.py"):
                write(path / name / beside, "good")
            assert read(file.parent)[0] == ["good"] * 2
            with pytest.raises(DataError, match="--strict"):
                read(file.parent, strict=True)
            for beside in ("good.txt", "good.py"):
                (path / name / beside).unlink()
            with pytest.raises(DataError, match=r"1 x lines of JSON"):
                read(file.parent, max_document_bytes=5)
    refused(file, "lines of JSON, no text; name it .jsonl", DataError)
    for content in ('{"type": "Feature"}', "{}\n", '{"text": "cut', "{\n}"):  # of programs
        assert read(write(path / "a.geojson", content).parent)[0] == [content]


@row("one JSON array, or JSON over several lines")
def _(path):
    array = [{"text": "a"}, {"text": "b"}]
    for content in (
        json.dumps(array),
        json.dumps(array, indent=1),
        "[\n" + GOOD[:-1] + ",\n" + "]",
    ):
        foreign(path, "a.json", content, "one JSON array")
    foreign(
        path, "a.jsonl", json.dumps({"text": "a", "id": 1}, indent=1), "JSON over several lines"
    )


@row("one that grows to more than 1000 times its size and 64 MB, as gzip cannot")
def _(path):
    packed = zstandard.compress(GOOD.encode() * 4000)
    assert len(GOOD) * 4000 > 100 * len(packed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emo_jax.documents.archives.GROWTH", 100)
        assert len(read(write(path / "a.jsonl.zst", packed))[0]) == 4000  # less than any may be
        patch.setattr("emo_jax.documents.archives.ALWAYS", 0)
        for name in ("a.jsonl.zst", "a.txt.zst"):
            with pytest.raises(DataError, match=rf"{name}: cannot be read .*grows to more than"):
                read(write(path / name, packed))


# --- Parquet --------------------------------------------------------------------------------------


@row("a text column of large strings, string views, bytes or dictionaries")
def _(path):
    for kind in (pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()):
        column = pa.array(["good", None, "ü"], pa.string()).cast(kind)
        assert read(table(path / "a.parquet", text=column))[0] == ["good", "ü"]
    column = pa.array(["good", None, "ü"]).dictionary_encode()
    found = documents(table(path / "a.parquet", text=column, domain=column))
    assert [(d.text, d.domain) for d in found] == [("good", "good"), ("ü", "ü")]


@row("a text column of lists of texts, or of structs with a text that is named: `paragraphs.text`")
def _(path):
    values = [["a", "b"], ["c", None], [], None]
    rows = [{"text": v, "p": v and [{"text": t, "n": 1} for t in v]} for v in values]
    file = write(path / "a.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    for kind in (pa.list_(pa.string()), pa.large_list(pa.binary()), pa.list_(pa.large_string())):
        column = pa.array([r["p"] for r in rows])
        lists = table(path / "a.parquet", text=pa.array(values).cast(kind), p=column)
        for field in ("text", "p.text"):
            for given in (file, lists):
                texts, report = read(given, text_field=field)
                assert texts == ["a\nb", "c"], (given, field)
                assert report.skipped == {
                    "empty document": 1,
                    f"field {field!r} is not a string"
                    if field == "text" or given == lists
                    else "no field 'p.text'": 1,
                }
    deep = [{"a": [{"b": [{"c": "x"}, {"c": "y"}]}, {"b": [{"c": "z"}]}]}]
    for given in (
        write(path / "a.jsonl", json.dumps(deep[0])),
        table(path / "a.parquet", a=[r["a"] for r in deep]),
    ):
        assert read(given, text_field="a.b.c")[0] == ["x\ny\nz"]
        assert read(given, text_field="a.0.b.c")[0] == ["x\ny"]


@row("a place in a list, counted from 0: `choices.0.text`")
def _(path):
    rows = [{"c": [{"text": "a"}, {"text": "b"}]}, {"c": [{"text": "c"}]}, {"c": []}]
    for given in (
        write(path / "a.jsonl", "".join(json.dumps(r) + "\n" for r in rows)),
        table(path / "a.parquet", c=[r["c"] for r in rows]),
    ):
        assert read(given, text_field="c.0.text")[0] == ["a", "c"]
        texts, report = read(given, text_field="c.1.text", domain_field="c.0.text")
        assert texts == ["b"] and report.skipped.total() == 2
        (found,) = documents(given, text_field="c.1.text", domain_field="c.0.text")
        assert found.domain == "a"


@row(
    "a text column of anything else, such as the messages of a chat; an id or domain column of"
    " lists, structs, maps or durations"
)
def _(path):
    chat = [[{"role": "user", "content": "a"}]]
    for values in ([1], [1.5], [[1]], chat, [{"a": "b"}], [True], [None]):
        refused(
            table(path / "a.parquet", text=values), "column 'text' holds .*, no text; .*--text-f"
        )
    for values in (
        [["a"]],
        [{"a": "b"}],
        pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        pa.array([5], pa.duration("ns")),
    ):
        for name in ("id", "domain"):
            file = table(path / "a.parquet", text=["t"], **{name: values})
            refused(file, f"column '{name}' holds .*, which is no name; .*--{name}-field")
        file = table(path / "a.parquet", text=["t"], meta=[{"a": ["b"]}])
        refused(file, "column 'meta.a' holds list", domain_field="meta.a")


@row("ids and domains that are points in time, also of nanoseconds")
def _(path):
    begin = 1577836800 * 10**9
    counts = [begin, begin + 1, begin + 1000, begin + 10**9, None, -1]
    expected = [
        *("2020-01-01 00:00:00", "2020-01-01 00:00:00.000000001", "2020-01-01 00:00:00.000001"),
        *("2020-01-01 00:00:01", "a.parquet:5", "1969-12-31 23:59:59.999999999"),
    ]
    column = pa.array(counts, pa.timestamp("ns"))
    n = len(counts)
    file = table(path / "a.parquet", text=["t"] * n, id=column, meta=[{"at": i} for i in column])
    assert [d.id for d in documents(file)] == expected
    found = [d.domain for d in documents(file, domain_field="meta.at")]
    assert found == [*expected[:4], "unknown", expected[5]]
    coarse = pa.array([begin // 1000, begin // 1000 + 1], pa.timestamp("us"))
    file = table(path / "a.parquet", text=["t"] * 2, id=coarse)
    assert [d.id for d in documents(file)] == [expected[0], expected[2]]
    for kind, count in (
        *((pa.timestamp("us"), -(2**62)), (pa.timestamp("ms"), 2**61), (pa.date32(), 2**30)),
        (pa.timestamp("ns", "Mars/Phobos"), 5),
    ):  # beyond Python's years and zones
        column = pa.array([count, None, 86_400], kind)
        zone = "Mars" in str(kind)  # Parquet keeps that of no dictionary
        for at in (column,) if zone else (column, column.dictionary_encode()):
            found = documents(table(path / "a.parquet", text=["t"] * 3, id=at))
            assert [d.id for d in found[:2]] == [f"{count}", "a.parquet:2"]
            assert zone != ("-" in found[2].id)
    zoned = pa.array([begin + 1], pa.timestamp("ns", "UTC")).dictionary_encode()
    file = table(path / "a.parquet", text=["t"], id=zoned, domain=pa.array([1], pa.time64("ns")))
    (found,) = documents(file)
    assert found.id == "2020-01-01 00:00:00.000000001+00:00"
    assert found.domain == "00:00:00.000000001"


@row("a file that is damaged, cut short, or without the text column")
def _(path):
    whole = table(path / "a.parquet", text=["t"]).read_bytes()
    for content in (b"", whole[:-9], b"PAR1" + whole[:20]):
        refused(write(path / "a.parquet", content), "cannot be read as Parquet", DataError)
    refused(table(path / "a.parquet", body=["t"]), "no column 'text'; it has body", DataError)


# --- Arrow ---------


def saved(folder: Path, number: int = 6, **columns) -> Path:
    columns = {"text": [f"row {i}" for i in range(number)], **columns}
    datasets.Dataset.from_dict(columns).save_to_disk(folder, num_shards=2)
    return folder


@row("Arrow files and streams (`.arrow`, `.feather`), also compressed")
def _(path):
    found = pa.table({"text": ["a", None, "b"], "id": ["1", "2", "3"], "domain": ["x", "y", "z"]})
    for name, opened in (("a.arrow", pa.ipc.new_stream), ("a.feather", pa.ipc.new_file)):
        for packing in (None, "lz4", "zstd"):
            options = pa.ipc.IpcWriteOptions(compression=packing)
            with opened(path / name, found.schema, options=options) as writer:
                for _ in range(3):
                    writer.write_table(found)
            expected = [("a", "1", "x"), ("b", "3", "z")] * 3
            assert [tuple(d) for d in documents(path / name)] == expected
    bare = found.select(["text"])
    (path / "law").mkdir()
    with pa.ipc.new_stream(path / "law/b.arrow", bare.schema) as writer:
        writer.write_table(bare)
    assert [(d.id, d.domain) for d in documents(path)][-2:] == [
        ("law/b.arrow:1", "law"),
        ("law/b.arrow:3", "law"),
    ]


@row("one that is damaged, cut short, or without the text column")
def _(path):
    found = pa.table({"text": ["word " * 99] * 999})
    for opened in (pa.ipc.new_stream, pa.ipc.new_file):
        with opened(path / "a.arrow", found.schema) as writer:
            writer.write_table(found, 100)
        whole = (path / "a.arrow").read_bytes()
        for content in (b"", whole[:3], whole[:-8], whole[: len(whole) // 2], whole + whole):
            file = write(path / "b.arrow", content)
            if content == whole + whole and opened is pa.ipc.new_file:
                continue  # its end says what is in it
            with pytest.raises(
                DataError, match=r"b\.arrow: cannot be read as Arrow .*copy it again"
            ):
                read(file)
        file = write(path / "b.arrow", whole)
        refused(file, "no column 'body'; it has text", DataError, text_field="body")
    bad = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 99999, 2], "<i4")), pa.py_buffer(b"ab")]
    )
    with pa.ipc.new_stream(path / "b.arrow", pa.schema([("text", pa.string())])) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([bad], ["text"]))
    with pytest.raises(DataError, match=r"b\.arrow: cannot be read as Arrow .*[Oo]ffset"):
        read(path / "b.arrow")


@row("a folder of `save_to_disk`; what `datasets` has cached in it")
def _(path):
    folder = saved(path / "saved", id=list(range(6)))
    texts, report = read(folder, strict=True)
    assert texts == [f"row {i}" for i in range(6)] and report.documents == 6
    assert report.left_out["what describes the data"][0] == 2
    loaded = datasets.load_from_disk(folder)
    loaded.map(lambda r: {"text": r["text"] * 2})
    assert list(folder.glob("cache-*.arrow"))
    texts, report = read(folder)
    assert len(texts) == 6 and report.left_out["what datasets has cached"][0] == 1
    assert [d.id for d in documents(folder)] == list("012345")


@row("a file that `state.json` names and that is not there")
def _(path):
    folder = saved(path / "saved")
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00002.arrow: missing, state.json names it"):
        read(folder)
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"][0]["filename"] = "../a.arrow"
    write(folder / "state.json", json.dumps(state))
    with pytest.raises(DataError, match=r"state.json: names a file outside of its folder"):
        read(folder)


@row("a `DatasetDict` of several splits")
def _(path):
    splits = {s: datasets.Dataset.from_dict({"text": [s]}) for s in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(path / "all")
    refused(path / "all", r"holds the splits train .1 file., test", UsageError)
    assert read(path / "all/train")[0] == ["train"]
    datasets.DatasetDict(train=splits["train"]).save_to_disk(path / "one")
    assert read(path / "one")[0] == ["train"]


# --- tar ----------


def tar(path: Path, members: dict[str, str | bytes | None], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as file:
        for name, content in members.items():
            made = tarfile.TarInfo(name)
            if content is None:
                made.type, made.linkname = tarfile.SYMTYPE, "/etc/passwd"
                file.addfile(made)
                continue
            content = content.encode() if isinstance(content, str) else content
            made.size = len(content)
            file.addfile(made, io.BytesIO(content))
    return path


@row("a WebDataset: `7.txt`, `7.json`, `7.jpg`, … in a row")
def _(path):
    members = {
        "0000.jpg": b"\xff\xd8\xff",
        "0000.txt": "first",
        "sub/0001.cls": "3",
        "sub/0001.text": "second",
        "0002.json": '{"text": "third", "id": "own", "domain": "law"}',
        "0003.jpg": b"x",
    }
    expected = [
        ("first", "a.tar:0000", "unknown"),
        ("second", "a.tar:sub/0001", "unknown"),
        ("third", "own", "law"),
    ]
    for name in ("a.tar", "a.tar.gz", "a.TGZ", "a.tar.zst"):
        file = tar(path / "a.tar", members)
        if name != "a.tar":
            pack = zstandard.compress if name.endswith("zst") else gzip.compress
            file = write(path / name, pack(file.read_bytes()))
        ids = [(t, i.replace("a.tar", name) if ":" in i else i, d) for t, i, d in expected]
        report = ReadReport()
        assert [tuple(d) for d in documents(file, report=report)] == ids
        assert report.left_out == {
            "an image in an archive": (2, f"{file}:0000.jpg"),
            ".cls in an archive": (1, f"{file}:sub/0001.cls"),
        }
        file.unlink()
    tar(path / "shards/law/train-0.tar", members)
    tar(path / "shards/law/train-1.tar", members)
    write(path / "shards/sizes.json", '{"train-0.tar": 4}')
    found = documents(path / "shards")
    assert len(found) == 6 and found[0].id == "law/train-0.tar:0000" and found[0].domain == "law"
    tar(path / "shards/law/test-0.tar", members)
    refused(path / "shards", "holds the splits train .2 files., test", UsageError)


@row("`.json` beside `.txt`")
def _(path):
    about = {"id": "7", "domain": "law", "language": "de", "text": "caption of another"}
    file = tar(path / "a.tar", {"a.json": json.dumps(about), "a.txt": "x", "b.txt": "y"})
    assert [tuple(d) for d in documents(file)] == [("x", "7", "law"), ("y", "a.tar:b", "unknown")]
    wanted = DocumentFilter(languages=("de",))
    assert [d.text for d in documents(file, wanted=wanted)] == ["x"]
    bad = {"a.json": "{", "a.txt": "x", "b.json": "[1]", "b.txt": "y", "c.txt": "1", "c.text": "2"}
    texts, report = read(tar(path / "a.tar", {**bad, "d.json": b'"\xff"', "e.txt": "z"}))
    assert texts == ["z"] and report.skipped == {
        "broken JSON": 1,
        "not a JSON object": 1,
        "a second .txt in a sample of an archive": 1,
        "invalid UTF-8": 1,
    }


@row("other `.txt` and `.md`")
def _(path):
    members = {"./a/readme.v1.md": "one", "a/readme.v2.md": "two", "b.md": "three", "c.1.TXT": "4"}
    found = documents(tar(path / "a.tar", members))
    names = ["a/readme.v1.md", "a/readme.v2.md", "b.md", "c.1.TXT"]
    assert [d.id for d in found] == [f"a.tar:{n}" for n in names]
    assert [d.text for d in found] == ["one", "two", "three", "4"]
    big = tar(
        path / "a.tar", {"a.txt": "x" * 99, "b.md": "x" * 99, "c.txt": "für".encode("utf-16")}
    )
    texts, report = read(big, max_document_bytes=50)
    assert texts == ["für"] and report.skipped.total() == 2


@row("images and other members; links, devices and sparse files")
def _(path):
    members = {"a.txt": "x", "b.png": b"x", "c": "no ending", "d.txt": None, ".hidden.txt": "h"}
    texts, report = read(tar(path / "a.tar", members), strict=True)
    assert texts == ["x"]
    assert {what: count for what, (count, _) in report.left_out.items()} == {
        "an image in an archive": 1,
        "a file without an ending in an archive": 1,
        "a link, device or sparse file in an archive": 1,
    }


@row("lines, rows and packed texts in an archive")
def _(path):
    for name in ("a.jsonl", "a.parquet", "b.c.txt.gz", "data.csv", "x.pdf"):
        file = tar(path / "a.tar", {"a.txt": "x", name: "y"})
        texts, report = read(file)
        assert texts == ["x"] and len(report.left_out) == 1
        with pytest.raises(DataError, match="--strict"):
            read(file, strict=True)


@row("an archive that is damaged, cut short, has no end, or has more behind its end")
def _(path):
    members = {f"{i}.txt": f"{i} " * 400 for i in range(40)}
    whole = tar(path / "a.tar", members).read_bytes()
    assert len(read(path / "a.tar")[0]) == 40
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for cut in (end, end - 512, end - 1536, end - 1537, 512, 513, 1024, 5000):
        with pytest.raises(DataError, match=r"b\.tar: (cannot be read|not a tar archive)"):
            read(write(path / "b.tar", whole[:cut]))
    header = whole.index(b"7.txt")
    damaged = whole[:header] + b"\xff" * 100 + whole[header + 100 :]
    for content in (damaged, whole + whole, b"text" * 999, b""):
        with pytest.raises(DataError, match=r"b\.tar: (cannot be read|not a tar archive)"):
            read(write(path / "b.tar", content))
    for name, packed in (
        ("b.tar.gz", gzip.compress(whole)),
        ("b.tar.zst", zstandard.compress(whole)),
    ):
        assert len(read(write(path / name, packed))[0]) == 40
        with pytest.raises(DataError, match=rf"{name}: cannot be read"):
            read(write(path / name, packed[:-9]))


# --- folders --------------------------------------------------------------------------------------


@row("README, LICENSE, `dataset_infos.json` and the like beside lines, rows or other data")
def _(path):
    """Of a folder as the hub has them."""
    table_folder = path / "hub/data"
    table_folder.mkdir(parents=True)
    for i in range(2):
        table(table_folder / f"train-0000{i}-of-00002.parquet", text=[f"row {i}"])
    for name in ("README.md", "LICENSE", "dataset_infos.json", ".gitattributes", "CITATION.cff"):
        write(path / "hub" / name, '{"about": "it"}')
    texts, report = read(path / "hub")
    assert texts == ["row 0", "row 1"]
    (said,) = report.files_left_out()
    assert said.startswith("4 x what describes the data left out, the first: ")
    assert read(path / "hub", strict=True)[0] == texts
    for name in ("a.csv", "0.zip", "train.tfrecord", "a.orc", "a.json"):
        write(path / name / name, '[{"text": "a"}]')
        write(path / name / "README.md", "about")
        with pytest.raises(DataError, match=r"no usable document .*1 x what describes the data"):
            read(path / name)
    hub = path / "hub"
    for inputs in ([hub / "*"], sorted(hub.glob("[!.]*")), [hub / "**"]):
        with pytest.raises(UsageError, match="unknown kind of file"):  # CITATION.cff, LICENSE
            read(*inputs)
    for name in ("CITATION.cff", "LICENSE"):
        (hub / name).unlink()
    for inputs in ([hub / "*"], sorted(hub.glob("[!.]*"))):
        texts, report = read(*inputs)
        assert texts == ["row 0", "row 1"]
        (said,) = report.files_left_out()
        assert said.startswith("2 x what describes the data left out, the first: ")
    # Of texts they are a part.
    write(path / "texts/README.md", "read me")
    write(path / "texts/notice-of-appeal.txt", "appeal")
    assert read(path / "texts")[0] == ["read me", "appeal"]
    write(path / "texts/a.jsonl", GOOD)
    assert read(path / "texts")[0] == ["good", "appeal"]


@row("files of other endings beside lines or rows")
def _(path):
    write(path / "texts/a.py", "x = 1")
    write(path / "texts/notes", "notes")
    assert read(path / "texts")[0] == ["x = 1", "notes"]
    write(path / "texts/b.jsonl", GOOD)
    write(path / "texts/c.py", "y = 1")
    texts, report = read(path / "texts")
    assert texts == ["good"]
    assert report.left_out == {
        ".py beside lines of JSON or rows": (2, f"{path}/texts/a.py"),
        "a file without an ending beside lines of JSON or rows": (1, f"{path}/texts/notes"),
    }


@row("`train-*`, `test-*` and `validation-*` in one folder, or under one pattern")
def _(path):
    layouts = {
        "data/train*.parquet": [
            *("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"),
            *("data/test-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
        ],
        "train.jsonl": ["train.jsonl", "dev.jsonl"],
        "train*.jsonl.gz": ["train_0.jsonl.gz", "train_1.jsonl.gz", "test_0.jsonl.gz"],
        "law/train": ["law/train/0.parquet", "law/test/0.parquet"],
        "train": ["train/pos/a.txt", "test/pos/a.txt"],
        "train.txt": ["train.txt", "valid.txt"],
        "wiki.train.tokens": ["wiki.train.tokens", "wiki.test.tokens"],
        "law-trainset.jsonl": ["law-trainset.jsonl", "law-heldout.jsonl"],
    }
    for i, (example, names) in enumerate(layouts.items()):
        folder = path / str(i)
        for name in names:
            write(folder / name, b"x")
            if name.endswith("parquet"):
                table(folder / name, text=[name])
            elif "jsonl" in name:
                line = json.dumps({"text": name}).encode()
                write(folder / name, gzip.compress(line) if name.endswith("gz") else line)
        pattern = re.escape(str(folder / example))
        refused(folder, rf"holds the splits .*train \(\d files?\).*such as {pattern}, or each")
        chosen = read(folder / example)[0]
        wanted = [n for n in names if "train" in n]
        assert chosen == (wanted if "jsonl" in example or "parquet" in names[0] else ["x"])
        for fits in {"**/*", *(f"*{'/*' * n.count('/')}{Path(n).suffix}" for n in names)}:
            with pytest.raises(UsageError, match=rf"holds the splits .*such as {pattern}, or each"):
                read_documents([folder / fits])
        assert len(read(*(folder / name for name in names))[0]) == len(names)
    # One split, and names that only look so.
    for name in ("latest.jsonl", "contest.jsonl", "train.jsonl", "more.jsonl"):
        write(path / "one" / name, GOOD)
    for name in ("train.py", "test.py"):
        write(path / "code" / name, "x")
    assert len(read(path / "one")[0]) == 4 and len(read(path / "code")[0]) == 2
    with pytest.raises(UsageError, match="no file fits this pattern"):
        read(path / "none-*.jsonl")


@row("hidden files and folders")
def _(path):
    for name in ("a.jsonl", ".b.jsonl", ".git/c.jsonl", "sub/.d.jsonl"):
        write(path / "f" / name, GOOD)
    texts, report = read(path / "f")
    assert texts == ["good"] and not report.left_out


@row("links to files and folders")
def _(path):
    """As the cache of the hub has them: what is in `snapshots` leads to `blobs`."""
    write(path / "elsewhere/law/a.jsonl", '{"text": "law"}')
    write(path / "blobs/1f3a", '{"text": "blob"}')
    root = path / "root"
    write(root / "own/b.jsonl", '{"text": "own"}')
    (root / "out").symlink_to(path / "elsewhere")
    (root / "c.jsonl").symlink_to(path / "blobs/1f3a")
    assert [(d.text, d.domain) for d in documents(root)] == [
        *(("blob", "unknown"), ("law", "out"), ("own", "own")),
    ]
    for name, target in (("again", path / "elsewhere"), ("loop", root), ("up", path)):
        (root / name).symlink_to(target)
    (root / "d.jsonl").symlink_to(root / "own/b.jsonl")
    (root / "inside").symlink_to(root / "own")
    texts, report = read(root)
    assert sorted(texts) == ["blob", "law", "own"]
    left = {what: count for what, (count, _) in report.left_out.items()}
    assert left.pop("a link to a file that is read anyway") == 1
    assert left.pop("a link to a folder that is read anyway") >= 3
    hub = path / "datasets--org--name"
    write(hub / "blobs/0a", '{"text": "blob"}')
    (hub / "snapshots/0123").mkdir(parents=True)
    (hub / "snapshots/0123/train.jsonl").symlink_to(hub / "blobs/0a")
    for inside in (hub, hub / "snapshots/0123", hub / "snapshots/0123/train.jsonl"):
        assert read(inside)[0] == ["blob"]


@row("a link to nothing, a pointer of Git LFS")
def _(path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 12345\n"
    for name in ("a.jsonl", "a.parquet", "a.txt"):
        folder = path / name.replace(".", "-")
        write(folder / "good.txt", "good")
        (folder / name).symlink_to(path / "none")
        refused(folder, f"{name}: a link to nothing; mend it", DataError)
        (folder / name).unlink()
        write(folder / name, pointer)
        for given in (folder, folder / name):
            with pytest.raises(DataError, match=f"{name}: a pointer of Git LFS; .*git lfs pull"):
                read(given)


@row("pipes, sockets and devices")
def _(path):
    write(path / "f/good.txt", "good")
    os.mkfifo(path / "f/a.jsonl")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(path / "f/b.txt"))
        texts, report = read(path / "f")
    assert texts == ["good"]
    assert report.left_out == {"a pipe, socket or device": (2, f"{path}/f/a.jsonl")}
    refused(path / "f/a.jsonl", "not a regular file; save what it gives in one")
    refused(Path("/dev/null"), "not a regular file")


FOREIGN = {
    "tables and data sets: CSV, spreadsheets, ORC, Avro, TFRecord, ArrayRecord, Bagz, Lance,"
    " Delta, WARC, databases, `.npz`": [
        ("a.csv", "text,id\nx,1\n", "a table of text .CSV.*pandas"),
        ("a.TSV.gz", gzip.compress(b"a\tb\n"), "a table of text .CSV.*pandas"),
        ("a.xlsx", b"PK\x03\x04", "a spreadsheet"),
        ("a.txt", b"ARROW1\0\0", "an Arrow file.*name it .arrow"),
        ("a.orc", b"ORC\0", "an ORC or Avro file"),
        ("a.txt", b"Obj\x01\x04", "an ORC or Avro file"),
        ("a.tfrecord", b"x", "a TFRecord file.*seqio"),
        ("a.tfrecord-00000-of-00010", b"x", "a TFRecord file"),
        ("a.array_record-00000-of-00010", b"x", "an ArrayRecord file.*data.store=FILES"),
        ("a.bagz", b"x", "a Bagz file"),
        ("a.warc.gz", gzip.compress(b"WARC/1.0\r\n"), "a web archive .WARC.*"),
        ("a.sqlite", b"SQLite format 3\0", "a database"),
        ("a.jsonl", b"SQLite format 3\0", "a database"),
        ("a.npz", b"PK\x03\x04", "NumPy arrays"),
    ],
    "token files: Megatron, datatrove's `.ds` and what is beside it, `.npy`": [
        ("a.idx", b"MMIDIDX\0\0", "weights or objects"),
        ("a.txt", b"MMIDIDX\0\0", "a Megatron dataset.*data.store"),
        ("a.ds.metadata", "gpt2|2\n12\n", "tokens of datatrove .*data.store"),
        ("a.npy", b"\x93NUMPY", "NumPy arrays or token ids .*data.store"),
    ],
    "archives: zip, 7z, rar, bzip2, xz, lz4": [
        ("a.tar.bz2", b"x", "packed with bzip2"),
        ("a.txz", b"x", "packed with bzip2"),
        ("a.txt", b"0" * 257 + b"ustar\0" + bytes(99), "a tar archive.*name it .tar"),
        ("a.zip", b"PK\x03\x04", "an archive .zip"),
        ("a.md", b"7z\xbc\xaf\x27\x1c", "an archive .zip"),
        ("a.jsonl.bz2", b"x", "packed with bzip2"),
        ("a.jsonl", b"BZh91AY&SY", "packed with bzip2"),
        ("a.txt", b"\xfd7zXZ\0", "packed with bzip2"),
        ("a.jsonl", gzip.compress(GOOD.encode()), "gzip data.*name it .gz"),
        ("a.jsonl", zstandard.compress(GOOD.encode()), "zstd data.*name it .zst"),
        ("a.jsonl.gz", gzip.compress(gzip.compress(GOOD.encode())), "gzip data"),
    ],
    "images, sound, video, PDF and office documents, programs, weights, other binary files": [
        ("a.png", b"x", "an image"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\0", "an image"),
        ("a.mp3", b"ID3\0", "sound or video"),
        ("a.txt", b"ID3\0", "sound or video"),
        ("a.pdf", b"%PDF-1.7", "a PDF or office document.*extract"),
        ("a.md", b"%PDF-1.7", "a PDF or office document.*extract"),
        ("a.docx", b"PK\x03\x04", "a PDF or office document"),
        ("a.so", b"\x7fELF\0", "a program, library or font"),
        ("a.safetensors", b"x", "weights or objects"),
        ("a.txt", b"any\0thing", "a binary file"),
        ("a.txt", "a\0b".encode("utf-16"), "a binary file"),
    ],
}


def _refused_alone(path):
    """Of which a folder is refused as a whole."""
    refused(write(path / "a.ds", b"\1\0"), "tokens of datatrove .*data.store", UsageError)


def _foreign(files):
    def test(path):
        for name, content, message in files:
            foreign(path / "f", name, content, message)
        _refused_alone(path)

    return test


ROWS |= {found: _foreign(files) for found, files in FOREIGN.items()}


@row("a folder of MDS, litdata, `.ds` or Delta, a token store")
def _(path):
    layouts = {
        "MosaicML dataset.*data.store=FOLDER": ["index.json", "shard.00000.mds.zstd"],
        "tokens of datatrove": ["0.ds", "0.ds.index", "0.ds.metadata"],
        "litdata dataset": ["index.json", "chunk-0-0.bin"],
        "Lance, Delta or Iceberg": ["_delta_log/0.json", "part-0.parquet"],
    }
    for i, (message, names) in enumerate(layouts.items()):
        for name in names:
            write(path / str(i) / name, "{}")
        refused(path / str(i), message, UsageError)
    texts = write(path / "a.jsonl", "".join(f'{{"text": "{n}"}}\n' for n in range(9)))
    prepare([texts], path / "store", byte_tokenizer())
    refused(path / "store", "a token store of emo prepare; train on it", UsageError)
    np.arange(9, dtype=np.uint16).tofile(write(path / "bin/a.bin", b""))
    write(path / "bin/a.idx", b"MMIDIDX\0\0")
    with pytest.raises(DataError, match=r"2 x a Megatron dataset .\.bin and \.idx. .*in place"):
        read(path / "bin")


# --- all of them ----------------------------------------------------------------------------------


def documented() -> list[str]:
    section = DOCS.read_text().partition("## What is found")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \| .* \|$", section, re.MULTILINE)
    return [found for found in rows if not found.startswith("found ")]


def test_every_row_has_a_test():
    assert set(documented()) == set(ROWS) | ELSEWHERE


@pytest.mark.parametrize("found", ROWS, ids=lambda found: re.sub(r"\W+", " ", found)[:40].strip())
def test_row(tmp_path, found):
    ROWS[found](tmp_path)

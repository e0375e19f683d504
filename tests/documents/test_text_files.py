"""Encodings, line ends, packing and bounds of what is read as text or as lines of JSON."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from emo_jax.documents.archives import READ_ERRORS
from emo_jax.documents.read import ReadReport, read_documents
from emo_jax.documents.text_files import json_lines, read_lines, read_text
from emo_jax.errors import DataError

INPUTS = Path(__file__).parent / "inputs"
ROOT = Path(__file__).parents[2]
TEXTS = ["日本の裁判所 für Mäňer \u2028 one line", "plain", "\u0a0a\u0d0d holds both line ends"]


def written(texts, end="\n"):
    return "".join(json.dumps({"text": t}, ensure_ascii=False) + end for t in texts)


def texts_of(path, **settings):
    return [d.text for d in read_documents([path], **settings)]


@pytest.mark.parametrize("name", ["utf16le", "utf16be", "utf32be"])
def test_the_cases_are_decoded(name):
    found = texts_of(INPUTS / f"{name}.jsonl")
    assert found == [f"日本の裁判所 Gericht für Mäňer {i}" for i in range(len(found))]
    assert len(found) >= 4


@pytest.mark.parametrize("codec", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("mark", ["\ufeff", ""], ids=["mark", "no mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_every_encoding_and_line_end(tmp_path, codec, mark, end):
    path = tmp_path / "a.jsonl"
    path.write_bytes((mark + written(TEXTS, end)).encode(codec))
    assert texts_of(path) == TEXTS
    assert [n for n, _, _ in json_lines(path)] == [1, 2, 3]
    path.write_bytes((mark + written(TEXTS, end).rstrip(end)).encode(codec))  # no end of the last
    assert texts_of(path) == TEXTS
    text = tmp_path / "a.txt"
    text.write_bytes((mark + "ab\r\nfür 日本").encode(codec))
    assert texts_of(text) == ["ab\r\nfür 日本"]


def test_pieces_that_end_inside_of_characters_and_lines(tmp_path):
    """More than the megabyte that is read at once, of 2 to 4 bytes a character."""
    texts = [f"{i} " + "é日𝄞" * (i * 37 % 2000) for i in range(300)]
    for codec in ("utf-8", "utf-16-le", "utf-32-be"):
        path = tmp_path / "a.jsonl"
        path.write_bytes(written(texts, "\r\n").encode(codec))
        assert path.stat().st_size > 2_000_000
        assert texts_of(path) == texts


def test_latin_1_and_marks_inside(tmp_path):
    path = tmp_path / "a.jsonl"
    one = written(["ascii"]).encode("utf-8-sig")
    path.write_bytes(one + one + written(["café"]).encode("latin-1") + written(["ok"]).encode())
    report = ReadReport()
    assert texts_of(path, report=report) == ["ascii", "ascii", "ok"]
    assert report.examples == [f"{path}:3: invalid UTF-8"]


def test_files_that_were_put_together_of_two_encodings(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(written(["one"]).encode() + written(["für two"]).encode("utf-16-le"))
    report = ReadReport()
    assert texts_of(path, report=report) == ["one"]
    assert report.skipped.total() >= 1


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-32-le"])
def test_cut_in_the_middle_of_a_character(tmp_path, codec):
    path = tmp_path / "a.jsonl"
    path.write_bytes(("\ufeff" + written(TEXTS)).encode(codec)[:-1])
    with pytest.raises(DataError, match=rf"a.jsonl: cannot be read .invalid {codec[:6].upper()}"):
        texts_of(path)


LINES = {
    b'{"text": "a\x00b"}': "broken JSON",  # a NUL that is not spelt
    b"\x00" * 20: "broken JSON",
    b'{"text": ' + b"[" * 3000 + b"]" * 3000 + b"}": "JSON that is nested too deep",
    b'{"text": "x", "n": ' + b"1" * 100_000 + b"}": "JSON with a number of too many digits",
    b'{"text": NaN}': "field 'text' is not a string",
    b'{"text": Infinity}': "field 'text' is not a string",
    b'{"text": "\\u0000"}': "empty document",
    b'{"text": {"a": 1}}': "field 'text' is not a string",
    b'{"text": ["a", 1]}': "field 'text' is not a string",
    b'{"text": true}': "field 'text' is not a string",
    b'"text"': "not a JSON object",
    b'{"text": "\xed\xa0\xbd"}': "invalid UTF-8",  # half of a pair in bytes
}


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_lines_that_are_none(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b'\n{"text": "good"}\n')
    report = ReadReport()
    assert texts_of(path, report=report) == ["good", "good"]
    assert dict(report.skipped) == {LINES[line]: 1}


def test_of_the_same_key_twice_the_last_counts(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "id": 1, "text": "b", "id": 2}\n')
    assert [(d.text, d.id) for d in read_documents([path])] == [("b", "2")]


# --- packing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl.GZ", "a.JSONL.Gz", "A.NDJSON.ZST", "a.Json", "a.JSONL"])
def test_endings_in_capitals(tmp_path, name):
    path = tmp_path / name
    content = written(TEXTS).encode()
    packer = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    path.write_bytes(packer.get(path.suffix.lower(), bytes)(content))
    assert texts_of(path) == TEXTS
    assert texts_of(tmp_path) == TEXTS


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("content", [b"", b'{"text": "plain"}\n'])
def test_not_packed_as_its_name_says(tmp_path, suffix, content):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.jsonl.*: cannot be read .not packed as its name says"):
        texts_of(path)


def test_packed_and_encoded(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("für".encode("utf-16")))
    assert texts_of(path) == ["für"]


def test_a_member_cut_short_behind_a_whole_one(tmp_path):
    whole, line = gzip.compress(written(["one"]).encode()), written(["two"] * 999).encode()
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(whole + gzip.compress(line)[:-12])
    with pytest.raises(DataError, match="cannot be read"):
        texts_of(path)
    path = tmp_path / "b.jsonl.zst"
    packer = zstandard.ZstdCompressor()
    path.write_bytes(packer.compress(b'{"text": "one"}\n') + packer.compress(line)[:-3])
    with pytest.raises(DataError, match="cut short"):
        texts_of(path)


# --- bounds ---------------------------------------------------------------------------------------


def test_longer_lines_and_texts_are_left_out_and_said(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(written(["a" * 100, "b" * 3_000_000, "c", "d" * 1000]))
    report = ReadReport()
    assert texts_of(path, report=report, max_document_bytes=900) == ["a" * 100, "c"]
    assert dict(report.skipped) == {"longer than 0.0009 MB (emo prepare --max-document-mb)": 2}
    assert report.examples[0].startswith(f"{path}:2: longer than")
    assert len(texts_of(path)) == 4
    exact = len(written(["a" * 100])) - 1
    assert texts_of(path, max_document_bytes=exact)[0] == "a" * 100
    text = tmp_path / "b.txt.gz"
    text.write_bytes(gzip.compress(b"x" * 5000))
    with pytest.raises(DataError, match=r"b.txt.gz: longer than 0.0049 MB .emo prepare --max-doc"):
        texts_of(text, max_document_bytes=4900)
    assert len(texts_of(text, max_document_bytes=5000)[0]) == 5000


def test_a_line_without_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr("emo_jax.documents.text_files._ENDLESS", 3_000_000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "first"}\n{"text": "' + b"x" * 5_000_000)
    with pytest.raises(READ_ERRORS, match="line 2 has more than 3 MB; it is no file of lines"):
        list(read_lines(path, 1000))
    assert len(list(read_lines(path))) == 2
    with pytest.raises(READ_ERRORS, match="longer than"):
        read_text(path, 4_000_000)


READ = """
import sys
from emo_jax.documents.read import read_documents
def peak():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024
before = peak()
try:
    print(sum(len(d.text) for d in read_documents(sys.argv[1:], max_document_bytes=10**7)))
except Exception as error:
    print(type(error).__name__, error)
print(peak() - before)
"""


def test_a_file_that_goes_on_and_on(tmp_path):
    """2 GB of empty lines in 100 KB: as gzip can be at most, and then it ends."""
    path = tmp_path / "a.jsonl.zst"
    block = zstandard.ZstdCompressor().compress(b"\n" * (1 << 24))
    path.write_bytes(block * 128)
    with pytest.raises(DataError, match=r"a\.jsonl\.zst.*grows to more than 1000 times its size"):
        list(read_documents([path]))
    path.write_bytes(block)  # 16 MB: any file may
    with pytest.raises(DataError, match="no usable document"):
        list(read_documents([path]))


@pytest.mark.parametrize("kind", ["jsonl.zst", "jsonl.gz", "txt.zst", "lines.jsonl.zst"])
def test_memory_does_not_grow_with_what_a_file_unpacks_to(tmp_path, kind):
    """250 MB out of some kilobytes: one line, one text, or lines."""
    path = tmp_path / f"a.{kind}"
    pack = gzip.GzipFile(path, "wb", 1) if kind.endswith("gz") else zstandard.open(path, "wb")
    with pack as file:
        end = b"\n" if "lines" in kind else b" "
        for _ in range(250):
            some = os.urandom(4000).hex().encode()
            file.write(b'{"a": "' + some + b" " * 1_000_000 + b'"}' + end)
    assert path.stat().st_size < 4_000_000
    argv = [sys.executable, "-c", READ, str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT)
    said, grown = done.stdout.splitlines()
    assert ("longer than 10 MB" in said) == ("lines" not in kind), said
    assert "no usable document" in said
    assert int(grown) < 200, f"{grown} MB"


def test_empty_lines_are_counted_and_left_out(tmp_path):
    """Also where a whole chunk has nothing else."""
    blank = 5 << 20
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n" * blank + b"a\n\n\nb\n\nc")
    found = [(blank + 1, b"a"), (blank + 4, b"b"), (blank + 6, b"c")]
    assert list(read_lines(path)) == found

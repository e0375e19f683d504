import gzip
import json

import pytest
import zstandard

from emo_jax.documents.read import Document, ReadReport, read_documents
from emo_jax.errors import DataError, UsageError

LINES = (
    b'{"text": "one", "id": "a", "domain": "law"}\n{"text": "two"}\n\n{"text": "three", "id": 7}\n'
)
EXPECTED = [
    Document("one", "a", "law"),
    Document("two", "{name}:2", "unknown"),
    Document("three", "7", "unknown"),
]


def pack(content: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(content)
    if suffix == ".zst":  # two frames: files are often appended to
        packer = zstandard.ZstdCompressor()
        return packer.compress(content[:50]) + packer.compress(content[50:])
    return content


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl_plain_and_packed(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(b"\xef\xbb\xbf" + LINES, suffix))
    found = list(read_documents([path]))
    assert found == [d._replace(id=d.id.format(name=path.name)) for d in EXPECTED]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_archive_cut_short(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(LINES * 1000, suffix)[:-9])
    with pytest.raises(DataError, match=r"a\.jsonl.*cannot be read .*copy it again"):
        list(read_documents([path]))


def test_field_names(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"content": "x", "key": "k", "topic": "t"}) + "\n")
    names = dict(text_field="content", id_field="key", domain_field="topic")
    assert list(read_documents([path], **names)) == [Document("x", "k", "t")]


def test_folder_of_texts(tmp_path):
    for name in ("law/b.txt", "law/deep/a.md", "top.txt", "music/notes", ".hidden/x.txt"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    expected = [
        Document("top.txt", "top.txt", "unknown"),
        Document("law/b.txt", "law/b.txt", "law"),
        Document("law/deep/a.md", "law/deep/a.md", "law"),
        Document("music/notes", "music/notes", "music"),
    ]
    assert list(read_documents([tmp_path])) == expected
    (tmp_path / "music" / "more.jsonl").write_text('{"text": "tune"}\n')
    report = ReadReport()
    assert list(read_documents([tmp_path], report=report)) == [
        *expected[:3],
        Document("tune", "music/more.jsonl:1", "music"),
    ]
    assert report.left_out == {
        "a file without an ending beside lines of JSON or rows": (1, f"{tmp_path}/music/notes")
    }


BAD = {
    b'{"text": "caf\xe9"}': "invalid UTF-8",
    b'{"text": "half \\ud83d"}': "half of a surrogate pair",
    b'{"text": "cut off': "broken JSON",
    b'["a list"]': "not a JSON object",
    b'{"body": "x"}': "no field 'text'",
    b'{"text": 5}': "field 'text' is not a string",
    b'{"text": " \\n"}': "empty document",
}


@pytest.mark.parametrize("line", BAD, ids=list(BAD.values()))
def test_bad_line_is_counted_and_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b'\n{"text": "good too"}\n')
    report = ReadReport()
    assert len(list(read_documents([path], report=report))) == 2
    assert report.documents == 2
    assert dict(report.skipped) == {BAD[line]: 1}
    assert report.examples == [f"{path}:2: {BAD[line]}"]
    with pytest.raises(DataError, match=f"a.jsonl:2: {BAD[line]}") as caught:
        list(read_documents([path], strict=True))
    assert caught.value.exit_code == 1


def test_only_the_first_five_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n' * 9 + '{"text": "x"}\n')
    report = ReadReport()
    list(read_documents([path], report=report))
    assert report.skipped.total() == 9
    assert len(report.examples) == 5
    assert "9 x empty document" in report.summary()


def test_another_encoding_in_a_folder_is_skipped(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b").write_bytes(b"\xe9\xff")
    report = ReadReport()
    assert len(list(read_documents([tmp_path], report=report))) == 1
    assert report.skipped == {"invalid UTF-8": 1}


def test_missing_path_and_unknown_kind(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere.*no such file or folder") as caught:
        read_documents([tmp_path / "nowhere"])
    assert caught.value.exit_code == 2
    (tmp_path / "a.rst").write_bytes(b"")
    with pytest.raises(UsageError, match=r"a\.rst: unknown kind of file"):
        read_documents([tmp_path / "a.rst"])
    with pytest.raises(UsageError, match="no input"):
        read_documents([])


def test_unreadable_folder(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    closed = PermissionError(13, "Permission denied", "closed")

    def walk(path, onerror, followlinks):
        onerror(closed)

    monkeypatch.setattr("os.walk", walk)
    with pytest.raises(DataError, match="closed: cannot be listed"):
        list(read_documents([tmp_path]))


@pytest.mark.parametrize("content", ["", '{"text": ""}\n'])
def test_empty_corpus(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"a\.jsonl: no usable document .*check the input"):
        list(read_documents([path]))


def test_unprintable_names_are_mended(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x", "id": "\\ud800", "domain": "\\ud800"}\n')
    assert list(read_documents([path])) == [Document("x", "?", "?")]

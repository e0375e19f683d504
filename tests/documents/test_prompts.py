"""Prompts out of files."""

import gzip
import json

import pytest

from emo_jax.documents.prompts import read_prompts
from emo_jax.errors import DataError, UsageError


def test_texts_and_lines_of_json(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("one\r\n\n{ two\u2028 \n".encode("utf-8-sig"))
    assert read_prompts(file) == ["one", "{ two\u2028 "]
    file.write_bytes("für\r\nzwei".encode("utf-16"))
    assert read_prompts(file) == ["für", "zwei"]
    file.write_text('\n{"prompt": "one"}\n{"prompt": "", "more": NaN}\n')
    assert read_prompts(file) == ["one", ""]
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "one"}')
    assert read_prompts(file) == ["one"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.GZ", "A.JSON.gz"])
def test_packed(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b'{"prompt": "one"}\n{"prompt": "two"}\n'))
    assert read_prompts(tmp_path / name) == ["one", "two"]


BAD = {
    b'{"prompt": "half \\ud800"}': "half of a surrogate pair",
    b'{"prompt": "x", "m": ' + b"[" * 3000 + b"]" * 3000 + b"}": "nested too deep",
    b'{"prompt": "caf\xe9"}': "invalid UTF-8",
    b'{"prompt": ["a"]}': 'not a JSON object with a text "prompt"',
    b"[1]": 'not a JSON object with a text "prompt"',
    b"text": "broken JSON",
}


@pytest.mark.parametrize("line", BAD, ids=BAD.values())
def test_a_line_that_is_none(tmp_path, line):
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "fine"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"a\.jsonl:3: .*{BAD[line]}.*; mend that line"):
        read_prompts(tmp_path / "a.jsonl")


def test_files_that_are_none(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"a\.txt:2: invalid UTF-8"):
        read_prompts(file)
    file.write_bytes(gzip.compress(b"one\n"))
    with pytest.raises(DataError, match=r"a\.txt: gzip data; name it \.gz"):
        read_prompts(file)
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"prompt": "one"}], indent=1))
    with pytest.raises(DataError, match=r"a\.json: one JSON array.*jq -c"):
        read_prompts(file)
    file = tmp_path / "a.csv"
    file.write_text("prompt\none\n")
    with pytest.raises(
        DataError, match=r"a\.csv: a table of text .CSV.; write it as lines of JSON"
    ):
        read_prompts(file)
    file = tmp_path / "b.txt"
    file.write_bytes(b"a\0b\n")  # as UTF-16 it would be two letters
    with pytest.raises(DataError, match=r"b\.txt: a binary file"):
        read_prompts(file)
    with pytest.raises(UsageError, match="a folder; name a file in it"):
        read_prompts(tmp_path)
    file.write_text('{"prompt": 5}\n{"prompt": "one"}\n')
    with pytest.raises(DataError, match=r"b\.txt:1: not a JSON object with a text"):
        read_prompts(file)
    with pytest.raises(UsageError, match="no such file"):
        read_prompts(tmp_path / "none.txt")

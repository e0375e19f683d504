"""Small JSON files: every fault of form is a line, and what is written is JSON."""

import json
import math
import os

import pytest

from emo_jax.errors import DataError
from emo_jax.files import json_files
from emo_jax.files.json_files import Fields, NotReadableError

OBJECT = '{"text": "the café"}'


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("mark", [False, True])
def test_another_encoding_is_named(encoding, mark):
    content = (("\ufeff" if mark else "") + OBJECT).encode(encoding)
    with pytest.raises(NotReadableError, match=encoding[:6].upper()):
        json_files.parse(content)


def test_utf8_with_and_without_its_mark_is_the_same():
    assert json_files.parse(OBJECT.encode()) == json_files.parse(b"\xef\xbb\xbf" + OBJECT.encode())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "broken JSON"),
        (b"{", "broken JSON"),
        (b'{"a": 1} x', "broken JSON"),
        (b'{"a": "\xff"}', "invalid UTF-8 at byte 7"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
        (b"[" * 500 + b"]" * 500, "nested too deep"),
        (b'{"a": ' * 201 + b"1" + b"}" * 201, "nested too deep"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\uDFFF": 1}', "surrogate"),
        (b"1" * 10_000, "too many digits"),
    ],
)
def test_a_text_that_is_no_json(content, why):
    with pytest.raises(NotReadableError, match=why):
        json_files.parse(content)


def test_what_is_not_nested_too_deep():
    text = '{"a": ' * 200 + "1" + "}" * 200
    assert json_files.parse(f"[{text[6:-1]}, 1, [], {{}}]")[1] == 1
    assert json_files.parse(f"[{'[1], ' * 500}1]")[500] == 1


def test_a_whole_pair_of_surrogates_is_a_character():
    assert json_files.parse(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_an_object_is_read_or_the_file_is_named(tmp_path):
    file = tmp_path / "x.json"
    file.write_text(OBJECT, encoding="utf-8")
    assert json_files.read_object(file, advice="copy it") == {"text": "the café"}
    file.write_text("[1]")
    with pytest.raises(DataError, match=r"x\.json: must hold a JSON object, not a list; copy it$"):
        json_files.read_object(file, advice="copy it")
    with pytest.raises(FileNotFoundError):
        json_files.read_object(tmp_path / "none.json", advice="")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(DataError, match="not a regular file"):
            json_files.read_object(path, advice="")
    with pytest.raises(DataError, match=r"not a regular file"):
        json_files.read_object(tmp_path, advice="")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "x").write_bytes(b"1" * 11)
    with pytest.raises(NotReadableError, match="11 bytes, more than 10"):
        json_files.read_regular(tmp_path / "x", max_bytes=10)


def test_what_is_written_is_json():
    text = json_files.dumps({"a": [math.nan, 1.5], "b": (-math.inf, {"c": math.inf})})
    found = json.loads(text, parse_constant=pytest.fail)
    assert found == {"a": [None, 1.5], "b": [None, {"c": None}]}


def test_fields_by_kind():
    fields = Fields({"n": 3, "x": 0.5, "t": "a", "f": True, "l": [1], "o": {"n": "b"}})
    assert (fields.integer("n"), fields.number("x"), fields.text("t")) == (3, 0.5, "a")
    assert (fields.flag("f"), fields.items("l"), fields.inner("o").text("n")) == (True, [1], "b")
    assert fields.number("n") == 3 and fields.integer("none", None) is None
    assert "n" in fields and "none" not in fields and list(fields)[:2] == ["n", "x"]


@pytest.mark.parametrize(
    ("values", "ask", "why"),
    [
        ({}, lambda f: f.text("a"), "no field a"),
        ({"a": None}, lambda f: f.integer("a"), "a must be a whole number .* not None"),
        ({"a": True}, lambda f: f.integer("a"), "a must be a whole number .* not True"),
        ({"a": 1.0}, lambda f: f.integer("a"), "not 1.0"),
        ({"a": -1}, lambda f: f.integer("a"), "of 0..2147483647, not -1"),
        ({"a": 2**40}, lambda f: f.integer("a"), "not 1099511627776"),
        ({"a": math.nan}, lambda f: f.number("a"), "a finite number, not nan"),
        ({"a": 10**400}, lambda f: f.number("a"), "a finite number, not 1000"),
        ({"a": True}, lambda f: f.number("a"), "not True"),
        ({"a": 1}, lambda f: f.flag("a"), "true or false, not 1"),
        ({"a": "x\0y"}, lambda f: f.text("a"), "without NULs"),
        ({"a": ["x"]}, lambda f: f.text("a"), "not a list"),
        ({"a": {}}, lambda f: f.items("a"), "a list, not an object"),
        ({"a": 1}, lambda f: f.inner("a"), "a must be an object, not the number 1"),
        ({"a": {"b": 1}}, lambda f: f.inner("a").text("b"), r"a\.b must be a string"),
        ([], lambda f: f, "it must be an object, not a list"),
    ],
)
def test_a_field_of_another_kind_is_named(values, ask, why):
    with pytest.raises(NotReadableError, match=why):
        ask(Fields(values))

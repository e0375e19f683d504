"""Ids and domains as corpora have them: missing in every way, numbers, and what is no name."""

import json
import math
from pathlib import Path

import pytest

from emo_jax.documents.read import ReadReport, read_documents
from emo_jax.documents.records import NotANameError, name_of
from emo_jax.preparation.prepare import prepare
from emo_jax.tokenizer.load import byte_tokenizer

INPUTS = Path(__file__).parent / "inputs"


def test_nan_is_no_id_and_no_domain(tmp_path):
    found = list(read_documents([INPUTS / "nanid.jsonl"]))
    assert len({d.id for d in found}) == len(found) == 60
    assert {d.domain for d in found} == {"unknown"}
    made = prepare([INPUTS / "nanid.jsonl"], tmp_path / "s", byte_tokenizer())
    assert made.store.splits == ("train", "select", "test") and not made.notes
    found = list(read_documents([INPUTS / "floatid.jsonl"]))
    assert len({d.id for d in found}) == len(found) == 60
    assert found[0].id == "0" and found[1].id == "floatid.jsonl:2" and found[2].id == "2"


def test_null_inside_of_a_named_field_is_counted():
    report = ReadReport()
    list(read_documents([INPUTS / "nullinside.jsonl"], domain_field="meta.lang", report=report))
    lines = [json.loads(line) for line in (INPUTS / "nullinside.jsonl").open()]
    without = sum(not (line["meta"] or {}).get("lang") for line in lines)
    assert report.without == {"field 'meta.lang' (--domain-field)": without}


@pytest.mark.parametrize("value", [None, "", "  ", math.nan, "\n"])
def test_no_name(value):
    assert name_of(value) is None


@pytest.mark.parametrize(
    ("value", "name"),
    [
        *[(3, "3"), (3.0, "3"), (-2.0, "-2"), (0.5, "0.5"), (1e300, "1e+300"), ("3.0", "3.0")],
        *[(b"law", "law"), (b"\xff\x00", "ff00"), ("nan", "nan"), (10**30, "1" + "0" * 30)],
    ],
)
def test_a_name(value, name):
    assert name_of(value) == name


@pytest.mark.parametrize(
    ("value", "why"),
    [
        *[(["a"], "a list"), ({"a": 1}, "an object"), (True, "true or false"), ("a\0b", "NULs")],
        *[(math.inf, "infinite"), ("x" * 2000, "more than 1,000 characters")],
    ],
    ids=lambda v: str(v)[:12],
)
def test_what_is_no_name(tmp_path, value, why):
    with pytest.raises(NotANameError, match=why):
        name_of(value, 1000)
    path, report = tmp_path / "a.jsonl", ReadReport()
    path.write_text(json.dumps({"text": "t", "domain": value}) + '\n{"text": "t"}\n')
    assert [d.domain for d in read_documents([path], report=report)] == ["unknown"] * 2
    (said,) = report.unnamed
    assert said.startswith("field 'domain' (--domain-field) is ") and why in said
    assert f"1 x {said}" in report.summary()


def test_a_file_name_that_is_not_utf_8(tmp_path):
    (tmp_path / "caf\udce9.txt").write_text("")
    (tmp_path / "a.txt").write_text("text")
    report = ReadReport()
    list(read_documents([tmp_path], report=report))
    assert "caf?.txt: empty document" in report.summary()

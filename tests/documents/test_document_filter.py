import json

import pyarrow
import pyarrow.parquet
import pytest

from emo_jax.data.store import TokenStore
from emo_jax.documents.document_filter import DocumentFilter, best_language
from emo_jax.documents.read import ReadReport, read_documents
from emo_jax.errors import DataError, UsageError
from emo_jax.preparation.prepare import prepare
from emo_jax.tokenizer.load import byte_tokenizer


@pytest.mark.parametrize(
    ("value", "language"),
    [
        ("en", "en"),
        (" en ", "en"),
        (b"en", "en"),
        (["de", "en"], "de"),
        ({"en": 0.2, "de": 0.7}, "de"),
        ({"en": 0.5, "de": 0.5}, "de"),
        ({"en": None, "de": 0.1}, "de"),
        ({"en": float("nan"), "de": 0.1}, "de"),
        ([["en", 0.2], ["de", 0.7]], "de"),
        ("", None),
        (None, None),
        ([], None),
        ({}, None),
        ({"en": None}, None),
        (7, None),
        ([7], None),
    ],
)
def test_best_language(value, language):
    assert best_language(value) == language


def ids_of(path, **bounds):
    report = ReadReport()
    wanted = DocumentFilter(**bounds)
    return [d.id for d in read_documents([path], wanted=wanted, report=report)], report


def test_bounds_are_inclusive_and_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * n, "id": n}) + "\n" for n in range(1, 8)))
    found, report = ids_of(path, min_chars=3, max_chars=5)
    assert found == ["3", "4", "5"]
    assert dict(report.dropped) == {"--min-chars 3": 2, "--max-chars 5": 2}
    assert report.documents == 3
    summary = report.summary()
    assert summary.startswith("3 documents read, 0 skipped, 4 dropped by filters\n")
    assert "2 x dropped by --min-chars 3" in summary
    with pytest.raises(DataError, match=r"0 skipped, 7 dropped by --min-chars 99.; check"):
        ids_of(path, min_chars=99)


def test_languages(tmp_path):
    path = tmp_path / "a.jsonl"
    values = {"a": "EN", "b": {"de": 1, "fr": 2}, "c": ["de", "fr"], "d": None}
    records = [{"text": "t", "id": k, "metadata": {"lang": v}} for k, v in values.items()]
    path.write_text("".join(json.dumps(r) + "\n" for r in [*records, {"text": "t", "id": "e"}]))
    name = {"language_field": "metadata.lang"}
    found, report = ids_of(path, languages=("en", "de"), **name)
    assert found == ["a", "c"]
    assert dict(report.dropped) == {"--language: no 'metadata.lang'": 2, "--language de,en": 1}
    assert ids_of(path, **name)[0] == ["a", "b", "c", "d", "e"]  # no language asked for


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_fields_that_were_named_and_are_nowhere_are_counted(tmp_path, kind):
    """Such documents are used, with the names they have by default: a misspelling must show."""
    records = [{"text": "a", "key": "1"}, {"text": "b", "key": None, "site": "s"}, {"text": ""}]
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records[:1]), path)
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
    report = ReadReport()
    found = list(read_documents([path], id_field="key", domain_field="site", report=report))
    assert (found[0].id, found[0].domain) == ("1", "unknown")
    without = {"field 'site' (--domain-field)": 1}
    if kind == "jsonl":  # its null is as none
        without["field 'key' (--id-field)"] = 1
    assert dict(report.without) == without
    assert "  1 x no field 'site' (--domain-field)" in report.summary()
    report = ReadReport()
    list(read_documents([path], report=report))  # nothing was named
    assert not report.without


def splits_of(store: TokenStore) -> dict[str, list[str]]:
    decode = store.tokenizer().decode
    return {s: [decode(d.tokens) for d in store.documents(s, 0, 10**6)] for s in store.splits}


def test_the_others_stay_where_they_are(corpus, store, tmp_path):
    """Dropping documents moves none of the others to another split, or past one another."""
    wanted = DocumentFilter(min_chars=20, min_tokens=40, max_tokens=100)
    report = prepare([corpus], tmp_path / "s", byte_tokenizer(), wanted=wanted)
    before, after = splits_of(store), splits_of(report.store)
    assert after == {s: [t for t in ts if 40 <= len(t) <= 100] for s, ts in before.items()}
    assert all(after.values())
    dropped = dict(report.read.dropped)
    assert set(dropped) == {"--min-chars 20", "--min-tokens 40", "--max-tokens 100"}
    assert report.read.documents == 600 - sum(dropped.values()) == sum(map(len, after.values()))
    recorded = TokenStore.open(tmp_path / "s").manifest["filter"]
    assert recorded == {"min_chars": 20, "min_tokens": 40, "max_tokens": 100, "dropped": dropped}
    assert "filter" not in store.manifest
    assert "dropped by --max-tokens 100" in report.table()


def test_the_end_of_a_document_is_no_token_of_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "xxx"}\n{"text": "xxxx"}\n')
    wanted = DocumentFilter(max_tokens=3)
    store = prepare([path], tmp_path / "s", byte_tokenizer(), wanted=wanted)
    assert store.store.count("train") == 4
    with pytest.raises(DataError, match=r"no document is left .1 dropped by --max-tokens 2, 1 .*"):
        wanted = DocumentFilter(max_tokens=2, min_chars=4)
        prepare([path], tmp_path / "t", byte_tokenizer(), wanted=wanted)


@pytest.mark.parametrize(
    ("bounds", "named"),
    [
        ({"min_chars": 5, "max_chars": 4}, "--min-chars 5: is above --max-chars 4"),
        ({"min_tokens": 5, "max_tokens": 4}, "--min-tokens 5: is above --max-tokens 4"),
        ({"max_tokens": -1}, "--max-tokens -1: must be at least 0"),
    ],
)
def test_wrong_bounds(bounds, named):
    with pytest.raises(UsageError, match=named):
        DocumentFilter(**bounds)

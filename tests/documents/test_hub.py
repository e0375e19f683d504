"""`hf://`: data sets through the library `datasets` itself, without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emo_jax.documents import hub
from emo_jax.documents.document_filter import DocumentFilter
from emo_jax.documents.read import ReadReport, read_documents
from emo_jax.errors import DataError, UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "mine"
    (made / "data").mkdir(parents=True)
    for split, number in (("train", 5), ("test", 2)):
        rows = [
            {"text": f"{split} {i}", "meta": {"l": "de" if i % 2 else "en"}} for i in range(number)
        ]
        lines = "".join(json.dumps(r) + "\n" for r in rows)
        (made / f"data/{split}.jsonl").write_text(lines)
    return made


def read(spec, **settings):
    return list(read_documents([spec], **settings))


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("hf://squad", ("squad", None, "train")),
        ("hf://org/name", ("org/name", None, "train")),
        ("hf://org/name:test", ("org/name", None, "test")),
        ("hf://org/name/config:train[:10%]", ("org/name", "config", "train[:10%]")),
        ("hf:///no/folder", ("/no/folder", None, "train")),
    ],
)
def test_names(spec, parts):
    assert hub.parse(spec) == parts


@pytest.mark.parametrize("spec", ["hf://", "hf://a//b", "hf://a/b/c/d", "hf://a/b:"])
def test_malformed_names(spec):
    with pytest.raises(UsageError, match=f"{spec}: must be hf://ORG/DATASET"):
        read(spec)


def test_splits_of_a_folder(folder):
    found = read(f"hf://{folder}")
    assert [d.text for d in found] == [f"train {i}" for i in range(5)]
    assert [d.id for d in found] == [f"mine:{i}" for i in range(5)]
    assert {d.domain for d in found} == {"mine"}
    assert [d.id for d in read(f"hf://{folder}:test")] == ["mine:test:0", "mine:test:1"]
    german = DocumentFilter(languages=("de",), language_field="meta.l")
    found = read(f"hf://{folder}", wanted=german, domain_field="meta.l")
    assert [(d.text, d.domain) for d in found] == [("train 1", "de"), ("train 3", "de")]


def test_configs_of_a_folder(folder):
    about = "---\nconfigs:\n"
    for name, split in (("one", "train"), ("two", "test")):
        about += f"- config_name: {name}\n  data_files: data/{split}.jsonl\n"
    (folder / "README.md").write_text(about + "---\n")
    assert [d.id for d in read(f"hf://{folder}/two")] == ["mine/two:0", "mine/two:1"]
    with pytest.raises(DataError, match=r"mine: cannot be read .*Config name is missing"):
        read(f"hf://{folder}")
    with pytest.raises(DataError, match=r"mine/no: cannot be read .*'no' not found"):
        read(f"hf://{folder}/no")


def test_what_is_not_there(folder):
    with pytest.raises(DataError, match=r"mine:no: cannot be read .*[Bb]ad split: no.*check its"):
        read(f"hf://{folder}:no")
    with pytest.raises(UsageError, match="hf:///none/here: no such folder"):
        read("hf:///none/here")
    with pytest.raises(DataError, match="no column 'body'; it has text, meta: name one with --t"):
        read(f"hf://{folder}", text_field="body")


def test_no_script_is_run(folder):
    ran = folder / "ran"
    (folder / f"{folder.name}.py").write_text(f"open({str(ran)!r}, 'w')")
    with pytest.raises(DataError, match="cannot be read"):
        read(f"hf://{folder}")
    assert not ran.exists()


def test_other_columns_are_not_decoded(tmp_path):
    """Images that are none; long texts are left out."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": b"no image", "path": None}] * 3, kind)
    table = pa.table({"text": ["a", "x" * 500, "c"], "image": images})
    features = {"text": {"dtype": "string", "_type": "Value"}, "image": {"_type": "Image"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    (tmp_path / "pictures").mkdir()
    pq.write_table(table.replace_schema_metadata(about), tmp_path / "pictures/train.parquet")
    report = ReadReport()
    found = read(f"hf://{tmp_path}/pictures", max_document_bytes=400, report=report)
    assert [d.text for d in found] == ["a", "c"]
    assert report.skipped.total() == 1


def test_a_file_that_is_damaged(folder):
    content = (folder / "data/train.jsonl").read_text()
    (folder / "data/train.jsonl").write_text(content * 2000 + '{"text": "cut')
    with pytest.raises(DataError, match=r"mine: cannot be read"):
        read(f"hf://{folder}")


def test_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'emo-jax\[datasets\]'"):
        read("hf://org/name")


@pytest.mark.system
def test_one_line_without_a_network(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path)}
    env |= {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_OFFLINE": "0"}
    for offline in ("0", "1"):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "emo_jax.cli", "prepare", "hf://org/name"),
                *("--output", str(tmp_path / "store"), "--tokenizer", "bytes"),
            ],
            env=env | {"HF_HUB_OFFLINE": offline},
            capture_output=True,
            text=True,
        )
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 1 and "hf://org/name: cannot be read (ConnectionError" in last
        assert "Traceback" not in done.stderr
        if offline == "1":
            assert len(done.stderr.strip().splitlines()) == 1

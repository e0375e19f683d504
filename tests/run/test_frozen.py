"""The code and the libraries that a workdir keeps."""

import json
import os
import re
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pytest

import emo_jax
from emo_jax.errors import UsageError
from emo_jax.run import frozen

PACKAGE = Path(emo_jax.__file__).parent


def test_the_code_is_kept_once(tmp_path):
    name = frozen.freeze(tmp_path)
    [folder] = (tmp_path / "frozen").iterdir()
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert folder.name == name and before.keys() == {"source.tar.gz", "packages.txt"}
    assert frozen.freeze(tmp_path) == name
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    other = tmp_path / "other"
    other.mkdir()
    assert frozen.freeze(other) == name
    archives = [path / "frozen" / name / "source.tar.gz" for path in (tmp_path, other)]
    assert archives[0].read_bytes() == archives[1].read_bytes()


def test_other_code_is_kept_beside_it(tmp_path, monkeypatch):
    first = frozen.freeze(tmp_path)
    changed = frozen._sources() | {"emo_jax/errors.py": b"EXIT_OK = 0\n"}
    monkeypatch.setattr(frozen, "_sources", lambda: changed)
    second = frozen.freeze(tmp_path)
    monkeypatch.setattr(frozen, "_packages", lambda: "jax==0.0.1\n")
    third = frozen.freeze(tmp_path)
    assert {p.name for p in (tmp_path / "frozen").iterdir()} == {first, second, third}
    assert len({first, second, third}) == 3


def test_it_can_be_run(tmp_path):
    name = frozen.freeze(tmp_path)
    with tarfile.open(tmp_path / "frozen" / name / "source.tar.gz") as archive:
        archive.extractall(tmp_path / "old", filter="data")
    kept = {p.relative_to(tmp_path / "old/emo_jax") for p in (tmp_path / "old").rglob("*.py")}
    assert kept == {p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py")}
    env = os.environ | {"PYTHONPATH": str(tmp_path / "old")}
    code = "import emo_jax, emo_jax.cli; print(emo_jax.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd="/", capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"{tmp_path}/old/emo_jax/__init__.py\n", done.stderr


def test_packages_are_names_and_versions_only(tmp_path):
    name = frozen.freeze(tmp_path)
    lines = (tmp_path / "frozen" / name / "packages.txt").read_text().splitlines()
    assert f"jax=={metadata.version('jax')}" in lines
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.+!]+", line) for line in lines)
    names = [line.partition("=")[0] for line in lines]
    assert names == sorted(set(names)) and "emo-jax" not in names


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "frozen").symlink_to(tmp_path)
    with pytest.raises(UsageError, match=r"frozen: a link; take it away"):
        frozen.freeze(tmp_path)


def test_a_half_written_one_is_none(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(frozen, "_archive", full)
    with pytest.raises(OSError, match="No space left"):
        frozen.freeze(tmp_path)
    assert list((tmp_path / "frozen").iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "frozen/.0123.4567.tmp").mkdir()  # of a killed run
    name = frozen.freeze(tmp_path)
    assert [p.name for p in (tmp_path / "frozen").iterdir()] == [name]


def test_a_start_says_which_code_it_had(finished_run):
    starts = (finished_run / "run_info.jsonl").read_text().splitlines()
    assert [json.loads(line)["frozen"] for line in starts] == [frozen.freeze(finished_run)]

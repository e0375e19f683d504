"""docs/python.md: every block runs, in the checkout and from an installed wheel."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import runs

REPO = Path(__file__).parents[2]
TEXT = (REPO / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(store, finished_run, tmp_path) -> Path:
    """A folder with what the page takes for granted."""
    shutil.copytree(finished_run, tmp_path / "runs" / "tiny")
    shutil.copytree(store, tmp_path / "store")
    runs.write_corpus(tmp_path / "corpus.jsonl")
    shutil.copytree(REPO / "experiments", tmp_path / "experiments")
    return tmp_path


@pytest.mark.system
def test_every_block_runs(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    names: dict = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"docs/python.md, block {number}", "exec"), names)
    assert {"model", "text", "small", "law", "state", "found", "windows", "record"} <= names.keys()
    shown = capsys.readouterr().out
    assert "<Model 'emo_tiny'" in shown and "all tokens" in shown
    assert 0 < names["law"].loss("The court.")[0] < 20
    assert int(names["state"].step) == 2 and names["batches"][0].shape == (4, 256)


def test_the_first_block_is_short():
    code = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(code) <= 20
    for name in ("load(", "generate(", "loss(", "select(", "export("):
        assert name in BLOCKS[0]


@pytest.mark.system
def test_the_first_block_from_an_installed_wheel(place, env):
    source = place / "source"  # a build leaves folders behind
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, source)
    shutil.copytree(REPO / "emo_jax", source / "emo_jax")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", place / "site", source], check=True, cwd=place)
    shutil.rmtree(source)
    script = place / "first.py"
    check = "assert emo_jax.__file__.startswith(os.getcwd()), emo_jax.__file__\n"
    verify = "assert emo_jax.verify(quiet=False).ok\n"  # its cases are in the wheel
    script.write_text("import os, sys\nsys.path.insert(0, 'site')\n" + BLOCKS[0] + check + verify)
    with contextlib.suppress(KeyError):
        env = {name: value for name, value in env.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", script], cwd=place, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (place / "hf/tiny/config.json").exists() and os.listdir(place / "modules/law")

"""A corpus, and commands run in this process (see tests/runs.py)."""

from pathlib import Path

import pytest
import runs


@pytest.fixture
def corpus(tmp_path) -> Path:
    return runs.write_corpus(tmp_path / "corpus.jsonl")


@pytest.fixture
def run():
    """Runs `emo` in this process and returns the exit code."""
    return runs.emo_here


@pytest.fixture
def refused(capsys):
    """Runs `emo`, which must fail with one line; returns that line."""

    def check(code: int, *argv) -> str:
        capsys.readouterr()
        found = runs.emo_here(*argv)
        line = capsys.readouterr().err
        assert line.startswith("emo: ") and line.endswith("\n") and line.count("\n") == 1, line
        assert found == code, line
        return line

    return check

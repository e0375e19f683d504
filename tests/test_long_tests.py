"""long_tests.txt: its lines are tests that exist, once each, and its marks act."""

import subprocess
import sys

import marked
import pytest
import runs


def test_every_line_is_a_test_that_is_there():
    tests = [test for _, test in marked.read()]
    assert len(tests) == len(set(tests)) > 50
    for test in tests:
        file, _, name = test.partition("[")[0].partition("::")
        assert f"def {name}(" in (marked.FILE.parent / file).read_text(), test


def test_a_line_that_is_none(tmp_path):
    (tmp_path / "list.txt").write_text("# heading\nsystem 5 moe/test_x.py::test_y\nslow test_z\n")
    with pytest.raises(
        ValueError, match=r"list.txt:3: must be MARK SECONDS TEST, not 'slow test_z'"
    ):
        marked.read(tmp_path / "list.txt")


def test_a_long_test_is_not_among_the_readmes():
    (line,) = (test for _, test in marked.read() if test.startswith("moe/test_rounds.py"))
    name = line.partition("::")[2]
    argv = ["-n", "0", "--collect-only", "-v", "tests/moe/test_rounds.py"]
    command = [sys.executable, "-m", "pytest", *argv]
    done = subprocess.run(command, cwd=runs.REPO, capture_output=True, text=True)
    assert done.returncode == 0 and "test_all_rows_are_through" in done.stdout
    assert name not in done.stdout

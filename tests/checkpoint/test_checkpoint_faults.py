"""A full disk and a kill at any moment, in processes of their own."""

import pathlib
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

SAVER = pathlib.Path(__file__).with_name("saver.py")


DEVICES = "--xla_force_host_platform_device_count=2"


def start(*args):
    return subprocess.run(
        [sys.executable, SAVER, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=pathlib.Path(__file__).parents[2],
        env={"PYTHONPATH": ".", "JAX_PLATFORMS": "cpu", "PATH": "", "XLA_FLAGS": DEVICES},
    )


def test_a_full_disk_costs_one_save_and_one_line(tmp_path):
    done = start("full", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "absl" not in done.stderr  # orbax's own report, some 200 lines
    error, reason, after, later = done.stdout.splitlines()
    assert error.startswith(f"checkpoint of step 2 was not saved in {tmp_path}/checkpoints: ")
    assert reason in error and "step 1 is the last good one" in error
    assert after == "restored 1"
    assert later == "restored 3 ['3']"  # nor does what was written of step 2 take space


def test_a_program_that_ends_in_a_save_does_not_end_well(tmp_path):
    """With orbax 0.12.8 alone it exits with 0, and there is no checkpoint."""
    done = start("forgets", tmp_path)
    there = (tmp_path / "checkpoints/1/manifest.json").exists()
    assert done.returncode == (0 if there else 1), done.stderr
    said = "emo: the program ended before it closed its checkpoints: checkpoint of step 1 was not"
    assert there == (said not in done.stderr)
    done = start("remembers", tmp_path / "closed")
    assert done.returncode == 0 and (tmp_path / "closed/checkpoints/1/manifest.json").exists()


@pytest.mark.system
def test_killed_at_any_moment_a_complete_step_is_restored(tmp_path):
    done = start("killed", tmp_path, 8, 1)
    assert done.returncode == 0, done.stderr
    found = re.search(r"restored (\d+) skipped \d+", done.stdout)
    assert found and int(found[1]) >= 1, done.stdout


@pytest.mark.system
def test_two_processes_agree_on_what_failed(tmp_path):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda i: start("together", tmp_path, port, i), (0, 1))
    assert first.returncode == 0, first.stderr
    assert second.returncode == 0, second.stderr
    assert first.stdout.count("checkpoint of step 4 was not saved") == 2
    assert second.stdout.count("process 0 failed") == 2
    said = "checkpoint of step 5 was not saved in .*: process 1 could not write its part: "
    assert re.search(said + ".+; step 2 is the last good one", first.stdout), first.stdout
    assert re.search("checkpoint of step 5 was not saved in .*; step 2 is", second.stdout)
    assert re.search("step 7: .*process 1 ", first.stdout), first.stdout
    assert re.search("step 7: checkpoint of step 7 was not saved in .*Cannot", second.stdout)

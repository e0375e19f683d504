"""A process that does not get on with its checkpoint is named, and so is the file."""

import shutil
import sys

import group
import pytest
import runs

pytestmark = pytest.mark.system

# `emo`, in which process 1 takes for ever to read one of the files that it verifies.
_SLOW = """
import os, time
from emo_jax.checkpoint import manifest
from emo_jax.cli import main

digest = manifest._digest

def slow(path):
    while os.environ["EMO_PROCESS_INDEX"] == "1":
        time.sleep(1)
    return digest(path)

manifest._digest = slow
main()
"""


@pytest.mark.slow
def test_who_is_slow_and_with_what_file(store, tmp_path_factory, tmp_path):
    env = runs.environment(tmp_path_factory.getbasetemp() / "compiled_by_processes")
    workdir = tmp_path / "run"
    argv = group.train_argv(store, workdir, checkpoint__save_every=4)
    done = group.launch(argv, env)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(workdir / "checkpoints/12")
    command = [sys.executable, "-c", _SLOW, *argv[3:], "--config.train.stall_timeout=2"]
    done = group.launch(command, env)
    assert done.returncode == 75, done.stderr
    (line, *_) = (s for s in group.said(done.stderr, 0) if "no step for" in s)
    assert "process 0 (" in line and "waits for process 1 (" in line
    assert f"reads a checkpoint ({workdir}/checkpoints/8/data/" in line
    assert list((workdir / "stalls").glob("*/process1.txt"))
    done = group.launch(argv, env)
    assert done.returncode == 0 and "resumed at step 8" in done.stderr

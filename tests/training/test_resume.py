"""A run that is killed or stopped goes on as if nothing had happened, to the last bit."""

import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import runs

from emo_jax.checkpoint.reading import restore_params


def _resume(argv, env, workdir, step):
    """Finishes the run, from a step that is known to be the newest whole one."""
    done = runs.emo(argv, env)
    assert done.returncode == 0, done.stderr
    assert f"resumed at step {step}\n" in done.stderr


def _assert_same_run(workdir, reference):
    assert runs.log_as_written(workdir) == runs.log_as_written(reference)
    params, extra, step = restore_params(workdir)
    expected, expected_extra, expected_step = restore_params(reference)
    assert (step, extra["windows"]) == (expected_step, expected_extra["windows"])
    assert runs.equal_trees(params, expected)


def _whole(workdir) -> list[int]:
    """Steps whose checkpoint is complete."""
    folder = workdir / "checkpoints"
    return [s for s in runs.checkpoints(workdir) if (folder / str(s) / "manifest.json").exists()]


@pytest.mark.system
def test_killed_while_it_saves(env, finished_run, store, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "log"
    argv = runs.train_argv(store, workdir)
    process = runs.start(argv, env, log)
    runs.wait_until((workdir / "checkpoints/20").exists, process, log)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 20 in runs.checkpoints(workdir)
    _resume(argv, env, workdir, step=_whole(workdir)[-1])
    _assert_same_run(workdir, finished_run)
    assert runs.checkpoints(workdir) == [20, 30, 40]


@pytest.mark.system
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal(env, finished_run, store, tmp_path, number):
    workdir, log = tmp_path / "run", tmp_path / "log"
    argv = runs.train_argv(store, workdir)
    process = runs.start(argv, env, log)
    runs.wait_until(lambda: "step 3/" in log.read_text(), process, log)
    process.send_signal(number)
    assert process.wait(timeout=60) == 75, log.read_text()
    step = runs.steps_logged(workdir)
    last = log.read_text().splitlines()[-1]
    assert last.startswith(f"emo: stopped by a signal; step {step} is saved in {workdir}")
    assert "Traceback" not in log.read_text()
    assert _whole(workdir)[-1] == step < 40
    _resume(argv, env, workdir, step)
    _assert_same_run(workdir, finished_run)


# A run that is told to stop while it still looks at its workdir.
_STOPPED = """
import os, signal
from emo_jax.cli import main
from emo_jax.training import loop

claim = loop.claim_workdir

def claim_and_stop(*args, **settings):
    os.kill(os.getpid(), signal.SIGTERM)
    return claim(*args, **settings)

loop.claim_workdir = claim_and_stop
main()
"""


# One that is told to while its libraries are still being read.
_STOPPED_EARLY = """
import os, signal, sys
from emo_jax.config import file as configfile
from emo_jax.cli import main

load = configfile.load_config

def load_and_stop(*args):
    assert "emo_jax.training.loop" not in sys.modules
    os.kill(os.getpid(), signal.SIGTERM)
    return load(*args)

configfile.load_config = load_and_stop
main()
"""


@pytest.mark.parametrize("script", [_STOPPED, _STOPPED_EARLY], ids=["claiming", "importing"])
def test_stopped_before_the_first_step(env, store, tmp_path, script):
    workdir = tmp_path / "run"
    command = [sys.executable, "-c", script, *runs.train_argv(store, workdir)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 75, done.stderr
    said = "emo: stopped before the first step; run the same command again to go on"
    assert done.stderr.splitlines()[-1] == said
    assert runs.checkpoints(workdir) == [] and runs.steps_logged(workdir) == 0
    assert (workdir / "config.json").exists()


@pytest.mark.slow
def test_killed_again_and_again(store, tmp_path):
    """Each process compiles anew, as a restart on another machine does."""
    reference, workdir, log = tmp_path / "reference", tmp_path / "run", tmp_path / "log"
    env, kills = runs.environment(), 5
    fields = dict(
        train__steps=500,
        train__eval_every=130,
        checkpoint__save_every=20,
        checkpoint__keep_every=0,
    )
    done = runs.emo(runs.train_argv(store, reference, **fields), env)
    assert done.returncode == 0, done.stderr

    argv = runs.train_argv(store, workdir, **fields)
    draw = random.Random(0)
    at, interrupted_saves = [], 0
    for kill in range(kills):
        # The first comes before there is a checkpoint; another before there is a new one.
        ahead = 3 if kill in (0, 4) else draw.randrange(10, 70)
        shown = f"step {(_whole(workdir) or [0])[-1] + ahead}/"
        process = runs.start(argv, env, log)
        runs.wait_until(lambda shown=shown: shown in log.read_text(), process, log)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        at.append(runs.steps_logged(workdir))
        interrupted_saves += runs.checkpoints(workdir) != _whole(workdir)
    print("killed at", at, "in the middle of a save", interrupted_saves)
    _resume(argv, env, workdir, step=_whole(workdir)[-1])
    _assert_same_run(workdir, reference)


# Killed when the checkpoint of step 10 is complete.
_DIE_AFTER_THE_SAVE = """
if Path(workdir, "checkpoints/10/manifest.json").exists():
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.system
def test_a_kill_right_after_a_save_loses_no_line_of_the_log(env, finished_run, store, tmp_path):
    """All that led to a checkpoint is in the log before it."""
    workdir = tmp_path / "run"
    argv = runs.train_argv(store, workdir)
    command = runs.stalled(argv, step=11, meanwhile=_DIE_AFTER_THE_SAVE)
    process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert runs.steps_logged(workdir) == 10
    _resume(argv, env, workdir, step=10)
    _assert_same_run(workdir, finished_run)


@pytest.mark.system
def test_a_copy_of_a_run_goes_on_elsewhere(env, finished_run, store, tmp_path):
    """Nothing in a workdir says where it lies; an older checkpoint alone is enough."""
    workdir = tmp_path / "copy"
    shutil.copytree(finished_run, workdir)
    for step in (30, 40):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    _resume(runs.train_argv(store, workdir), env, workdir, step=20)
    _assert_same_run(workdir, finished_run)

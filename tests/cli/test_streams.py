"""Standard output and error that go away: no traceback, and nothing of the work is lost."""

import os
import signal
import subprocess
import sys

import pytest
import runs

CLOSED, FAILED, RUN_AGAIN = 141, 1, 75


def _emo(argv: list, env, **streams) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "emo_jax.cli", *map(str, argv)]
    return subprocess.run(command, env=env, timeout=300, check=False, text=True, **streams)


@pytest.fixture
def unread():
    """The end to write to of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def test_an_output_that_nobody_reads_ends_quietly(env, unread):
    done = _emo(["--help"], env, stdout=unread, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (CLOSED, "")
    both = _emo(["train"], env, stdout=unread, stderr=unread)
    assert both.returncode == 2


def test_an_output_on_a_full_disk_is_said(env):
    with open("/dev/full", "w") as full:
        done = _emo(["--version"], env, stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == FAILED
        assert done.stderr.startswith("emo: standard output: No space left")
        assert done.stderr.count("\n") == 1
        assert _emo(["train"], env, stdout=subprocess.PIPE, stderr=full).returncode == 2


@pytest.mark.system
def test_closed_descriptors_are_not_written_to(env, tmp_path):
    """Else the next file that is opened has the number of standard error."""
    shell = f"{sys.executable} -m emo_jax.cli export {tmp_path}/none --output {tmp_path}/x"
    for closed in ("2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(["sh", "-c", f"{shell} {closed}"], env=env, timeout=300, check=False)
        assert done.returncode == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.system
def test_a_run_goes_on_when_nobody_reads_its_messages(env, store, tmp_path):
    fields = {"train__steps": 6, "train__eval_every": 3}
    workdir = tmp_path / "run"
    argv = [sys.executable, "-m", "emo_jax.cli", *runs.train_argv(store, workdir, **fields)]
    process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout.readline().startswith(b"emo_tiny: ")
    process.stdout.close()
    assert process.wait(timeout=300) == 0
    assert runs.steps_logged(workdir) == 6 and runs.checkpoints(workdir)[-1] == 6


@pytest.fixture
def attached():
    """These tests may be run under nohup, and a signal that is ignored is so in what they start."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.system
def test_a_terminal_that_is_gone_is_a_request_to_stop(env, store, tmp_path, attached):
    workdir, log = tmp_path / "run", tmp_path / "log"
    process = runs.start(runs.train_argv(store, workdir, train__steps=100_000), env, log)
    runs.wait_until(lambda: runs.steps_logged(workdir) >= 2, process, log)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=300) == RUN_AGAIN
    assert runs.checkpoints(workdir)
    kept = [sys.executable, "-m", "emo_jax.cli"]
    kept += runs.train_argv(store, tmp_path / "kept", train__steps=100_000)
    with log.open("w") as stream:
        process = subprocess.Popen(["nohup", *kept], env=env, stdout=stream, stderr=stream)
    runs.wait_until(lambda: runs.steps_logged(tmp_path / "kept") >= 2, process, log)
    process.send_signal(signal.SIGHUP)
    steps = runs.steps_logged(tmp_path / "kept")
    runs.wait_until(lambda: runs.steps_logged(tmp_path / "kept") > steps + 1, process, log)
    process.kill()
    process.wait()

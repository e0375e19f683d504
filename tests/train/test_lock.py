"""One live run in a workdir."""

import json
import os
import signal
import socket
import subprocess

import pytest
import runs

from emo_jax.errors import UsageError
from emo_jax.train.lock import LOCK_FILE, RunLock, _begun


def owner(workdir, **changes):
    """A lock file of another process of this test's user."""
    record = {"host": socket.gethostname(), "pid": os.getppid(), "begun": _begun(os.getppid())}
    (workdir / LOCK_FILE).write_text(json.dumps(record | changes))


def test_a_live_one_is_refused_and_keeps_its_lock(tmp_path):
    owner(tmp_path)
    before = (tmp_path / LOCK_FILE).read_text()
    for act in (RunLock(tmp_path).check, RunLock(tmp_path).acquire):
        with pytest.raises(UsageError, match=rf"{tmp_path} is in use by process {os.getppid()} "):
            act()
    RunLock(tmp_path).release()
    assert (tmp_path / LOCK_FILE).read_text() == before
    assert os.listdir(tmp_path) == [LOCK_FILE]


def test_stale_ones_are_taken_over(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    for changes in (
        {"pid": gone.pid},
        {"begun": 1},  # a later process of the same number
        {"host": "elsewhere"},
        {"pid": "none"},
        {"pid": os.getpid(), "begun": 1},
    ):
        owner(tmp_path, **changes)
        lock = RunLock(tmp_path)
        lock.acquire()
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
        lock.release()
        assert os.listdir(tmp_path) == []
    (tmp_path / LOCK_FILE).write_text('{"host"')
    RunLock(tmp_path).acquire()
    owner(tmp_path, host="elsewhere")  # which took over
    RunLock(tmp_path).release()
    assert os.listdir(tmp_path) == [LOCK_FILE]


def test_a_zombie_is_gone():
    process = subprocess.Popen(["true"])
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert _begun(process.pid) is None
        assert _begun(os.getpid())
    finally:
        process.wait()


@pytest.mark.system
def test_a_second_run_in_the_same_workdir(env, store, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "log"
    argv = runs.train_argv(store, workdir, train__steps=4000, train__eval_windows=0)
    process = runs.start(argv, env, log)
    try:
        runs.wait_until(lambda: "step 2/" in log.read_text(), process, log)
        second = runs.emo(argv, env)
        assert second.returncode == 2, second.stderr
        said = f"emo: {workdir} is in use by process {process.pid} on this machine; "
        assert second.stderr.startswith(said) and second.stderr.count("\n") == 1
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert (workdir / LOCK_FILE).exists()  # of a process that is gone
    log.write_text("")
    process = runs.start(argv, env, log)
    runs.wait_until(lambda: "step " in log.read_text(), process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75, log.read_text()
    assert not (workdir / LOCK_FILE).exists()

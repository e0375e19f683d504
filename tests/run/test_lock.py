"""One live run in a workdir."""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import runs

from emo_jax.errors import TakenOverError, UsageError
from emo_jax.run.lock import LOCK_FILE, RunLock, _begun


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
        {"pid": os.getpid(), "begun": 1},
    ):
        owner(tmp_path, **changes)
        lock = RunLock(tmp_path)
        lock.acquire()
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
        lock.release()
        assert os.listdir(tmp_path) == []
    RunLock(tmp_path).acquire()
    owner(tmp_path, host="elsewhere")  # which took over
    RunLock(tmp_path).release()
    assert os.listdir(tmp_path) == [LOCK_FILE]


_LIVE = {"host": socket.gethostname(), "pid": os.getppid(), "begun": 0}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "broken JSON"),
        ('{"host"', "broken JSON"),
        ("me, do not touch", "broken JSON"),
        ("[" * 100_000, "nested too deep"),
        ("[1, 2]", "must hold a JSON object, not a list"),
        (b"\xff\xfe{\x00}\x00", "UTF-16 text"),
        ({"host": None}, "host must be a string of one line"),
        ({"host": ["a"]}, "host must be a string of one line"),
        ({"pid": str(os.getppid())}, "pid must be a whole number"),
        ({"pid": -1}, "pid must be a whole number"),
        ({"pid": 0}, "pid must be a whole number"),
        ({"pid": True}, "pid must be a whole number"),
        ({"pid": 10**30}, "pid must be a whole number"),
        ({"pid": 1.5}, "pid must be a whole number"),
        ({"begun": "today"}, "begun must be a whole number"),
        (Path("/dev/zero"), "not a regular file"),
        (os.mkfifo, "not a regular file"),
    ],
)
def test_what_is_no_lock_is_named_once_and_taken_over(tmp_path, caplog, content, said):
    path = tmp_path / LOCK_FILE
    if isinstance(content, dict):
        path.write_text(json.dumps(_LIVE | content))
    elif isinstance(content, Path):
        path.symlink_to(content)
    elif callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    lock = RunLock(tmp_path)
    with caplog.at_level(logging.WARNING):
        lock.check()
        lock.acquire()
    assert len(caplog.messages) == 1 and "\n" not in caplog.messages[0]
    assert caplog.messages[0].startswith(f"{path}: ") and said in caplog.messages[0]
    assert caplog.messages[0].endswith("; it names no run, and is taken over")
    assert json.loads(path.read_text())["pid"] == os.getpid()
    lock.release()
    assert os.listdir(tmp_path) == []


def test_a_field_that_is_missing(tmp_path, caplog):
    for name in _LIVE:
        (tmp_path / LOCK_FILE).write_text(json.dumps({k: v for k, v in _LIVE.items() if k != name}))
        lock = RunLock(tmp_path)
        lock.acquire()
        lock.release()
    assert [f"no field {name};" in m for name, m in zip(_LIVE, caplog.messages, strict=True)]
    assert os.listdir(tmp_path) == []


def test_a_folder_in_its_place(tmp_path):
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.raises(UsageError, match=r"\.lock: cannot be written: .*; mend it"):
        RunLock(tmp_path).acquire()
    assert os.listdir(tmp_path) == [LOCK_FILE]


def test_one_that_is_taken_over_is_known_and_stays(tmp_path):
    lock = RunLock(tmp_path)
    lock.check_still_ours()  # not ours yet, and nobody's
    lock.acquire()
    lock.check_still_ours()
    owner(tmp_path, host="elsewhere", pid=os.getpid())  # in containers, every run is process 1
    with pytest.raises(TakenOverError, match=rf"process {os.getpid()} on elsewhere has taken"):
        lock.check_still_ours()
    lock.release()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["host"] == "elsewhere"


def test_what_is_written_into_our_own_lock_ends_nothing(tmp_path):
    lock = RunLock(tmp_path)
    lock.acquire()
    (tmp_path / LOCK_FILE).write_text("mine now")
    lock.release()
    assert (tmp_path / LOCK_FILE).read_text() == "mine now"


def test_a_zombie_is_gone():
    process = subprocess.Popen(["true"])
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert _begun(process.pid) is None
        assert _begun(os.getpid())
    finally:
        process.wait()


@contextlib.contextmanager
def long_run(argv, env, log):
    """A run that does not end by itself, and is killed on exit."""
    process = runs.start(argv, env, log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.system
def test_a_second_run_in_the_same_workdir(env, store, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "log"
    argv = runs.train_argv(store, workdir, train__steps=4000, train__eval_windows=0)
    with long_run(argv, env, log) as process:
        runs.wait_until(lambda: "step 2/" in log.read_text(), process, log)
        second = runs.emo(argv, env)
        assert second.returncode == 2, second.stderr
        said = f"emo: {workdir} is in use by process {process.pid} on this machine; "
        assert second.stderr.startswith(said) and second.stderr.count("\n") == 1
        assert process.poll() is None
    assert (workdir / LOCK_FILE).exists()  # of a process that is gone
    log.write_text("")
    process = runs.start(argv, env, log)
    runs.wait_until(lambda: "step " in log.read_text(), process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75, log.read_text()
    assert not (workdir / LOCK_FILE).exists()


@pytest.mark.system
def test_a_run_that_is_taken_over_saves_nothing_more(env, store, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "log"
    argv = runs.train_argv(store, workdir, train__steps=4000, train__eval_windows=0)
    with long_run(argv, env, log) as process:
        runs.wait_until(lambda: len(runs.checkpoints(workdir)) > 0, process, log)
        owner(workdir, host="elsewhere")
        assert process.wait(timeout=120) == 1, log.read_text()
    last = log.read_text().splitlines()[-1]
    assert last.startswith(f"emo: {workdir}: process {os.getppid()} on elsewhere has taken this")
    assert json.loads((workdir / LOCK_FILE).read_text())["host"] == "elsewhere"

"""A run that does no step for too long ends with 75, and leaves the stacks of its threads."""

import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import runs

from emo_jax.parallel import processes
from emo_jax.training.watchdog import Watchdog


@pytest.mark.system
def test_a_run_that_hangs_ends_and_says_where(env, store, tmp_path):
    workdir = tmp_path / "run"
    argv = runs.train_argv(store, workdir, train__stall_timeout=12, train__eval_every=0)
    begun = time.monotonic()
    command = runs.stalled(argv, step=4)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 75, done.stderr
    assert time.monotonic() - begun < 180
    last = done.stderr.splitlines()[-1]
    found = re.match(
        r"emo: no step for 12 s: this process waits for the data of step 4; the stacks of all"
        r" threads are in (\S+/stalls/step4-\d+T\d+); run the same command again to go on",
        last,
    )
    assert found and found[1].startswith(str(workdir)), last
    (file,) = (workdir / "stalls").glob("*/process0.txt")
    stacks = file.read_text()
    assert "in stalled" in stacks and "in _train" in stacks  # of the main thread
    assert stacks.count("Thread 0x") > 3  # and of those that read batches
    done = runs.emo(argv, env)
    assert done.returncode == 0, done.stderr


_WAITS = """
import sys, time
from pathlib import Path
from emo_jax.parallel import processes
from emo_jax.training.watchdog import Watchdog

processes.pulse.at("step", 1)
with Watchdog(Path(sys.argv[1]), 8):
    print("ready", flush=True)
    for _ in range(20):
        time.sleep(0.1)
"""


@pytest.mark.system
def test_time_in_which_the_process_is_stopped_does_not_count(env, tmp_path):
    command = [sys.executable, "-c", _WAITS, str(tmp_path)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(9)
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=60) == 0 and not list(tmp_path.iterdir())


@pytest.fixture
def ended(monkeypatch):
    """When a watchdog ends its process, which it does not do here."""
    found = threading.Event()

    def end(self, limit):
        found.set()
        self._over.set()

    monkeypatch.setattr(Watchdog, "_end", end)
    return found


def test_a_compile_may_take_longer(ended, tmp_path):
    processes.pulse.at("step", 1)
    processes.pulse.at("compile", 1)
    with Watchdog(tmp_path, 0.4):
        assert not ended.wait(1.2)
        assert ended.wait(10)  # six times as long


def test_a_phase_that_goes_on_is_no_stall(ended, tmp_path):
    processes.pulse.at("step", 1)
    with Watchdog(tmp_path, 0.8):
        for _ in range(15):
            time.sleep(0.1)
            processes.pulse.beat()
        assert not ended.is_set()
        assert ended.wait(10)


def test_there_may_be_no_limit(ended, tmp_path):
    processes.pulse.at("step", 1)
    before = threading.active_count()
    with Watchdog(tmp_path, 0):
        assert threading.active_count() == before

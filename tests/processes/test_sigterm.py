"""SIGTERM reaches a run: through JAX's start of several processes, and as process 1."""

import os
import shutil
import signal
import subprocess
import sys

import group
import pytest
import runs

pytestmark = pytest.mark.system

# A handler that is there before JAX starts, and SIGTERM after it; `start` is filled in.
_HANDLER = """
import os, signal, sys, time
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
def look():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)
    print("heard" if heard else "not heard", flush=True)
"""
_JAX = """
import jax
jax.config.update("jax_enable_preemption_service", True)  # JAX's own default
jax.distributed.initialize(os.environ["EMO_COORDINATOR"], 1, 0)
look()
"""
_OURS = """
from emo_jax.parallel import processes
place = int(os.environ["EMO_PROCESSES"]), int(os.environ["EMO_PROCESS_INDEX"])
with processes.joined(*place, os.environ["EMO_COORDINATOR"], join_timeout=60):
    look()
"""


def test_jax_takes_sigterm_away_and_a_run_does_not_let_it(env):
    """If JAX itself leaves the signal alone one day, what switches that off may go."""
    alone = group.launch([sys.executable, "-c", _HANDLER + _JAX], env, 1, 1)
    assert group.said(alone.stdout, 0) == ["not heard"], alone.stderr
    both = group.launch([sys.executable, "-c", _HANDLER + _OURS], env, 2, 1)
    assert both.returncode == 0, both.stderr
    assert [group.said(both.stdout, index) for index in (0, 1)] == [["heard"], ["heard"]]


def child_of(process: subprocess.Popen) -> int | None:
    """The process that another one, such as unshare, has started."""
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    with open(children) as file:
        found = file.read().split()
    return int(found[0]) if found else None


@pytest.mark.skipif(
    shutil.which("unshare") is None or os.geteuid() != 0, reason="wants a PID namespace: root"
)
def test_process_1_saves_and_can_be_run_again(env, store, tmp_path):
    """In a container the kernel drops a signal that process 1 has no handler for."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    argv = runs.train_argv(store, workdir, train__steps=100_000, train__eval_every=0)
    code = "import os; from emo_jax.cli import main; assert os.getpid() == 1; main()"
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", code, *argv]
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=env, stdout=stream, stderr=stream)
    try:
        runs.wait_until(lambda: runs.steps_logged(workdir) > 3, process, log)
        os.kill(child_of(process), signal.SIGTERM)
        assert process.wait(timeout=60) == 75, log.read_text()
    finally:
        if process.poll() is None:
            os.kill(child_of(process), signal.SIGKILL)
    steps = runs.steps_logged(workdir)
    assert runs.checkpoints(workdir)[-1] == steps < 100_000
    assert "run the same command again" in log.read_text()

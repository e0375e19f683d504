"""Two processes that keep states on disks of their own, killed and started again."""

import os
import re
import shutil
import signal

import group
import pytest
import runs

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    return runs.environment(tmp_path_factory.getbasetemp() / "compiled_by_processes")


@pytest.fixture(scope="module")
def whole(env, store, tmp_path_factory):
    """A run that was left alone, without any disks."""
    workdir = tmp_path_factory.mktemp("local_disks") / "whole"
    done = group.launch(group.train_argv(store, workdir, checkpoint__save_every=6), env)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.parametrize("lost", [pytest.param(None, marks=pytest.mark.slow), 1])
def test_a_killed_run_goes_on_from_the_disks_of_all(env, store, whole, tmp_path, lost):
    """And from the shared checkpoint if one process is on another host now, with an empty disk."""
    disks, workdir, log = tmp_path / "disks", tmp_path / "run", tmp_path / "log"
    fields = {"checkpoint__save_every": 6, "checkpoint__local": disks}
    command = group.train_argv(store, workdir, **fields, checkpoint__local_every=1)
    launch = group.start(command, env, log)

    def kept(process):
        return list(disks.glob(f"*/process{process}/checkpoints/8/manifest.json"))

    runs.wait_until(lambda: kept(0) and kept(1), launch, log)
    os.kill(group.pid_of(launch, 1), signal.SIGKILL)
    assert launch.wait(timeout=60) == 128 + signal.SIGKILL, log.read_text()
    assert runs.checkpoints(workdir) == [6]
    if lost is not None:
        shutil.rmtree(next(disks.glob(f"*/process{lost}")))
    done = group.launch(command, env)
    assert done.returncode == 0, done.stderr
    (step, where) = re.search(r"resumed at step (\d+)(.*)\n", done.stderr).groups()
    if lost is None:
        assert int(step) >= 8 and where == f", from {disks} of each host"
    else:
        assert (step, where) == ("6", "")
    assert runs.log_as_written(workdir) == runs.log_as_written(whole)
    assert runs.equal_trees(runs.state_of(workdir, 12), runs.state_of(whole, 12))

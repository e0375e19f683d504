"""Training on two processes of four devices with expert parallelism: what may go wrong, for real.

Checkpoints, messages and exit codes; `emo train` is started by launch/local.py as a user would.
"""

import json
import os
import re
import shutil
import signal
import sys

import group
import numpy as np
import pytest
import runs

from emo_jax.checkpoint.reading import restore_params
from emo_jax.run.status import read_status

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    """All processes of these tests share compiled programs."""
    return runs.environment(tmp_path_factory.getbasetemp() / "compiled_by_processes")


@pytest.fixture(scope="module")
def whole(env, tmp_path_factory):
    """A run that was left alone: (workdir, what it said)."""
    base = tmp_path_factory.getbasetemp()
    workdir = base / "processes_whole"
    done = group.launch(group.train_argv(runs.shared_store(base), workdir), env)
    assert done.returncode == 0, done.stderr
    return workdir, done


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of that run, to go on with."""
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    return workdir


def has_step(workdir, step):
    return (workdir / f"checkpoints/{step}/manifest.json").exists()


def assert_same_run(workdir, whole):
    assert runs.log_as_written(workdir) == runs.log_as_written(whole)
    params, extra, step = restore_params(workdir)
    expected, expected_extra, expected_step = restore_params(whole)
    assert (step, extra["windows"]) == (expected_step, expected_extra["windows"])
    assert runs.equal_trees(params, expected)


def test_only_process_0_speaks_and_writes_the_log(whole):
    workdir, done = whole
    assert group.said(done.stderr, 1) == [] and done.stdout == ""
    assert sum("held-out loss" in line for line in group.said(done.stderr, 0)) == 2
    records = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 13))
    starts = [json.loads(x) for x in (workdir / "run_info.jsonl").read_text().splitlines()]
    assert [s["environment"]["processes"] for s in starts] == [2]


def test_each_process_writes_its_part_of_a_checkpoint(whole):
    """Half of the bytes each: none writes what another holds."""
    for item in ("params", "rest"):
        folder = whole[0] / "checkpoints/12/data" / item
        sizes = [
            sum(p.stat().st_size for p in (folder / f"ocdbt.process_{i}").rglob("*"))
            for i in range(2)
        ]
        assert min(sizes) > 0.3 * max(sizes), sizes


@pytest.mark.parametrize("killed", [pytest.param(1, marks=pytest.mark.slow), 0])
def test_a_killed_process_ends_the_run_and_the_same_command_resumes(
    env, store, whole, tmp_path, killed
):
    workdir, log = tmp_path / "run", tmp_path / "log"
    command = group.train_argv(store, workdir)
    launch = group.start(command, env, log)
    runs.wait_until(lambda: has_step(workdir, 4), launch, log)
    os.kill(group.pid_of(launch, killed), signal.SIGKILL)
    assert launch.wait(timeout=60) == 128 + signal.SIGKILL, log.read_text()
    text = log.read_text()
    assert f"launch: process {killed} was ended by SIGKILL (exit code 137)\n" in text
    assert f"launch: process {1 - killed} ended with exit code 1\n" in text
    last = group.said(text, 1 - killed)[-1]
    assert re.match(
        rf"emo: process {killed} \(.+\) is gone; this run ends with it: run the same", last
    )
    assert "Traceback" not in text and "Check failure" not in text
    status = read_status(workdir)
    if killed:  # process 0 had the time to say so
        assert status.state == "failed" and last == f"emo: {status.note}"
    else:
        assert status.state == "dead"

    done = group.launch(command, env)
    assert done.returncode == 0, done.stderr
    assert re.search(r"resumed at step (4|8)\n", done.stderr)
    assert_same_run(workdir, whole[0])


# Process 0 is lost while another holds Python's lock, so that only JAX's own threads can notice.
_BUSY = """
import os, time
from emo_jax.parallel import processes

place = os.environ["EMO_PROCESSES"], os.environ["EMO_PROCESS_INDEX"]
with processes.joined(*map(int, place), os.environ["EMO_COORDINATOR"], join_timeout=60):
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    numbers = list(np.random.default_rng(0).random(500_000))
    multihost_utils.process_allgather(np.asarray(0))
    if jax.process_index() == 0:
        time.sleep(0.1)
        os.kill(os.getpid(), 9)
    sorted(numbers)
    time.sleep(60)
"""


def test_jax_does_not_abort_the_others_where_process_0_is_lost(env):
    done = group.launch([sys.executable, "-c", _BUSY], env, 3, 1)
    assert done.returncode == 128 + signal.SIGKILL, done.stderr
    for index in (1, 2):
        # On a machine that is busy JAX has the time to log that it lost process 0, too.
        [line] = [said for said in group.said(done.stderr, index) if said.startswith("emo: ")]
        gone = r"emo: process 0 \(.+\) is gone; this run ends with it: run"
        assert re.match(gone, line), done.stderr
        assert "Terminating process" not in done.stderr


def test_sigterm_to_one_process_saves_all_and_asks_to_be_run_again(env, store, whole, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "log"
    command = group.train_argv(store, workdir)
    launch = group.start(command, env, log)
    runs.wait_until(lambda: runs.steps_logged(workdir) >= 2, launch, log)
    os.kill(group.pid_of(launch, 1), signal.SIGTERM)
    assert launch.wait(timeout=60) == 75, log.read_text()
    for index in (0, 1):
        assert "stopped by a signal; step" in group.said(log.read_text(), index)[-1]
    done = group.launch(command, env)
    assert done.returncode == 0 and "resumed at step" in done.stderr, done.stderr
    assert_same_run(workdir, whole[0])


def test_a_damaged_checkpoint_is_skipped_by_all(env, store, whole, copy):
    runs.damage_checkpoint(copy, 12)
    done = group.launch(group.train_argv(store, copy), env)
    assert done.returncode == 0, done.stderr
    assert "resumed at step 8\n" in done.stderr
    for index in (0, 1):
        text = "\n".join(group.said(done.stderr, index))
        assert "checkpoint of step 12 in" in text and "is not used" in text
    assert restore_params(copy)[2] == 12
    assert_same_run(copy, whole[0])


def test_a_run_in_use_is_refused_by_all(env, store, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "log"
    command = group.train_argv(store, workdir, train__steps=400)
    launch = group.start(command, env, log)
    runs.wait_until(lambda: runs.steps_logged(workdir) >= 1, launch, log)
    done = group.launch(command, env)
    assert done.returncode == 2, done.stderr
    assert "is in use by process" in group.said(done.stderr, 0)[-1]
    assert group.said(done.stderr, 1)[-1] == "emo: process 0 failed; see its log"
    launch.send_signal(signal.SIGTERM)
    assert launch.wait(timeout=60) == 75, log.read_text()


@pytest.mark.parametrize(
    "init", ["all", pytest.param("weights+optimizer", marks=pytest.mark.slow), "weights"]
)
def test_a_run_that_begins_from_another(env, store, whole, tmp_path, init):
    workdir = tmp_path / "run"
    steps = 14 if init == "all" else 4
    command = group.train_argv(
        store, workdir, train__steps=steps, init__expected_changes="train", train__eval_every=0
    )
    done = group.launch([*command, "--init-from", whole[0], "--init", init], env)
    assert done.returncode == 0, done.stderr
    assert f"begins from step 12 of {whole[0]}" in done.stderr
    _, extra, step = restore_params(workdir)
    assert step == steps and extra["init"]["step"] == 12
    assert extra["windows"] == 8 * steps
    records = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    first = next(r["loss"] for r in records if "loss" in r)
    whole_log = [json.loads(x) for x in (whole[0] / "metrics.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in whole_log if "loss" in r]
    assert losses[11] - 0.5 < first < losses[5]


# A run whose step N gets a batch with a mask that is no number, in a row of process 1.
_POISONED = """
import sys
from emo_jax.cli import main
from emo_jax.data.loader import Loader

bad = int(sys.argv.pop(1))
make = Loader.batch

def poisoned(self, start_window, **settings):
    batch = make(self, start_window, **settings)
    if start_window == bad * self.batch_size and 5 in self.rows:
        batch.loss_mask[list(self.rows).index(5), 2] = float("nan")
    return batch

Loader.batch = poisoned
main()
"""


def test_a_loss_that_is_not_finite_stops_all_with_one_message(env, store, whole, tmp_path):
    workdir = tmp_path / "run"
    argv = group.train_argv(store, workdir)[3:]
    done = group.launch([sys.executable, "-c", _POISONED, "6", *argv], env)
    assert done.returncode == 1, done.stderr
    lines = [group.said(done.stderr, index)[-1] for index in (0, 1)]
    for index, line in enumerate(lines):
        assert line.startswith("emo: step 7: the loss is nan and the gradient norm is nan; ")
        assert f"the state before is step 6 in {workdir}" in line
        assert f"bad_batch_step7.process{index}.npz" in line
    assert runs.checkpoints(workdir) == [4, 6]
    masks = []
    for index in (0, 1):
        with np.load(workdir / f"bad_batch_step7.process{index}.npz") as arrays:
            assert arrays["rows"].tolist() == list(range(4 * index, 4 * index + 4))
            assert arrays["columns"].tolist() == list(range(64))
            masks.append(arrays["loss_mask"])
    assert np.argwhere(np.isnan(np.concatenate(masks))).tolist() == [[5, 2]]
    done = group.launch(group.train_argv(store, workdir), env)  # without the poison
    assert done.returncode == 0 and "resumed at step 6\n" in done.stderr, done.stderr
    assert_same_run(workdir, whole[0])


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_others_too(env, store, tmp_path):
    """Its batches cannot be read; the other one waits in a collective."""
    failing = _POISONED.replace(
        'batch.loss_mask[list(self.rows).index(5), 2] = float("nan")',
        'raise OSError("no such disk")',
    )
    argv = group.train_argv(store, tmp_path / "run")[3:]
    done = group.launch([sys.executable, "-c", failing, "6", *argv], env)
    assert done.returncode == 1, done.stderr
    assert "emo: OSError: no such disk" in group.said(done.stderr, 1)[-1]
    last = group.said(done.stderr, 0)[-1]
    assert re.match(r"emo: process 1 \(.+\) failed \(exit code 1\): OSError: no such disk; ", last)
    assert runs.checkpoints(tmp_path / "run") == [4]


def test_configs_and_versions_that_differ_are_named_on_all(env, store, tmp_path):
    """Process 1 is given another batch size, and says that it is of another version."""
    changed = """
import os, sys
import emo_jax
from emo_jax.cli import main

if os.environ["EMO_PROCESS_INDEX"] == "1":
    sys.argv.append("--config.train.batch_size=16")
    emo_jax.__version__ = "9.9"
main()
"""
    argv = group.train_argv(store, tmp_path / "run")[3:]
    done = group.launch([sys.executable, "-c", changed, *argv], env)
    assert done.returncode == 2, done.stderr
    lines = {group.said(done.stderr, index)[-1] for index in (0, 1)}
    assert len(lines) == 1
    assert re.match(
        r"emo: process 1 differs from process 0: config.train.batch_size: 8 -> 16; emo_jax: '.+' ->"
        r" '9.9'; start all processes with the same",
        lines.pop(),
    )
    assert not (tmp_path / "run").exists()


def test_stores_that_differ_are_found(env, store, tmp_path):
    """The same path, relative to folders that are not the same."""
    corpus = runs.write_corpus(tmp_path / "corpus.jsonl", documents=100)
    argv = ["prepare", corpus, "--output", tmp_path / "1/store", "--tokenizer", "bytes"]
    (tmp_path / "1").mkdir()
    assert runs.emo(argv, env).returncode == 0
    shutil.copytree(store, tmp_path / "0/store")
    elsewhere = """
import os, sys
from emo_jax.cli import main

os.chdir(os.path.join(sys.argv.pop(1), os.environ["EMO_PROCESS_INDEX"]))
main()
"""
    argv = group.train_argv("store", tmp_path / "run")[3:]
    done = group.launch([sys.executable, "-c", elsewhere, tmp_path, *argv], env)
    assert done.returncode == 2, done.stderr
    for index in (0, 1):
        assert (
            "process 1 differs from process 0: tokens of config.data: "
            in (group.said(done.stderr, index)[-1])
        )


def test_devices_that_differ_are_found(env, store, tmp_path):
    changed = """
import os
from emo_jax.cli import main

if os.environ["EMO_PROCESS_INDEX"] == "1":
    os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"
main()
"""
    argv = group.train_argv(store, tmp_path / "run")[3:]
    done = group.launch([sys.executable, "-c", changed, *argv], env)
    assert done.returncode == 2, done.stderr
    for index in (0, 1):
        line = group.said(done.stderr, index)[-1]
        assert "process 1 differs from process 0: devices: 4 -> 2" in line


def test_one_that_never_joins_is_named(env, store, tmp_path):
    absent = """
import os, time
from emo_jax.cli import main

if os.environ["EMO_PROCESS_INDEX"] == "1":
    time.sleep(60)
main()
"""
    argv = [*group.train_argv(store, tmp_path / "run")[3:], "--join-timeout", "4"]
    done = group.launch([sys.executable, "-c", absent, *argv], env, 2, 4, "--kill-after", "1")
    assert done.returncode == 1, done.stderr
    assert re.match(
        r"emo: process 1 of 2 did not join at 127.0.0.1:\d+ within 4 s; see their logs",
        group.said(done.stderr, 0)[-1],
    )


def test_the_last_rows_of_a_batch_must_divide(env, store, tmp_path):
    command = group.train_argv(store, tmp_path / "run", train__batch_size=12)
    done = group.launch(command, env)
    assert done.returncode == 2, done.stderr
    for index in (0, 1):
        assert "config.train.batch_size" in group.said(done.stderr, index)[-1]


def test_trackers_are_of_process_0(env, store, tmp_path):
    workdir = tmp_path / "run"
    command = group.train_argv(store, workdir, train__steps=4, tracking__tensorboard=True)
    done = group.launch(command, env)
    assert done.returncode == 0, done.stderr
    assert len(list((workdir / "tensorboard").rglob("*tfevents*"))) == 1

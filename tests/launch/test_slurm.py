"""launch/slurm.py with a real Slurm: a job that is stopped, killed and requeued loses nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runs
import slurm_here

from emo_jax.checkpoint.reading import restore_params

pytestmark = pytest.mark.system

LAUNCHER = runs.REPO / "launch/slurm.py"
STEPS = 260
SMALL = {
    "train__steps": STEPS,
    "train__eval_every": 0,
    "checkpoint__save_every": 1000,  # only where it is stopped
    "checkpoint__keep_every": 0,
}
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
# `emo`, whose batches come slowly while a file is there: 6 a second at most.
_SLOW = """
import os, sys, time
from emo_jax.cli import main
from emo_jax.training.loop import Trainer

file = sys.argv.pop(1)
batches = Trainer._batches

def slowly(self, *given):
    for batch in batches(self, *given):
        if os.path.exists(file):
            time.sleep(0.16)
        yield batch

Trainer._batches = slowly
main()
"""


def slow(file: Path, store: Path, workdir: Path) -> list[str]:
    argv = runs.train_argv(store, workdir, **SMALL)
    return [sys.executable, "-c", _SLOW, str(file), *argv]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if missing := slurm_here.missing():
        assert "CI" not in os.environ, f".ci/run installs Slurm, and {missing} are not there"
        pytest.skip(f"Slurm is not installed ({', '.join(missing)}): apt install slurm-wlm munge")
    with slurm_here.slurm(tmp_path_factory.mktemp("slurm")) as variables:
        yield variables


@pytest.fixture(scope="module")
def env(cluster, tmp_path_factory):
    return runs.environment(tmp_path_factory.getbasetemp() / "compiled_by_slurm", **cluster)


def submit(env, folder: Path, command: list[str], *options: str) -> str:
    """Submits a job of two tasks in `folder`; returns its number."""
    sizes = ["--nodes", "1", "--tasks-per-node", "2", "--save-seconds", "5", "--time", "30"]
    launch = [sys.executable, LAUNCHER, *sizes, *options, "--", *command]
    done = subprocess.run(launch, env=env, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return re.search(r"Submitted batch job (\d+)", done.stdout)[1]


def job(env, number: str) -> dict[str, str]:
    """What Slurm says of a job."""
    show = ["scontrol", "--oneliner", "show", "job", number]
    said = subprocess.run(show, env=env, capture_output=True, text=True, timeout=60).stdout
    return dict(re.findall(r"(\w+)=(\S*)", said))


def wait_until(reached, env, number: str, log: Path) -> None:
    """Waits for something that happens while a job goes on."""
    give_up = time.monotonic() + 150
    while not reached():
        said = log.read_text() if log.exists() else "it never began"
        state = job(env, number)["JobState"]
        assert state not in ENDED or reached(), f"{state}:\n{said}"
        assert time.monotonic() < give_up, said
        time.sleep(0.3)


def update(env, number: str, change: str) -> None:
    """Changes a job, as an administrator would."""
    command = ["scontrol", "update", f"JobId={number}", change]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def tasks_of(number: str) -> list[int]:
    """Processes of a job's tasks, by index."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        mine = dict(v.split(b"=", 1) for v in variables if b"=" in v)
        if mine.get(b"SLURM_JOB_ID") == number.encode() and b"train" in words and b"-c" in words:
            found[int(mine.get(b"SLURM_PROCID", b"-1"))] = int(folder.name)
    return [found[index] for index in sorted(found) if index >= 0]


def losses(workdir: Path) -> list[tuple[int, float]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [(r["step"], r["loss"]) for r in map(json.loads, lines) if "loss" in r]


def test_a_job_goes_on_after_its_time_limit_and_a_killed_task(env, store, tmp_path):
    brake, workdir, whole = tmp_path / "brake", tmp_path / "run", tmp_path / "whole"
    here = [sys.executable, runs.REPO / "launch/local.py", "--processes", "2", "--"]
    command = [*here, *slow(brake, store, whole)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr

    brake.touch()
    number = submit(env, tmp_path, slow(brake, store, workdir))
    log = tmp_path / f"emo-{number}.log"
    restarts = lambda: int(job(env, number)["Restarts"])  # noqa: E731
    # 1. The time limit comes soon. Before it both get SIGTERM, save and end with 75, and the job is
    # requeued.
    wait_until(lambda: runs.steps_logged(workdir) > 5, env, number, log)
    update(env, number, "EndTime=now+36")
    wait_until(lambda: restarts() == 1, env, number, log)
    [saved] = runs.checkpoints(workdir)
    assert 5 < saved < STEPS
    assert log.read_text().count("run the same command again") == 2
    update(env, number, "TimeLimit=30")
    # 2. A task is killed: the other ends, and the job is requeued as after any failure.
    wait_until(lambda: runs.steps_logged(workdir) > saved + 5, env, number, log)
    os.kill(tasks_of(number)[1], signal.SIGKILL)
    brake.unlink()
    wait_until(lambda: restarts() == 2, env, number, log)
    failures = tmp_path / f"emo-{number}.failures"
    assert failures.read_text() == "1\n"
    # 3. It goes on to the end.
    wait_until(lambda: job(env, number)["JobState"] == "COMPLETED", env, number, log)
    assert not failures.exists()
    text = log.read_text()
    assert text.count(f"resumed at step {saved}\n") == 2
    assert "Traceback" not in text
    assert losses(workdir) == losses(whole) and losses(whole)[-1][0] == STEPS
    assert runs.equal_trees(restore_params(workdir)[0], restore_params(whole)[0])


@pytest.mark.parametrize(
    ("code", "restarts", "state"), [(2, 0, "FAILED"), (1, 1, "FAILED"), (0, 0, "COMPLETED")]
)
def test_which_exit_codes_start_a_job_again(env, tmp_path, code, restarts, state):
    command = [sys.executable, "-c", f"print('begun'); raise SystemExit({code})"]
    number = submit(env, tmp_path, command, "--max-failures", "1")
    log = tmp_path / f"emo-{number}.log"
    wait_until(lambda: job(env, number)["JobState"] == state, env, number, log)
    assert int(job(env, number)["Restarts"]) == restarts
    assert job(env, number)["ExitCode"] == f"{code}:0"
    assert log.read_text().count(": begun\n") == 2 * (1 + restarts)


def test_what_is_shown_is_what_is_submitted(env, tmp_path):
    command = [sys.executable, "-c", "import os, sys; print(sys.argv[1:])", "it's", "a  b", "$HOME"]
    options = ["--nodes", "1", "--time", "1", "--setup", "export A='b c'", "--shared-nodes"]
    show = [sys.executable, LAUNCHER, *options, "--dry-run", "--", *command]
    shown = subprocess.run(show, env=env, capture_output=True, text=True, timeout=60)
    done = subprocess.run(
        ["bash"], input=shown.stdout, env=env, cwd=tmp_path, capture_output=True, text=True
    )
    number = re.search(r"Submitted batch job (\d+)", done.stdout)[1]
    log = tmp_path / f"emo-{number}.log"
    wait_until(lambda: job(env, number)["JobState"] == "COMPLETED", env, number, log)
    assert log.read_text() == "0: [\"it's\", 'a  b', '$HOME']\n"

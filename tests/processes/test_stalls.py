"""Two processes of which one hangs: all write their stacks and end with 75."""

import json
import re
import sys

import group
import pytest
import runs

from emo_jax.run.status import read_status

pytestmark = pytest.mark.system

# Process 1 hangs, or is slow, where it makes its batches.
_LATE = """
import os, sys, time
from emo_jax.cli import main
from emo_jax.data.loader import Loader

slow, hangs = float(sys.argv.pop(1)), int(sys.argv.pop(1))
make = Loader.batch

def late(self, start_window, **settings):
    if os.environ["EMO_PROCESS_INDEX"] == "1":
        time.sleep(600 if start_window == hangs * self.batch_size else slow)
    return make(self, start_window, **settings)

Loader.batch = late
main()
"""


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    """All processes of these tests share compiled programs."""
    return runs.environment(tmp_path_factory.getbasetemp() / "compiled_by_processes")


def late(store, workdir, slow, hangs, **fields):
    argv = group.train_argv(store, workdir, **fields)[3:]
    return [sys.executable, "-c", _LATE, str(slow), str(hangs), *argv]


def test_one_that_hangs_ends_all_and_is_named(env, store, tmp_path):
    workdir = tmp_path / "run"
    command = late(store, workdir, 0, 6, train__stall_timeout=12)
    done = group.launch(command, env)
    assert done.returncode == 75, done.stderr
    lines = [group.said(done.stderr, index)[-1] for index in (0, 1)]
    assert lines[0] == lines[1]
    found = re.fullmatch(
        r"emo: no step for 12 s: process 0 \((is in|agrees .+ after) step \d+\) waits for"
        r" process 1 \(pid \d+ on .+\), which waits for the data of step 7; the stacks of all"
        rf" threads are in ({workdir}/stalls/step\d+-\d+T\d+); this run ends with it: run the same"
        r" command again to go on",
        lines[0],
    )
    assert found, lines[0]
    (folder,) = (workdir / "stalls").iterdir()
    assert str(folder) == found[2]
    assert sorted(p.name for p in folder.iterdir()) == [
        *("process0.txt", "process1.txt", "processes.txt")
    ]
    # Of the thread that reads.
    assert re.search(r"line \d+ in late$", (folder / "process1.txt").read_text(), re.MULTILINE)
    assert "in _train" in (folder / "process0.txt").read_text()
    said = (folder / "processes.txt").read_text().splitlines()
    assert said[1].endswith("waits for the data of step 7")
    assert "Traceback" not in done.stderr
    status = read_status(workdir)  # `emo status` knows what the log says
    assert status.state == "stopped" and lines[0] == f"emo: {status.note}"
    done = group.launch(group.train_argv(store, workdir), env)
    assert done.returncode == 0 and "resumed at step 4\n" in done.stderr, done.stderr


@pytest.mark.slow
def test_a_slow_host_shows_in_the_log(env, store, tmp_path):
    """Heartbeats say what the time of a step cannot, as all wait for the slowest."""
    workdir = tmp_path / "run"
    command = late(store, workdir, 1.5, 99, train__steps=10, data__prefetch=1)
    done = group.launch(command, env)
    assert done.returncode == 0, done.stderr
    records = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    spreads = [r for r in records if "data_seconds/max" in r][1:]
    assert spreads, records
    last = spreads[-1]
    assert last["data_seconds/slowest_process"] == 1
    for name in ("step_seconds", "data_seconds"):
        assert last[f"{name}/min"] <= last[f"{name}/median"] <= last[f"{name}/max"]
    most = max(r["data_seconds/max"] - r["data_seconds/min"] for r in spreads)
    assert most > 0.3

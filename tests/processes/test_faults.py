"""A process of two that fails alone, or stands still for a while; both are of `emo train`."""

import json
import os
import re
import signal
import sys
import time

import group
import pytest
import runs

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    """All processes of these tests share compiled programs."""
    return runs.environment(tmp_path_factory.getbasetemp() / "compiled_by_processes")


# From a step on, what process 0 writes to its log goes to a full disk. The processes know each
# other by the token in the workdir, not by the launcher's.
_FULL = """
import os, sys
from emo_jax.cli import main
from emo_jax.run.metrics_file import MetricsFile

os.environ.pop("EMO_TOKEN")
write = MetricsFile.write

def full(self, record):
    if record["step"] == 6:
        os.dup2(os.open("/dev/full", os.O_WRONLY), self._file.fileno())
    write(self, record)

MetricsFile.write = full
main()
"""


def test_a_log_that_only_process_0_cannot_write_ends_both(env, store, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "log"
    command = group.train_argv(store, workdir, train__steps=4000)
    launch = group.start([sys.executable, "-c", _FULL, *command[3:]], env, log)
    runs.wait_until(lambda: "process 0 ended" in log.read_text(), launch, log)
    begun = time.monotonic()
    assert launch.wait(timeout=60) == 1
    assert time.monotonic() - begun < 9  # the launcher would stop it after 10
    text = log.read_text()
    failed = rf"{workdir}/metrics.jsonl: cannot be written: .*No space left on device; mend space"
    assert re.match(f"emo: {failed}", group.said(text, 0)[-1]), text
    last = group.said(text, 1)[-1]
    assert re.match(rf"emo: process 0 \(.+\) failed \(exit code 1\): {failed}", last), text
    assert "launch: process 1 ended with exit code 1\n" in text
    assert "SIGTERM" not in text and "Traceback" not in text and "Check failure" not in text
    assert (workdir / ".token").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("stopped", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_one_that_stands_still_for_a_while_is_recorded(env, store, tmp_path, stopped):
    """Less than the time after which it would count as lost."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    command = group.train_argv(store, workdir, train__steps=4000)
    launch = group.start(command, env, log)
    runs.wait_until(lambda: runs.steps_logged(workdir) >= 2, launch, log)
    pid = group.pid_of(launch, stopped)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(8)
    before = runs.steps_logged(workdir)
    os.kill(pid, signal.SIGCONT)
    runs.wait_until(lambda: runs.steps_logged(workdir) >= before + 3, launch, log)
    launch.send_signal(signal.SIGTERM)
    assert launch.wait(timeout=60) == 75, log.read_text()
    records = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    long = [r for r in records if r.get("slow_seconds", 0) > 7]  # a busy machine has shorter ones
    assert [r["slow_process"] for r in long] == [stopped], records
    assert long[0]["slow_seconds"] < 12 and long[0]["step"] >= before
    assert re.search(rf"process {stopped} \(.+\) stood still for \d+\.\d s", log.read_text())

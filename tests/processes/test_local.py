"""launch/local.py: output, signals, exit codes, with commands that need no JAX."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import group
import pytest
import runs

ENV = os.environ | {"XLA_FLAGS": "--xla_a=1 --xla_force_host_platform_device_count=8 --xla_b=2"}


def launch(code, processes=3, *options, devices=2):
    command = group.launcher([sys.executable, "-c", code], processes, devices, *options)
    return subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=60)


def test_each_knows_its_place_and_its_lines_say_which_it_is():
    done = launch(
        "import os, sys; e = os.environ; print(e['EMO_PROCESSES'], e['EMO_PROCESS_INDEX'],"
        " e['XLA_FLAGS']); print(e['EMO_COORDINATOR'], file=sys.stderr)"
    )
    assert done.returncode == 0
    flags = "--xla_a=1 --xla_b=2 --xla_force_host_platform_device_count=2"
    assert sorted(done.stdout.splitlines()) == [f"[{i}] 3 {i} {flags}" for i in range(3)]
    at = {line[4:] for line in done.stderr.splitlines()}
    assert len(at) == 1 and at.pop().startswith("127.0.0.1:")


def exits(**codes):
    """Exit codes by process; a negative one is a signal."""
    table = {int(name[1:]): code for name, code in codes.items()}
    return (
        f"import os, time; i = int(os.environ['EMO_PROCESS_INDEX']); c = {table}[i];"
        "time.sleep(i / 2); os.kill(os.getpid(), -c) if c < 0 else os._exit(c)"
    )


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (dict(_0=0, _1=0, _2=0), 0),
        (dict(_0=75, _1=75, _2=75), 75),
        (dict(_0=75, _1=0, _2=75), 75),
        (dict(_0=75, _1=3, _2=4), 3),
        (dict(_0=1, _1=-9, _2=75), 137),
        (dict(_0=0, _1=0, _2=-6), 134),
    ],
)
def test_the_exit_code_of_all(codes, expected):
    done = launch(exits(**codes))
    assert done.returncode == expected, done.stderr
    for name, code in codes.items():
        line = f"launch: process {name[1:]} "
        assert (line in done.stderr) == (code != 0)
    if -9 in codes.values():
        assert "launch: process 1 was ended by SIGKILL (exit code 137)\n" in done.stderr


STUBBORN = (
    "import os, signal, sys, time; i = int(os.environ['EMO_PROCESS_INDEX'])\n"
    "if i == 1: signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "if i == 2: time.sleep(0.5); os._exit(9)\n"
    "time.sleep(60)"
)


@pytest.mark.system
def test_the_others_are_stopped_where_one_fails():
    begun = time.monotonic()
    done = launch(STUBBORN, 3, "--kill-after", "1")
    assert time.monotonic() - begun < 20
    assert done.returncode == 9
    assert done.stderr.splitlines() == [
        "launch: process 2 ended with exit code 9",
        "launch: SIGTERM to processes 0, 1",
        "launch: SIGKILL to process 1",
    ]


def test_a_time_limit():
    done = launch("import time; time.sleep(60)", 2, "--timeout", "1")
    assert done.returncode == 124
    assert "launch: not done within 1 s; the processes are stopped" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_all(tmp_path, number):
    code = (
        "import os, signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: (print('asked', flush=True), os._exit(75)))\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    log = tmp_path / "log"
    process = group.start([sys.executable, "-c", code], dict(ENV), log)
    runs.wait_until(lambda: log.read_text().count("ready") == 2, process, log)
    process.send_signal(number)
    assert process.wait(timeout=20) == 75
    assert log.read_text().count("asked") == 2


def test_a_launcher_that_is_killed_leaves_nothing(tmp_path):
    """Not even processes that ignore SIGTERM, and write to nobody."""
    code = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('pid', os.getpid(), flush=True); time.sleep(60)"
    )
    log = tmp_path / "log"
    process = group.start([sys.executable, "-c", code], dict(ENV), log)
    runs.wait_until(lambda: log.read_text().count("pid") == 2, process, log)
    pids = [int(line.split()[-1]) for line in log.read_text().splitlines()]
    process.kill()
    process.wait()
    give_up = time.monotonic() + 10
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < give_up
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_bad_usage():
    done = subprocess.run(
        group.launcher(["no-such-command"]), env=ENV, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no-such-command: cannot be started: No such file or directory" in done.stderr
    command = [sys.executable, str(group.LAUNCHER), "--processes", "0", "--", "true"]
    assert subprocess.run(command, capture_output=True).returncode == 2
    done = subprocess.run([*command[:2], "--help"], capture_output=True, text=True)
    assert "Example:\n  python launch/local.py --processes 2" in done.stdout

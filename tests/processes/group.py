"""Runs of several real processes on this machine, started by launch/local.py."""

import subprocess
import sys
import time
from pathlib import Path

import runs

LAUNCHER = runs.REPO / "launch/local.py"
# Two processes of four devices with expert parallelism. Few steps: every run compiles or reads its
# programs twice.
SMALL = {
    "train.batch_size": 8,
    "train.steps": 12,
    "train.eval_every": 6,
    "checkpoint.save_every": 4,
    "checkpoint.keep_every": 0,
    "checkpoint.keep_last": 3,
    "mesh.fsdp": 2,
    "mesh.expert": 4,
}


def train_argv(store: Path, workdir: Path, **fields) -> list[str]:
    """`emo train` of the small run, as a command."""
    changed = SMALL | {name.replace("__", "."): value for name, value in fields.items()}
    return [sys.executable, "-m", "emo_jax.cli", *runs.train_argv(store, workdir, **changed)]


def launcher(
    command: list, processes: int = 2, devices: int = 4, *options: str, seconds: float = 240
) -> list[str]:
    """The launcher's command line."""
    sizes = ["--processes", str(processes), "--devices-per-process", str(devices)]
    limit = ["--timeout", str(seconds)]
    return [sys.executable, str(LAUNCHER), *sizes, *limit, *options, "--", *map(str, command)]


def launch(command: list, env: dict[str, str], *args, **kwargs) -> subprocess.CompletedProcess:
    """A finished launch, with its output as text."""
    return subprocess.run(
        launcher(command, *args, **kwargs), env=env, capture_output=True, text=True
    )


def start(command: list[str], env: dict[str, str], log: Path, *args) -> subprocess.Popen:
    """A running launch; what it says goes to `log`."""
    with log.open("w") as stream:
        return subprocess.Popen(launcher(command, *args), env=env, stdout=stream, stderr=stream)


def pid_of(launch: subprocess.Popen, index: int) -> int:
    """The process of an index, of a running launch."""
    children = Path(f"/proc/{launch.pid}/task/{launch.pid}/children")
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up:
        found = {}
        for task in children.parent.parent.glob("*/children"):
            for pid in task.read_text().split():
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if f"EMO_PROCESS_INDEX={index}".encode() in variables:
                    found[index] = int(pid)
        if found:
            return found[index]
        time.sleep(0.05)
    raise AssertionError(f"no process {index}")


def said(text: str, index: int) -> list[str]:
    """The lines of one process."""
    mark = f"[{index}] "
    return [line.removeprefix(mark) for line in text.splitlines() if line.startswith(mark)]

"""A run of several processes that is started again and again, and what can be seen of it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import runs

LAUNCHER = runs.REPO / "launch/local.py"
DEVICES = 4  # of all processes together
SILENCE = 8.0  # seconds after which a silent process counts as lost
READ_WAIT = 6.0  # seconds for which a store that is away is waited for
LIMIT = 150.0  # seconds after which something hangs

FIELDS = {
    "train.steps": 1_000_000,  # faults may let it go on for any number of them
    "train.batch_size": 8,
    "train.eval_every": 25,
    "train.eval_windows": 4,
    "checkpoint.save_every": 4,
    "checkpoint.keep_last": 3,
    "checkpoint.keep_every": 0,  # all, of the run that is left alone
    "mesh.fsdp": 2,
    "mesh.expert": 2,
}
# Rows of metrics.jsonl that are functions of the config alone.
NUMBERS = ("loss", "ce_loss", "load_balancing_loss", "grad_norm", "learning_rate")


class HangsError(Exception):
    """Something did not end, or did not go on, in time."""


@dataclass
class Launch:
    """One start of the run.

    Attributes:
      begun: when, of the monotonic clock.
      code: exit code of the launcher, once it has ended.
    """

    process: subprocess.Popen
    log: Path
    begun: float = field(default_factory=time.monotonic)

    @property
    def code(self) -> int | None:
        """See the class."""
        return self.process.poll()

    @property
    def text(self) -> str:
        """What was said so far."""
        return self.log.read_text(errors="replace")

    def pids(self) -> dict[int, int]:
        """The processes of the run, by index, dead ones left out."""
        found = {}
        for task in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for pid in task.read_text().split():
                index = _index_of(int(pid))
                if index is not None:
                    found[index] = int(pid)
        return found

    def resumed_at(self) -> int:
        """The step that the run went on from; 0 if it said none."""
        found = re.findall(r"resumed at step (\d+)", self.text)
        return int(found[-1]) if found else 0

    def step_shown(self) -> int:
        """The last step that it said it has trained; 0 if none."""
        found = re.findall(r": step (\d+)/", self.text)
        return int(found[-1]) if found else 0


def _index_of(pid: int) -> int | None:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    found = [v for v in variables if v.startswith(b"EMO_PROCESS_INDEX=")]
    return int(found[0].partition(b"=")[2]) if found else None


class Run:
    """A run: one command, which is typed again whatever happens.

    Args:
      folder: holds the logs of its launches.
      workdir, store: of the run.
      cache: of compiled programs.
      processes: that it is started with, unless `start` is told otherwise.
      fields: of the config, beside `FIELDS`.
    """

    def __init__(
        self,
        folder: Path,
        workdir: Path,
        store: Path,
        cache: Path,
        processes: int = 4,
        **fields: int,
    ):
        self.folder, self.workdir, self.store, self._fields = folder, workdir, store, fields
        self.processes = processes
        self.launches: list[Launch] = []
        changes = {"EMO_SILENCE_TIMEOUT": str(SILENCE), "EMO_READ_WAIT": str(READ_WAIT)}
        self._env = runs.environment(cache, **changes)

    def start(self, processes: int = 0) -> Launch:
        """Types the command."""
        processes = processes or self.processes
        argv = runs.train_argv(
            self.store,
            self.workdir,
            **{name.replace(".", "__"): value for name, value in FIELDS.items()} | self._fields,
        )
        devices = DEVICES // processes
        command = [
            *(sys.executable, str(LAUNCHER), "--processes", str(processes)),
            *("--devices-per-process", str(devices), "--", sys.executable, "-m", "emo_jax.cli"),
            *argv,
        ]
        log = self.folder / f"launch{len(self.launches)}.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                command, env=self._env, stdout=stream, stderr=stream, start_new_session=True
            )
        self.launches.append(Launch(process, log))
        return self.launches[-1]

    def steps_logged(self) -> int:
        """The last step with a row."""
        return max(self.rows(), default=0)

    def rows(self) -> dict[int, dict]:
        """The row of each step that was trained, as far as they are whole."""
        path = self.workdir / "metrics.jsonl"
        if not path.exists():
            return {}
        lines = path.read_text().splitlines(keepends=True)
        found = [json.loads(line, parse_float=str) for line in lines if line.endswith("\n")]
        return {row["step"]: row for row in found if "loss" in row and "step" in row}

    def numbers(self) -> dict[int, dict[str, str]]:
        """Of each step, what a run left alone has too."""
        return {
            step: {name: row[name] for name in NUMBERS if name in row}
            for step, row in self.rows().items()
        }

    def checkpoints(self) -> list[int]:
        """Steps with a complete checkpoint."""
        folder = self.workdir / "checkpoints"
        return sorted(int(p.parent.name) for p in folder.glob("*/manifest.json"))

    def wait_for_steps(self, count: int, launch: Launch) -> None:
        """Returns once a launch has trained that many more; raises HangsError if it does not."""
        last = max(launch.step_shown(), launch.resumed_at()) + count
        wait(lambda: launch.step_shown() >= last, launch, f"step {last}")

    def wait_for_end(self, launch: Launch, seconds: float = LIMIT) -> int:
        """Returns the exit code of a launch once it and all its processes are gone."""
        give_up = time.monotonic() + seconds
        while launch.code is None:
            if time.monotonic() > give_up:
                raise HangsError(f"the launcher does not end in {seconds:.0f} s")
            time.sleep(0.02)
        while left := processes_of(self.workdir):
            if time.monotonic() > give_up:
                raise HangsError(f"processes {left} do not end")
            time.sleep(0.05)
        code = launch.code
        assert code is not None
        return code

    def end(self) -> None:
        """Kills all that is left."""
        for launch in self.launches:
            if launch.code is None:
                launch.process.kill()
        for pid in processes_of(self.workdir):
            kill(pid, signal.SIGKILL)


def wait(reached: Callable[[], bool], launch: Launch, what: str, seconds: float = LIMIT) -> None:
    """Returns once `reached`.

    Raises:
      HangsError: it takes too long, or the launch ends first.
    """
    give_up = time.monotonic() + seconds
    while not reached():
        if launch.code is not None and not reached():
            raise HangsError(f"ended with {launch.code} before {what}")
        if time.monotonic() > give_up:
            raise HangsError(f"no {what} in {seconds:.0f} s")
        time.sleep(0.01)


def processes_of(workdir: Path) -> list[int]:
    """Processes on this machine that train in a workdir."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            ours = str(workdir).encode() in words and b"emo_jax.cli" in words
            if ours and state != "Z" and str(LAUNCHER).encode() not in words:
                found.append(int(entry.name))
    return found


def kill(pid: int, number: int) -> None:
    """Sends a signal, if there is still someone to get it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)

"""The faults: each is a function of a running launch, and says whether that launch should end.

A fault that damages files stops the run first: what is damaged under a run that goes on is only
found at the next start.
"""

import contextlib
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launches import LIMIT, READ_WAIT, SILENCE, Launch, Run, kill, wait

KILLED_AFTER = 30.0  # seconds from SIGTERM to SIGKILL: Slurm's KillWait, Kubernetes' grace period


@dataclass(frozen=True)
class Fault:
    """One kind.

    Attributes:
      do: brings it about, in a launch that is training. What it returns is done once the launch has
        ended (or gone on): the disk has space again, the store is back.
      ends: whether the launch ends by it, None: it may.
      codes: exit codes that are right, if it ends.
      within: seconds in which it must end, if it does.
    """

    name: str
    do: Callable[[Run, Launch, random.Random], Callable[[], None] | None]
    ends: bool | None
    codes: tuple[int, ...] = ()
    within: float = LIMIT


def _kill_one(run: Run, launch: Launch, draw: random.Random) -> None:
    kill(draw.choice(list(launch.pids().values())), signal.SIGKILL)


def _kill_all(run: Run, launch: Launch, draw: random.Random) -> None:
    for pid in [launch.process.pid, *launch.pids().values()]:
        kill(pid, signal.SIGKILL)


def _kill_launcher(run: Run, launch: Launch, draw: random.Random) -> None:
    kill(launch.process.pid, signal.SIGKILL)


def _term(run: Run, launch: Launch, draw: random.Random) -> None:
    kill(launch.process.pid, signal.SIGTERM)


def _term_one(run: Run, launch: Launch, draw: random.Random) -> None:
    kill(draw.choice(list(launch.pids().values())), signal.SIGTERM)


def _stop(seconds: float) -> Callable[[Run, Launch, random.Random], None]:
    def do(run: Run, launch: Launch, draw: random.Random) -> None:
        pid = draw.choice(list(launch.pids().values()))
        kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        kill(pid, signal.SIGCONT)

    return do


def _damage(how: Callable[[Path], None]) -> Callable[[Run, Launch, random.Random], None]:
    def do(run: Run, launch: Launch, draw: random.Random) -> None:
        wait(lambda: len(run.checkpoints()) >= 2, launch, "two checkpoints")
        _kill_all(run, launch, draw)
        run.wait_for_end(launch)
        newest = run.workdir / "checkpoints" / str(run.checkpoints()[-1])
        how(draw.choice(sorted(p for p in newest.rglob("*") if p.is_file())))

    return do


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes()) or bytearray(1)
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _failing_writer(run: Run, launch: Launch, draw: random.Random) -> Callable[[], None]:
    """No file of one process may grow beyond a few blocks, until a save has met that."""
    pids = launch.pids()
    pid = pids[draw.randrange(1, len(pids))]
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, hard))
    _meet_a_save(run, launch)

    def lift() -> None:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))

    lift()
    return lift


def _log_not_written(run: Run, launch: Launch, draw: random.Random) -> None:
    """Process 0 cannot write metrics.jsonl any more."""
    pid = launch.pids()[0]
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, hard))


def _disk_full(run: Run, launch: Launch, draw: random.Random) -> Callable[[], None]:
    """The disk of the workdir, which is a small one, has not a byte left."""
    filler = run.workdir.parent / "filler"
    with filler.open("wb") as stream:
        try:
            while True:
                stream.write(bytes(1 << 16))
                stream.flush()
        except OSError:
            pass
    _meet_a_save(run, launch)
    filler.unlink()
    return lambda: filler.unlink(missing_ok=True)


def _meet_a_save(run: Run, launch: Launch) -> None:
    """Returns once the launch has failed to save, or has ended; raises HangsError if neither."""
    before = launch.text

    def met() -> bool:
        return launch.code is not None or "was not saved" in launch.text[len(before) :]

    wait(met, launch, "save that fails", seconds=60)


def _store_away(seconds: float) -> Callable[[Run, Launch, random.Random], None]:
    def do(run: Run, launch: Launch, draw: random.Random) -> None:
        away = run.store.with_name("store.away")
        shutil.move(run.store, away)
        time.sleep(seconds)
        shutil.move(away, run.store)

    return do


FAULTS = (
    Fault("kill -9 of one process", _kill_one, True, (137,)),
    Fault("kill -9 of all", _kill_all, True, (-9,)),
    Fault("kill -9 of the launcher", _kill_launcher, True, (-9,)),
    Fault("SIGTERM to the launcher", _term, True, (75,), KILLED_AFTER),
    Fault("SIGTERM to one process", _term_one, True, (75,), KILLED_AFTER),
    Fault("SIGSTOP, shorter than the time-out", _stop(SILENCE / 3), False),
    Fault("SIGSTOP, longer than the time-out", _stop(1.6 * SILENCE), True, (1,)),
    Fault("newest checkpoint: a byte flipped", _damage(_flip), True, (-9,)),
    Fault("newest checkpoint: a file cut", _damage(_cut), True, (-9,)),
    Fault("newest checkpoint: a file deleted", _damage(Path.unlink), True, (-9,)),
    Fault("a writer that fails in a save", _failing_writer, None, (1,)),
    Fault("metrics.jsonl cannot be written", _log_not_written, True, (1,)),
    Fault("disk full", _disk_full, None, (1,)),
    Fault("store away, shorter than the wait", _store_away(READ_WAIT / 3), False),
    Fault("store away, longer than the wait", _store_away(2 * READ_WAIT), None, (1,)),
)

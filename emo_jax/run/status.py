"""How a run is doing, from its workdir alone: read-only, and without JAX.

It may run on this machine, on another, or not any more. What is known of a run that ended is what
it wrote (`run/goodput.py`); one that wrote no end, and gives no sign of life, is dead.
"""

import dataclasses
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emo_jax.errors import EXIT_FAILED, EXIT_OK, EXIT_RUN_AGAIN, UsageError, one_line
from emo_jax.files.json_files import Fields, NotReadableError, read_object
from emo_jax.run.goodput import HEARTBEAT_FILE, STEPS, Account, Mark, account, read_marks
from emo_jax.run.lock import Look, RunLock
from emo_jax.run.metrics_file import METRICS_FILE, number_in, read_newest
from emo_jax.run.run_info import read_run_info
from emo_jax.run.workdir import CHECKPOINTS, CONFIG_FILE, MANIFEST, split_step

DEAD_SECONDS = 90.0  # without a heartbeat: 18 of them, longer than a file server keeps old content
STALLED_SECONDS, STALLED_STEPS = 300.0, 20  # without a step: both, in seconds and in usual steps
STARTING_SECONDS = 1800.0  # on another machine, where nothing tells a slow start from a dead one
_RECENT = 20  # logged steps whose speed is averaged

# state: exit code of `emo status`
STATES = {
    "new": EXIT_OK,
    "starting": EXIT_OK,
    "running": EXIT_OK,
    "finished": EXIT_OK,
    "stopped": EXIT_RUN_AGAIN,
    "dead": EXIT_RUN_AGAIN,
    "stalled": EXIT_FAILED,
    "halted": EXIT_FAILED,
    "failed": EXIT_FAILED,
}
_AGAIN = "run the same command again to go on"


@dataclass(frozen=True, kw_only=True)
class Status:
    """A run at one moment. None: not known.

    Args:
      workdir, name: its folder, and the name in its config.
      state: one of `STATES`.
      note: what is wrong and what to do; empty if nothing is.
      doing: the cause that a live run spends its time on, see `goodput.CAUSES`.
      step, steps: done, and to do in all.
      loss, heldout_loss: cross-entropy in nats, the last ones logged.
      tokens_per_second, mfu: median of the last logged steps, while they ran.
      goodput: share of `wall_seconds` in steps that were kept, over all starts.
      seconds: the wall time by cause.
      starts: how often it was started.
      saved_step, saved_seconds_ago: the newest whole checkpoint.
      processes, devices, device_kind: of the last start.
      host, pid: where process 0 runs, or ran when it was killed.
      seconds_left: until the last step, at the pace of this start with all its pauses.
      sign_seconds_ago: since the last sign of life.
    """

    workdir: str
    name: str
    state: str
    note: str = ""
    doing: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    heldout_loss: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    goodput: float | None = None
    wall_seconds: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)
    starts: int = 0
    saved_step: int | None = None
    saved_seconds_ago: float | None = None
    processes: int | None = None
    devices: int | None = None
    device_kind: str | None = None
    host: str | None = None
    pid: int | None = None
    seconds_left: float | None = None
    sign_seconds_ago: float | None = None

    @property
    def exit_code(self) -> int:
        """0: nothing to do; 75: run it again; 1: somebody has to look."""
        return STATES[self.state]

    def to_json(self) -> dict[str, Any]:
        """A JSON object with all fields."""
        return dataclasses.asdict(self)


def read_status(workdir: str | Path, *, now: float | None = None) -> Status:
    """Reads how a run is doing.

    Args:
      workdir: its folder.
      now: time of day, in seconds since 1970; None: this machine's.

    Raises:
      UsageError: it is not a workdir, or a file of it cannot be read.
    """
    path, now = Path(workdir), time.time() if now is None else now
    name, steps = _read_config(workdir)
    try:
        marks = read_marks(path)
        newest = read_newest(path)
        infos = read_run_info(path)
        saved = _newest_save(path)
        sign = _last_sign(path, marks)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read as a workdir ({one_line(error)})") from error
    times, lock = account(marks), RunLock(path).look()
    logged = max((record["step"] for record in newest), default=0)
    last = marks[-1] if marks else None
    ago = None if sign is None else max(0.0, now - sign)
    step = logged if last is None else last.step
    if lock.state != "free" and lock.since > (sign or 0.0):
        state, note = _starting(lock, max(0.0, now - lock.since))
    else:
        state, note = _state(last, lock.state, ago, finished=0 < steps <= step)
    if state in ("dead", "stalled") and saved is not None and saved[0] < step:
        note += f", from step {saved[0]:,}"
    live = state in ("starting", "running", "stalled")
    machine: Mapping[str, Any] = infos[-1]["environment"] if infos else {}
    return Status(
        workdir=str(workdir),
        name=name,
        state=state,
        note=note,
        doing=last.cause if last is not None and live and last.outcome == "running" else "",
        step=step,
        steps=steps,
        loss=_last(newest, "ce_loss"),
        heldout_loss=_last(newest, "heldout_loss"),
        tokens_per_second=_median(newest, "tokens_per_second"),
        mfu=_median(newest, "mfu"),
        goodput=times.goodput,
        wall_seconds=times.wall,
        seconds=times.seconds,
        starts=len(times.spans) or len(infos),
        saved_step=None if saved is None else saved[0],
        saved_seconds_ago=None if saved is None else max(0.0, now - saved[1]),
        processes=machine.get("processes"),
        devices=machine.get("devices"),
        device_kind=machine.get("device_kind"),
        host=lock.host,
        pid=lock.pid,
        seconds_left=_seconds_left(times, steps) if state == "running" else None,
        sign_seconds_ago=ago,
    )


def _read_config(workdir: str | Path) -> tuple[str, int]:
    """The name of a run and its steps; also of a config that another version wrote."""
    path = Path(workdir)
    folder, step = split_step(workdir)
    if step is not None:
        raise UsageError(f"{workdir}: the status is of the run; give {folder}, without @{step}")
    try:
        advice = "restore it from the newest checkpoint's manifest.json"
        config = Fields(read_object(path / CONFIG_FILE, error=UsageError, advice=advice))
        return config.line("name", path.name), config.inner("train").integer("steps")
    except FileNotFoundError:
        what = f"not a workdir (no {CONFIG_FILE})" if path.exists() else "no such workdir"
        raise UsageError(f"{path}: {what}; give the --workdir of a run") from None
    except (OSError, NotReadableError) as error:
        raise UsageError(f"{path / CONFIG_FILE}: cannot be read ({one_line(error)})") from error


def _starting(lock: Look, ago: float) -> tuple[str, str]:
    """The state of a run whose last start took the lock so long ago, and gave no sign since."""
    if lock.state == "held" or (lock.state == "elsewhere" and ago < STARTING_SECONDS):
        return "starting", ""
    if lock.state == "gone":
        return "dead", f"its process was gone before the first step; {_AGAIN}"
    return "dead", f"it was started on {lock.host} {spoken(ago)} ago without a sign since; {_AGAIN}"


def _state(last: Mark | None, lock: str, ago: float | None, *, finished: bool) -> tuple[str, str]:
    """The state, and what to do.

    Args:
      last: the last mark, if any.
      lock: what the lock says, see `RunLock.look`.
      ago: seconds since the last sign of life, if there was one.
      finished: whether all steps are done.
    """
    silent = "no sign of life" if ago is None else f"no sign of life for {spoken(ago)}"
    if last is None or last.outcome != "running":
        if last is not None:
            return last.outcome, last.said or ("" if last.outcome == "finished" else _AGAIN)
        if finished:
            return "finished", ""
        if ago is None:
            return "new", ""
        return "stopped", f"how it ended is not recorded; {_AGAIN}"
    assert ago is not None
    if lock == "gone":
        return "dead", f"its process is gone, {silent}; {_AGAIN}"
    if ago > DEAD_SECONDS:
        if lock == "held":
            return "stalled", f"{silent}, but its process is there: it is suspended, or its disk is"
        return "dead", f"{silent}; {_AGAIN}"
    waited, usual = ago + last.since_step, _usual_step(last)
    if last.seconds.get("compile") and waited > max(STALLED_SECONDS, STALLED_STEPS * usual):
        doing = last.cause.replace("_", " ")
        return "stalled", f"no step was done for {spoken(waited)} ({doing}); see its log"
    return ("running" if last.seconds.get("compile") else "starting"), ""


def _usual_step(mark: Mark) -> float:
    return mark.seconds.get(STEPS, 0.0) / max(1, mark.step - mark.first)


def _seconds_left(times: Account, steps: int) -> float | None:
    last = times.spans[-1].last
    done = last.step - last.first
    if done <= 0:
        return None
    once = sum(last.seconds.get(name, 0.0) for name in ("startup", "compile"))
    return (last.total - once) / done * max(0, steps - last.step)


def _last_sign(workdir: Path, marks: list[Mark]) -> float | None:
    """When a run last gave a sign of life, in seconds since 1970; None if it never did.

    Clocks of two machines may differ: the later of what the run says and what the file says.
    """
    signs = [marks[-1].time] if marks else []
    for name in (HEARTBEAT_FILE, METRICS_FILE):
        try:
            signs.append((workdir / name).stat().st_mtime)
        except FileNotFoundError:
            continue
    return max(signs, default=None)


def _newest_save(workdir: Path) -> tuple[int, float] | None:
    """The step of the newest whole checkpoint, and when it was made; its files are not verified."""
    folder = workdir / CHECKPOINTS
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    for step in sorted((int(name) for name in names if name.isdecimal()), reverse=True):
        try:
            return step, (folder / str(step) / MANIFEST).stat().st_mtime
        except FileNotFoundError:
            continue  # unfinished, or just retired
    return None


def _last(records: list[dict[str, Any]], name: str) -> float | None:
    found = [x for record in records if (x := number_in(record, name)) is not None]
    return found[-1] if found else None


def _median(records: list[dict[str, Any]], name: str) -> float | None:
    found = [x for record in records if (x := number_in(record, name)) is not None]
    return statistics.median(found[-_RECENT:]) if found else None


def spoken(seconds: float) -> str:
    """A time as people say it: `8 s`, `12 min`, `3 h 5 min`, `2 d 4 h`."""
    whole = int(seconds)
    for size, unit, inner, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            rest = whole % size // inner
            return f"{whole // size} {unit}" + (f" {rest} {name}" if rest else "")
    return f"{whole // 60} min" if whole >= 60 else f"{whole} s"

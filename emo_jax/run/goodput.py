"""Where the wall time of a run went, over all its starts.

Goodput is the share of the wall time spent in training steps whose result was kept; badput is the
rest, by cause. The terms are those of ml-goodput-measurement. `WORKDIR/goodput.jsonl` has a mark
for the beginning and the end of each start and for each save: the step reached, and the seconds of
this start by cause. `WORKDIR/heartbeat.json` is the latest mark of a live run, replaced every few
seconds; a start that was killed leaves it behind, and the next start appends it. `account` turns
the marks into a timeline. `training/stopwatch.py` measures and writes them.

Within a start, seconds are of a monotonic clock, and every moment has one cause. Between two starts
there is only the time of day, and a clock set back counts as no time.
"""

import bisect
import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emo_jax.errors import UsageError
from emo_jax.files.json_files import Fields, NotReadableError, read_object
from emo_jax.files.json_lines import json_line, mend_lines, read_lines, warn_of_bad

GOODPUT_FILE = "goodput.jsonl"
HEARTBEAT_FILE = "heartbeat.json"
BEAT_SECONDS = 5.0  # between heartbeats

STEPS = "steps"
BADPUT = {  # cause: what it is
    "startup": "until the first step of the run: program, data, state",
    "restart": "between the end of a start and the first step of the next, compilation apart",
    "compile": "compiling the train step, or reading it from the cache",
    "input_wait": "the devices are idle and wait for a batch",
    "save_stall": "the devices are idle until a checkpoint is copied, or the one before written",
    "evaluation": "held-out losses, with their compilation",
    "lost_work": "steps that were done again after a restart",
    "other": "the devices are idle for anything else: logging, agreeing, ending",
}
CAUSES = (STEPS, *BADPUT)
_LONGEST, _LATEST = 1e9, 1e11  # seconds of a start; time of day
OUTCOMES = ("running", "finished", "stopped", "halted", "failed")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What one start has done so far.

    Args:
      start: its number, from 0.
      first: steps done before it.
      step: steps done.
      time: time of day, in seconds since 1970.
      seconds: by cause, since the start began; `startup` and not `restart` in every start.
      outcome: how it ended, see `OUTCOMES`.
      said: the error that ended it, in one line.
      cause: what the time is spent on now.
      since_step: seconds since a step was done, or since the start began.
    """

    start: int
    first: int
    step: int
    time: float
    seconds: Mapping[str, float]
    outcome: str = "running"
    said: str = ""
    cause: str = ""
    since_step: float = 0.0

    @property
    def total(self) -> float:
        """Seconds since the start began."""
        return sum(self.seconds.values())

    def to_json(self) -> dict[str, Any]:
        """A JSON object; times in milliseconds."""
        values = dataclasses.asdict(self)
        values["time"] = round(self.time, 3)
        values["since_step"] = round(self.since_step, 3)
        values["seconds"] = {name: round(s, 3) for name, s in self.seconds.items() if s}
        return {name: value for name, value in values.items() if value != ""}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Mark":
        """Reads `to_json`.

        Raises:
          NotReadableError: it is not a mark.
        """
        fields = Fields(record)
        seconds: dict[str, float] = {}
        for name in fields.inner("seconds"):
            value = fields.inner("seconds").number(name)
            if not 0 <= value <= _LONGEST:
                raise NotReadableError(f"seconds.{name} must be 0..{_LONGEST:.0e}, not {value}")
            known = name if name in CAUSES else "other"
            seconds[known] = seconds.get(known, 0.0) + value
        if not 0 <= (at := fields.number("time")) <= _LATEST:
            raise NotReadableError(f"time must be 0..{_LATEST:.0e}, not {at}")
        return cls(
            start=fields.integer("start"),
            first=fields.integer("first"),
            step=fields.integer("step"),
            time=at,
            seconds=seconds,
            outcome=fields.choice("outcome", OUTCOMES, "running"),
            said=fields.text("said", ""),
            cause=fields.text("cause", ""),
            since_step=max(0.0, fields.number("since_step", 0.0)),
        )


@dataclass(frozen=True, kw_only=True)
class Span:
    """One start on the timeline of the run.

    Args:
      start: its number, from 0.
      first, step: steps done before it and at its end.
      begins: seconds from the beginning of the run to that of this span, which is the end of the
        start before.
      down: seconds at its beginning in which no process ran.
      seconds: by cause, `down` among them as restart. Their sum is the length of the span.
      last: its last mark.
    """

    start: int
    first: int
    step: int
    begins: float
    down: float
    seconds: Mapping[str, float]
    last: Mark

    @property
    def ends(self) -> float:
        """Seconds from the beginning of the run to the end of this span."""
        return self.begins + sum(self.seconds.values())


@dataclass(frozen=True)
class Account:
    """The wall time of a run by cause, in seconds; and of each start."""

    spans: Sequence[Span] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def wall(self) -> float:
        """Seconds since the run began; the sum over all causes."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float | None:
        """The share of the wall time in steps that were kept, 0..1; None before there is any."""
        return self.seconds.get(STEPS, 0.0) / self.wall if self.wall > 0 else None

    def shares(self) -> dict[str, float]:
        """For metrics.jsonl: `goodput` and `badput/CAUSE`, 0..1, and `wall_seconds`."""
        if (goodput := self.goodput) is None:
            return {}
        found = {"goodput": round(goodput, 6)}
        for name in BADPUT:
            found[f"badput/{name}"] = round(self.seconds.get(name, 0.0) / self.wall, 6)
        return found | {"wall_seconds": round(self.wall, 3)}


def account(marks: Sequence[Mark]) -> Account:
    """The timeline of the marks of a run, in the order in which they were written."""
    starts: dict[int, list[Mark]] = {}
    for mark in marks:
        starts.setdefault(mark.start, []).append(mark)
    of_start = list(starts.values())
    # The earliest step that any later start began at: what came after it was done again.
    kept = list(itertools.accumulate((own[0].first for own in of_start[::-1]), min))[::-1]
    spans: list[Span] = []
    total = dict.fromkeys(CAUSES, 0.0)
    begins = 0.0
    for n, own in enumerate(of_start):
        last = own[-1]
        seconds = {name: last.seconds.get(name, 0.0) for name in CAUSES}
        if n + 1 < len(of_start):
            lost = seconds[STEPS] - _steps_until(own, kept[n + 1])
            seconds[STEPS] -= lost
            seconds["lost_work"] += lost
        down = 0.0
        if n > 0:
            before = of_start[n - 1][-1]
            down = max(0.0, own[0].time - own[0].total - before.time)
            seconds["restart"] += seconds["startup"] + down
            seconds["startup"] = 0.0
        of = {"start": last.start, "first": own[0].first, "step": last.step}
        spans.append(Span(**of, begins=begins, down=down, seconds=seconds, last=last))
        begins = spans[-1].ends
        total = {name: total[name] + seconds[name] for name in CAUSES}
    return Account(spans, total)


def _steps_until(marks: Sequence[Mark], step: int) -> float:
    """Seconds that a start spent in steps until `step` was done; between two marks, in proportion.

    A start that went back to an earlier step has lost the marks after it.
    """
    points = [(marks[0].first, 0.0)]
    for mark in marks:
        while len(points) > 1 and points[-1][0] > mark.step:
            points.pop()
        points.append((mark.step, mark.seconds.get(STEPS, 0.0)))
    # At the step itself, the first mark counts: what follows is of the step after it.
    right = bisect.bisect_left(points, step, key=lambda point: point[0])
    if right == 0:
        return 0.0
    if right == len(points):
        return points[-1][1]
    (low, before), (high, after) = points[right - 1], points[right]
    return before + (after - before) * (step - low) / (high - low)


# --- files ---------------------------------------------------------------------------------------


def read_marks(workdir: Path) -> list[Mark]:
    """All marks of a run, with its heartbeat as the last; none for runs that kept none.

    Lines that are not marks are skipped and logged.

    Raises:
      UsageError: a file cannot be read.
    """
    path = workdir / GOODPUT_FILE
    marks: list[Mark] = []
    if path.exists():
        lines = read_lines(path, _check)
        warn_of_bad(path, lines)
        marks = [Mark.of(record) for record in lines.records]
    beat = read_heartbeat(workdir)
    return [*marks, beat] if beat is not None and _is_news(beat, marks) else marks


def read_heartbeat(workdir: Path) -> Mark | None:
    """The heartbeat of a run; None if it has none, or if it is not readable."""
    try:
        return Mark.of(read_object(workdir / HEARTBEAT_FILE, error=UsageError, advice="remove it"))
    except (FileNotFoundError, UsageError, NotReadableError):
        return None


def append_mark(workdir: Path, mark: Mark) -> None:
    """Appends a mark; the file appears with the first.

    Raises:
      OSError: it cannot be written.
    """
    with (workdir / GOODPUT_FILE).open("a", encoding="utf-8") as file:
        file.write(json_line(mark.to_json()))


def keep_heartbeat(workdir: Path) -> list[Mark]:
    """Appends the heartbeat that a killed start left behind; returns all marks.

    A line that a kill cut short is removed.

    Raises:
      UsageError, OSError: a file cannot be read or written.
    """
    path, beat = workdir / GOODPUT_FILE, read_heartbeat(workdir)
    marks: list[Mark] = []
    if os.path.lexists(path):  # the target of a link is not ours to write
        lines = read_lines(path, _check)
        if lines.bad:
            mend_lines(path, lines, lines.records)
        marks = [Mark.of(record) for record in lines.records]
    if beat is not None and _is_news(beat, marks):
        append_mark(workdir, beat)
        marks.append(beat)
    return marks


def _is_news(beat: Mark, marks: Sequence[Mark]) -> bool:
    """Whether a heartbeat says more than the last mark."""
    if not marks:
        return True
    last = marks[-1]
    if beat.start != last.start:
        return beat.start > last.start
    return last.outcome == "running" and beat.total > last.total


def _check(record: dict[str, Any]) -> None:
    Mark.of(record)

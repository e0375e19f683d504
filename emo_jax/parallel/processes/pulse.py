"""What a process is doing, as it says in its heartbeats, and who waits for whom."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Literal

Phase = Literal[
    "start", "read", "data", "compile", "step", "evaluation", "save", "restore", "agree"
]
# In the order in which a step has them; {} is the step.
_PHASES: dict[str, str] = {
    "start": "starts",
    "read": "reads a checkpoint",
    "data": "waits for the data of step {}",
    "compile": "compiles step {}",
    "step": "is in step {}",
    "evaluation": "evaluates after step {}",
    "save": "saves step {}",
    "restore": "goes back from step {}",
    "agree": "agrees with the others after step {}",
}
_ORDER = list(_PHASES)


class Pulse:
    """What this process is doing. Setting it costs a microsecond and never waits for a device.

    Attributes:
      beats: how often it was set.
    """

    def __init__(self) -> None:
        self._now: tuple[Phase, int, float] = ("start", 0, time.monotonic())
        self._steps, self._data = 0, 0.0
        self._files: dict[object, str] = {}  # that are being read, the oldest first
        self.beats = 0

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self._now[0]

    def at(self, phase: Phase, step: int) -> None:
        """Begins a phase of a step."""
        before, _, since = self._now
        now = time.monotonic()
        if before == "data":
            self._data += now - since
        if phase == "data" and before not in ("start", "read"):
            self._steps += 1
        self._now = (phase, step, now)
        self.beats += 1

    def beat(self) -> None:
        """Says that the current phase goes on."""
        self.beats += 1

    @contextlib.contextmanager
    def reading(self, file: str) -> Iterator[None]:
        """Context in which a file is read, in any thread; `beat` says that this gets on."""
        key = object()
        self._files[key] = file
        self.beat()
        try:
            yield
        finally:
            del self._files[key]
            self.beat()

    def sign(self) -> dict[str, Any]:
        """What a heartbeat says: phase and step; the steps done, the time and the seconds in which
        this process waited for data, of which differences mean something."""
        (phase, step, since), now = self._now, time.monotonic()
        return {
            "phase": phase,
            "step": step,
            "for": round(now - since, 3),
            "steps": self._steps,
            "data": self._data + (now - since if phase == "data" else 0.0),
            "now": now,
            "file": next(iter(list(self._files.values())), ""),
        }


def does(sign: dict[str, Any] | None) -> str:
    """What a process does, in words."""
    if not sign or sign.get("phase") not in _PHASES:
        return "has not said what it does"
    file = sign.get("file")
    return _PHASES[sign["phase"]].format(sign.get("step")) + (f" ({file})" if file else "")


def _place(sign: dict[str, Any] | None) -> tuple[int, int, bool]:
    """How far a process is; who reads a file is behind those that are done with theirs."""
    if not sign:
        return -1, 0, False
    return sign["step"], _ORDER.index(sign["phase"]), not sign.get("file")


def who_waits(names: dict[int, str], signs: dict[int, dict[str, Any]]) -> str:
    """Says in one line which processes are behind, and which wait for them.

    Args:
      names: of all processes.
      signs: what they said last; a process that said nothing is behind all others.
    """
    places = {i: _place(signs.get(i)) for i in names}
    least = min(places.values())
    behind = sorted(i for i, place in places.items() if place == least)
    ahead = sorted(set(names) - set(behind))
    named = ", ".join(names[i] for i in behind[:4])
    more = f" and {len(behind) - 4} more" if len(behind) > 4 else ""
    what = does(signs.get(behind[0]))
    if not ahead:
        return f"{named} {what}" if len(names) == 1 else f"none of them is behind: each {what}"
    others = ", ".join(str(i) for i in ahead[:16]) + (", …" if len(ahead) > 16 else "")
    where = sorted({does(signs.get(i)) for i in ahead})
    word, verb = ("process", "waits") if len(ahead) == 1 else ("processes", "wait")
    return f"{word} {others} ({' or '.join(where[:3])}) {verb} for {named}{more}, which {what}"

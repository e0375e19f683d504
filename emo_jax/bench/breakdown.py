"""Where the time of a step goes: a profile of real steps, by part of the model.

The profiler names each piece of work by its instruction in the compiled program, and the program
records where in the model that comes from (`jax.named_scope`). An instruction that combines several
parts counts as the one it names, or the one most of it belongs to.

On a CPU the time of all threads is summed; on a GPU or TPU the device's own clock is read, and the
rest of the step is time it waited.
"""

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from emo_jax.aot import hlo
from emo_jax.aot.collectives import KINDS
from emo_jax.aot.counts import OTHER, PARTS, part_of
from emo_jax.errors import EmoError

COLLECTIVES = "collectives"
ROWS = (*PARTS, COLLECTIVES, OTHER)
PASSES = ("forward", "backward", "recomputed", "update")

_GPU, _TPU, _CPU = "/device:GPU:", "/device:TPU:", "/host:CPU"


class Origin(NamedTuple):
    """Where an instruction comes from."""

    part: str  # one of ROWS
    direction: str  # one of PASSES, or empty: unknown


class Event(NamedTuple):
    """A piece of work on one line (thread, stream, core) of a profile."""

    start_ns: float
    end_ns: float
    instruction: str | None


@dataclass(frozen=True)
class Breakdown:
    """Seconds per step on one device; on a CPU, of all threads together."""

    seconds: dict[Origin, float]
    step_seconds: float  # wall-clock time, under the profiler
    waiting_seconds: float | None  # the device was idle; None on a CPU
    overlapped_seconds: float  # two lines of a device busy at once
    unknown: float  # share of the busy time whose instruction is not in the program

    @property
    def busy_seconds(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())

    @cached_property
    def parts(self) -> dict[str, float]:
        """Seconds per row."""
        total = dict.fromkeys(ROWS, 0.0)
        for origin, seconds in self.seconds.items():
            total[origin.part] += seconds
        return total

    def as_json(self) -> dict[str, Any]:
        """The figures, with units in their names and without empty parts."""
        return {
            "step_seconds": self.step_seconds,
            "busy_seconds": self.busy_seconds,
            "waiting_seconds": self.waiting_seconds,
            "overlapped_seconds": self.overlapped_seconds,
            "unknown_share": self.unknown,
            "parts": {
                row: {"seconds": seconds, "share": seconds / self.busy_seconds}
                | {
                    f"{way}_seconds": self.seconds[Origin(row, way)]
                    for way in PASSES
                    if Origin(row, way) in self.seconds
                }
                for row, seconds in self.parts.items()
                if seconds
            },
        }


# --- instruction -> part -------------------------------------------------------------------------


def origins(program_text: str) -> dict[str, Origin]:
    """Part and direction of every instruction of a compiled program, by name."""
    program = hlo.parse(program_text)
    found = {}
    for computation in program.computations.values():
        for instruction in computation.instructions.values():
            found[instruction.name] = _origin(program, instruction)
    return found


def _origin(program: hlo.Program, instruction: hlo.Instruction) -> Origin:
    if _is_collective(program, instruction):
        return Origin(COLLECTIVES, _direction(instruction.op_name))
    names = [instruction.op_name]
    if part_of(instruction.op_name) == OTHER:
        names += [inner.op_name for inner in program.inside(instruction) if inner.op_name]
    known = [name for name in names if part_of(name) != OTHER]
    parts = Counter(part_of(name) for name in known)
    part = parts.most_common(1)[0][0] if parts else OTHER
    of_part = [name for name in known if part_of(name) == part] or [n for n in names if n] or [""]
    return Origin(part, Counter(map(_direction, of_part)).most_common(1)[0][0])


def _direction(op_name: str) -> str:
    """One of PASSES; empty if the program does not show it."""
    if part_of(op_name) == "optimizer":
        return "update"
    if "jvp(" not in op_name:
        return "" if part_of(op_name) == OTHER else "forward"
    if "rematted_computation" in op_name:
        return "recomputed"
    return "backward" if "transpose(" in op_name else "forward"


def _is_collective(program: hlo.Program, instruction: hlo.Instruction) -> bool:
    opcode = instruction.opcode
    if opcode.removesuffix("-start").removesuffix("-done") in KINDS:
        return True
    if not (opcode.startswith("async-") or opcode == "fusion"):
        return False
    # Wrapped to run asynchronously; not a fusion that also computes.
    inside = set()
    for name in instruction.calls:
        for inner in program.computations[name].instructions.values():
            inside |= {each.opcode for each in program.inside(inner)}
    return bool(inside & set(KINDS)) and not inside & {"dot", "convolution", "custom-call"}


# --- a profile -> seconds ------------------------------------------------------------------------


def read_profile(folder: Path, program_text: str, steps: int, wall_seconds: float) -> Breakdown:
    """The breakdown of `steps` steps in the newest profile below a folder.

    Args:
      folder: where the profiler wrote its traces.
      program_text: text of the compiled step.
      steps: number of profiled steps.
      wall_seconds: total time of the steps.
    """
    from jax.profiler import ProfileData

    files = sorted(folder.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise EmoError(f"{folder}: the profiler wrote no profile; run again, or without it")
    return breakdown(ProfileData.from_file(str(files[-1])), program_text, steps, wall_seconds)


def breakdown(profile: Any, program_text: str, steps: int, wall_seconds: float) -> Breakdown:
    """The breakdown of a loaded profile; see `read_profile`.

    Raises:
      EmoError: the profile contains no work of the program.
    """
    known = origins(program_text)
    with warnings.catch_warnings():
        # Python 3.12 warns about the types of the profile reader, which are created on first use
        # and fail to be created if warnings are errors.
        warnings.filterwarnings("ignore", message="builtin type .* has no __module__")
        devices = list(_devices(profile, known))
    total: dict[Origin, float] = defaultdict(float)
    lost = union = 0.0
    for lines in devices:
        for events in lines:
            for instruction, seconds in self_times(events):
                if instruction is None:
                    continue
                total[known.get(instruction, Origin(OTHER, ""))] += seconds
                lost += seconds if instruction not in known else 0.0
        union += _union_seconds(event for events in lines for event in events)
    busy = sum(total.values())
    if not busy:
        raise EmoError("the profile holds no work of the step; run again, or without --breakdown")
    on_cpu = _is_cpu(profile)
    each = steps * (1 if on_cpu else len(devices))
    step_seconds = wall_seconds / steps
    return Breakdown(
        {origin: seconds / each for origin, seconds in total.items()},
        step_seconds,
        None if on_cpu else max(step_seconds - union / each, 0.0),
        0.0 if on_cpu else (busy - union) / each,
        lost / busy,
    )


def _is_cpu(profile: Any) -> bool:
    return not any(plane.name.startswith((_GPU, _TPU)) for plane in profile.planes)


def _devices(profile: Any, known: dict[str, Origin]) -> Iterator[list[list[Event]]]:
    """The lines of work of each device."""
    accelerators = [p for p in profile.planes if p.name.startswith((_GPU, _TPU))]
    for plane in accelerators:
        if plane.name.startswith(_GPU):  # other lines summarise the streams
            lines = [line for line in plane.lines if line.name.startswith("Stream")]
            yield [[_event(e, _gpu_name(e, known)) for e in line.events] for line in lines]
        else:
            lines = [line for line in plane.lines if line.name == "XLA Ops"]
            yield [[_event(e, _first_word(e.name)) for e in line.events] for line in lines]
    if not accelerators:
        for plane in profile.planes:
            if plane.name == _CPU:
                yield [list(_cpu_events(line)) for line in plane.lines]


def _event(event: Any, instruction: str | None) -> Event:
    return Event(event.start_ns, event.start_ns + event.duration_ns, instruction)


def _cpu_events(line: Any) -> Iterator[Event]:
    for event in line.events:
        # Instant events and Python calls have no such name.
        if event.duration_ns and (name := _stat(event, "hlo_op")):
            yield _event(event, name)


def _gpu_name(event: Any, known: dict[str, Origin]) -> str:
    """The instruction of a kernel; for a copy its own name, which is in no program."""
    if name := _stat(event, "hlo_op"):
        return name.rpartition("::")[2]  # in a loop's body: while.1::fusion.2
    # Kernels are named after their instruction, but symbols contain no dots.
    dotted = re.sub(r"_(\d+)$", r".\1", event.name)
    return dotted if dotted in known else event.name


def _first_word(text: str) -> str:
    """The name in a program line such as `%fusion.3 = f32[8] …`."""
    return text.partition(" ")[0].removeprefix("%")


def _stat(event: Any, name: str) -> str | None:
    return next((str(value) for key, value in event.stats if key == name), None)


def self_times(events: Iterable[Event]) -> Iterator[tuple[str | None, float]]:
    """Seconds of each event on a line, excluding the events nested in it, as in a loop."""
    stack: list[list] = []  # event, nanoseconds of the events nested in it

    def close() -> tuple[str | None, float]:
        event, inside = stack.pop()
        duration = event.end_ns - event.start_ns
        if stack:
            stack[-1][1] += duration
        return event.instruction, max(duration - inside, 0.0) / 1e9

    for event in sorted(events, key=lambda e: (e.start_ns, -e.end_ns)):
        while stack and stack[-1][0].end_ns <= event.start_ns:
            yield close()
        stack.append([event, 0.0])
    while stack:
        yield close()


def _union_seconds(events: Iterable[Event]) -> float:
    """Time during which at least one event was running."""
    union, reached = 0.0, float("-inf")
    for event in sorted(events, key=lambda e: e.start_ns):
        if event.end_ns > reached:
            union += event.end_ns - max(event.start_ns, reached)
            reached = event.end_ns
    return union / 1e9


# --- for people ----------------------------------------------------------------------------------


def show(found: Breakdown, echo: Callable[[str], None]) -> None:
    """Prints a table of the parts, largest first."""
    echo(f"  {'part':<12}{'ms a step':>10}{'share':>8}" + "".join(f"{w:>12}" for w in PASSES))
    ordered = sorted(found.parts.items(), key=lambda item: -item[1])
    for row, seconds in ordered:
        if not seconds:
            continue
        ways = [found.seconds.get(Origin(row, way), 0.0) for way in PASSES]
        cells = "".join(f"{1e3 * way:>12.2f}" if way else f"{'':>12}" for way in ways)
        share = seconds / found.busy_seconds
        echo(f"  {row:<12}{1e3 * seconds:>10.2f}{share:>8.1%}{cells}".rstrip())
    busy = 1e3 * found.busy_seconds
    if found.waiting_seconds is None:
        echo(
            f"  busy {busy:.2f} ms, threads summed; a step took {1e3 * found.step_seconds:.2f} ms"
            " under the profiler (shares are of the busy time)"
        )
    else:
        overlapped = found.overlapped_seconds
        beside = f", {1e3 * overlapped:.2f} ms of it beside other work" if overlapped > 1e-6 else ""
        echo(
            f"  busy {busy:.2f} ms{beside}; waiting for the host"
            f" {1e3 * found.waiting_seconds:.2f} ms of {1e3 * found.step_seconds:.2f} ms a step"
        )
    if found.unknown > 0.01:
        echo(f"  {found.unknown:.1%} of the busy time has no name in the program; it is in other")

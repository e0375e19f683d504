"""How messages name processes, and what differs between them."""

import contextlib
import sys
from typing import Any

Facts = dict[str, Any]  # JSON values


def differences(index: int, ours: Facts, theirs: Facts) -> str:
    """What a process has other than process 0 has it; empty if nothing."""
    names = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
    lines = [f"{n}: {ours.get(n)!r} -> {theirs.get(n)!r}" for n in names[:8]]
    if len(names) > 8:
        lines.append(f"and {len(names) - 8} more")
    return f"process {index} differs from process 0: {'; '.join(lines)}" if lines else ""


def name_of(index: Any, host: Any, pid: Any) -> str:
    """A process, and where to find it."""
    return f"process {index} (pid {pid} on {host})"


def some(indices: list[int]) -> str:
    """Processes by their indices; the first 16 of them."""
    more = f" and {len(indices) - 16} more" if len(indices) > 16 else ""
    word = "process" if len(indices) == 1 else "processes"
    return f"{word} {', '.join(map(str, indices[:16]))}{more}"


def say(text: str) -> None:
    """Prints a line for the user."""
    with contextlib.suppress(Exception):
        print(f"emo: {text}", file=sys.stderr, flush=True)

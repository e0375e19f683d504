"""Long tests: long_tests.txt marks them, since how long one takes is known only from running it.

A line is a mark, the seconds that the test took on two cores, and the test; one without its
`[parameters]` means all of them. `pytest --durations=0 --durations-min=5` says which are long.
"""

from pathlib import Path
from typing import NamedTuple

import pytest

FILE = Path(__file__).with_name("long_tests.txt")
MARKS = ("system", "slow")


class Long(NamedTuple):
    """A line of the file."""

    mark: str
    test: str


def read(file: Path = FILE) -> list[Long]:
    """The lines of the file; ValueError for one that is none."""
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        mark, _, rest = line.partition(" ")
        seconds, _, test = rest.partition(" ")
        if mark not in MARKS or not seconds.isdecimal() or "::" not in test:
            raise ValueError(f"{file}:{number}: must be MARK SECONDS TEST, not {line!r}")
        found.append(Long(mark, test))
    return found


def mark_long(items: list[pytest.Item]) -> None:
    """Marks the tests of the file."""
    named = {test: mark for mark, test in read()}
    for item in items:
        whole = item.nodeid.removeprefix("tests/")
        for test in (whole, whole.partition("[")[0]):
            if test in named:
                item.add_marker(getattr(pytest.mark, named[test]))
                break

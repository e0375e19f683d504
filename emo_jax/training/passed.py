"""The windows that a run passes over: those of steps whose loss or gradient was bad.

They are known by their places in the run's order, so a run that is killed and started again passes
over the same ones, wherever it starts. WORKDIR/passed.json has them, and so has every later
checkpoint.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from etils import epath

from emo_jax.errors import UsageError
from emo_jax.files.atomic import write_atomic
from emo_jax.files.inside import check_own_files
from emo_jax.files.json_files import Fields, NotReadableError, dumps, read_object
from emo_jax.parallel import processes
from emo_jax.run.workdir import all_succeed

PASSED_FILE = "passed.json"
_MOST = 2**62  # windows
_ADVICE = "bring it back from a copy; the run needs it to know what it has read"


class Passed(NamedTuple):
    """Windows that are passed over, after a number of steps.

    Attributes:
      first: the first of them.
      end: the one after the last.
      after: steps done before them; the next step reads window `end`.
      bad: the step that was bad.
      why: what was wrong with it.
    """

    first: int
    end: int
    after: int
    bad: int
    why: str

    def meets(self, other: "Passed") -> bool:
        """Whether some windows are of both."""
        return self.first < other.end and other.first < self.end

    def __str__(self) -> str:
        return (
            f"windows {self.first}..{self.end - 1} are passed over after step {self.after}"
            f" (step {self.bad}: {self.why})"
        )


class PassedWindows:
    """All of a run's, in order; none overlap."""

    def __init__(self, found: Iterable[Passed] = ()):
        self.all = sorted(set(found))

    @classmethod
    def read(cls, workdir: Path, extra: dict[str, Any] | None = None) -> "PassedWindows":
        """Reads those of the run in a workdir; `extra` is what its newest checkpoint has.

        Raises:
          UsageError: the file is damaged.
        """
        path = workdir / PASSED_FILE
        found: list[Passed] = []
        if path.is_symlink() or path.exists():
            check_own_files(workdir, [PASSED_FILE], error=UsageError)
            fields = Fields(read_object(path, error=UsageError, advice=_ADVICE))
            try:
                found = [_of(Fields(one)) for one in fields.items("passed")]
            except NotReadableError as e:
                raise UsageError(f"{path}: {e}; {_ADVICE}") from None
        # A checkpoint may be older than the file, which has merged what it says.
        saved = [p for p in _saved(workdir, extra or {}) if not any(map(p.meets, found))]
        return cls([*found, *saved])

    @property
    def total(self) -> int:
        """How many windows they are."""
        return sum(one.end - one.first for one in self.all)

    def to_json(self) -> list[dict[str, Any]]:
        """As JSON values."""
        return [one._asdict() for one in self.all]

    def following(self, window: int) -> int:
        """The first window from this one on that is not passed over."""
        for one in self.all:
            if one.first <= window < one.end:
                window = one.end
        return window

    def before(self, window: int) -> int:
        """How many windows before this one are passed over."""
        return sum(min(one.end, window) - one.first for one in self.all if one.first < window)

    def agree_with(self, extra: dict[str, Any]) -> bool:
        """Whether a checkpoint passed over the same ones before it; `extra` is what it has."""
        window = extra.get("windows")
        if not isinstance(window, int):
            return False
        try:
            theirs = {(p.first, p.end) for p in _saved(Path(), extra) if p.first < window}
        except UsageError:
            return False
        return theirs == {(one.first, one.end) for one in self.all if one.first < window}

    def refuses(self, extra: dict[str, Any]) -> str | None:
        """Why a run does not go on from a checkpoint, given what it has; None if it may."""
        if "passed" not in extra or self.agree_with(extra):
            return None
        return "it read windows that the run passes over by now"

    def place(self, number: int) -> int:
        """The window that is read after `number` others were, from the first on."""
        for one in self.all:
            if one.first <= number:
                number += one.end - one.first
        return number

    def after(self, step: int) -> int:
        """How often this step was gone on from."""
        return sum(one.after == step for one in self.all)

    def add(self, workdir: Path, one: Passed) -> None:
        """Adds one, and writes the file before it returns; every process calls it.

        Those that begin at the same window stay; those that lie between are a part of the new one.

        Raises:
          EmoError: the file cannot be written.
        """
        one = one._replace(first=self.following(one.first))
        others = [p for p in self.all if not one.first <= p.first < one.end]
        self.all = sorted([*others, one])
        text = dumps({"passed": self.to_json()}) + "\n"
        path = epath.Path(workdir / PASSED_FILE)
        all_succeed(lambda: write_atomic(path, text) if jax.process_index() == 0 else None)

    def compare(self) -> None:
        """Raises UsageError on all processes if they have not read the same."""
        processes.compare({f"windows in {PASSED_FILE}": self.to_json()})


def _saved(workdir: Path, extra: dict[str, Any]) -> list[Passed]:
    try:
        return [_of(Fields(one)) for one in Fields({"passed": [], **extra}).items("passed")]
    except NotReadableError as e:
        raise UsageError(f"{workdir}: a checkpoint's windows passed over: {e}; {_ADVICE}") from None


def _of(fields: Fields) -> Passed:
    first, after = fields.integer("first", high=_MOST), fields.integer("after")
    end = fields.integer("end", low=first + 1, high=_MOST)
    bad = fields.integer("bad", low=after + 1)
    return Passed(first, end, after, bad, fields.line("why"))

"""The windows of a run in the order in which it reads them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emo_jax.batch import Batch
from emo_jax.config import Config
from emo_jax.config.names import WindowOrder
from emo_jax.data.mixture import Mixture, planned
from emo_jax.data.order import Order, make_order
from emo_jax.data.sources import MixedSource
from emo_jax.data.stream import TRAIN, TokenSource
from emo_jax.data.windows import TooFewTokensError, Windows, open_windows
from emo_jax.errors import ConfigError

_NAMED = 100  # sources that logs name


class SourcePlan(NamedTuple):
    """What a run with a mixture reads of one of its sources.

    Attributes:
      share: of all windows of the run.
      windows: that are read.
      epochs: how many passes over the source that is.
      exhausted: the step from which it is not read any more; None: it is not exhausted.
    """

    share: float
    windows: int
    epochs: float
    exhausted: int | None


class RunWindows:
    """Place n of a run has window n, a function of (tokens, config, n) alone.

    Attributes:
      parts: the windows of each source; one, unless the run reads a mixture.
      names: what the config calls these sources.
      mixture: how they are mixed; None: there is one.
      length: places there are.
      epoch: windows in one pass over everything.
    """

    def __init__(
        self,
        parts: Sequence[Windows],
        orders: Sequence[Order],
        *,
        names: Sequence[str] = ("",),
        mixture: Mixture | None = None,
    ):
        self.parts, self._orders, self.names = list(parts), list(orders), tuple(names)
        self.mixture = mixture
        self.length = sys.maxsize if mixture is None else mixture.end
        self.epoch = sum(order.epoch for order in orders)
        self.seq_len = self.parts[0].seq_len
        self.remote = any("://" in name for name in self.names)

    def longer(self, steps: int) -> "RunWindows":
        """Returns the windows of a run of so many steps, of which these are the first.

        Raises:
          ConfigError: the sources of a mixture end before.
        """
        if self.mixture is None:
            return self
        mixture = self.mixture.longer(steps)
        check_length(mixture.end, steps * mixture.batch_size, mixture.batch_size)
        return RunWindows(self.parts, self._orders, names=self.names, mixture=mixture)

    def locate(self, places_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source and its window at each place: (N,), (N,) int64.

        Raises:
          IndexError: there is no such place.
        """
        places_N = np.asarray(places_N, np.int64)
        if places_N.size and not 0 <= places_N.min() <= places_N.max() < self.length:
            raise IndexError(f"places {places_N.min()}..{places_N.max()} of {self.length}")
        if self.mixture is None:
            return np.zeros_like(places_N), self._orders[0].windows(places_N)
        sources, counts = self.mixture.locate(places_N)
        windows = np.empty_like(counts)
        for k in np.unique(sources).tolist():
            here = sources == k
            windows[here] = self._orders[k].windows(counts[here])
        return sources, windows

    def read(self, places_N: np.ndarray) -> Batch:
        """Returns the windows at these places: a Batch of (N,S) arrays."""
        sources, windows = self.locate(places_N)
        there = np.unique(sources).tolist()
        if len(there) == 1:
            return self.parts[there[0]].read(windows)
        batch = self.parts[0].padding(len(windows))
        for k in there:
            here = np.flatnonzero(sources == k)
            for field, values in zip(batch, self.parts[k].read(windows[here]), strict=True):
                field[here] = values
        return batch

    def fingerprint_at(self, place: int) -> str:
        """Returns what identifies the windows before a place: equal for the same ones.

        The future of a mixture may change, its past may not.
        """
        if self.mixture is None:
            return self.parts[0].source.fingerprint
        return self.mixture.fingerprint([part.source.fingerprint for part in self.parts], place)

    def shares(self, place: int) -> dict[str, float]:
        """Returns each source's share of the windows before a place; empty for one source.

        Where there are many, those after the first hundred count as "other".
        """
        if self.mixture is None or not place:
            return {}
        counts = self.mixture.counts(place)
        shares = (counts / counts.sum()).tolist()
        named = dict(zip(self.names[:_NAMED], shares, strict=False))
        return named | ({"other": sum(shares[_NAMED:])} if len(shares) > _NAMED else {})

    def notes(self, batch_size: int) -> list[str]:
        """Returns lines for the user: how documents are packed, how often each source is read."""
        lines = []
        for name, part in zip(self.names, self.parts, strict=True):
            if note := part.packing_note():
                lines.append(note if self.mixture is None else f"{name}: {note}")
        if self.mixture is None:
            return lines
        for name, plan in list(self.plans(batch_size).items())[:_NAMED]:
            line = f"{name}: {plan.windows:,} of {self.length:,} windows"
            line += f", {plan.epochs:.2f} passes over it"
            if plan.exhausted is not None:
                line += f"; ends at step {plan.exhausted}, where it reaches its cap"
            lines.append(line)
        steps = self.length // batch_size
        for source in self.mixture.sources:
            late = [step for step, _ in source.weights if step >= steps]
            if late:
                lines.append(
                    f"{source.name}: its weight from step {late[0]} on has no effect, since the run"
                    f" ends with step {steps}"
                )
        return lines

    def plans(self, batch_size: int) -> dict[str, SourcePlan]:
        """Returns what the run reads of each source, by its name; empty for one source."""
        if self.mixture is None:
            return {}
        counts = self.mixture.counts(self.length).tolist()
        found = {}
        for name, part, count in zip(self.names, self.parts, counts, strict=True):
            last = self.mixture.exhausted.get(name)
            step = None if last is None else last // batch_size + 1
            found[name] = SourcePlan(count / self.length, count, count / len(part), step)
        return found


def in_order(
    windows: Windows,
    seed: int,
    *,
    kind: WindowOrder = "shuffled",
    batch_size: int = 1,
    name: str = "",
) -> RunWindows:
    """Returns the windows of one source in an order: endless, a new order in every epoch."""
    order = make_order(
        kind, len(windows), seed=seed, seq_len=windows.seq_len, batch_size=batch_size
    )
    return RunWindows([windows], [order], names=[name])


def open_run_windows(
    config: Config, source: TokenSource, *, split: str = TRAIN, cache: Path | None = None
) -> RunWindows:
    """Opens the windows of a run.

    Args:
      source: from `sources.open_data`.
      split: which split to read.
      cache: folder for what passes over all documents find, see `Windows`.

    Raises:
      DataError: a source has no window.
      ConfigError: the sources end before the run does.
    """
    data, train = config.data, config.train
    if not isinstance(source, MixedSource):
        windows = open_windows(data, split=split, source=source, cache=cache)
        return in_order(
            windows, data.seed, kind=data.order, batch_size=train.batch_size, name=data.store
        )
    parts = []
    for name, part in zip(source.names, source.parts, strict=True):
        try:
            parts.append(open_windows(data, split=split, source=part, cache=cache))
        except TooFewTokensError as error:
            raise TooFewTokensError(f"{name}: {error}, or leave it out") from None
    orders = [
        make_order(
            data.order,
            len(part),
            seed=data.seed,
            name=part.source.fingerprint,
            seq_len=data.seq_len,
            batch_size=train.batch_size,
        )
        for part in parts
    ]
    lengths = dict(zip(source.names, map(len, parts), strict=True))
    mixture = Mixture(
        planned(data.sources, lengths), batch_size=train.batch_size, steps=train.steps
    )
    check_length(mixture.end, train.steps * train.batch_size, train.batch_size)
    return RunWindows(parts, orders, names=source.names, mixture=mixture)


def check_length(length: int, needed: int, batch_size: int) -> None:
    """Raises ConfigError if a mixture ends before the run does."""
    if length < needed:
        raise ConfigError(
            f"config.data.sources: end after {length // batch_size} of train.steps ="
            f" {needed // batch_size} steps, since all reach their caps (epochs); raise a cap, add"
            " a source, or set train.steps lower"
        )

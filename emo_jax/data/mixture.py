"""Mixtures of sources: which source is read at which place of a run, without any state.

Places walk around a circle in steps of a fixed size; each source owns an arc as long as its weight,
and a place belongs to the source on whose arc it lands. The step is 367/1000 of the circle plus a
drift of 6 % of a thousandth per 1000 steps. So 1000 places in a row land on 1000 points that are
(almost) evenly spaced, and each source gets its share of them within one window; the drift makes
shares that are no multiple of 1/1000 right in the long run. How often a source was read before a
place is a sum of floors, which has a closed form.

A mixture is a list of stages: the weights change where the config says so, and where a source
reaches its cap of epochs.
"""

import bisect
import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from emo_jax.config import SourceConfig
from emo_jax.errors import ConfigError

_CIRCLE = 10**12
_STEP = 367_000_061_803  # has no factor in common with _CIRCLE
_BLOCK = 4096  # places whose sources are found at once
_SLACK = 200  # windows; shares are right within ten


class Stage(NamedTuple):
    """A stretch of places with constant weights.

    Attributes:
      start: its first place.
      edges: (K + 1,) int64, ends of the sources' arcs, from 0 to the whole circle.
      before: (K,) windows read from each source before this stage.
    """

    start: int
    edges: tuple[int, ...]
    before: tuple[int, ...]


@dataclass(frozen=True)
class Planned:
    """One source of a mixture.

    Attributes:
      name: what the config calls it: its store.
      windows: windows in one pass over it.
      most: windows that may be read of it, by its cap of epochs; None: no cap.
      weights: (step, weight), by step: its weight from that step on.
    """

    name: str
    windows: int
    most: int | None
    weights: tuple[tuple[int, float], ...]


class Mixture:
    """The plan of a mixture.

    Args:
      sources: the K sources.
      batch_size: windows per step.
      steps: steps to plan.

    Attributes:
      batch_size: windows per step.
      end: places there are: fewer than the steps read if all sources reach their caps.
      exhausted: the place from which a source is no longer read, by its name.

    Raises:
      ConfigError: all weights of a step are zero.
    """

    def __init__(self, sources: Sequence[Planned], *, batch_size: int, steps: int):
        self.sources = tuple(sources)
        self.batch_size, self._steps = batch_size, steps
        self.stages: list[Stage] = []
        self.exhausted: dict[str, int] = {}
        self.end = steps * batch_size
        self._plan()
        self._starts = [stage.start for stage in self.stages]
        self._block = functools.lru_cache(64)(self._make_block)

    def longer(self, steps: int) -> "Mixture":
        """Returns the same plan for more steps: what it says of those before does not change."""
        return Mixture(self.sources, batch_size=self.batch_size, steps=steps)

    def _plan(self) -> None:
        steps = {step for source in self.sources for step, _ in source.weights}
        changes = sorted({0, *(step for step in steps if step < self._steps)})
        before, gone = (0,) * len(self.sources), set[int]()
        for step, following in zip(changes, [*changes[1:], self._steps], strict=True):
            place, end = step * self.batch_size, following * self.batch_size
            while place < end:
                weights = [
                    0.0 if k in gone else _at(source.weights, step)
                    for k, source in enumerate(self.sources)
                ]
                if not any(weights):
                    if not gone:
                        raise ConfigError(
                            f"config.data.sources: all weights are 0 from step {step} on; set one"
                            " above 0"
                        )
                    self.end = place
                    return
                stage = Stage(place, _edges(weights), before)
                self.stages.append(stage)
                place, spent = self._first_spent(stage, end)
                before = tuple(_counts(stage, place))
                for k in spent:
                    gone.add(k)
                    self.exhausted[self.sources[k].name] = place

    def _first_spent(self, stage: Stage, end: int) -> tuple[int, list[int]]:
        """Returns where the first sources reach their caps, and which; (end, []) if none does."""
        capped = [
            (k, source.most - stage.before[k], (stage.edges[k + 1] - stage.edges[k]) / _CIRCLE)
            for k, source in enumerate(self.sources)
            if source.most is not None and stage.edges[k] < stage.edges[k + 1]
        ]
        # A source is never further than this from its share, so most need no exact count.
        latest = [stage.start + (left + _SLACK) / share for _, left, share in capped]
        first, spent = min([end, *map(math.ceil, latest)]), list[int]()
        for k, left, share in capped:
            low = max(stage.start, math.floor(stage.start + (left - _SLACK) / share))
            if low > first or _count(stage, k, first) - stage.before[k] < left:
                continue
            high = first
            while low < high:  # the smallest place by which `left` windows were read
                middle = (low + high) // 2
                if _count(stage, k, middle) - stage.before[k] >= left:
                    high = middle
                else:
                    low = middle + 1
            spent = [*spent, k] if low == first and spent else [k]
            first = low
        return first, spent

    def locate(self, places_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source at each place and how often it was read before: (N,), (N,) int64."""
        places_N = np.asarray(places_N, np.int64)
        sources, counts = np.empty_like(places_N), np.empty_like(places_N)
        for block in np.unique(places_N // _BLOCK):
            here = places_N // _BLOCK == block
            found = self._block(int(block))
            sources[here] = found[0][places_N[here] % _BLOCK]
            counts[here] = found[1][places_N[here] % _BLOCK]
        return sources, counts

    def counts(self, place: int) -> np.ndarray:
        """Returns how many windows of each source are read before a place: (K,) int64."""
        place = min(place, self.end)
        stage = self.stages[bisect.bisect_right(self._starts, place) - 1]
        return np.array(_counts(stage, place), np.int64)

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        first, stop = block * _BLOCK, (block + 1) * _BLOCK
        sources = np.full(_BLOCK, -1, np.int64)
        counts = np.zeros(_BLOCK, np.int64)
        begin = max(bisect.bisect_right(self._starts, first) - 1, 0)
        for stage, ends in zip(
            self.stages[begin:], [*self._starts[begin + 1 :], self.end], strict=True
        ):
            low, high = max(stage.start, first), min(ends, stop)
            if low >= stop:
                break
            if low >= high:
                continue
            steps = np.arange(high - low, dtype=np.int64) * _STEP
            points = ((low - stage.start) * _STEP % _CIRCLE + steps) % _CIRCLE
            here = np.searchsorted(np.array(stage.edges[1:-1]), points, side="right")
            order = np.argsort(here, kind="stable")
            ranks = np.empty_like(here)
            firsts = np.searchsorted(here[order], here[order])
            ranks[order] = np.arange(here.size) - firsts
            sources[low - first : high - first] = here
            counts[low - first : high - first] = np.array(_counts(stage, low))[here] + ranks
        return sources, counts

    def fingerprint(self, sources: Sequence[str], place: int) -> str:
        """Returns the SHA-256 of which source is read at each place before `place`.

        Args:
          sources: fingerprints of the sources.
        """
        past = [
            (stage.start, [(name, a, b) for name, a, b in arcs if a < b])
            for stage in self.stages
            for arcs in [zip(sources, stage.edges, stage.edges[1:], strict=False)]
            if stage.start < place
        ]
        return hashlib.sha256(repr(past).encode()).hexdigest()


def _at(weights: Sequence[tuple[int, float]], step: int) -> float:
    """Returns the weight at a step; 0 before the first."""
    known = [weight for since, weight in weights if since <= step]
    return known[-1] if known else 0.0


def _edges(weights: Sequence[float]) -> tuple[int, ...]:
    ends = np.cumsum(np.array(weights, np.float64))
    scaled = np.round(ends / ends[-1] * _CIRCLE).astype(np.int64)
    return (0, *scaled.tolist())


def _counts(stage: Stage, place: int) -> list[int]:
    """Returns how many windows of each source are read before a place of a stage, in all."""
    steps = place - stage.start
    below = [_below(steps, edge) for edge in stage.edges]
    return [n + b - a for n, a, b in zip(stage.before, below, below[1:], strict=False)]


def _count(stage: Stage, k: int, place: int) -> int:
    steps = place - stage.start
    return stage.before[k] + _below(steps, stage.edges[k + 1]) - _below(steps, stage.edges[k])


def _below(steps: int, edge: int) -> int:
    """Returns how many of the first points on the circle are below `edge`."""
    if edge == 0:
        return 0
    return steps + _floor_sum(steps, 0) - _floor_sum(steps, _CIRCLE - edge)


@functools.lru_cache(1 << 16)
def _floor_sum(steps: int, offset: int) -> int:
    """Returns the sum over j < steps of floor((j * _STEP + offset) / _CIRCLE), exactly."""
    total, n, m, a, b = 0, steps, _CIRCLE, _STEP, offset
    while n > 0:
        total += n * (n - 1) // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        last = a * n + b
        if last < m:
            break
        n, b = divmod(last, m)
        m, a = a, m
    return total


def planned(configs: Sequence[SourceConfig], windows: dict[str, int]) -> list[Planned]:
    """Groups the entries of `data.sources` by store, in order of first mention.

    Args:
      configs: `data.sources`.
      windows: windows in one pass, by store.
    """
    entries: dict[str, list[SourceConfig]] = {}
    for one in configs:
        entries.setdefault(one.store, []).append(one)
    found = []
    for store, of_store in entries.items():
        cap = next((one.epochs for one in of_store if one.epochs), 0.0)
        weights = sorted((one.from_step, one.weight) for one in of_store)
        most = round(cap * windows[store]) if cap else None
        if most == 0:
            raise ConfigError(
                f"config.data.sources.epochs = {cap:g}: less than one of the {windows[store]}"
                f" windows of {store}"
            )
        found.append(Planned(store, windows[store], most, tuple(weights)))
    return found

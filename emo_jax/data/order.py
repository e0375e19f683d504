"""Which window is read at which place of a run: functions of the place, without any state.

An order maps places 0, 1, 2, … to windows of one source. It is endless: after all windows have been
read once, the next epoch begins, with an order of its own. Places are computed many at once.
"""

import functools
import hashlib
import math
from typing import Protocol

import numpy as np

from emo_jax.config.names import WindowOrder
from emo_jax.errors import ConfigError

_ROUNDS = 8
# MurmurHash3's 64-bit finaliser.
_MULTIPLY = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))
_SHIFT = np.uint64(33)

# The reference (SPEC 5.2, 5.3): files are cut to 8192 tokens, which stay together in its order.
OLMO_UNIT_TOKENS = 8192


class Order(Protocol):
    """An endless order of the windows of one source."""

    epoch: int  # places until every window has been read once

    def windows(self, places_N: np.ndarray) -> np.ndarray:
        """Returns the windows at these places, (N,) int64."""
        ...


def make_order(
    kind: WindowOrder, count: int, *, seed: int, name: str = "", seq_len: int, batch_size: int
) -> Order:
    """Makes the order that `data.order` names.

    Args:
      kind: see `config.names.WindowOrder`.
      count: windows of the source.
      seed: `data.seed`.
      name: keeps the orders of several sources with the same seed apart.
      seq_len: S.
      batch_size: B; only the reference's order depends on it.

    Raises:
      ConfigError: the reference's order does not exist for these sizes.
    """
    if kind == "grain":
        return GrainOrder(count, seed)
    if kind == "olmo":
        return OlmoOrder(count, seed, seq_len=seq_len, batch_size=batch_size)
    return ShuffledOrder(count, seed, name)


class ShuffledOrder:
    """A pseudo-random permutation of the windows for each epoch, for any number of windows.

    A Feistel network over pairs (l, r) with l·b + r = window, where a·b is just above the number of
    windows; what falls outside is permuted again until it is inside. Its keys are SHA-256 of seed,
    name and epoch, so no two of them share an order.
    """

    def __init__(self, count: int, seed: int, name: str = ""):
        self.epoch, self._seed, self._name = count, seed, name
        self._a = math.isqrt(count - 1) + 1 if count > 1 else 1
        self._b = -(-count // self._a)

    def windows(self, places_N: np.ndarray) -> np.ndarray:
        """Returns the windows at these places, (N,) int64."""
        epochs, within = np.divmod(np.asarray(places_N, np.int64), self.epoch)
        found = np.empty_like(within)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = self._permute(within[here], _keys(self._seed, self._name, int(epoch)))
        return found

    def _permute(self, x_N: np.ndarray, keys: np.ndarray) -> np.ndarray:
        x_N = self._round_trip(x_N, keys)
        while (outside := np.flatnonzero(x_N >= self.epoch)).size:
            x_N[outside] = self._round_trip(x_N[outside], keys)
        return x_N

    def _round_trip(self, x_N: np.ndarray, keys: np.ndarray) -> np.ndarray:
        a, b = np.uint64(self._a), np.uint64(self._b)
        left, right = np.divmod(x_N.astype(np.uint64), b)
        for k in range(0, _ROUNDS, 2):
            left = (left + _mix(right ^ keys[k]) % a) % a
            right = (right + _mix(left ^ keys[k + 1]) % b) % b
        return (left * b + right).astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    for factor in _MULTIPLY:
        x = (x ^ (x >> _SHIFT)) * factor
    return x ^ (x >> _SHIFT)


@functools.lru_cache(4096)
def _keys(seed: int, name: str, epoch: int) -> np.ndarray:
    digest = hashlib.shake_256(f"emo_jax order\0{seed}\0{name}\0{epoch}".encode())
    return np.frombuffer(digest.digest(8 * _ROUNDS), "<u8").astype(np.uint64)


class GrainOrder:
    """The order of runs before `data.order` existed: grain's `shuffle`, with a hashed seed.

    grain takes a seed of 32 bits and adds the epoch to it, and milliseconds per window where there
    are few windows. It was made for indices of 32 bits: of 2**32 + 1 windows, it repeats one.
    """

    def __init__(self, count: int, seed: int):
        import grain

        self.epoch = count
        if count > 1 << 32:
            raise ConfigError("config.data.order = 'grain': must be 'shuffled' above 2**32 windows")
        digest = hashlib.sha256(str(seed).encode()).digest()
        shuffled = grain.MapDataset.range(count).shuffle(seed=int.from_bytes(digest[:4], "little"))
        self._order = shuffled.repeat()

    def windows(self, places_N: np.ndarray) -> np.ndarray:
        """Returns the windows at these places, (N,) int64."""
        return np.array([self._order[int(place)] for place in places_N], np.int64)


class OlmoOrder:
    """The reference's order (SPEC 5.3): adjacent windows that make up 8192 tokens stay together.

    What does not fill a batch at the end of an epoch is dropped. An epoch's permutation is held in
    memory, 4 bytes for 8192 tokens.
    """

    def __init__(self, count: int, seed: int, *, seq_len: int, batch_size: int):
        if OLMO_UNIT_TOKENS % seq_len:
            raise ConfigError(
                f"config.data.seq_len = {seq_len}: must divide {OLMO_UNIT_TOKENS} where data.order"
                " = 'olmo'"
            )
        self._unit = OLMO_UNIT_TOKENS // seq_len
        self._units, self._seed = count // self._unit, seed
        self.epoch = self._units * self._unit // batch_size * batch_size
        if not self.epoch:
            raise ConfigError(
                f"config.train.batch_size = {batch_size}: must be at most the {count} windows"
                " where data.order = 'olmo'"
            )
        self._permutation = functools.lru_cache(2)(self._make_permutation)

    def _make_permutation(self, epoch: int) -> np.ndarray:
        draw = np.random.Generator(np.random.PCG64(seed=self._seed + epoch))
        units = np.arange(self._units, dtype=np.uint32)
        draw.shuffle(units)
        return units

    def windows(self, places_N: np.ndarray) -> np.ndarray:
        """Returns the windows at these places, (N,) int64."""
        epochs, within = np.divmod(np.asarray(places_N, np.int64), self.epoch)
        units, offsets = np.divmod(within, self._unit)
        found = np.empty_like(within)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            permutation = self._permutation(int(epoch) + 1)  # the reference counts from 1
            found[here] = permutation[units[here]].astype(np.int64) * self._unit + offsets[here]
        return found

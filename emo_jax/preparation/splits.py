"""Which split a document belongs to: a range of the hash of its id."""

from collections.abc import Sequence

import numpy as np

from emo_jax.data.stream import SPLITS
from emo_jax.errors import UsageError

DEFAULT_FRACTIONS = (0.9, 0.05, 0.05)
END = 1 << 64  # one past the largest key

Edges = tuple[int, int]  # first keys of select and of test


def check_fractions(fractions: Sequence[float]) -> None:
    """Raises UsageError unless they are shares of the three splits."""
    if len(fractions) != len(SPLITS) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UsageError(
            f"fractions = {tuple(fractions)}: must be three numbers (train, select, test), none"
            " below 0, that add up to 1"
        )


def usual_edges(fractions: Sequence[float]) -> Edges:
    """Returns the ranges of a corpus that is large enough for all its splits."""
    first, second = (_first_key(share) for share in np.cumsum(fractions)[:-1].tolist())
    return first, second


def _first_key(share: float) -> int:
    """Returns the first key k with float(k) / 2**64 >= share; END if there is none."""
    low, high = 0, END
    while low < high:
        middle = (low + high) // 2
        if float(middle) / 2.0**64 >= share:
            high = middle
        else:
            low = middle + 1
    return low


def split_of(keys: np.ndarray, edges: Edges) -> np.ndarray:
    """Returns the split of each of (D,) uint64 keys, an index into `SPLITS`: (D,) int64."""
    splits = np.zeros(keys.shape, np.int64)
    for edge in edges:
        if edge < END:
            splits += keys >= np.uint64(edge)
    return splits


def shifted_edges(keys: np.ndarray, fractions: Sequence[float]) -> tuple[Edges, tuple[str, ...]]:
    """Returns ranges by which each split with a nonzero share gets a key, if there are enough.

    Train comes first, then test, then select.

    Args:
      keys: (D,) uint64; equal keys stay together.
      fractions: shares of train, select and test.

    Returns:
      the ranges, and notes for the user.
    """
    unique = np.unique(keys)
    splits = split_of(unique, usual_edges(fractions))
    counts = np.bincount(splits, minlength=len(SPLITS))
    needed = [split for split in (0, 2, 1) if fractions[split] > 0][: unique.size]
    for split in needed:
        if not counts[split]:
            spare = counts - np.isin(np.arange(len(SPLITS)), needed)
            counts[np.argmax(spare)] -= 1
            counts[split] += 1
    notes = tuple(
        f"note: too few documents for a split {name!r}; it is empty"
        for i, name in enumerate(SPLITS)
        if fractions[i] > 0 and not counts[i]
    )
    first, second = (
        int(unique[rank]) if rank < unique.size else END for rank in np.cumsum(counts)[:-1].tolist()
    )
    return (first, second), notes


def assign_splits(
    keys: np.ndarray, fractions: Sequence[float] = DEFAULT_FRACTIONS
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Assigns each document to a split by the hash of its id.

    A split with a nonzero share gets at least one id as long as there are enough ids, so that even
    a small corpus can be evaluated; train comes first, then test, then select.

    Args:
      keys: (D,) uint64; equal keys stay together.
      fractions: shares of train, select and test.

    Returns:
      (D,) index into `SPLITS`, and notes for the user.
    """
    edges, notes = shifted_edges(keys, fractions)
    return split_of(keys, edges), notes

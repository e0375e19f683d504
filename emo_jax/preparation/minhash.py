"""MinHash signatures of token documents, and an index of them that fits in memory.

A document is the set of its n-grams of tokens. Two documents whose sets have Jaccard similarity s
agree in a position of their signatures with probability s; the signatures are cut into bands, and
documents that agree in a whole band are candidates (locality-sensitive hashing).
"""

from typing import Any

import numpy as np

from emo_jax.errors import UsageError

NGRAM = 5  # tokens
PERMUTATIONS = 128
_SEED = 42
_RECALL = 0.98  # of pairs that are exactly as similar as asked for; of closer ones it is higher
_ODD = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.random.default_rng(_SEED).integers(1, 2**63, NGRAM, np.uint64) * 2 + 1
_CHUNK = 1 << 15  # tokens; what is worked on stays in the processor's cache


def _rensa() -> Any:
    try:
        import rensa
    except ImportError:
        raise UsageError(
            "--near: rensa is not installed; pip install 'emo-jax[dedup]', or give --near 0 to look"
            " for exact duplicates only"
        ) from None
    return rensa.RMinHash


def check_installed() -> None:
    """Raises UsageError without the library."""
    _rensa()


def ngrams(tokens_T: np.ndarray, ends_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns hashes of the n-grams of documents.

    A document that is shorter than an n-gram is one of its own.

    Args:
      tokens_T: documents end to end, none of them empty.
      ends_D: one past the last token of each.

    Returns:
      (H,) uint64 hashes, and (D + 1,) int64: where those of each document begin, and where all end.
    """
    lengths = np.diff(ends_D, prepend=0)
    short = np.flatnonzero(lengths < NGRAM)
    firsts = ends_D - lengths
    # The hash of the n-gram at each place, also where it runs into the next document.
    hashes = np.zeros(tokens_T.size, np.uint64)
    for at in range(0, tokens_T.size, _CHUNK):
        values = tokens_T[at : at + _CHUNK + NGRAM - 1].astype(np.uint64)
        here = hashes[at : at + _CHUNK]
        for n, factor in enumerate(_FACTORS):
            there = values[n : n + here.size]
            here[: there.size] += there * factor
        _mix(here)
    if short.size:  # as if tokens behind the end were none
        padded = np.zeros((short.size, NGRAM), np.uint64)
        for n in range(NGRAM):
            rows = lengths[short] > n
            padded[rows, n] = tokens_T[firsts[short[rows]] + n]
        of_short = (padded * _FACTORS).sum(axis=1) + lengths[short].astype(np.uint64)
        hashes[firsts[short]] = _mix(of_short)
    counts = np.maximum(lengths - NGRAM + 1, 1)
    wanted = np.ones(tokens_T.size, bool)
    for n in range(1, NGRAM):
        wanted[(ends_D - n)[lengths > n]] = False
    return hashes[wanted], np.cumsum(np.append(0, counts))


def _mix(hashes: np.ndarray) -> np.ndarray:
    """Spreads every bit over all, in place."""
    hashes ^= hashes >> np.uint64(31)
    hashes *= _ODD
    hashes ^= hashes >> np.uint64(29)
    hashes *= _ODD
    hashes ^= hashes >> np.uint64(32)
    return hashes


def signatures(hashes_H: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Returns the MinHash signatures of documents: (D,128) uint32; arguments as `ngrams` returns.

    Raises:
      UsageError: the library is not installed.
    """
    matrix = _rensa().digest_matrix_from_flat_token_hashes(
        hashes_H, starts.astype(np.uint64), PERMUTATIONS, _SEED
    )
    return np.array(matrix.to_rows(), np.uint32).reshape(len(starts) - 1, PERMUTATIONS)


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the Jaccard similarity of two sets of n-grams, each sorted and without repeats."""
    both = np.intersect1d(a, b, assume_unique=True).size
    return both / (a.size + b.size - both)


def bands_for(threshold: float) -> tuple[int, int]:
    """Returns how many bands there are, and their rows, to find pairs at a similarity.

    Bands are as long as they may be: longer ones give fewer candidates, and find fewer pairs.
    """
    found = PERMUTATIONS, 1
    for rows in range(1, PERMUTATIONS + 1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands < _RECALL:
            break
        found = bands, rows
    return found


class BandIndex:
    """Documents by the bands of their signatures, as sorted arrays.

    Args:
      threshold: Jaccard similarity from which pairs are to be found.

    Attributes:
      bytes_each: memory of a document.
    """

    def __init__(self, threshold: float):
        self._bands, self._rows = bands_for(threshold)
        self._added: list[np.ndarray] = []
        self._keys: list[np.ndarray] = []
        self._documents: list[np.ndarray] = []
        self.bytes_each = self._bands * (8 + 4)

    def add(self, signatures_DP: np.ndarray) -> None:
        """Adds documents; they are numbered in the order of adding."""
        self._added.append(self._hashes(signatures_DP))

    def build(self) -> None:
        """Makes the index of what was added, a band at a time."""
        for band in range(self._bands):
            keys = np.concatenate([block[band] for block in self._added] or [np.zeros(0, "u8")])
            order = np.argsort(keys, kind="stable").astype(np.uint32)
            self._keys.append(keys[order])
            self._documents.append(order)
        self._added = []

    def candidates(self, signatures_DP: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns pairs that agree in a band, those with the most bands first for each row.

        Returns:
          (C,) rows of the argument, rising; (C,) numbers of added documents; (C,) in how many bands
          they agree.
        """
        found = []
        for hashes, keys, documents in zip(
            self._hashes(signatures_DP), self._keys, self._documents, strict=True
        ):
            low = np.searchsorted(keys, hashes)
            counts = np.searchsorted(keys, hashes, side="right") - low
            rows = np.repeat(np.arange(hashes.size), counts)
            within = np.arange(rows.size) - np.repeat(np.cumsum(counts) - counts, counts)
            found.append(rows << 32 | documents[low[rows] + within])
        pairs, bands = np.unique(np.concatenate(found), return_counts=True)
        rows, numbers = pairs >> 32, pairs & 0xFFFFFFFF
        order = np.lexsort((numbers, -bands, rows))
        return rows[order], numbers[order], bands[order]

    def _hashes(self, signatures_DP: np.ndarray) -> np.ndarray:
        """Returns a hash of each band: (bands, D) uint64."""
        used = signatures_DP[:, : self._bands * self._rows].astype(np.uint64)
        parts = used.reshape(-1, self._bands, self._rows)
        hashes = np.zeros(parts.shape[:2], np.uint64)
        for row in range(self._rows):
            hashes = (hashes ^ parts[:, :, row]) * _ODD
            hashes ^= hashes >> np.uint64(32)
        return np.ascontiguousarray(hashes.T)

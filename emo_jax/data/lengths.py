"""How long documents are, counted by powers of two."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emo_jax.data.stream import DocumentStream

BINS = 64  # bin i counts documents of [2^i, 2^(i+1)) tokens
_READ = 1 << 20  # ends read at once
_EXACT = 1 << 16  # lengths below are counted one by one, for the median


@dataclass
class Lengths:
    """A histogram of the lengths of documents, in tokens with the end of each.

    Attributes:
      documents: (64,) int64, documents by bin.
      tokens: (64,) int64, tokens of these; None: unknown.
      longest: tokens of the longest; None: unknown.
      exact: whether `median` is exact.
    """

    documents: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    tokens: np.ndarray | None = field(default_factory=lambda: np.zeros(BINS, np.int64))
    longest: int | None = 0
    _fine: np.ndarray | None = field(default_factory=lambda: np.zeros(_EXACT, np.int64))

    @classmethod
    def of_counts(cls, counts: Iterable[Sequence[int]]) -> "Lengths":
        """Returns the sum of histograms that the preparation of a store kept."""
        found = cls(tokens=None, longest=None, _fine=None)
        for one in counts:
            found.documents[: len(one)] += np.asarray(one, np.int64)
        return found

    def __add__(self, other: "Lengths") -> "Lengths":
        return Lengths(
            self.documents + other.documents,
            _both(np.add, self.tokens, other.tokens),
            _both(max, self.longest, other.longest),
            _both(np.add, self._fine, other._fine),
        )

    def add(self, lengths_D: np.ndarray) -> None:
        """Counts documents."""
        if not lengths_D.size:
            return
        assert self.tokens is not None and self.longest is not None and self._fine is not None
        bins = np.frexp(lengths_D.astype(np.float64))[1] - 1  # exact below 2^53
        self.documents += np.bincount(bins, minlength=BINS)
        np.add.at(self.tokens, bins, lengths_D)
        self.longest = max(self.longest, int(lengths_D.max()))
        self._fine += np.bincount(lengths_D[lengths_D < _EXACT], minlength=_EXACT)

    @property
    def count(self) -> int:
        """Documents."""
        return int(self.documents.sum())

    @property
    def exact(self) -> bool:
        """Whether the median is exact, and not found by interpolation in its bin."""
        return self._fine is not None and 2 * int(self._fine.sum()) > self.count

    @property
    def median(self) -> float | None:
        """The (lower) median; None without documents."""
        middle = (self.count - 1) // 2
        if not self.count:
            return None
        if self.exact and self._fine is not None:
            return float(np.searchsorted(np.cumsum(self._fine), middle, side="right"))
        ends = np.cumsum(self.documents)
        i = int(np.searchsorted(ends, middle, side="right"))
        within = (middle - int(ends[i]) + int(self.documents[i]) + 0.5) / int(self.documents[i])
        return float(2**i * (1 + within))

    @property
    def used(self) -> range:
        """The bins from the first that has documents to the last."""
        there = np.flatnonzero(self.documents)
        return range(int(there[0]), int(there[-1]) + 1) if there.size else range(0)


def _both(function: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    """Applies a function to two values; None if either is."""
    return None if a is None or b is None else function(a, b)


def measure_lengths(
    stream: DocumentStream, show: Callable[[str], None] = lambda line: None
) -> Lengths:
    """Counts the lengths of all documents of a stream, a block at a time."""
    found, before = Lengths(), 0
    for first in range(0, stream.num_documents, _READ):
        stop = min(first + _READ, stream.num_documents)
        ends = np.asarray(stream.document_ends(first, stop), np.int64)
        found.add(np.diff(ends, prepend=before))
        before = int(ends[-1])
        show(f"{stream.name}: {stop:,} of {stream.num_documents:,} documents measured")
    return found

"""Training documents that are, exactly or nearly, held-out documents too.

The held-out documents are indexed in memory; those of the training split are read once, a block at
a time. A candidate of the index counts only after the two documents were compared.
"""

import functools
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from emo_jax.data.store import TokenStore
from emo_jax.data.stream import TRAIN
from emo_jax.errors import DataError, UsageError
from emo_jax.preparation import minhash

HELD_OUT = ("select", "test")
EXAMPLES = 20
_BLOCK_DOCUMENTS = 4096
_BLOCK_TOKENS = 1 << 21
_MOST_TOKENS = 1 << 18  # of a document that are compared nearly; all are compared exactly
_MOST_CANDIDATES = 32  # that a document is compared with
_HELD = 64  # held-out documents whose n-grams are kept, of two megabytes at most
_EXACT_BYTES = 8 + 4  # of a held-out document: hash and number

Show = Callable[[str], None]


class Block(NamedTuple):
    """Documents of a split.

    Attributes:
      first: number of the first.
      tokens: ids of each, int32, with the end of document.
      domain_ids: (D,) int64, index into the store's domains.
    """

    first: int
    tokens: list[np.ndarray]
    domain_ids: np.ndarray


@dataclass(frozen=True)
class Duplicate:
    """A training document that is a held-out one too.

    Attributes:
      document: its number in the split train.
      id: its id; "" if the store keeps none.
      domain: its domain.
      split: split of the held-out document.
      of_document: its number there.
      of_id: its id.
      similarity: Jaccard similarity of their n-grams; 1 where the tokens are equal. There may be
        another held-out document that is closer still.
      exact: the tokens are equal.
    """

    document: int
    id: str
    domain: str
    split: str
    of_document: int
    of_id: str
    similarity: float
    exact: bool


@dataclass
class DedupReport:
    """What was found.

    Attributes:
      near: Jaccard similarity from which documents count as near duplicates; 0: exact ones only.
      documents: training documents that were looked at.
      held_out: documents they were compared with.
      bytes_each: memory of the index for a held-out document.
      exact: exact duplicates by domain of the training document.
      nearly: near duplicates likewise, without the exact ones.
      splits: duplicates by the split that they repeat.
      examples: the first few duplicates.
      seconds: time for the training documents.
      crowded: documents with more candidates than are compared.
    """

    near: float
    documents: int = 0
    held_out: int = 0
    bytes_each: int = 0
    exact: dict[str, int] = field(default_factory=dict)
    nearly: dict[str, int] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    examples: list[Duplicate] = field(default_factory=list)
    seconds: float = 0.0
    crowded: int = 0

    def add(self, found: Duplicate) -> None:
        """Counts a duplicate."""
        counts = self.exact if found.exact else self.nearly
        counts[found.domain] = counts.get(found.domain, 0) + 1
        self.splits[found.split] = self.splits.get(found.split, 0) + 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(found)

    @property
    def duplicates(self) -> int:
        """Exact and near ones."""
        return sum(self.exact.values()) + sum(self.nearly.values())

    def to_json(self) -> dict[str, Any]:
        """Returns all figures as JSON values."""
        return asdict(self)


def find_duplicates(
    store: TokenStore,
    against: TokenStore | None = None,
    *,
    near: float = 0.8,
    report: DedupReport | None = None,
    show: Show = lambda line: None,
) -> Iterator[Duplicate]:
    """Yields the training documents of a store that are held-out documents too, in their order.

    Args:
      store: whose split train is looked at.
      against: whose splits select and test it is compared with; None: those of `store`.
      near: least Jaccard similarity of near duplicates; 0: exact duplicates only.
      report: filled with counts.
      show: called with a line of progress.

    Raises:
      UsageError: no documents, or the library for near duplicates is not installed.
      DataError: the stores have different tokenizers.
    """
    against = store if against is None else against
    if not 0 <= near <= 1:
        raise UsageError(f"--near {near}: must be 0 (exact only) to 1")
    if store.tokenizer_fingerprint != against.tokenizer_fingerprint:
        raise DataError(
            f"{against.path}: its tokenizer is not that of {store.path}; prepare both with the same"
        )
    report = DedupReport(near) if report is None else report
    index = _Index(against, near, show)
    report.near, report.held_out, report.bytes_each = near, index.count, index.bytes_each
    total, begun = store.count(TRAIN, "documents"), time.monotonic()
    for block in blocks(store, TRAIN):
        yield from _of_block(store, block, index, report)
        report.documents += len(block.tokens)
        report.seconds = time.monotonic() - begun
        show(
            f"{report.documents:,} of {total:,} documents, {report.duplicates:,} duplicates,"
            f" {report.documents / max(report.seconds, 1e-9):,.0f} documents/s"
        )


def blocks(store: TokenStore, split: str) -> Iterator[Block]:
    """Yields the documents of a split, a few million tokens at a time, or one that is longer."""
    for stream in store.streams(split):
        for some in range(0, stream.num_documents, _BLOCK_DOCUMENTS):
            last = min(some + _BLOCK_DOCUMENTS, stream.num_documents)
            ends = stream.document_ends(max(some - 1, 0), last)
            ends = ends if some else np.append(0, ends)
            first = some
            while first < last:
                room = np.searchsorted(ends, ends[first - some] + _BLOCK_TOKENS, side="right") - 1
                stop = max(some + int(room), first + 1)
                documents = stream.documents(first, stop)
                domains = np.array([document.domain_id for document in documents], np.int64)
                yield Block(first, [document.tokens for document in documents], domains)
                first = stop


class _Index:
    """The held-out documents of a store."""

    def __init__(self, store: TokenStore, near: float, show: Show):
        self._store, self._near = store, near
        self._firsts, hashes = [0], []
        self.bands = minhash.BandIndex(near) if near else None
        if near:
            minhash.check_installed()
        for split in HELD_OUT:
            for block in blocks(store, split):
                hashes.append(_hashes(block))
                if self.bands is not None:
                    self.bands.add(_signatures(block))
                show(f"{split}: {sum(map(len, hashes)):,} held-out documents indexed")
            self._firsts.append(self._firsts[-1] + store.count(split, "documents"))
        self.count = self._firsts[-1]
        if not self.count:
            raise UsageError(
                f"{store.path}: has no held-out documents; give --against another store"
            )
        if self.bands is not None:
            self.bands.build()
        every = np.concatenate(hashes)
        self._order = np.argsort(every, kind="stable").astype(np.uint32)
        self._hashes = every[self._order]
        self.bytes_each = _EXACT_BYTES + (0 if self.bands is None else self.bands.bytes_each)
        self.ngrams = functools.lru_cache(_HELD)(self._ngrams)

    def place(self, number: int) -> tuple[str, int]:
        """Returns the split of a held-out document, and its number there."""
        k = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return HELD_OUT[k], number - self._firsts[k]

    def document(self, number: int) -> np.ndarray:
        """Returns the tokens of a held-out document."""
        split, at = self.place(number)
        return self._store.documents(split, at, at + 1)[0].tokens

    def _ngrams(self, number: int) -> np.ndarray:
        return _set_of(self.document(number))

    def id(self, number: int) -> str:
        """Returns the id of a held-out document."""
        split, at = self.place(number)
        return self._store.streams(split)[0].document_ids(at, at + 1)[0]

    def equal(self, block: Block) -> dict[int, int]:
        """Returns the (first) equal held-out document by row of a block."""
        hashes, found = _hashes(block), {}
        low, high = (np.searchsorted(self._hashes, hashes, side=side) for side in ("left", "right"))
        for row in np.flatnonzero(low < high).tolist():
            for at in range(low[row], high[row]):
                number = int(self._order[at])
                if np.array_equal(self.document(number), block.tokens[row]):
                    found[row] = number
                    break
        return found


def _of_block(
    store: TokenStore, block: Block, index: _Index, report: DedupReport
) -> Iterator[Duplicate]:
    found = {row: (number, 1.0, True) for row, number in index.equal(block).items()}
    if index.bands is not None:
        rows, numbers, _ = index.bands.candidates(_signatures(block))
        for row, candidates in _grouped(rows, numbers):
            if row in found:
                continue
            report.crowded += len(candidates) > _MOST_CANDIDATES
            ngrams = _set_of(block.tokens[row])
            for number in candidates[:_MOST_CANDIDATES]:
                similarity = minhash.similarity(ngrams, index.ngrams(number))
                if similarity >= report.near:
                    found[row] = (number, similarity, False)
                    break
    if not found:
        return
    ids = store.streams(TRAIN)[0].document_ids(block.first, block.first + len(block.tokens))
    for row, (number, similarity, exact) in sorted(found.items()):
        split, at = index.place(number)
        duplicate = Duplicate(
            document=block.first + row,
            id=ids[row],
            domain=store.domains[int(block.domain_ids[row])],
            split=split,
            of_document=at,
            of_id=index.id(number),
            similarity=round(similarity, 4),
            exact=exact,
        )
        report.add(duplicate)
        yield duplicate


def _grouped(rows: np.ndarray, numbers: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    for row in np.unique(rows).tolist():
        low, high = np.searchsorted(rows, [row, row + 1])
        yield row, numbers[low:high].tolist()


def _hashes(block: Block) -> np.ndarray:
    digests = (hashlib.blake2b(tokens.data, digest_size=8).digest() for tokens in block.tokens)
    return np.frombuffer(b"".join(digests), np.uint64)


def _signatures(block: Block) -> np.ndarray:
    cut = [tokens[:_MOST_TOKENS] for tokens in block.tokens]
    ends = np.cumsum([tokens.size for tokens in cut])
    return minhash.signatures(*minhash.ngrams(np.concatenate(cut), ends))


def _set_of(tokens: np.ndarray) -> np.ndarray:
    """Returns the n-grams of a document, sorted and each once."""
    some = tokens[:_MOST_TOKENS]
    return np.unique(minhash.ngrams(some, np.array([some.size]))[0])

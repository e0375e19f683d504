"""The documents of some domains of a token store, as if it had no others (`data.domains`).

A stream keeps only how many of its documents and tokens come before each block of 1024 documents of
the store; the ends and domains of a block are read when one of its tokens is.

Legend: N ranges, P parts (a range within one document each), D documents, M domains of the store.
"""

import difflib
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emo_jax.data.store_stream import INDEX_STRIDE, StoreStream, TokenDocument
from emo_jax.data.stream import Span
from emo_jax.errors import UsageError, listed

_PASS_DOCUMENTS = 1 << 20  # read at once by the pass over all documents
_HELD_BLOCKS = 256
_NEAR_AMONG = 10_000  # names with which a misspelt one is compared


def domain_number(domains: Sequence[str], domain: str, where: str) -> int:
    """Returns the id of a domain.

    Raises:
      UsageError: there is no domain of that name; says which there are.
    """
    if domain not in domains:
        close = difflib.get_close_matches(domain, domains[:_NEAR_AMONG], n=1, cutoff=0.6)
        near = f" (did you mean {close[0]!r}?)" if close else ""
        raise UsageError(
            f"{where}: no domain {domain!r}{near}; it has {listed(sorted(domains), 20)}"
        )
    return domains.index(domain)


class _Documents(NamedTuple):
    """Documents of the stream, in order; every field is (D,) int64."""

    numbers: np.ndarray  # in the store's stream
    begins: np.ndarray  # where each begins there
    ends: np.ndarray  # one past its last token, in this stream
    lengths: np.ndarray
    domains: np.ndarray  # ids, as given


class DomainStream:
    """The documents of some domains of a store's stream, in its order.

    Args:
      whole: the stream.
      ids_M: the new id of each domain of the store; -1 leaves out its documents.
    """

    def __init__(self, whole: StoreStream, ids_M: np.ndarray):
        self.name, self._whole, self._ids_M = whole.name, whole, np.asarray(ids_M, np.int32)
        documents, tokens = [], []
        for first in range(0, whole.num_documents, _PASS_DOCUMENTS):
            found = self._kept(first, min(first + _PASS_DOCUMENTS, whole.num_documents))
            blocks = -(-min(_PASS_DOCUMENTS, whole.num_documents - first) // INDEX_STRIDE)
            block_D = (found.numbers - first) // INDEX_STRIDE
            documents.append(np.bincount(block_D, minlength=blocks))
            tokens.append(np.bincount(block_D, found.lengths, minlength=blocks).astype(np.int64))
        # Those before each block, and in all.
        self._documents = np.cumsum(np.concatenate([[0], *documents]), dtype=np.int64)
        self._tokens = np.cumsum(np.concatenate([[0], *tokens]), dtype=np.int64)
        self.num_documents, self.num_tokens = int(self._documents[-1]), int(self._tokens[-1])
        self._block = functools.lru_cache(_HELD_BLOCKS)(self._read_block)

    def _kept(self, first: int, stop: int) -> _Documents:
        """Documents [first, stop) of the store's stream that are here; `ends` count from 0."""
        before = max(first - 1, 0)
        edges = self._whole.document_ends(before, stop)
        edges = edges if first else np.concatenate([[0], edges])
        ids = self._ids_M[self._whole.document_domains(first, stop)]
        here = np.flatnonzero(ids >= 0)
        lengths = np.diff(edges)[here]
        return _Documents(
            first + here, edges[:-1][here], np.cumsum(lengths), lengths, ids[here].astype(np.int64)
        )

    def _read_block(self, block: int) -> _Documents:
        first = block * INDEX_STRIDE
        found = self._kept(first, min(first + INDEX_STRIDE, self._whole.num_documents))
        return found._replace(ends=found.ends + self._tokens[block])

    def _of_blocks(self, blocks: np.ndarray) -> _Documents:
        found = [self._block(block) for block in blocks.tolist()]
        return _Documents(*(np.concatenate(field) for field in zip(*found, strict=True)))

    def _of_numbers(self, first: int, stop: int) -> _Documents:
        """Documents [first, stop) of this stream."""
        if not 0 <= first <= stop <= self.num_documents:
            raise IndexError(f"{self.name}: documents [{first}, {stop}) of {self.num_documents}")
        if first == stop:
            return _Documents(*[np.zeros(0, np.int64)] * len(_Documents._fields))
        low = np.searchsorted(self._documents, first, side="right") - 1
        high = np.searchsorted(self._documents, stop - 1, side="right")
        found = self._of_blocks(np.arange(low, high))
        at = slice(first - self._documents[low], stop - self._documents[low])
        return _Documents(*(field[at] for field in found))

    def read(self, start: int, stop: int) -> Span:
        """Returns tokens [start, stop), with their documents and domains."""
        if not 0 <= start < stop <= self.num_tokens:
            raise IndexError(f"{self.name}: [{start}, {stop}) of {self.num_tokens} tokens")
        return self.read_ranges(np.array([start]), np.array([stop]))

    def read_ranges(self, starts_N: np.ndarray, stops_N: np.ndarray) -> Span:
        """Returns the tokens of several ranges end to end, each with documents from 0."""
        first_N = np.searchsorted(self._tokens, starts_N, side="right") - 1
        last_N = np.searchsorted(self._tokens, stops_N - 1, side="right") - 1
        blocks = np.unique(
            np.concatenate([np.arange(a, b + 1) for a, b in zip(first_N, last_N, strict=True)])
        )
        held = self._of_blocks(blocks)
        first_N = np.searchsorted(held.ends, starts_N, side="right")
        counts_N = np.searchsorted(held.ends, stops_N - 1, side="right") - first_N + 1
        range_P = np.repeat(np.arange(len(starts_N)), counts_N)
        number_P = np.arange(range_P.size) - np.repeat(np.cumsum(counts_N) - counts_N, counts_N)
        document_P = first_N[range_P] + number_P
        begin_P = held.ends[document_P] - held.lengths[document_P]
        low_P = np.maximum(starts_N[range_P], begin_P)
        high_P = np.minimum(stops_N[range_P], held.ends[document_P])
        shift_P = held.begins[document_P] - begin_P
        lengths_P = high_P - low_P
        return Span(
            tokens=self._whole.tokens_of(low_P + shift_P, high_P + shift_P),
            segment_ids=np.repeat(number_P.astype(np.int32), lengths_P),
            domain_ids=np.repeat(held.domains[document_P].astype(np.int32), lengths_P),
        )

    def document_ends(self, first: int, stop: int) -> np.ndarray:
        """Returns one past the last token of documents [first, stop): (stop - first,) int64."""
        return self._of_numbers(first, stop).ends

    def document_at(self, token: int) -> int:
        """Returns the number of the document that holds a token."""
        if not 0 <= token < self.num_tokens:
            raise IndexError(f"{self.name}: token {token} of {self.num_tokens}")
        block = int(np.searchsorted(self._tokens, token, side="right")) - 1
        inside = np.searchsorted(self._block(block).ends, token, side="right")
        return int(self._documents[block] + inside)

    def document_ids(self, first: int, stop: int) -> list[str]:
        """Returns the ids of documents [first, stop); "" if the store keeps none."""
        numbers = self._of_numbers(first, stop).numbers
        if not numbers.size:
            return []
        low = int(numbers[0])
        ids = self._whole.document_ids(low, int(numbers[-1]) + 1)
        return [ids[number - low] for number in numbers.tolist()]

    def documents(self, start: int, stop: int) -> list[TokenDocument]:
        """Returns documents [start, stop)."""
        stop = min(stop, self.num_documents)
        if not 0 <= start < stop:
            return []
        held = self._of_numbers(start, stop)
        tokens = self._whole.tokens_of(held.begins, held.begins + held.lengths)
        parts = np.split(tokens, np.cumsum(held.lengths)[:-1])
        return [TokenDocument(t, int(d)) for t, d in zip(parts, held.domains, strict=True)]

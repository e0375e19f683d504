"""One split of a token store."""

import functools
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from emo_jax.data.stream import Span, as_ids, check_ids
from emo_jax.files.arrays import StoredArray

if TYPE_CHECKING:
    from emo_jax.data.store import TokenStore

INDEX_STRIDE = 1024  # documents per entry of doc_index
_MAX_IDS_BYTES = 1 << 30  # of ids asked for at once


class TokenDocument(NamedTuple):
    """One document: its ids, (N,) int32 with the end-of-document token, and its domain."""

    tokens: np.ndarray
    domain_id: int


class StoreStream:
    """One split of a store."""

    def __init__(self, store: "TokenStore", split: str):
        self.name = f"{store.path}/{split}"
        self.num_tokens = store.count(split)
        self.num_documents = store.count(split, "documents")
        self._store, D = store, self.num_documents
        self._tokens = store.array(f"{split}/tokens", ("uint16", "uint32"), self.num_tokens)
        self._ends = store.array(f"{split}/doc_ends", ("int64",), D)
        self._domains = store.array(f"{split}/doc_domains", ("int32",), D)
        index = store.array(f"{split}/doc_index", ("int64",), -(-D // INDEX_STRIDE))
        self._index = index.read(slice(None))
        self._split = split
        if self._index[-1] != self.num_tokens or not _rises(self._index):
            raise store.damaged(f"{split}/doc_index is no list of ends of documents")

    def read(self, start: int, stop: int) -> Span:
        """Returns tokens [start, stop), with their documents and domains."""
        if not 0 <= start < stop <= self.num_tokens:
            raise IndexError(f"{self.name}: [{start}, {stop}) of {self.num_tokens} tokens")
        return self.read_ranges(np.array([start]), np.array([stop]))

    def read_ranges(self, starts_N: np.ndarray, stops_N: np.ndarray) -> Span:
        """Returns the tokens of several ranges end to end, each with documents from 0."""
        # A document is in the block of its last token; start all reads before waiting for one.
        first_N = np.searchsorted(self._index, starts_N, side="right")
        last_N = np.searchsorted(self._index, stops_N - 1, side="right")
        blocks = np.unique(
            np.concatenate([np.arange(a, b + 1) for a, b in zip(first_N, last_N, strict=True)])
        )
        tokens = _start_ranges(self._tokens, starts_N, stops_N)
        ends = _start_ranges(self._ends, *self._documents_of(blocks))
        domains = _start_ranges(self._domains, *self._documents_of(blocks))
        tokens_T = as_ids(tokens())
        ends_D = self._checked_ends(ends(), blocks)
        domains_D = self._checked_domains(domains())
        first_D = np.searchsorted(ends_D, starts_N, side="right")
        last_D = np.searchsorted(ends_D, stops_N - 1, side="right")
        return _in_documents(tokens_T, starts_N, stops_N, ends_D, domains_D, first_D, last_D)

    def _documents_of(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the first documents of blocks, and one past their last."""
        first = blocks * INDEX_STRIDE
        return first, np.minimum(first + INDEX_STRIDE, self.num_documents)

    def _checked_ends(self, ends_D: np.ndarray, blocks: np.ndarray | None = None) -> np.ndarray:
        """Checks that ends rise; those of whole blocks must be what the index says."""
        if not _rises(ends_D) or not 0 < ends_D[0] <= ends_D[-1] <= self.num_tokens:
            raise self._store.damaged(f"{self.name}: doc_ends is no list of ends of documents")
        if blocks is None:
            return ends_D
        sizes = np.diff(self._documents_of(blocks), axis=0)[0]
        if (ends_D[np.cumsum(sizes) - 1] != self._index[blocks]).any():
            raise self._store.damaged(f"{self.name}: doc_ends and doc_index do not belong together")
        return ends_D

    def _checked_domains(self, domains_D: np.ndarray) -> np.ndarray:
        """Checks domain ids; returns them as int32, mapped to the store's groups, if any."""
        groups = self._store.groups
        last = len(self._store.domains if groups is None else groups.of_M) - 1
        if not 0 <= domains_D.min() <= domains_D.max() <= last:
            raise self._store.damaged(f"{self.name}: doc_domains has numbers beyond 0..{last}")
        return (domains_D if groups is None else groups.of_M[domains_D]).astype(np.int32)

    def tokens_of(self, starts_N: np.ndarray, stops_N: np.ndarray) -> np.ndarray:
        """Returns the tokens of several ranges end to end, int32, without their documents."""
        return as_ids(_start_ranges(self._tokens, starts_N, stops_N)())

    def document_domains(self, first: int, stop: int) -> np.ndarray:
        """Returns the domain ids of documents [first, stop): (stop - first,) int32."""
        self._check_documents(first, stop)
        if first == stop:
            return np.zeros(0, np.int32)
        return self._checked_domains(self._domains.read(slice(first, stop)))

    def document_ends(self, first: int, stop: int) -> np.ndarray:
        """Returns one past the last token of documents [first, stop): (stop - first,) int64."""
        self._check_documents(first, stop)
        if first == stop:
            return np.zeros(0, np.int64)
        return self._checked_ends(self._ends.read(slice(first, stop)))

    def document_at(self, token: int) -> int:
        """Returns the number of the document that holds a token."""
        if not 0 <= token < self.num_tokens:
            raise IndexError(f"{self.name}: token {token} of {self.num_tokens}")
        block = int(np.searchsorted(self._index, token, side="right"))
        first = block * INDEX_STRIDE
        stop = min(first + INDEX_STRIDE, self.num_documents)
        ends = self._checked_ends(self._ends.read(slice(first, stop)), np.array([block]))
        return first + int(np.searchsorted(ends, token, side="right"))

    def document_ids(self, first: int, stop: int) -> list[str]:
        """Returns the ids of documents [first, stop); "" if the store keeps none.

        Raises:
          DataError: they are damaged, or take more than a gigabyte.
        """
        self._check_documents(first, stop)
        if self._ids is None or first == stop:
            return [""] * (stop - first)
        text, id_ends = self._ids
        before = max(first - 1, 0)
        ends = id_ends.read(slice(before, stop))
        ends = ends if first else np.concatenate([[0], ends])
        if not 0 <= ends[0] <= ends[-1] <= text.shape[0] or (np.diff(ends) < 0).any():
            raise self._store.damaged(f"{self.name}: doc_id_ends is no list of ends of ids")
        if ends[-1] - ends[0] > _MAX_IDS_BYTES:
            raise self._store.damaged(f"{self.name}: ids take {ends[-1] - ends[0]:,} bytes")
        if ends[0] == ends[-1]:
            return [""] * (stop - first)
        content = text.read(slice(int(ends[0]), int(ends[-1]))).tobytes()
        at = (ends - ends[0]).tolist()
        try:
            return [content[a:b].decode("utf-8") for a, b in itertools.pairwise(at)]
        except UnicodeDecodeError as error:
            raise self._store.damaged(f"{self.name}: doc_ids is no UTF-8") from error

    @functools.cached_property
    def _ids(self) -> tuple[StoredArray, StoredArray] | None:
        """The ids and their ends; None if the store keeps none."""
        store, names = self._store, [f"{self._split}/{what}" for what in ("doc_ids", "doc_id_ends")]
        kept = [f"{name}/zarr.json" in store.manifest["files"] for name in names]
        if not any(kept):
            return None
        if not all(kept):
            raise store.damaged(f"{names[kept.index(False)]} is not in the manifest")
        ends = store.array(names[1], ("int64",), self.num_documents)
        size = int(ends.read(slice(self.num_documents - 1, None))[0])
        return store.array(names[0], ("uint8",), size), ends

    def _check_documents(self, first: int, stop: int) -> None:
        if not 0 <= first <= stop <= self.num_documents:
            raise IndexError(f"{self.name}: documents [{first}, {stop}) of {self.num_documents}")

    def documents(self, start: int, stop: int) -> list[TokenDocument]:
        """Returns documents [start, stop)."""
        stop = min(stop, self.num_documents)
        if not 0 <= start < stop:
            return []
        before = max(start - 1, 0)
        ends = self._checked_ends(self._ends.read(slice(before, stop)))
        ends = ends if start else np.concatenate([[0], ends])
        tokens = self._tokens.read(slice(int(ends[0]), int(ends[-1]))).astype(np.int32)
        check_ids(tokens, self._store.vocab_size, self.name)
        domains = self._checked_domains(self._domains.read(slice(start, stop)))
        parts = np.split(tokens, ends[1:-1] - ends[0])
        return [TokenDocument(t, int(d)) for t, d in zip(parts, domains, strict=True)]


def _start_ranges(
    array: StoredArray, starts_N: np.ndarray, stops_N: np.ndarray
) -> Callable[[], np.ndarray]:
    """Starts to read ranges of an array; the returned function returns them end to end."""
    lengths_N = stops_N - starts_N
    reads = []
    for length in np.unique(lengths_N).tolist():
        rows = np.flatnonzero(lengths_N == length)
        reads.append((length, rows, array.start_rows(starts_N[rows].tolist(), length)))

    def finish() -> np.ndarray:
        if len(reads) == 1:
            return reads[0][2]().reshape(-1)
        ends = np.cumsum(lengths_N)
        found = np.empty(ends[-1], array.dtype)
        for length, rows, read in reads:
            found[(ends[rows] - length)[:, None] + np.arange(length)] = read()
        return found

    return finish


def _in_documents(
    tokens_T: np.ndarray,
    starts_N: np.ndarray,
    stops_N: np.ndarray,
    ends_D: np.ndarray,
    domains_D: np.ndarray,
    first_N: np.ndarray,
    last_N: np.ndarray,
) -> Span:
    """Marks ranges of tokens with documents [first, last] of `ends_D`, and their domains."""
    documents_N = last_N - first_N + 1
    which = np.repeat(np.arange(len(starts_N)), documents_N)  # range of each part of a document
    number = np.arange(which.size) - np.repeat(np.cumsum(documents_N) - documents_N, documents_N)
    documents = first_N[which] + number
    begins = np.where(number == 0, starts_N[which], ends_D[documents - 1])
    lengths = np.minimum(ends_D[documents], stops_N[which]) - begins
    return Span(
        tokens=tokens_T,
        segment_ids=np.repeat(number.astype(np.int32), lengths),
        domain_ids=np.repeat(domains_D[documents], lengths),
    )


def _rises(values: np.ndarray) -> bool:
    return bool((values[1:] > values[:-1]).all())

"""The examples used to choose experts: documents, packed into windows.

Legend: B windows, S tokens, N tokens of a document.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from emo_jax.batch import PADDING_ID, Batch, from_documents
from emo_jax.data.domain_view import domain_number
from emo_jax.data.store import TokenStore
from emo_jax.data.store_stream import TokenDocument
from emo_jax.errors import UsageError

_READ_AT_ONCE = 256  # documents


class Examples(NamedTuple):
    """Documents to choose experts by, and where they come from."""

    documents: list[np.ndarray]  # (N,) int32 each, with the end-of-document token
    source: str  # the store or file, and the domain
    fingerprint: str  # hash of the ids

    @property
    def tokens(self) -> int:
        """Number of tokens in all documents."""
        return sum(map(len, self.documents))

    def first(self, number: int | None) -> "Examples":
        """The first `number` documents; None: all. A larger number includes a smaller one's."""
        return examples_of(self.documents[:number], self.source)


def examples_of(documents: Iterable[np.ndarray], source: str) -> Examples:
    """Examples made from documents in memory."""
    kept = [np.asarray(ids, np.int32) for ids in documents]
    digest = hashlib.sha256()
    for ids in kept:
        digest.update(len(ids).to_bytes(8, "little"))
        digest.update(ids.astype("<i4").tobytes())
    return Examples(kept, source, digest.hexdigest())


def split_location(location: str, exists) -> tuple[str, str | None]:
    """Splits `STORE:domain` into (STORE, domain); a path that exists is not split.

    Args:
      location: the text to split.
      exists: tells whether a path exists.
    """
    store, colon, domain = location.rpartition(":")
    # A colon before a slash belongs to a URL.
    if not colon or not store or "/" in domain or exists(location):
        return location, None
    return store, domain


def store_examples(
    store: TokenStore,
    split: str,
    *,
    domain: str | None = None,
    number: int | None = None,
    max_tokens: int,
    max_length: int | None = None,
    min_length: int = 1,
    seed: int = 0,
    or_fewer: bool = False,
) -> Examples:
    """Documents of a split, from one domain or all; a larger `number` extends a smaller one's.

    Args:
      store: the token store.
      split: name of the split.
      domain: name of the domain; None: all.
      number: maximum number of documents; None: as many as fit in `max_tokens`.
      max_tokens: maximum number of tokens in all documents.
      max_length: number of tokens used from the start of each document; None: all.
      min_length: shorter documents are skipped.
      seed: for their order; 0: the order of the store, which is already shuffled.
      or_fewer: take what there is where there are fewer documents than `number`.

    Raises:
      UsageError: no such split or domain, or it has too few documents.
    """
    wanted = None if domain is None else domain_number(store.domains, domain, store.path)
    if not store.count(split, "documents"):
        raise UsageError(
            f"{store.path}: no split {split!r}; it has {', '.join(store.splits)}: prepare more"
            " documents"
        )
    long_enough = (
        document.tokens[:max_length]
        for document in shuffled_documents(store, split, seed)
        if len(document.tokens) >= min_length and wanted in (None, document.domain_id)
    )
    found, full = take(long_enough, number, max_tokens)
    where = f"{store.path}, split {split}" + ("" if domain is None else f", domain {domain}")
    if not found or (number is not None and len(found) < number and (full or not or_fewer)):
        asked = "any" if number is None else f"{number}"
        long = f" of at least {min_length} tokens" if min_length > 1 else ""
        within = f" within {max_tokens:,} tokens" if full else ""
        raise UsageError(
            f"{where}: {len(found)} documents{long}{within}, not {asked}; ask for fewer"
            + (", or raise --max-tokens" if full else ", or prepare more")
        )
    return examples_of(found, where)


def take(
    documents: Iterable[np.ndarray], number: int | None, max_tokens: int
) -> tuple[list[np.ndarray], bool]:
    """The first documents that fit (a lone one is truncated), and whether `max_tokens` ran out."""
    found: list[np.ndarray] = []
    left = max_tokens
    for ids in documents:
        if len(found) == number:
            break
        if found and len(ids) > left:
            return found, True
        found.append(ids[:left])
        left -= len(found[-1])
    return found, False


def shuffled_documents(store: TokenStore, split: str, seed: int) -> Iterator[TokenDocument]:
    """All documents of a split, shuffled by the seed: blocks of the store, then within each block.

    Seed 0: the order of the store, which is already shuffled.
    """
    total = store.count(split, "documents")
    rng = np.random.default_rng(seed) if seed else None
    starts = np.arange(0, total, _READ_AT_ONCE)
    for start in (starts if rng is None else rng.permutation(starts)).tolist():
        block = store.documents(split, start, min(start + _READ_AT_ONCE, total))
        for n in range(len(block)) if rng is None else rng.permutation(len(block)).tolist():
            yield block[n]


def pack(
    documents: Sequence[np.ndarray], seq_len: int, batch_size: int, pad_id: int
) -> list[Batch]:
    """Packs documents into windows, splitting those longer than S; the last batch is padded.

    All tokens are in domain 0.
    """
    rows: list[list[np.ndarray]] = []
    room = 0
    pieces = (ids[at : at + seq_len] for ids in documents for at in range(0, len(ids), seq_len))
    for ids in pieces:
        if len(ids) > room:
            rows.append([])
            room = seq_len
        rows[-1].append(ids)
        room -= len(ids)
    batches = []
    for start in range(0, len(rows), batch_size):
        tokens = np.full((batch_size, seq_len), pad_id, np.int32)
        segments = np.full((batch_size, seq_len), PADDING_ID, np.int32)
        for row, held in enumerate(rows[start : start + batch_size]):
            size = sum(map(len, held))
            tokens[row, :size] = np.concatenate(held)
            segments[row, :size] = np.repeat(np.arange(len(held)), [len(ids) for ids in held])
        batch = from_documents(tokens, segments)
        batches.append(batch._replace(domain_ids=np.where(segments >= 0, 0, -1).astype(np.int32)))
    return batches

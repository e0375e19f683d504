"""Turns documents into a token store, in bounded memory.

One pass reads, tokenises and spools the tokens to a file; a second one writes each split in its
shuffled order. Only a few numbers per document stay in memory, never the text or the tokens.
"""

import contextlib
import hashlib
import os
import re
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.data.store import TokenStore
from emo_jax.data.store_writer import (
    PARTIAL,
    TOP,
    SplitContent,
    check_target,
    write_store,
)
from emo_jax.data.stream import SPLITS, check_ids, token_dtype
from emo_jax.documents.document_filter import DocumentFilter
from emo_jax.documents.read import Document, ReadReport, read_documents
from emo_jax.documents.text_files import MAX_DOCUMENT_BYTES
from emo_jax.errors import DataError, UsageError
from emo_jax.files.partial import partial_folder, remove_left_over
from emo_jax.files.progress import Progress
from emo_jax.tokenizer.base import Tokenizer
from emo_jax.tokenizer.load import load_tokenizer

DEFAULT_FRACTIONS = (0.9, 0.05, 0.05)
_BATCH_CHARS = 4_000_000  # text tokenised at once
_BLOCK_TOKENS = 1 << 20
_SAMPLE_CHARS = 16_000_000
_SPOOL, _TOKENS = "spool", "tokens"
_TABLE_ROWS = 40  # there may be as many domains as web sites
_PIECE = re.compile(r"~\d+$")


@dataclass(frozen=True)
class PrepareReport:
    """The outcome of `prepare`."""

    store: TokenStore
    read: ReadReport
    seconds: float
    notes: tuple[str, ...]

    def table(self) -> str:
        """Returns the documents and tokens of each domain and split, and what was skipped."""
        store = self.store
        head = f"{'domain':<20}" + "".join(f"{s + ' docs':>14}{'tokens':>14}" for s in SPLITS)
        lines = [head]
        largest = sorted(store.domains, key=lambda d: -store.count("train", "tokens", d))
        shown = sorted(largest[:_TABLE_ROWS])
        for domain in (*shown, None):
            cells = "".join(
                f"{store.count(s, 'documents', domain):>14,}{store.count(s, 'tokens', domain):>14,}"
                for s in SPLITS
            )
            lines.append(f"{'all' if domain is None else domain:<20}{cells}")
        if len(shown) < len(store.domains):
            lines.append(f"({len(store.domains) - len(shown)} smaller domains not listed)")
        lines += [f"{self.read.summary()}; {self.seconds:.1f} s", *self.notes]
        return "\n".join(lines)


def prepare(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    tokenizer: Tokenizer | str | os.PathLike[str],
    *,
    text_field: str = "text",
    id_field: str = "id",
    domain_field: str = "domain",
    wanted: DocumentFilter | None = None,
    seed: int = 0,
    strict: bool = False,
    add_bos: bool = False,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    eos_id: int | None = None,
    trust: bool = False,
    quiet: bool = True,
) -> PrepareReport:
    """Writes a token store from documents.

    A document's split depends on its id alone, not on the seed; pieces of one document (ids that
    differ only in `~0`, `~1`, …) stay together. The order within a split depends on seed and id.

    Args:
      inputs: files, folders, patterns of them, or seqio tasks, see `read_documents`.
      output: a new or empty folder.
      tokenizer: a `Tokenizer`, or what `load_tokenizer` accepts: a tokenizer.json, a folder with
        one, a SentencePiece .model, "bytes", or seqio:MODULE:VOCABULARY. It is saved in the store.
      text_field, id_field, domain_field: keys or columns of a record; a dot reaches into an object
        (a.b).
      wanted: which documents to keep; None: all. The manifest records it and what it dropped.
      seed: seed of the document order.
      strict: fail at the first unusable document instead of skipping it.
      add_bos: begin every document with the tokenizer's beginning-of-document token.
      max_document_bytes: size above which a document is skipped, see `read_documents`.
      fractions: shares of the documents for train, select and test, which must add up to 1.
      eos_id: the id that ends a document, overriding the tokenizer's files; None: as they state.
        Ignored for a `Tokenizer`.
      trust: allow a tokenizer whose file names code to import, see `emo_jax.load`.
      quiet: show no progress and no table.

    Returns:
      The store, what was read and skipped, the time in seconds, and notes for the user.

    Raises:
      UsageError: no such input or tokenizer, `output` is not empty, `fractions` do not add up to 1,
        or (`add_bos`) the tokenizer has no beginning-of-document token.
      DataError: there is no usable document, or (`strict`) one is unusable; the tokenizer is
        damaged; or the store cannot be written.
    """
    started = time.monotonic()
    _check_fractions(fractions)
    target = check_target(output)
    report, wanted = ReadReport(), wanted or DocumentFilter()
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = load_tokenizer(
            os.fspath(tokenizer),
            eos_id=eos_id,
            sample=lambda: _sample_texts(
                inputs,
                quiet=quiet,
                text_field=text_field,
                wanted=wanted,
                max_document_bytes=max_document_bytes,
            ),
            trust=trust,
        )
    tokenizer.ready()
    if add_bos and tokenizer.bos_id is None:
        raise UsageError(
            "--add-bos: the tokenizer names no beginning-of-document token; name one as bos_token"
            " in a tokenizer_config.json beside it"
        )
    documents = read_documents(
        inputs,
        text_field=text_field,
        id_field=id_field,
        domain_field=domain_field,
        wanted=wanted,
        ids=tokenizer.reads_ids,
        strict=strict,
        max_document_bytes=max_document_bytes,
        report=report,
    )
    facts: dict[str, Any] = {"bos_id": tokenizer.bos_id} if add_bos else {}
    tokenizer.adds_bos = add_bos  # overrides its own settings; it is saved with the tokens
    notes = [*tokenizer.notes, *remove_left_over(target, (PARTIAL, _SPOOL), (*TOP, _TOKENS))]
    try:
        with (
            Progress("prepare", not quiet) as shown,
            partial_folder(target, _SPOOL) as scratch,
            contextlib.closing(
                _Spool(scratch / _TOKENS, tokenizer, seed, wanted, add_bos=add_bos)
            ) as spool,
        ):
            for line in report.files_left_out():
                shown.show(line, always=True)
            notes += _write(target, documents, spool, fractions, report, shown, facts)
    except OSError as error:  # reading raises its own errors
        raise DataError(f"{target}: cannot be written ({error}); free or choose a disk") from error
    # The files were hashed as they were written.
    store = TokenStore.open(target, verify=False)
    made = PrepareReport(store, report, time.monotonic() - started, tuple(notes))
    if not quiet:
        print(made.table(), flush=True)
    return made


def _write(
    target: Path,
    documents: Iterator[Document],
    spool: "_Spool",
    fractions: Sequence[float],
    report: ReadReport,
    shown: Progress,
    facts: dict[str, Any],
) -> tuple[str, ...]:
    """Runs both passes; returns notes for the user."""
    for batch in _batches(documents):
        spool.add(batch, report)
        shown.show(f"{report.documents:,} documents, {spool.num_tokens:,} tokens")
    if not spool.num_documents:
        dropped = ", ".join(f"{n} dropped by {why}" for why, n in sorted(report.dropped.items()))
        raise DataError(
            f"no document is left ({dropped}); widen these bounds"
            if dropped
            else "no document has a token; check the input and the tokenizer"
        )
    shown.show(f"writing {spool.num_tokens:,} tokens", always=True)
    spool.finish()
    splits, notes = assign_splits(np.asarray(spool.split_keys), fractions)
    if spool.wanted.settings():
        dropped_by = dict(sorted(report.dropped.items()))
        facts = facts | {"filter": {**spool.wanted.settings(), "dropped": dropped_by}}
    write_store(
        target,
        tokenizer=spool.tokenizer,
        domains=spool.domains,
        splits={name: spool.content(np.flatnonzero(splits == i)) for i, name in enumerate(SPLITS)},
        seed=spool.seed,
        facts=facts,
    )
    return notes


def _sample_texts(
    inputs: Sequence[str | os.PathLike[str]],
    *,
    quiet: bool,
    text_field: str = "text",
    wanted: DocumentFilter | None = None,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
) -> Iterator[str]:
    """Yields the first texts of every input, 16 million characters in all."""
    with Progress("tokenizer", not quiet) as shown:
        for given in inputs:
            left = _SAMPLE_CHARS // len(inputs)
            try:
                for document in read_documents(
                    [given],
                    text_field=text_field,
                    wanted=wanted,
                    max_document_bytes=max_document_bytes,
                ):
                    yield document.text
                    left -= len(document.text)
                    if left <= 0:
                        break
                    shown.show("comparing its ids with those of its tokenizer.json")
            except DataError:
                continue  # the pass over all documents reports it better


def _check_fractions(fractions: Sequence[float]) -> None:
    if len(fractions) != len(SPLITS) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UsageError(
            f"fractions = {tuple(fractions)}: must be three numbers (train, select, test), none"
            " below 0, that add up to 1"
        )


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _hash64(*parts: str) -> int:
    """Returns a number that is the same on every machine, unlike Python's own hash."""
    digest = hashlib.blake2b("\x00".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class _Spool:
    """A file with all documents' tokens, in the order read, and a few numbers per document."""

    def __init__(
        self, path: Path, tokenizer: Tokenizer, seed: int, wanted: DocumentFilter, *, add_bos: bool
    ):
        self.tokenizer, self.seed, self.wanted = tokenizer, seed, wanted
        self._bos = np.array([tokenizer.bos_id] if add_bos else [], np.int32)
        self._dtype = np.dtype(token_dtype(tokenizer.vocab_size))
        self._file = path.open("wb+")
        self._lengths, self._domain_ids = array("q"), array("i")
        self._order_keys, self.split_keys = array("Q"), array("Q")
        self._domain_index: dict[str, int] = {}
        self.num_tokens = 0

    def close(self) -> None:
        """Closes the file, which is deleted with its folder."""
        self._file.close()

    @property
    def num_documents(self) -> int:
        return len(self._lengths)

    @property
    def domains(self) -> list[str]:
        return sorted(self._domain_index)

    def add(self, documents: list[Document], report: ReadReport) -> None:
        encoded = self.tokenizer.encode_batch([d.text for d in documents])
        eos = self.tokenizer.eos_id
        for document, ids in zip(documents, encoded, strict=True):
            if self.tokenizer.reads_ids and ids.size and ids[-1] == eos:
                ids = ids[:-1]  # such documents often include their end already
            if not ids.size:
                report.documents -= 1
                report.skip(document.id, "no tokens")
                continue
            check_ids(ids, self.tokenizer.vocab_size, document.id)
            if (ids == eos).any():
                raise DataError(
                    f"{document.id}: its tokens hold the end-of-document id {eos}; "
                    + (
                        "make a document of each part"
                        if self.tokenizer.reads_ids
                        else "use a tokenizer that marks that token as special"
                    )
                )
            against = self.wanted.against_tokens(ids.size)
            if against is not None:
                report.documents -= 1
                report.dropped[against] += 1
                continue
            whole = np.concatenate([self._bos, ids, [eos]]).astype(self._dtype)
            self._file.write(whole.tobytes())
            self._lengths.append(whole.size)
            self.num_tokens += whole.size
            self._domain_ids.append(
                self._domain_index.setdefault(document.domain, len(self._domain_index))
            )
            self._order_keys.append(_hash64("order", str(self.seed), document.id))
            self.split_keys.append(_hash64("split", _PIECE.sub("", document.id)))

    def finish(self) -> None:
        """Switches from writing to reading."""
        self._file.flush()
        self._starts = np.concatenate([[0], np.cumsum(np.asarray(self._lengths, np.int64))[:-1]])

    def content(self, members: np.ndarray) -> SplitContent:
        """Returns these documents (D,) as a split, in the order of their keys."""
        members = members[np.argsort(np.asarray(self._order_keys)[members], kind="stable")]
        # Domain ids are in order of appearance; the store lists the names sorted.
        final = {name: i for i, name in enumerate(self.domains)}
        rank = np.array([final[name] for name in self._domain_index], np.int32)
        lengths = np.asarray(self._lengths, np.int64)[members]
        return SplitContent(
            lengths=lengths,
            domain_ids=rank[np.asarray(self._domain_ids)[members]],
            blocks=self._blocks(self._starts[members], lengths),
        )

    def _blocks(self, starts: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
        parts, size = [], 0
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            # Not a memory map: its pages would count as this process's memory.
            width = self._dtype.itemsize
            part = os.pread(self._file.fileno(), length * width, start * width)
            parts.append(np.frombuffer(part, self._dtype))
            size += length
            if size >= _BLOCK_TOKENS:
                yield np.concatenate(parts)
                parts, size = [], 0
        if parts:
            yield np.concatenate(parts)


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
    unique, group = np.unique(keys, return_inverse=True)
    # Splits are ranges of the hash, shifted where one would be empty.
    edges = np.searchsorted(unique.astype(np.float64) / 2.0**64, np.cumsum(fractions)[:-1])
    counts = np.diff(np.concatenate([[0], edges, [unique.size]]))
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
    return np.repeat(np.arange(len(SPLITS)), counts)[group], notes

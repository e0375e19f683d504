"""Looks for faults in stored tokens: in files, in the structure of documents, in ids."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from glob import has_magic
from typing import Any, NamedTuple, TypeVar

import numpy as np

from emo_jax.config import DataConfig
from emo_jax.data.repeated_ids import repeated_ids
from emo_jax.data.store import TokenStore
from emo_jax.data.store_files import StoreFiles
from emo_jax.data.store_manifest import MANIFEST, parse_manifest
from emo_jax.data.stream import SPLITS, DocumentStream, TokenSource, check_ids
from emo_jax.data.windows import open_source
from emo_jax.errors import DataError, listed, one_line

_BLOCKS_AT_ONCE = 4
_BLOCK_TOKENS = 1 << 20
_NAMED = 3  # faults of one kind that are listed

Show = Callable[[str], None]
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass
class Checked:
    """How much was looked at.

    Attributes:
      files: files whose checksum was compared.
      num_bytes: their size.
      documents: documents whose ends, domains and end-of-document tokens were looked at.
      tokens: tokens that were looked at.
      ids: ids of documents that were compared with each other; 0 where none are kept.
      notes: lines about what is no fault and may surprise, such as an id of two documents.
    """

    files: int = 0
    num_bytes: int = 0
    documents: int = 0
    tokens: int = 0
    ids: int = 0
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Returns one line."""
        files = f"{self.files:,} files, {self.num_bytes / 1e6:,.1f} MB; " if self.files else ""
        documents = f"{self.documents:,} documents, " if self.documents else ""
        ids = f"; {self.ids:,} ids" if self.ids else ""
        return f"{files}{documents}{self.tokens:,} tokens{ids}"


def check_data(
    location: str, config: DataConfig, seen: Checked, show: Show = lambda line: None
) -> Iterator[str]:
    """Looks for faults in a token store or in token files.

    Args:
      location: a store, or token files as `data.store` names them.
      config: its `raw_…` fields describe token files.
      seen: filled with how much was looked at.
      show: called with a line of progress, often.

    Yields:
      A line for each fault.

    Raises:
      UsageError: there is no such data.
    """
    faults = 0
    for line in _file_faults(location, seen, show):
        faults += 1
        yield line
    if faults:
        seen.notes.append(f"{location}: documents were not looked at, since files are damaged")
        return
    try:
        source = open_source(location, config, verify=False)
    except DataError as error:
        yield str(error)
        return
    for split in SPLITS:
        for stream in source.streams(split):
            try:
                yield from _stream_faults(stream, source, split, seen, show)
            except DataError as error:
                yield str(error)
    if isinstance(source, TokenStore):
        try:
            _compare_ids(source, seen, show)
        except DataError as error:
            yield str(error)


# --- files ---------------------------------------------------------------------------------------


def _file_faults(location: str, seen: Checked, show: Show) -> Iterator[str]:
    """Compares every file of a store with its manifest, several at once."""
    if "," in location or has_magic(location):
        return  # token files
    files = StoreFiles(location)
    try:
        content = files.read(MANIFEST)
        if content is None:
            return  # no store
        described = parse_manifest(content, f"{location}/{MANIFEST}")["files"]
    except DataError as error:
        yield str(error)
        return
    whole = dict(described)
    # Remote files are listed once; local ones cost nothing to look at one by one.
    for some in [described] if files.folder is None else [{n: described[n]} for n in described]:
        try:
            files.check_sizes(some)
        except DataError as error:
            said = str(error)
            yield said
            whole = {n: one for n, one in whole.items() if not said.startswith(f"{location}/{n}: ")}
    total = sum(expected["bytes"] for expected in whole.values())
    try:
        for name, why in files.compare(whole):
            seen.files += 1
            seen.num_bytes += whole[name]["bytes"]
            show(f"{location}: {seen.num_bytes / 1e9:,.1f} of {total / 1e9:,.1f} GB compared")
            if why:
                yield f"{location}/{name}: damaged ({why}); copy or prepare the store again"
    except (DataError, OSError) as error:
        yield f"{location}: files were not compared further ({one_line(error)})"


# --- documents -----------------------------------------------------------------------------------


class _Block(NamedTuple):
    """What was found in a stretch of tokens; M domains."""

    tokens_M: np.ndarray  # tokens of each domain, the last for unknown ones
    documents_M: np.ndarray  # documents that end here, by domain
    unended: np.ndarray  # where documents end without an end-of-document token
    ended: np.ndarray  # end-of-document tokens inside of documents


def _stream_faults(
    stream: Any, source: TokenSource, split: str, seen: Checked, show: Show
) -> Iterator[str]:
    """Reads a whole stream."""
    store = source if isinstance(source, TokenStore) else None
    if store is None and getattr(stream, "num_documents", None) is not None:
        yield from _end_faults(stream)
    domains = len(source.domains)
    tokens_M, documents_M = np.zeros(domains + 1, np.int64), np.zeros(domains + 1, np.int64)
    faults: dict[str, list[int]] = {"unended": [], "ended": []}

    def look(first: int) -> _Block:
        return _look(stream, source, first, documents=store is not None)

    starts = range(0, stream.num_tokens, _BLOCK_TOKENS)
    for n, block in enumerate(_ahead(look, starts, _BLOCKS_AT_ONCE), 1):
        tokens_M += block.tokens_M
        documents_M += block.documents_M
        for name, found in faults.items():
            found += getattr(block, name).tolist()[: _NAMED + 1 - len(found)]
        show(f"{stream.name}: {n:,} of {len(starts):,} million tokens read")
    seen.tokens += int(tokens_M.sum())
    if store is None:
        seen.documents += getattr(stream, "num_documents", None) or 0
        return
    seen.documents += int(documents_M.sum())
    for at in faults["unended"][:_NAMED]:
        document = stream.document_at(at)
        yield f"{stream.name}: document {document} does not end in its end-of-document token"
    for at in faults["ended"][:_NAMED]:
        document = stream.document_at(at)
        yield f"{stream.name}: document {document} has an end-of-document token inside"
    for kind, about in (("unended", "do not end in one"), ("ended", "have one inside")):
        if len(faults[kind]) > _NAMED:
            yield f"{stream.name}: more documents {about}"
    for what, found_M in (("tokens", tokens_M), ("documents", documents_M)):
        wrong = [
            f"{name!r} has {found} {what}, the manifest says {said}"
            for name, found in zip(store.domains, found_M.tolist(), strict=False)
            if found != (said := store.count(split, what, name))
        ]
        if wrong:
            yield f"{stream.name}: domain {listed(wrong, _NAMED)}"


def _look(stream: Any, source: TokenSource, first: int, *, documents: bool) -> _Block:
    """Looks at a block of tokens.

    Raises:
      DataError: ends do not rise, a domain or an id does not exist.
    """
    stop = min(first + _BLOCK_TOKENS, stream.num_tokens)
    span = stream.read(first, stop)
    check_ids(span.tokens, source.vocab_size, stream.name)
    size, none = len(source.domains) + 1, np.zeros(0, np.int64)
    tokens_M = np.bincount(span.domain_ids % size, minlength=size)
    if not documents:
        return _Block(tokens_M, np.zeros(size, np.int64), none, none)
    ends = stream.document_ends(stream.document_at(first), stream.document_at(stop - 1) + 1)
    last = ends[ends <= stop] - 1
    eos = np.flatnonzero(span.tokens == source.eos_id) + first
    return _Block(
        tokens_M,
        np.bincount(span.domain_ids[last - first] % size, minlength=size),
        np.setdiff1d(last, eos, assume_unique=True),
        np.setdiff1d(eos, last, assume_unique=True),
    )


def _end_faults(stream: DocumentStream) -> Iterator[str]:
    """Checks that the documents of a format's own index add up to its tokens."""
    before = 0
    for first in range(0, stream.num_documents, _BLOCK_TOKENS):
        ends = stream.document_ends(first, min(first + _BLOCK_TOKENS, stream.num_documents))
        falls = np.flatnonzero(np.diff(ends, prepend=before) < 0)
        if falls.size:
            yield f"{stream.name}: document {first + int(falls[0])} ends before it begins"
            return
        before = int(ends[-1])
    if before != stream.num_tokens:
        yield (
            f"{stream.name}: its documents have {before:,} tokens by the index, the file has"
            f" {stream.num_tokens:,}"
        )


# --- ids -----------------------------------------------------------------------------------------


def _compare_ids(store: TokenStore, seen: Checked, show: Show) -> None:
    """Compares the ids of all splits; documents without an id are not alike."""
    streams = [stream for split in SPLITS for stream in store.streams(split)]
    if not any(any(stream.document_ids(0, 1)) for stream in streams):
        return  # the first of each has none: none are kept
    total = sum(stream.num_documents for stream in streams)
    seen.ids = total
    twice = 0
    for name, places in repeated_ids(streams, show):
        twice += 1
        if twice <= _NAMED:
            where = " and ".join(f"document {n} of {stream}" for stream, n in places[:2])
            seen.notes.append(f"{store.path}: id {name!r:.80} is that of {where}")
    if twice > _NAMED:
        more = f"{twice - _NAMED:,} more ids are those of several documents"
        seen.notes.append(f"{store.path}: {more}")


def _ahead(function: Callable[[_In], _Out], items: Iterable[_In], at_once: int) -> Iterator[_Out]:
    """Yields results in order, computed in threads; few are held at a time."""
    with ThreadPoolExecutor(at_once) as pool:
        running: deque[Future[_Out]] = deque()
        try:
            for item in items:
                running.append(pool.submit(function, item))
                if len(running) > 2 * at_once:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

"""The tokens that a run reads: one store, or a mixture of several as a single source."""

import copy
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.config import DataConfig
from emo_jax.data.domain_groups import MOST_DOMAINS, DomainGroups, group_domains
from emo_jax.data.store import VERIFY_BELOW_BYTES, TokenStore
from emo_jax.data.stream import SPLITS, TRAIN, Span, Stream, TokenSource, read_ranges
from emo_jax.data.windows import open_source
from emo_jax.errors import DataError, UsageError
from emo_jax.files.remote import is_remote

_OPENERS = 16  # stores opened at once


def open_data(config: DataConfig, *, cache: Path | None = None) -> TokenSource:
    """Opens what a `data` section reads: its store, or all stores of its mixture.

    Args:
      cache: see `formats.open_tokens`.

    Raises:
      UsageError: no such store or domain, or a store without training tokens.
      DataError: a store is damaged, or the stores do not have the same tokenizer.
    """
    if not config.sources:
        return of_domains(open_source(config.store, config, cache=cache), config)
    return MixedSource.open(config, cache=cache)


def of_domains(source: TokenSource, config: DataConfig) -> TokenSource:
    """Restricts the source of `data.store` to `data.domains`, if there are any.

    Raises:
      UsageError: it has no such domain, no training documents of them, or is no token store.
    """
    if not config.domains:
        return source
    names = ", ".join(config.domains)
    if not isinstance(source, TokenStore):
        raise UsageError(
            f"{config.store}: its documents cannot be chosen by domain (config.data.domains ="
            f" {names}); prepare them as a token store with emo prepare"
        )
    part = source.only(config.domains)
    if not part.count(TRAIN):
        raise UsageError(f"{config.store}: no training documents of config.data.domains = {names}")
    return part


class _Mapped:
    """A source whose domains are those of a mixture."""

    def __init__(self, source: TokenSource, mixed: "MixedSource", ids_M: np.ndarray, other: int):
        self.source, self._ids = source, np.append(ids_M, other).astype(np.int32)
        self.eos_id, self.pad_id, self.vocab_size = source.eos_id, source.pad_id, source.vocab_size
        self.domains = mixed.domains
        self.tokenizer_fingerprint = source.tokenizer_fingerprint
        self.fingerprint = source.fingerprint

    def streams(self, split: str) -> list[Stream]:
        """Returns the streams of a split."""
        return [_MappedStream(stream, self._ids) for stream in self.source.streams(split)]


class _MappedStream:
    """A stream whose domain ids are looked up in `ids`; -1, unknown, in its last entry."""

    def __init__(self, stream: Stream, ids: np.ndarray):
        self._stream, self._ids = stream, ids

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def read(self, start: int, stop: int) -> Span:
        """Returns tokens [start, stop)."""
        return self._map(self._stream.read(start, stop))

    def read_ranges(self, starts_N: np.ndarray, stops_N: np.ndarray) -> Span:
        """Returns several ranges end to end."""
        return self._map(read_ranges(self._stream, starts_N, stops_N))

    def _map(self, span: Span) -> Span:
        return span._replace(domain_ids=self._ids[span.domain_ids])


class MixedSource:
    """The stores of a mixture. Its domains are those of all of them, sorted by name.

    Attributes:
      names: the stores, as the config calls them.
      parts: a source for each, with the domains of the mixture.
      groups: how `grouped` merged the domains; None: none are merged.
    """

    def __init__(self, names: Sequence[str], sources: Sequence[TokenSource], labels: Sequence[str]):
        self.names, self._sources, self._labels = tuple(names), list(sources), tuple(labels)
        first = self._sources[0]
        seen: dict[str, str] = {}
        for name, source in zip(self.names, self._sources, strict=True):
            _check_alike(self.names[0], first, name, source)
            if (same := seen.setdefault(_identity(source), name)) != name:
                raise UsageError(f"{name}: holds the same tokens as {same}; name one of them only")
        self.eos_id, self.pad_id, self.vocab_size = first.eos_id, first.pad_id, first.vocab_size
        prints = [s.tokenizer_fingerprint for s in self._sources if s.tokenizer_fingerprint]
        self.tokenizer_fingerprint = prints[0] if prints else ""
        all_names = {label for label in self._labels if label}
        for source, label in zip(self._sources, self._labels, strict=True):
            all_names |= set() if label else set(source.domains)
        self.domains: tuple[str, ...] = tuple(sorted(all_names))
        self.groups: DomainGroups | None = None
        together = sorted((s.fingerprint, label) for s, label in zip(sources, labels, strict=True))
        self.fingerprint = hashlib.sha256(repr(together).encode()).hexdigest()
        self._map_domains()

    @classmethod
    def open(cls, config: DataConfig, *, cache: Path | None = None) -> "MixedSource":
        """Opens the stores of `config.sources`."""
        labels = {one.store: one.domain for one in config.sources if one.domain}
        names = config.stores
        with ThreadPoolExecutor(_OPENERS) as openers:
            sources = list(
                openers.map(lambda n: open_source(n, config, verify=False, cache=cache), names)
            )
            stores = [source for source in sources if isinstance(source, TokenStore)]
            if sum(store.num_bytes for store in stores) < VERIFY_BELOW_BYTES:
                list(openers.map(TokenStore.verify, stores))
            list(openers.map(lambda source: source.streams(TRAIN), sources))  # opens their arrays
        return cls(names, sources, [labels.get(name, "") for name in names])

    def _map_domains(self) -> None:
        number = {name: i for i, name in enumerate(self.domains)}
        if self.groups is not None:
            before = {name: i for i, name in enumerate(self._ungrouped)}
            number = {name: int(self.groups.of_M[i]) for name, i in before.items()}
        self.parts = []
        for source, label in zip(self._sources, self._labels, strict=True):
            ids = [number[label or name] for name in source.domains]
            other = number[label] if label else -1
            self.parts.append(_Mapped(source, self, np.array(ids, np.int32), other))

    def without_domains(self) -> list[str]:
        """Returns the stores whose documents have no domain, their own or the mixture's."""
        named = zip(self.names, self._sources, self._labels, strict=True)
        return [name for name, source, label in named if not (label or source.domains)]

    def streams(self, split: str) -> list[Stream]:
        """Returns the streams of all stores."""
        return [stream for part in self.parts for stream in part.streams(split)]

    def count(self, split: str, what: str = "tokens", domain: str | None = None) -> int:
        """Returns the number of "tokens" or "documents" in a split, for all domains or one."""
        total = 0
        for source, label in zip(self._sources, self._labels, strict=True):
            if isinstance(source, TokenStore) and (domain is None or label in ("", domain)):
                of = None if label else domain
                if of is None or of in source.domains:
                    total += source.count(split, what, of)
        return total

    def grouped(self, most: int = MOST_DOMAINS) -> "MixedSource":
        """Returns the same source with all but its `most` largest domains merged into one."""
        if len(self.domains) <= most:
            return self
        tokens_M = [sum(self.count(s, "tokens", name) for s in SPLITS) for name in self.domains]
        groups = group_domains(self.domains, tokens_M, most)
        if groups is None:
            return self
        made = copy.copy(self)
        made._ungrouped, made.groups, made.domains = self.domains, groups, groups.names
        made._map_domains()
        return made

    _ungrouped: tuple[str, ...] = ()

    def check_tokenizer_in(self, folder: Path) -> None:
        """Raises DataError if a run's folder has a tokenizer other than the stores'."""
        if (store := self.tokenizer_store()) is not None:
            store.check_tokenizer_in(folder)

    def tokenizer_store(self) -> TokenStore | None:
        """Returns a store whose tokenizer is that of all; None if no source has one."""
        return next((s for s in self._sources if isinstance(s, TokenStore)), None)


def _identity(source: TokenSource) -> str:
    """Returns what only the same tokens have; a fingerprint of files says less of them."""
    if isinstance(source, TokenStore):
        return source.fingerprint
    names = [stream.name for stream in source.streams(TRAIN)]
    places = [name if is_remote(name) else os.path.realpath(name) for name in names]
    return repr((source.fingerprint, places))


def _check_alike(first_name: str, first: TokenSource, name: str, source: TokenSource) -> None:
    """Checks that the tokens of two sources mean the same.

    Raises:
      UsageError: no training tokens.
      DataError: another tokenizer, vocabulary or end of document.
    """
    if not source.streams(TRAIN):
        raise UsageError(f"{name}: has no training tokens; leave it out of config.data.sources")
    ours, theirs = first.tokenizer_fingerprint, source.tokenizer_fingerprint
    if ours and theirs and ours != theirs:
        raise DataError(
            f"{name}: its tokenizer ({theirs[:12]}) is not that of {first_name} ({ours[:12]});"
            " prepare both with the same one"
        )
    for what in ("vocab_size", "eos_id"):
        a, b = getattr(first, what), getattr(source, what)
        if a != b:
            raise DataError(
                f"{name}: its {what} is {b}, that of {first_name} is {a}; the sources of a mixture"
                " must have the same (for token files without a tokenizer: data.raw_vocab_size,"
                " data.raw_eos_id)"
            )

"""What a token store, token files or a mixture hold: documents, tokens, domains, lengths."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from emo_jax.config import Config, DataConfig
from emo_jax.data.domain_groups import MOST_DOMAINS
from emo_jax.data.lengths import BINS, Lengths, measure_lengths
from emo_jax.data.run_windows import SourcePlan, open_run_windows
from emo_jax.data.sources import MixedSource, of_domains, open_data
from emo_jax.data.store import TokenStore
from emo_jax.data.store_manifest import MANIFEST
from emo_jax.data.stream import SPLITS, TRAIN, DocumentStream, TokenSource
from emo_jax.data.windows import open_source, open_windows
from emo_jax.files.json_files import is_integer

Show = Callable[[str], None]


class Count(NamedTuple):
    """Documents (None: unknown) and tokens of something."""

    documents: int | None
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """Returns the fields, and the mean length."""
        mean = round(self.tokens / self.documents, 2) if self.documents else None
        return {"documents": self.documents, "tokens": self.tokens, "mean": mean}


@dataclass(frozen=True)
class DataStats:
    """What one store, or the token files that one name stands for, hold.

    Attributes:
      name: as the config calls it.
      kind: "token store" or "token files".
      vocab_size: of its tokenizer.
      eos_id: ends a document.
      pad_id: fills a window.
      tokenizer: fingerprint; "" if unknown.
      fingerprint: of its tokens.
      num_bytes: of its files; None if unknown.
      splits: what each has.
      domains: by split, all but the largest hundred as one; () where documents name none.
      parts: the inputs of a store, where it says so, or the token files.
      lengths: of documents; None: not known without reading all tokens.
      dropped: documents that the preparation did not take, by reason.
      planned: of a mixture; None: there is none.
      packing: what the windows of a run make of its documents; "" if unknown.
    """

    name: str
    kind: str
    vocab_size: int
    eos_id: int
    pad_id: int
    tokenizer: str
    fingerprint: str
    num_bytes: int | None
    splits: Mapping[str, Count]
    domains: Mapping[str, Mapping[str, Count]]
    parts: Mapping[str, Count]
    lengths: Lengths | None
    dropped: Mapping[str, int]
    planned: SourcePlan | None = None
    packing: str = ""

    @property
    def total(self) -> Count:
        """All splits together."""
        return total(self.splits.values())

    def to_json(self) -> dict[str, Any]:
        """Returns all figures as JSON values."""
        fields = ("name", "kind", "vocab_size", "eos_id", "pad_id", "tokenizer", "fingerprint")
        found: dict[str, Any] = {name: getattr(self, name) for name in fields}
        found |= {"bytes": self.num_bytes, "total": self.total.to_json()}
        found["splits"] = {name: count.to_json() for name, count in self.splits.items()}
        found["domains"] = {
            name: {split: count.to_json() for split, count in by_split.items()}
            for name, by_split in self.domains.items()
        }
        found["parts"] = {name: count.to_json() for name, count in self.parts.items()}
        found["dropped"] = dict(self.dropped)
        found["lengths"] = None if self.lengths is None else lengths_json(self.lengths)
        found["planned"] = None if self.planned is None else self.planned._asdict()
        found["packing"] = self.packing
        return found


def lengths_json(lengths: Lengths) -> dict[str, Any]:
    """Returns a histogram as JSON values."""
    bins = [
        {
            "from": 2**i,
            "documents": int(lengths.documents[i]),
            "tokens": None if lengths.tokens is None else int(lengths.tokens[i]),
        }
        for i in lengths.used
    ]
    return {
        "median": lengths.median,
        "median_exact": lengths.exact,
        "longest": lengths.longest,
        "bins": bins,
    }


def total(counts: Any) -> Count:
    """Returns the sum; its documents are unknown if those of any are."""
    every = list(counts)
    documents = [count.documents for count in every]
    known = None if None in documents else sum(documents)
    return Count(known, sum(count.tokens for count in every))


def describe_data(
    config: DataConfig,
    run: Config | None = None,
    *,
    measure: bool = True,
    show: Show = lambda line: None,
) -> list[DataStats]:
    """Describes each source of a `data` section.

    Args:
      run: a run with this data; says how its mixture is read.
      measure: find out how long documents are, where that takes reading where each of them ends.
      show: called with a line of progress.

    Raises:
      UsageError: there is no such data.
      DataError: it is damaged.
    """
    if config.sources:
        mixed = cast(MixedSource, open_data(config))
        sources = {n: part.source for n, part in zip(mixed.names, mixed.parts, strict=True)}
        plans = {} if run is None else open_run_windows(run, mixed).plans(run.train.batch_size)
    else:
        sources = {
            n: of_domains(open_source(n, config, verify=False), config) for n in config.stores
        }
        plans = {}
    return [
        dataclasses.replace(
            _describe(name, source, plans.get(name), measure, show),
            packing=_packing(source, config) if run is not None and measure else "",
        )
        for name, source in sources.items()
    ]


def _packing(source: TokenSource, config: DataConfig) -> str:
    return open_windows(config, source=source).packing_note(measure=True)


def _describe(
    name: str, source: TokenSource, planned: SourcePlan | None, measure: bool, show: Show
) -> DataStats:
    store = source if isinstance(source, TokenStore) else None
    streams = {split: list(source.streams(split)) for split in SPLITS}
    splits, parts = {}, {}
    lengths = Lengths() if measure else None
    kept = None if store is None else _kept_lengths(store)
    lengths = kept or lengths
    for split, of_split in streams.items():
        counts = []
        for stream in of_split:
            known = store is not None or measure
            documents = getattr(stream, "num_documents", None) if known else None
            counts.append(Count(documents, stream.num_tokens))
            if store is None:
                parts[stream.name] = counts[-1]
            if documents is None:
                lengths = None
            elif lengths is not None and kept is None:
                lengths += measure_lengths(cast(DocumentStream, stream), show)
        if counts:
            splits[split] = total(counts)
    inputs: dict[str, dict[str, int]] = getattr(store, "sources", dict)()
    parts |= {part: Count(one["documents"], one["tokens"]) for part, one in inputs.items()}
    return DataStats(
        name=name,
        kind="token files" if store is None else "token store",
        vocab_size=source.vocab_size,
        eos_id=source.eos_id,
        pad_id=source.pad_id,
        tokenizer=source.tokenizer_fingerprint,
        fingerprint=source.fingerprint,
        num_bytes=None if store is None else store.num_bytes,
        splits=splits,
        domains=_labels(source) if store is None else _domains(store, list(splits)),
        parts=parts,
        lengths=lengths,
        dropped=_dropped(store),
        planned=planned,
    )


def _kept_lengths(store: TokenStore) -> Lengths | None:
    """Returns the histogram that the preparation kept; None if it did not."""
    kept = store.manifest.get("lengths")
    if not kept:
        return None
    counts: list[Any] = list(kept.values()) if isinstance(kept, dict) else [None]
    for one in counts:
        if not isinstance(one, list) or len(one) >= BINS or not all(is_count(n) for n in one):
            raise store.damaged(f"{MANIFEST}: lengths are no histograms")
    return Lengths.of_counts(counts)


def _domains(store: TokenStore, splits: list[str]) -> dict[str, dict[str, Count]]:
    if not store.named_domains:
        return {}
    grouped = store.grouped(MOST_DOMAINS)

    def count(split: str, name: str) -> Count:
        return Count(grouped.count(split, "documents", name), grouped.count(split, "tokens", name))

    return {name: {split: count(split, name) for split in splits} for name in grouped.domains}


def _labels(source: TokenSource) -> dict[str, dict[str, Count]]:
    """Returns the tokens of each domain of token files, of which each file has one."""
    tokens: dict[str, int] = {}
    for stream in source.streams(TRAIN) if source.domains else ():
        domain = int(stream.read(0, 1).domain_ids[0])
        name = source.domains[domain] if domain >= 0 else "unknown"
        tokens[name] = tokens.get(name, 0) + stream.num_tokens
    named = sorted(tokens.items(), key=lambda item: (-item[1], item[0]))
    found = {name: {TRAIN: Count(None, count)} for name, count in named[:MOST_DOMAINS]}
    if rest := named[MOST_DOMAINS:]:
        found[f"other ({len(rest):,} domains)"] = {TRAIN: Count(None, sum(n for _, n in rest))}
    return found


def _dropped(store: TokenStore | None) -> dict[str, int]:
    manifest: dict[str, Any] = {} if store is None else store.manifest
    found = manifest.get("rejected") or (manifest.get("filter") or {}).get("dropped") or {}
    return {name: count for name, count in found.items() if is_count(count) and count}


def is_count(value: Any) -> bool:
    """Whether a value of a manifest is a count."""
    return is_integer(value) and 0 <= value < 2**63

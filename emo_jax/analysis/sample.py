"""Samples of a store's documents to analyse a model with.

Legend: n documents.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from emo_jax.data.domain_groups import MOST_DOMAINS
from emo_jax.data.store import TokenStore
from emo_jax.errors import UsageError
from emo_jax.selection.examples import shuffled_documents

ALL_DOCUMENTS = "all documents"  # the one domain of a store that names none
_SCAN = 50  # store tokens to search, at most, per token of the sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Which documents to sample.

    Attributes:
      tokens: total for all documents, spread evenly over the domains.
      max_length, min_length: tokens of a document.
      max_domains: the largest, which keep their names; all others are one.
    """

    split: str = "test"
    tokens: int = 200_000
    max_length: int = 512
    min_length: int = 32
    seed: int = 0
    max_domains: int = MOST_DOMAINS


class Sample(NamedTuple):
    """Sampled documents, with equally many tokens of each domain.

    Attributes:
      documents: (n,) int32 each, the first tokens of a document, including its end if it fits.
      domain_ids: one per document.
      domains: names of the domains that have a document here; one for all if the store names none.
      about: where they are from, and `missing`: domains without a document that is long enough.
    """

    documents: list[np.ndarray]
    domain_ids: np.ndarray
    domains: tuple[str, ...]
    about: dict[str, Any]


def sample_documents(
    store: TokenStore,
    split: str,
    *,
    tokens: int,
    max_length: int = 512,
    min_length: int = 32,
    seed: int = 0,
) -> Sample:
    """Samples documents of a split in a seeded order, evenly over its domains.

    Args:
      tokens: limit for all documents together, except for a first document. If there are more
        domains than this allows documents of `min_length`, only some are in the sample.
      max_length: tokens of a document that are used, from its start.
      min_length: shorter documents are skipped.

    Raises:
      UsageError: no such split, or no document that is long enough.
    """
    if split not in store.splits:
        raise UsageError(f"{store.path}: no split {split!r}; it has {', '.join(store.splits)}")
    names = store.named_domains or (ALL_DOCUMENTS,)
    found: list[list[np.ndarray]] = [[] for _ in names]
    left = [max(min_length, tokens // len(names))] * len(names)
    room, budget = max(min_length, tokens), _SCAN * tokens
    for document in shuffled_documents(store, split, seed + 1):
        budget -= len(document.tokens)
        at = document.domain_id if store.named_domains else 0
        if min(len(document.tokens), left[at]) >= min_length:
            found[at].append(document.tokens[: min(max_length, left[at], room)])
            left[at] -= len(found[at][-1])
            room -= len(found[at][-1])
        if budget < 0 or min(max(left), room) < min_length:
            break
    documents = [ids for of_domain in found for ids in of_domain]
    if not documents:
        raise UsageError(
            f"{store.path}, split {split}: no document of at least {min_length} tokens; ask for"
            " shorter ones"
        )
    there = [of_domain for of_domain in found if of_domain]
    ids = np.repeat(np.arange(len(there)), [len(of_domain) for of_domain in there])
    about = {
        "store": store.path,
        "fingerprint": store.fingerprint,
        "split": split,
        "max_length": max_length,
        "min_length": min_length,
        "seed": seed,
        "missing": [name for name, of_domain in zip(names, found, strict=True) if not of_domain],
    }
    present = tuple(name for name, of_domain in zip(names, found, strict=True) if of_domain)
    return Sample(documents, ids.astype(np.int32), present, about)


def sample_of(store: TokenStore, settings: SampleSettings) -> Sample:
    """Returns the documents that the settings describe."""
    return sample_documents(
        store,
        settings.split,
        tokens=settings.tokens,
        max_length=settings.max_length,
        min_length=settings.min_length,
        seed=settings.seed,
    )

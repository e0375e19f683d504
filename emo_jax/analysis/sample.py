"""The documents of a store that a model is looked at with.

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
_SCAN = 50  # tokens of a store that are looked through for one of the sample, at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """What documents are looked at.

    Attributes:
      tokens: of all documents, evenly over the domains.
      max_length, min_length: tokens of a document.
      max_domains: by name, the largest; all others are one.
    """

    split: str = "test"
    tokens: int = 200_000
    max_length: int = 512
    min_length: int = 32
    seed: int = 0
    max_domains: int = MOST_DOMAINS


class Sample(NamedTuple):
    """Documents to look at, as many tokens of each domain as there are of the others.

    Attributes:
      documents: (n,) int32 each, the first tokens of a document, its end included where it fits.
      domain_ids: one a document.
      domains: names, of those that have a document here; one of all where the store names none.
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
    """Documents of a split in an order of the seed, evenly over its domains.

    Args:
      tokens: of all documents together, at most, but for a first document. Of more domains than
        `tokens` has documents of `min_length` for, only some are in the sample.
      max_length: of a document, the first ones.
      min_length: shorter documents are left out.

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
    """The documents that settings ask for."""
    return sample_documents(
        store,
        settings.split,
        tokens=settings.tokens,
        max_length=settings.max_length,
        min_length=settings.min_length,
        seed=settings.seed,
    )

"""Groups many domains into few: the largest by name, all others as one.

A store may have as many domains as the web has sites. Per-domain results (a table row, a heat map,
experts to keep) mean nothing for a domain of three documents, and would not fit anywhere.

Legend: M domains.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MOST_DOMAINS = 100  # kept by name, unless set otherwise


class DomainGroups(NamedTuple):
    """The groups of a store's domains.

    Attributes:
      names: the domains kept by name, in their original order, then the name for all others.
      of_M: (M,) int32 index into `names` for each domain.
    """

    names: tuple[str, ...]
    of_M: np.ndarray

    @property
    def note(self) -> str:
        """Returns a note for the user that says what was grouped."""
        total, named = len(self.of_M), len(self.names) - 1
        return f"{total:,} domains: the {named:,} largest by name, {self.names[-1]!r} as one"


def group_domains(
    domains: Sequence[str], tokens_M: Sequence[int], most: int
) -> DomainGroups | None:
    """Groups all but the `most` domains with the most tokens; None if there are few domains.

    Ties go to the domain that comes first.
    """
    if len(domains) <= most + 1:
        return None
    largest = np.sort(np.argsort(-np.asarray(tokens_M, np.int64), kind="stable")[:most])
    of_M = np.full(len(domains), most, np.int32)
    of_M[largest] = np.arange(most)
    names = [domains[m] for m in largest]
    other = f"other ({len(domains) - most:,} domains)"
    while other in names:
        other = f"{other} "
    return DomainGroups((*names, other), of_M)

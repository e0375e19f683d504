"""Few domains out of many: the largest by name, all others as one.

A store may have as many domains as the web has sites. What is measured of each (a row of a table, a
heat map, experts to keep) means nothing for one of three documents, and does not fit anywhere.

Legend: M domains.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MOST_DOMAINS = 100  # by name, where not said otherwise


class DomainGroups(NamedTuple):
    """Attributes:
    names: the domains by name, in the order that they had, and that of the others.
    of_M: (M,) int32 index into `names` for each domain.
    """

    names: tuple[str, ...]
    of_M: np.ndarray

    @property
    def note(self) -> str:
        """What was put together, for the user."""
        total, named = len(self.of_M), len(self.names) - 1
        return f"{total:,} domains: the {named:,} largest by name, {self.names[-1]!r} as one"


def group_domains(
    domains: Sequence[str], tokens_M: Sequence[int], most: int
) -> DomainGroups | None:
    """The `most` domains of the most tokens, and one of all others; None where there are few.

    Of equal ones those that come first.
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

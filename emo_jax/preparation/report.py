"""What `emo prepare` tells at its end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emo_jax.data.store import TokenStore
from emo_jax.data.stream import SPLITS
from emo_jax.documents.read import ReadReport

_TABLE_ROWS = 40  # there may be as many domains as web sites
_LENGTH_ROWS = 10
_STEP = 2  # powers of two in a column of the table of lengths


@dataclass(frozen=True)
class PrepareReport:
    """The outcome of `prepare`.

    Attributes:
      store: the store.
      read: what was read, skipped and dropped.
      seconds: time that this command took.
      notes: lines for the user.
      sources: (documents, tokens) of each input, as given.
      text_bytes: size of the texts that this command read; what an interrupted one had read is not
        read again.
      documents_read: how many there are among these.
      processes: the largest number of processes that ran tasks of a step.
    """

    store: TokenStore
    read: ReadReport
    seconds: float
    notes: tuple[str, ...]
    sources: Mapping[str, tuple[int, int]]
    text_bytes: int = 0
    documents_read: int = 0
    processes: int = 1

    def table(self) -> str:
        """Returns the documents and tokens of each domain and split, and what was skipped."""
        store = self.store
        head = f"{'domain':<20}" + "".join(f"{s + ' docs':>14}{'tokens':>14}" for s in SPLITS)
        lines = [head]
        shown = self._largest(_TABLE_ROWS)
        for domain in (*shown, None):
            cells = "".join(
                f"{store.count(s, 'documents', domain):>14,}{store.count(s, 'tokens', domain):>14,}"
                for s in SPLITS
            )
            lines.append(f"{'all' if domain is None else domain:<20}{cells}")
        if len(shown) < len(store.domains):
            lines.append(f"({len(store.domains) - len(shown)} smaller domains not listed)")
        lines += [f"{self.read.summary()}; {self.seconds:.1f} s{self.speed()}", *self.notes]
        return "\n".join(lines)

    def speed(self) -> str:
        """Returns documents/s and MB/s of text, and the number of processes; "" if too few."""
        if not self.text_bytes or self.seconds <= 0:
            return ""
        documents, megabytes = self.documents_read / self.seconds, self.text_bytes / 1e6
        several = f", {self.processes} processes" if self.processes > 1 else ""
        return f" ({documents:,.0f} documents/s, {megabytes / self.seconds:,.1f} MB/s{several})"

    def lengths(self) -> str:
        """Returns the number of documents by their length in tokens, for the largest domains."""
        by_domain = self.store.manifest.get("lengths", {})
        shown = self._largest(_LENGTH_ROWS)
        every = [0] * max(map(len, by_domain.values()), default=0)
        for counts in by_domain.values():
            for i, count in enumerate(counts):
                every[i] += count
        columns = range(0, len(every), _STEP)
        head = "".join(f"{f'≥ {1 << i:,}':>12}" for i in columns)
        lines = [f"{'documents by tokens':<20}{head}"]
        rows = [(name, by_domain.get(name, [])) for name in shown if len(by_domain) > 1]
        for name, counts in [*rows, ("all", every)]:
            lines.append(f"{name:<20}" + "".join(_cell(counts, i) for i in columns))
        return "\n".join(lines)

    def by_source(self) -> str:
        """Returns the documents and tokens of the largest inputs; "" if there is only one."""
        if len(self.sources) < 2:
            return ""
        largest = sorted(self.sources, key=lambda name: (-self.sources[name][1], name))
        lines = [f"{'input':<40}{'docs':>14}{'tokens':>18}"]
        for name in largest[:_LENGTH_ROWS]:
            documents, tokens = self.sources[name]
            lines.append(f"{_end(name, 39):<40}{documents:>14,}{tokens:>18,}")
        if len(largest) > _LENGTH_ROWS:
            lines.append(f"({len(largest) - _LENGTH_ROWS} smaller inputs not listed)")
        return "\n".join(lines)

    def _largest(self, most: int) -> list[str]:
        store = self.store
        largest = sorted(store.domains, key=lambda d: -store.count("train", "tokens", d))
        return sorted(largest[:most])


def _end(name: str, most: int) -> str:
    """Returns the end of a long name, where paths differ."""
    return name if len(name) <= most else "…" + name[1 - most :]


def _cell(counts: Sequence[int], start: int) -> str:
    return f"{sum(counts[start : start + _STEP]):>12,}"

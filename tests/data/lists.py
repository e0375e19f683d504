"""Token sources in memory, made of lists of documents; and slow ways to make their windows."""

from dataclasses import dataclass, field

import numpy as np

from emo_jax.data.stream import Span

EOS, PAD = 1, 0


@dataclass
class ListStream:
    """Documents as lists of ids, each ending in EOS."""

    documents: list[list[int]]
    domains: list[int]
    name: str = "list"

    def __post_init__(self):
        self._ends = np.cumsum([len(d) for d in self.documents], dtype=np.int64)
        self._tokens = np.array([t for d in self.documents for t in d], np.int32)
        self.num_tokens, self.num_documents = self._tokens.size, len(self.documents)

    def read(self, start, stop):
        assert 0 <= start < stop <= self.num_tokens
        of = np.searchsorted(self._ends, np.arange(start, stop), side="right")
        domains = np.array(self.domains, np.int32)[of]
        return Span(self._tokens[start:stop], (of - of[0]).astype(np.int32), domains)

    def document_ends(self, first, stop):
        return self._ends[first:stop]

    def document_at(self, token):
        return int(np.searchsorted(self._ends, token, side="right"))

    def document_ids(self, first, stop):
        return [f"{self.name}-{i}" for i in range(first, stop)]


@dataclass
class ListSource:
    """A source of one stream for "train"."""

    documents: list[list[int]]
    name: str = "list"
    vocab_size: int = 1000
    domain_of: list[int] | None = None
    domains: tuple[str, ...] = ("a", "b")
    eos_id: int = EOS
    pad_id: int = PAD
    tokenizer_fingerprint: str = ""
    fingerprint: str = field(init=False)

    def __post_init__(self):
        self.fingerprint = self.name
        self.stream = ListStream(
            self.documents, self.domain_of or [i % 2 for i in range(len(self.documents))], self.name
        )

    def streams(self, split):
        return [self.stream] if split == "train" else []


def random_documents(rng, count, longest, first_id=2):
    """Documents of 1 to `longest` tokens; no two tokens of the corpus are alike, but for EOS."""
    documents, token = [], first_id
    for length in rng.integers(1, longest + 1, count):
        documents.append([*range(token, token + length - 1), EOS])
        token += length - 1
    return documents

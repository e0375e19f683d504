"""What token files of all foreign formats share: they are read in place, each a stream of its own.

None of them records its vocabulary, hence `data.raw_vocab_size` and the like. Documents are those
of the format's own index, or end in the end-of-document token.
"""

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.config import DataConfig
from emo_jax.config.names import RawDtype
from emo_jax.config.sections import DOLMA2_EOS_ID, DOLMA2_PAD_ID
from emo_jax.data.ends import Ends, segments
from emo_jax.data.found_ends import FoundEnds
from emo_jax.data.stream import TRAIN, Span, as_ids, token_dtype
from emo_jax.errors import DataError, UsageError
from emo_jax.files.waiting import Patience

DOLMA2_VOCAB_SIZE = 100_278
_LOOK_AT = 1 << 16  # tokens checked when a file is opened
_SCAN = 1 << 20  # tokens read at a time to find documents


@dataclass(frozen=True)
class Vocabulary:
    """What the ids of token files mean.

    Attributes:
      size: of the tokenizer's vocabulary.
      eos_id: id that ends a document.
      pad_id: id that fills a window.
      dtype: of a token, where the format does not say; "auto": uint16 if the vocabulary fits.

    Raises:
      UsageError: `eos_id` or `pad_id` is outside the vocabulary.
    """

    size: int = DOLMA2_VOCAB_SIZE
    eos_id: int = DOLMA2_EOS_ID
    pad_id: int = DOLMA2_PAD_ID
    dtype: RawDtype = "auto"

    def __post_init__(self) -> None:
        for name, i in (("eos_id", self.eos_id), ("pad_id", self.pad_id)):
            if not 0 <= i < self.size:
                raise UsageError(
                    f"{name} = {i}: must be 0..{self.size - 1}, an id of the vocabulary that the"
                    " token files are of (vocab_size)"
                )

    @classmethod
    def of_config(cls, config: DataConfig) -> "Vocabulary":
        """Returns the vocabulary that the `raw_…` fields describe."""
        return cls(
            config.raw_vocab_size, config.raw_eos_id, config.raw_padding_id, config.raw_dtype
        )

    @property
    def stored(self) -> np.dtype[Any]:
        """Type of a token in a file, little-endian."""
        found = token_dtype(self.size) if self.dtype == "auto" else self.dtype
        return np.dtype(found).newbyteorder("<")


def file_patience() -> Patience:
    """Returns how token files are waited for."""
    return Patience(
        DataError,
        away="bring it back and run the same command again",
        spoilt="run the same command again",
    )


class TokenFiles:
    """A corpus of token files: a `TokenSource`.

    Args:
      kind: name of the format; part of the fingerprint. "" for headerless files.
      streams: one for each file, in their order.
      domains: names that the streams' `domain_id` is an index into.
    """

    tokenizer_fingerprint = ""

    def __init__(
        self,
        kind: str,
        vocabulary: Vocabulary,
        streams: Sequence["FileStream"],
        domains: Sequence[str] = (),
    ):
        self.vocabulary = vocabulary
        self.vocab_size, self.eos_id = vocabulary.size, vocabulary.eos_id
        self.pad_id, self.domains = vocabulary.pad_id, tuple(domains)
        self._streams = list(streams)
        # Names, lengths and first tokens, not all tokens: the files are large. Not their places:
        # they may be moved.
        named = [(Path(s.name).name, s.num_tokens, s.start_digest) for s in self._streams]
        facts: tuple[object, ...] = (vocabulary.size, vocabulary.eos_id, named)
        if domains:
            facts += (self.domains, [s.domain_id for s in self._streams])
        whole = (kind, *facts) if kind else facts
        self.fingerprint = digest(repr(whole).encode())

    def streams(self, split: str) -> list["FileStream"]:
        """Returns every file for "train"; token files have no held-out splits."""
        return list(self._streams) if split == TRAIN else []


class FileStream(ABC):
    """The tokens of one file: a `DocumentStream`.

    Args:
      name: path or URL.
      num_tokens: length.
      vocabulary: what the ids mean.
      domain_id: index into the source's domains; -1 unknown.
      ends: the format's own index; None: the end-of-document token separates documents, whose
        places are looked for once, when they are first asked for.
      key: what tells this file from another one, to find kept places again.
      cache: folder for places that were looked for; None: a temporary one.

    Attributes:
      start_digest: of the first tokens, set when a file is opened; part of the fingerprint.
    """

    start_digest = ""

    def __init__(
        self,
        name: str,
        num_tokens: int,
        vocabulary: Vocabulary,
        *,
        domain_id: int = -1,
        ends: Ends | None = None,
        key: object = None,
        cache: Path | None = None,
    ):
        self.name, self.num_tokens = name, num_tokens
        self._eos_id, self.domain_id = vocabulary.eos_id, domain_id
        self._index, self._key, self._cache = ends, key, cache
        self._found: Ends | None = None
        self._lock = threading.Lock()

    @abstractmethod
    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Returns tokens [start, stop) in any integer dtype; all are inside the stream."""

    def read(self, start: int, stop: int) -> Span:
        """Returns tokens [start, stop), with their documents."""
        if not 0 <= start < stop <= self.num_tokens:
            raise IndexError(f"{self.name}: [{start}, {stop}) of {self.num_tokens} tokens")
        tokens = self.tokens(start, stop)
        if self._index is None:
            # The end-of-document token is the last of its document, hence the shift by one.
            ended = np.cumsum(tokens == self._eos_id, dtype=np.int32)
            segment_ids = np.concatenate([np.zeros(1, np.int32), ended[:-1]])
        else:
            segment_ids = segments(self._index, start, stop)
        return Span(as_ids(tokens), segment_ids, np.full(tokens.shape, self.domain_id, np.int32))

    def read_ranges(self, starts_N: np.ndarray, stops_N: np.ndarray) -> Span:
        """Returns the tokens of several ranges end to end, each with documents from 0."""
        ranges = list(zip(starts_N.tolist(), stops_N.tolist(), strict=True))
        tokens = np.concatenate([self.tokens(start, stop) for start, stop in ranges])
        if self._index is None:
            lengths = stops_N - starts_N
            ended = np.empty(tokens.size + 1, np.int32)
            ended[0] = 0
            np.cumsum(tokens == self._eos_id, dtype=np.int32, out=ended[1:])
            segment_ids = ended[:-1]
            first = np.cumsum(lengths) - lengths
            segment_ids -= np.repeat(segment_ids[first], lengths)
        else:
            index = self._index
            segment_ids = np.concatenate([segments(index, start, stop) for start, stop in ranges])
        return Span(as_ids(tokens), segment_ids, np.full(tokens.shape, self.domain_id, np.int32))

    @property
    def identity(self) -> object:
        """Differs for other files, and once a file was written again."""
        return self.name, self._key

    @property
    def num_documents(self) -> int:
        """Documents in the stream."""
        return self._ends().num

    def document_ends(self, first: int, stop: int) -> np.ndarray:
        """Returns one past the last token of documents [first, stop): (stop - first,) int64."""
        return self._ends().read(first, stop)

    def document_at(self, token: int) -> int:
        """Returns the number of the document that holds a token."""
        if not 0 <= token < self.num_tokens:
            raise IndexError(f"{self.name}: token {token} of {self.num_tokens}")
        return self._ends().at(token)

    def document_ids(self, first: int, stop: int) -> list[str]:
        """Returns an empty id for each of documents [first, stop): no format keeps them."""
        if not 0 <= first <= stop <= self.num_documents:
            raise IndexError(f"{self.name}: [{first}, {stop}) of {self.num_documents} documents")
        return [""] * (stop - first)

    def _ends(self) -> Ends:
        if self._index is not None:
            return self._index
        with self._lock:
            if self._found is None:
                key = ("eos", self.num_tokens, self._eos_id, self._key)
                self._found = FoundEnds(self.name, key, self._scan, self._cache)
            return self._found

    def _scan(self) -> Iterator[np.ndarray]:
        """Yields where documents end; the last one may lack its end-of-document token."""
        last = 0
        for start in range(0, self.num_tokens, _SCAN):
            some = self.tokens(start, min(start + _SCAN, self.num_tokens))
            ends = np.flatnonzero(some == self._eos_id).astype(np.int64) + start + 1
            if ends.size:
                last = int(ends[-1])
                yield ends
        if last < self.num_tokens:
            yield np.array([self.num_tokens], np.int64)


def digest(content: bytes | bytearray) -> str:
    """Returns the SHA-256, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def check_first(stream: FileStream, vocabulary: Vocabulary) -> None:
    """Notes the first tokens; raises DataError if one is outside the vocabulary."""
    tokens = as_ids(stream.tokens(0, min(stream.num_tokens, _LOOK_AT)))
    stream.start_digest = digest(tokens.tobytes())
    beyond = np.flatnonzero((tokens >= vocabulary.size) | (tokens < 0))
    if beyond.size:
        raise DataError(
            f"{stream.name}: token {beyond[0]} has the id {tokens[beyond[0]]}, outside the"
            f" vocabulary of {vocabulary.size}; set data.raw_vocab_size"
        )

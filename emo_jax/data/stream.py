"""What windows are cut from: long streams of tokens that know their documents."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from emo_jax.errors import DataError

TRAIN = "train"
SPLITS = (TRAIN, "select", "test")  # training; choosing modules; reported numbers


class Span(NamedTuple):
    """N consecutive tokens of a stream; every field is (N,), int32 unless stated otherwise."""

    tokens: np.ndarray
    segment_ids: np.ndarray  # document of the token, 0 for the first in the span; -1 padding
    domain_ids: np.ndarray  # index into the source's `domains`; -1 unknown
    loss_mask: np.ndarray | None = None  # float32, 1 where the next token counts; None: all do


class Stream(Protocol):
    """Documents end to end, each ending in the end-of-document token."""

    name: str

    @property
    def num_tokens(self) -> int:
        """Length of the stream."""
        ...

    def read(self, start: int, stop: int) -> Span:
        """Returns tokens [start, stop) and what is known about them."""
        ...


def read_ranges(stream: Stream, starts_N: np.ndarray, stops_N: np.ndarray) -> Span:
    """Reads several ranges of a stream; returns them end to end, each with documents from 0.

    A stream may have a method of this name that reads them at once.
    """
    at_once = getattr(stream, "read_ranges", None)
    if at_once is not None:
        return at_once(starts_N, stops_N)
    spans = [
        stream.read(start, stop)
        for start, stop in zip(starts_N.tolist(), stops_N.tolist(), strict=True)
    ]
    if len(spans) == 1:
        return spans[0]
    masks = None
    if spans[0].loss_mask is not None:
        masks = np.concatenate([span.loss_mask for span in spans if span.loss_mask is not None])
    tokens, segments, domains = (
        np.concatenate(field) for field in zip(*(span[:3] for span in spans), strict=True)
    )
    return Span(tokens, segments, domains, masks)


class DocumentStream(Stream, Protocol):
    """A stream that knows where all its documents are."""

    @property
    def num_documents(self) -> int:
        """Documents in the stream."""
        ...

    def document_ends(self, first: int, stop: int) -> np.ndarray:
        """Returns one past the last token of documents [first, stop): (stop - first,) int64."""
        ...

    def document_at(self, token: int) -> int:
        """Returns the number of the document that holds a token."""
        ...

    def document_ids(self, first: int, stop: int) -> list[str]:
        """Returns the ids of documents [first, stop); "" where the format keeps none."""
        ...


class TokenSource(Protocol):
    """A tokenised corpus: streams, each cut into windows on its own."""

    eos_id: int
    pad_id: int
    vocab_size: int
    domains: tuple[str, ...]
    tokenizer_fingerprint: str  # "" if unknown
    fingerprint: str  # covers the tokens and their order; equal sources have equal ones

    def streams(self, split: str) -> Sequence[Stream]:
        """Returns the streams of a split; an empty list if the split is empty."""
        ...


def token_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """Returns uint16 if every id fits, else uint32 (SPEC 5.1)."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def check_ids(tokens: np.ndarray, vocab_size: int, where: str) -> None:
    """Raises DataError if an id is outside the vocabulary: the model's table has no such row."""
    # As unsigned numbers, negative ones are the largest.
    unsigned = tokens.view(tokens.dtype.str.replace("i", "u"))
    if tokens.size and int(unsigned.max()) >= vocab_size:
        bad = tokens[(tokens >= vocab_size) | (tokens < 0)][0]
        raise DataError(
            f"{where}: token id {bad} is outside the vocabulary of {vocab_size}; prepare the data"
            " with the tokenizer of the model"
        )


def as_ids(tokens: np.ndarray) -> np.ndarray:
    """Returns ids as int32; those that do not fit stay outside of any vocabulary."""
    if tokens.dtype.itemsize > 4:
        most = np.iinfo(np.int32).max
        tokens = np.minimum(tokens, most) if tokens.dtype.kind == "u" else tokens.clip(-1, most)
    # A uint32 beyond int32 becomes negative.
    same = tokens.dtype.itemsize == 4 and tokens.dtype.isnative
    return tokens.view(np.int32) if same else tokens.astype(np.int32)

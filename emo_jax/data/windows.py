"""Windows of a token stream, with everything that the model is told about them."""

import os
from collections.abc import Sequence

import numpy as np

from emo_jax.batch import PADDING_ID, Batch
from emo_jax.config import DataConfig
from emo_jax.data import pairs, raw, repetition
from emo_jax.data.pairs import PairStore
from emo_jax.data.raw import RawTokens
from emo_jax.data.store import TokenStore
from emo_jax.data.stream import TRAIN, Span, TokenSource, check_ids
from emo_jax.errors import DataError


class Windows(Sequence[Batch]):
    """Window i covers tokens [i·S, (i+1)·S) of its stream; streams follow one another.

    The tail of a training stream is dropped; that of a held-out stream is kept and padded. A
    document longer than a window spans several.

    Args:
      source: a `TokenStore` or `RawTokens`.
      seq_len: S.
      split: "train", "select" or "test".
      eos_starts_next_pool: use the reference's pools, where the end-of-document token starts the
        next pool (SPEC 2.1); attention keeps it with its document.
      repetition_filter: set the loss mask of repetitive windows to 0; they are still routed.

    Raises:
      DataError: there is no window, or (when read) a token outside the vocabulary.
    """

    def __init__(
        self,
        source: TokenSource,
        seq_len: int,
        *,
        split: str = TRAIN,
        eos_starts_next_pool: bool = False,
        repetition_filter: bool = False,
    ):
        self.source, self.seq_len, self.split = source, seq_len, split
        self._eos_starts_next_pool = eos_starts_next_pool
        self._repetition_filter = repetition_filter
        self._streams = list(source.streams(split))
        # Training uses whole windows only; the tail of held-out text counts too.
        spare = 0 if split == TRAIN else seq_len - 1
        counts = [(s.num_tokens + spare) // seq_len for s in self._streams]
        self._ends = np.cumsum(counts, dtype=np.int64)
        if not len(self):
            tokens = sum(s.num_tokens for s in self._streams)
            raise DataError(
                f"split {split!r} has {tokens} tokens, less than one window of {seq_len};"
                " prepare more documents or set data.seq_len lower"
            )

    @property
    def domains(self) -> tuple[str, ...]:
        """Names, indexed by domain id."""
        return self.source.domains

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]
        """Returns window `index`: a Batch of (S,) arrays."""
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = int(np.searchsorted(self._ends, index, side="right"))
        stream = self._streams[which]
        local = index - (int(self._ends[which - 1]) if which else 0)
        start = local * self.seq_len
        span = stream.read(start, min(start + self.seq_len, stream.num_tokens))
        check_ids(span.tokens, self.source.vocab_size, stream.name)
        return self._window(span)

    def _window(self, span: Span) -> Batch:
        """Makes the fields of N <= S tokens, padded to S."""
        tokens, segment_ids, domain_ids, counts = span
        if self._eos_starts_next_pool:
            is_eos = tokens == self.source.eos_id
            pool_ids = np.cumsum(is_eos) - is_eos[0]  # SPEC 2.1
        else:
            pool_ids = segment_ids
        masked = self._repetition_filter and repetition.is_repetitive(tokens)
        loss_mask = np.full(tokens.shape, 0.0 if masked else 1.0, np.float32)
        if counts is not None:
            loss_mask *= counts
        loss_mask[-1] = 0.0
        # Labels cross document boundaries (SPEC 5.4); the last token of a window has none.
        labels = np.append(tokens[1:], 0)
        missing = self.seq_len - tokens.size

        def padded(values: np.ndarray, fill: int) -> np.ndarray:
            return np.pad(values, (0, missing), constant_values=fill)

        return Batch(
            tokens=padded(tokens, self.source.pad_id).astype(np.int32),
            labels=padded(labels, 0).astype(np.int32),
            loss_mask=padded(loss_mask, 0).astype(np.float32),
            segment_ids=padded(segment_ids, PADDING_ID).astype(np.int32),
            pool_ids=padded(pool_ids, PADDING_ID).astype(np.int32),
            positions=np.arange(self.seq_len, dtype=np.int32),
            domain_ids=padded(domain_ids, -1).astype(np.int32),
        )

    def padding(self) -> Batch:
        """Returns a window of (S,) padding, to fill up a batch."""
        nothing = np.full(self.seq_len, PADDING_ID, np.int32)
        zeros = np.zeros(self.seq_len, np.int32)
        return Batch(
            tokens=np.full(self.seq_len, self.source.pad_id, np.int32),
            labels=zeros,
            loss_mask=np.zeros(self.seq_len, np.float32),
            segment_ids=nothing,
            pool_ids=nothing,
            positions=np.arange(self.seq_len, dtype=np.int32),
            domain_ids=nothing,
        )


def open_source(
    location: str | os.PathLike[str], config: DataConfig, *, trust: bool = False
) -> TokenStore | RawTokens | PairStore:
    """Opens a token store, headerless token files, or the pairs of `emo finetune`.

    Args:
      location: a store, a pattern of headerless files such as `dclm/*.npy` (several, separated by
        commas), or a file of pairs.
      config: its `raw_…` fields describe headerless files; a store describes itself.
      trust: see `TokenStore.open`.
    """
    text = os.fspath(location)
    if text.endswith(pairs.SUFFIX):
        return PairStore.open(text)
    if not text.lower().endswith(raw.SUFFIXES):
        return TokenStore.open(text, trust=trust)
    return RawTokens(
        text.split(","),
        vocab_size=config.raw_vocab_size,
        eos_id=config.raw_eos_id,
        pad_id=config.raw_padding_id,
        dtype=config.raw_dtype,
    )


def open_windows(
    config: DataConfig, *, split: str = TRAIN, source: TokenSource | None = None
) -> Windows:
    """Opens the windows that a `data` section configures; only training windows are filtered."""
    return Windows(
        source if source is not None else open_source(config.store, config),
        config.seq_len,
        split=split,
        eos_starts_next_pool=config.eos_starts_next_pool,
        repetition_filter=config.repetition_filter and split == TRAIN,
    )

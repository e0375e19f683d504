"""Windows of a token source, with everything that the model is told about them."""

import functools
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from emo_jax.batch import PADDING_ID, Batch
from emo_jax.config import DataConfig
from emo_jax.config.names import Packing
from emo_jax.data import formats, pack_index, pairs, repetition
from emo_jax.data.packing import CutWindows, DocumentWindows, Packed, Pieces, count_cuts
from emo_jax.data.pairs import PairStore
from emo_jax.data.store import TokenStore
from emo_jax.data.stream import TRAIN, DocumentStream, Stream, TokenSource, check_ids, read_ranges
from emo_jax.errors import DataError


class TooFewTokensError(DataError):
    """A split without a window."""


class Windows(Sequence[Batch]):
    """The windows of a split: those of its first stream, then those of the next.

    How documents fill them: see `packing`. The tail of a training stream is dropped; that of a
    held-out stream is kept and padded.

    Args:
      source: a `TokenStore`, `RawTokens`, or tokens of another format.
      seq_len: S.
      split: "train", "select" or "test".
      packing: "cut", "best_fit" or "document".
      eos_starts_next_pool: use the reference's pools, where the end-of-document token starts the
        next pool (SPEC 2.1); attention keeps it with its document.
      repetition_filter: set the loss mask of repetitive windows to 0; they are still routed.
      cache: folder for what a pass over all documents found; None: it is found anew.

    Raises:
      DataError: there is no window, or (when read) a token outside the vocabulary.
    """

    def __init__(
        self,
        source: TokenSource,
        seq_len: int,
        *,
        split: str = TRAIN,
        packing: Packing = "cut",
        eos_starts_next_pool: bool = False,
        repetition_filter: bool = False,
        cache: Path | None = None,
    ):
        self.source, self.seq_len, self.split, self.packing = source, seq_len, split, packing
        self._eos_starts_next_pool = eos_starts_next_pool
        self._repetition_filter = repetition_filter
        self._streams = list(source.streams(split))
        # Training uses whole windows only; the tail of held-out text counts too.
        self._packed: list[Packed] = [
            pack_index.open_packed(s, source, seq_len, packing, tail=split != TRAIN, cache=cache)
            for s in self._streams
        ]
        self._ends = np.cumsum([len(p) for p in self._packed], dtype=np.int64)
        if not len(self):
            tokens = sum(s.num_tokens for s in self._streams)
            raise TooFewTokensError(
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
        return Batch(*(field[0] for field in self.read(np.array([index], np.int64))))

    def read(self, windows_N: np.ndarray) -> Batch:
        """Returns windows by their numbers, which must exist: a Batch of (N,S) arrays."""
        parts = self.pieces(windows_N)
        if len(parts) == 1 and self._are_whole(parts[0][1], parts[0][2]):
            return self._read_whole(self._streams[parts[0][0]], parts[0][2])
        batch = self.padding(len(windows_N))
        for stream, rows, pieces in parts:
            self._fill(batch, self._streams[stream], rows, pieces)
        return batch

    def _are_whole(self, rows: np.ndarray, pieces: Pieces) -> bool:
        """Whether each window is one piece without padding."""
        lengths = pieces.stops - pieces.starts
        return len(pieces.rows) == len(rows) and bool((lengths == self.seq_len).all())

    def pieces(self, windows_N: np.ndarray) -> list[tuple[int, np.ndarray, Pieces]]:
        """Returns what windows consist of: (stream, rows of its windows, their pieces)."""
        windows_N = np.asarray(windows_N, np.int64)
        streams_N = np.searchsorted(self._ends, windows_N, side="right")
        found = []
        for stream in np.unique(streams_N).tolist():
            rows = np.flatnonzero(streams_N == stream)
            local = windows_N[rows] - (self._ends[stream - 1] if stream else 0)
            found.append((stream, rows, self._packed[stream].pieces(local)))
        return found

    def _read_whole(self, stream: Stream, pieces: Pieces) -> Batch:
        """Returns windows that are one piece of a stream each, without padding."""
        fields = self._fields(stream, pieces)
        shape = (len(pieces.rows), self.seq_len)
        positions = np.empty(shape, np.int32)
        positions[:] = np.arange(self.seq_len, dtype=np.int32)
        batch = Batch(
            **{name: values.reshape(shape) for name, values in fields.items()}, positions=positions
        )
        if self._eos_starts_next_pool:
            batch = batch._replace(pool_ids=self._reference_pools(batch.tokens))
        if self._repetition_filter:
            batch.loss_mask[repetition.repetitive_rows(batch.tokens)] = 0.0
        return batch

    def _fill(self, batch: Batch, stream: Stream, rows: np.ndarray, pieces: Pieces) -> None:
        """Reads pieces of a stream into rows of a batch that is padding so far."""
        lengths = pieces.stops - pieces.starts
        at = np.repeat(rows[pieces.rows] * self.seq_len + pieces.columns, lengths)
        at += np.arange(at.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        for name, values in self._fields(stream, pieces).items():
            getattr(batch, name).reshape(-1)[at] = values
        if self._eos_starts_next_pool:
            pools = self._reference_pools(batch.tokens[rows])
            batch.pool_ids[rows] = np.where(batch.segment_ids[rows] >= 0, pools, PADDING_ID)
        if self._repetition_filter:
            sizes = np.bincount(pieces.rows, lengths, len(rows)).astype(np.int64)
            batch.loss_mask[rows[repetition.repetitive_rows(batch.tokens[rows], sizes)]] = 0.0

    def _fields(self, stream: Stream, pieces: Pieces) -> dict[str, np.ndarray]:
        """Reads pieces; returns the fields of a batch, piece after piece, but for positions."""
        span = read_ranges(stream, pieces.starts, pieces.stops)
        check_ids(span.tokens, self.source.vocab_size, stream.name)
        lengths = pieces.stops - pieces.starts
        ends = np.cumsum(lengths)
        # Labels cross document boundaries (SPEC 5.4); the last token of a piece has none.
        labels = np.empty_like(span.tokens)
        labels[:-1] = span.tokens[1:]
        labels[ends - 1] = 0
        mask = np.ones(span.tokens.size, np.float32)
        if span.loss_mask is not None:
            mask *= span.loss_mask
        mask[ends - 1] = 0.0
        segments = span.segment_ids
        if self.packing != "cut":  # a piece is a document
            first = np.searchsorted(pieces.rows, pieces.rows)
            segments = segments + np.repeat(np.arange(len(first)) - first, lengths).astype(np.int32)
        return {
            "tokens": span.tokens,
            "labels": labels,
            "loss_mask": mask,
            "segment_ids": segments,
            "pool_ids": segments,
            "domain_ids": span.domain_ids,
        }

    def _reference_pools(self, tokens_NS: np.ndarray) -> np.ndarray:
        is_eos = tokens_NS == self.source.eos_id
        return np.cumsum(is_eos, axis=1, dtype=np.int32) - is_eos[:, :1]  # SPEC 2.1

    def packing_note(self, *, measure: bool = False) -> str:
        """Returns what the packing makes of the documents.

        Args:
          measure: where documents are cut, find out how many, by a pass over their ends; else, and
            where the streams do not know their documents, nothing is said of that.
        """
        counts = []
        for stream, packed in zip(self._streams, self._packed, strict=True):
            if isinstance(packed, DocumentWindows):
                counts.append(packed.counts())
            elif measure and isinstance(packed, CutWindows) and hasattr(stream, "document_ends"):
                known = cast(DocumentStream, stream)
                counts.append(count_cuts(known, self.seq_len, packed))
        if not counts:
            return ""
        total = functools.reduce(operator.add, counts)
        return f"packing {self.packing}: {total.summary(self.seq_len)}"

    def padding(self, count: int) -> Batch:
        """Returns `count` windows of padding, to fill up a batch: (count, S) arrays."""
        shape = (count, self.seq_len)
        positions = np.arange(self.seq_len, dtype=np.int32)
        return Batch(
            tokens=np.full(shape, self.source.pad_id, np.int32),
            labels=np.zeros(shape, np.int32),
            loss_mask=np.zeros(shape, np.float32),
            segment_ids=np.full(shape, PADDING_ID, np.int32),
            pool_ids=np.full(shape, PADDING_ID, np.int32),
            positions=np.broadcast_to(positions, shape).copy(),
            domain_ids=np.full(shape, -1, np.int32),
        )


def open_source(
    location: str | os.PathLike[str],
    config: DataConfig,
    *,
    trust: bool = False,
    verify: bool | None = None,
    cache: Path | None = None,
) -> TokenSource:
    """Opens a token store, token files of another tool, or the pairs of `emo finetune`.

    Args:
      location: a store, what `formats.open_tokens` opens, or a file of pairs.
      config: its `raw_…` fields describe token files; a store describes itself.
      trust: see `TokenStore.open`.
      verify: see `TokenStore.open`.
      cache: see `formats.open_tokens`.
    """
    text = os.fspath(location)
    if text.endswith(pairs.SUFFIX):
        return PairStore.open(text)
    found = formats.open_tokens(text, config, cache=cache)
    return TokenStore.open(text, trust=trust, verify=verify) if found is None else found


def open_windows(
    config: DataConfig,
    *,
    split: str = TRAIN,
    source: TokenSource | None = None,
    cache: Path | None = None,
) -> Windows:
    """Opens the windows that a `data` section configures.

    Only training windows are filtered and packed: held-out losses stay comparable between runs.
    """
    return Windows(
        source if source is not None else open_source(config.store, config),
        config.seq_len,
        split=split,
        packing=config.packing if split == TRAIN else "cut",
        eos_starts_next_pool=config.eos_starts_next_pool,
        repetition_filter=config.repetition_filter and split == TRAIN,
        cache=cache,
    )

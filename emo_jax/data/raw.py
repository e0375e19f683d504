"""Headerless token files, read in place: `.npy` of Dolma and OLMo (SPEC 5.1), `.ds` of datatrove.

The extension says NumPy, yet there is no header: little-endian uint16 or uint32, documents end to
end, each followed by the end-of-document id.
"""

import glob
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emo_jax.config.names import RawDtype
from emo_jax.config.sections import DOLMA2_EOS_ID, DOLMA2_PAD_ID
from emo_jax.data.stream import TRAIN, Span, token_dtype
from emo_jax.errors import DataError, UsageError
from emo_jax.files.steady import SteadyFile
from emo_jax.files.waiting import Patience

SUFFIXES = (".npy", ".ds")  # Dolma and OLMo; datatrove
DOLMA2_VOCAB_SIZE = 100_278
_START = 1 << 18  # bytes of each file checked when it is opened
_FEWEST_WORDS = 16
_LOOK_AT = 1 << 20  # tokens; no corpus starts with a document that long


class RawTokens:
    """A list of headerless token files; each is its own stream.

    Args:
      paths: files, or patterns such as `dclm/*.npy`; patterns are sorted.
      vocab_size: size of the tokenizer's vocabulary.
      dtype: token dtype, "uint16" or "uint32"; "auto": uint16 if the vocabulary fits.
      eos_id: id that ends a document.
      pad_id: id that fills a window; None: Dolma 2's if `eos_id` is Dolma 2's, else `eos_id`.
      labels: domain of each path or pattern; None: the domain is unknown.
      floor_to: use whole groups of this many tokens of a file; the reference's data were cut to
        8192 (SPEC 5.2).

    Raises:
      UsageError: no such file, or `eos_id` or `pad_id` is outside the vocabulary.
      DataError: a real `.npy` header, a size that is not a whole number of tokens, tokens that
        appear to have another width, or a token at the start of a file that is outside the
        vocabulary.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        vocab_size: int = DOLMA2_VOCAB_SIZE,
        eos_id: int = DOLMA2_EOS_ID,
        pad_id: int | None = None,
        dtype: RawDtype = "auto",
        labels: Sequence[str] | None = None,
        floor_to: int = 1,
    ):
        if labels is not None and len(labels) != len(paths):
            raise UsageError(f"{len(labels)} labels for {len(paths)} paths: give one each")
        if pad_id is None:
            pad_id = DOLMA2_PAD_ID if eos_id == DOLMA2_EOS_ID else eos_id
        for name, i in (("eos_id", eos_id), ("pad_id", pad_id)):
            if not 0 <= i < vocab_size:
                raise UsageError(
                    f"{name} = {i}: must be 0..{vocab_size - 1}, an id of the vocabulary that the"
                    " .npy files are of (vocab_size)"
                )
        self.vocab_size, self.eos_id, self.pad_id = vocab_size, eos_id, pad_id
        self.dtype = np.dtype(token_dtype(vocab_size) if dtype == "auto" else dtype)
        self.guessed = dtype == "auto"
        self.domains = tuple(sorted(set(labels or ())))
        self.tokenizer_fingerprint = ""
        self.patience = Patience(
            DataError,
            away="bring it back and run the same command again",
            spoilt="run the same command again",
        )
        self._streams = []
        for i, pattern in enumerate(paths):
            text = os.fspath(pattern)
            found = sorted(glob.glob(text)) if glob.has_magic(text) else [text]
            if not found:
                raise UsageError(f"{text}: no file fits this pattern")
            domain = self.domains.index(labels[i]) if labels else -1
            self._streams += [_RawStream(Path(f), self, domain, floor_to) for f in found]
        self._warn_without_ends()
        # Hashes names and lengths, not tokens: the files are large, and may be moved.
        named = [(Path(s.name).name, s.num_tokens) for s in self._streams]
        self.fingerprint = hashlib.sha256(repr((vocab_size, eos_id, named)).encode()).hexdigest()

    def _warn_without_ends(self) -> None:
        """Warns if the first file has no end of document, as with ids of another tokenizer."""
        first = self._streams[0]
        if first.num_tokens >= _LOOK_AT:
            start = first.read(0, _LOOK_AT).tokens
            if not (start == self.eos_id).any():
                logging.warning(
                    "%s: no end of document (id %d) in its first %d tokens; is it of this"
                    " vocabulary of %d?",
                    *(first.name, self.eos_id, _LOOK_AT, self.vocab_size),
                )

    def streams(self, split: str) -> list["_RawStream"]:
        """Returns every file for "train"; raw files have no held-out splits."""
        return list(self._streams) if split == TRAIN else []


class _RawStream:
    """One file."""

    def __init__(self, path: Path, source: RawTokens, domain_id: int, floor_to: int):
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
        self.name = str(path)
        self._eos_id, self._domain_id = source.eos_id, domain_id
        dtype = source.dtype.newbyteorder("<")
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(6) == b"\x93NUMPY"
        if header:
            raise DataError(
                f"{path}: has a NumPy header; write the bare tokens with array.tofile(path)"
            )
        if size % dtype.itemsize or not size:
            raise DataError(
                f"{path}: {size} bytes are not a whole number of {dtype.name} tokens; copy it again"
            )
        self.num_tokens = size // dtype.itemsize // floor_to * floor_to
        self._file, self._dtype = SteadyFile(path, source.patience), dtype
        self._check_start(min(size, _START), source)

    def _check_start(self, size: int, source: RawTokens) -> None:
        """Raises DataError if the first tokens are of another width or another vocabulary."""
        content = self._file.read(0, size)
        pairs = np.frombuffer(content[: size // 8 * 8], "<u4").reshape(-1, 2)
        wide = source.guessed or source.dtype.itemsize == 4
        if wide and len(pairs) >= _FEWEST_WORDS and pairs[:, 0].any() and not pairs[:, 1].any():
            raise DataError(
                f"{self.name}: every second 32 bits are 0, as of tokens with 64 bits; write them"
                " with array.astype('uint32').tofile(path), and set data.raw_dtype to uint32"
            )
        words = np.frombuffer(content[: size // 4 * 4], "<u2")
        narrow = source.guessed and source.dtype.itemsize == 2 and words.size >= _FEWEST_WORDS
        if narrow and not words[1::2].any():
            raise DataError(
                f"{self.name}: every second 16 bits are 0, as of tokens with 32 bits; set"
                " data.raw_dtype to uint32, or to uint16 if they are meant"
            )
        tokens = np.frombuffer(content, self._dtype)
        beyond = np.flatnonzero(tokens >= source.vocab_size)
        if beyond.size:
            other = "uint16" if source.dtype.itemsize == 4 else "uint32"
            raise DataError(
                f"{self.name}: token {beyond[0]} has the id {tokens[beyond[0]]}, outside the"
                f" vocabulary of {source.vocab_size}; set data.raw_vocab_size, or data.raw_dtype to"
                f" {other} if the tokens are of that width"
            )

    def read(self, start: int, stop: int) -> Span:
        """Returns tokens [start, stop); the end-of-document id separates documents."""
        size = self._dtype.itemsize
        content = self._file.read(start * size, stop * size)
        tokens = np.frombuffer(content, self._dtype).astype(np.int64)
        # The end-of-document token is the last of its document, hence the shift by one.
        ended = np.cumsum(tokens == self._eos_id)
        segment_ids = np.concatenate([[0], ended[:-1]])
        return Span(
            tokens.astype(np.int32),
            segment_ids.astype(np.int32),
            np.full(tokens.shape, self._domain_id, np.int32),
        )

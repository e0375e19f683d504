"""Headerless token files, read in place: `.npy` of Dolma and OLMo (SPEC 5.1), `.ds` of datatrove.

The extension says NumPy, yet there is no header: little-endian uint16 or uint32, documents end to
end, each followed by the end-of-document id. datatrove writes where documents end into FILE.index,
and the width of a token into FILE.metadata; both are used if they are there.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emo_jax.config.names import RawDtype
from emo_jax.config.sections import DOLMA2_EOS_ID, DOLMA2_PAD_ID
from emo_jax.data import datatrove
from emo_jax.data.ends import Ends
from emo_jax.data.token_files import (
    DOLMA2_VOCAB_SIZE,
    FileStream,
    TokenFiles,
    Vocabulary,
    digest,
    file_patience,
)
from emo_jax.errors import DataError, UsageError
from emo_jax.files.ranges import Ranges, expand, map_files, open_ranges

SUFFIXES = (".npy", ".ds")  # Dolma and OLMo; datatrove
_START = 1 << 16  # bytes of each file checked when it is opened
_FEWEST_WORDS = 16
_LOOK_AT = 1 << 20  # tokens; no corpus starts with a document that long


class RawTokens(TokenFiles):
    """A list of headerless token files; each is its own stream.

    Args:
      paths: files or URLs, or patterns such as `dclm/*.npy`; patterns are sorted.
      vocab_size: size of the tokenizer's vocabulary.
      dtype: token dtype, "uint16" or "uint32"; "auto": uint16 if the vocabulary fits.
      eos_id: id that ends a document.
      pad_id: id that fills a window; None: Dolma 2's if `eos_id` is Dolma 2's, else `eos_id`.
      labels: domain of each path or pattern; None: the domain is unknown.
      floor_to: use whole groups of this many tokens of a file; the reference's data were cut to
        8192 (SPEC 5.2).
      patterns: if False, wildcards in `paths` stand for themselves.
      cache: folder that keeps where documents end, once it was looked for; None: a temporary one.

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
        patterns: bool = True,
        cache: Path | None = None,
    ):
        if labels is not None and len(labels) != len(paths):
            raise UsageError(f"{len(labels)} labels for {len(paths)} paths: give one each")
        if pad_id is None:
            pad_id = DOLMA2_PAD_ID if eos_id == DOLMA2_EOS_ID else eos_id
        vocabulary = Vocabulary(vocab_size, eos_id, pad_id, dtype)
        self.dtype, self.patience = vocabulary.stored, file_patience()
        domains = sorted(set(labels or ()))
        number = {name: n for n, name in enumerate(domains)}
        names: list[str] = []
        of_names: list[int] = []  # domain ids
        for i, pattern in enumerate(paths):
            text = os.fspath(pattern)
            found = expand(text, self.patience) if patterns else [text]
            names += found
            of_names += [number[labels[i]] if labels else -1] * len(found)
        files = map_files(names, lambda name: _open(name, vocabulary, self))
        streams = [
            _RawStream(*opened, vocabulary, domain_id, floor_to, cache)
            for opened, domain_id in zip(files, of_names, strict=True)
        ]
        super().__init__("", vocabulary, streams, domains)
        self._warn_without_ends()

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


class _RawStream(FileStream):
    """One file."""

    def __init__(
        self,
        file: Ranges,
        start_digest: str,
        ends: Ends | None,
        vocabulary: Vocabulary,
        domain_id: int,
        floor_to: int,
        cache: Path | None,
    ):
        self._file, self._dtype = file, vocabulary.stored
        self.start_digest = start_digest
        super().__init__(
            file.name,
            file.size // self._dtype.itemsize // floor_to * floor_to,
            vocabulary,
            domain_id=domain_id,
            ends=ends if floor_to == 1 else None,  # a floor may cut the last document
            key=(file.size, file.stamp, self._dtype.name),
            cache=cache,
        )

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Returns tokens [start, stop) as they are in the file."""
        size = self._dtype.itemsize
        return np.frombuffer(self._file.read(start * size, stop * size), self._dtype)


def _open(name: str, vocabulary: Vocabulary, source: RawTokens) -> tuple[Ranges, str, Ends | None]:
    """Opens and checks one file; returns it, its start's digest and datatrove's index, if any."""
    file, dtype = open_ranges(name, source.patience), vocabulary.stored
    start = file.read(0, min(file.size, _START))
    if start[:6] == b"\x93NUMPY":
        raise DataError(
            f"{file.name}: has a NumPy header; write the bare tokens with array.tofile(path)"
        )
    if file.size % dtype.itemsize or not file.size:
        raise DataError(
            f"{file.name}: {file.size} bytes are not a whole number of {dtype.name} tokens; copy it"
            " again"
        )
    _check_start(file.name, start, vocabulary)
    begins = digest(start)
    if not name.endswith(datatrove.SUFFIX):
        return file, begins, None
    datatrove.check_metadata(name, file.size // dtype.itemsize, dtype.itemsize, source.patience)
    ends = datatrove.open_index(name, file.size // dtype.itemsize, source.patience)
    return file, begins, ends


def _check_start(name: str, content: bytes | bytearray, vocabulary: Vocabulary) -> None:
    """Raises DataError if the first tokens are of another width or another vocabulary."""
    size, dtype, guessed = len(content), vocabulary.stored, vocabulary.dtype == "auto"
    pairs = np.frombuffer(content[: size // 8 * 8], "<u4").reshape(-1, 2)
    wide = guessed or dtype.itemsize == 4
    if wide and len(pairs) >= _FEWEST_WORDS and pairs[:, 0].any() and not pairs[:, 1].any():
        raise DataError(
            f"{name}: every second 32 bits are 0, as of tokens with 64 bits; write them"
            " with array.astype('uint32').tofile(path), and set data.raw_dtype to uint32"
        )
    words = np.frombuffer(content[: size // 4 * 4], "<u2")
    narrow = guessed and dtype.itemsize == 2 and words.size >= _FEWEST_WORDS
    if narrow and not words[1::2].any():
        raise DataError(
            f"{name}: every second 16 bits are 0, as of tokens with 32 bits; set"
            " data.raw_dtype to uint32, or to uint16 if they are meant"
        )
    tokens = np.frombuffer(content, dtype)
    beyond = np.flatnonzero(tokens >= vocabulary.size)
    if beyond.size:
        other = "uint16" if dtype.itemsize == 4 else "uint32"
        raise DataError(
            f"{name}: token {beyond[0]} has the id {tokens[beyond[0]]}, outside the"
            f" vocabulary of {vocabulary.size}; set data.raw_vocab_size, or data.raw_dtype to"
            f" {other} if the tokens are of that width"
        )

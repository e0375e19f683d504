"""Megatron's token files, read in place: PREFIX.bin and its index PREFIX.idx.

    PREFIX.idx  b"MMIDIDX\\0\\0", version 1 (uint64), code of the token dtype (uint8), number of
                sequences S and of document boundaries D + 1 (uint64), then
      lengths     (S,) int32: tokens of each sequence
      pointers    (S,) int64: byte at which it begins in PREFIX.bin
      boundaries  (D + 1,) int64: the sequence with which each document begins, then S
      modes       (S,) int8, in multimodal files only; not used
    PREFIX.bin  the tokens, end to end

The index is read by pages, never whole. Documents are those of the index, whether or not they end
in an end-of-document token.
"""

import os
from collections.abc import Sequence

import numpy as np

from emo_jax.data.ends import Ends, RisingList
from emo_jax.data.stream import TokenSource
from emo_jax.data.token_files import (
    FileStream,
    TokenFiles,
    Vocabulary,
    check_first,
    file_patience,
)
from emo_jax.errors import DataError, UsageError
from emo_jax.files.ranges import Ranges, expand, local_path, map_files, open_ranges
from emo_jax.files.remote import is_remote
from emo_jax.files.waiting import Patience

SUFFIXES = (".bin", ".idx")
_MAGIC, _HEAD = b"MMIDIDX\0\0", 34  # bytes
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_FLOATS = {6: "float64", 7: "float32"}
_AGAIN = "copy both files again"


def is_megatron(name: str) -> bool:
    """Tells whether a name is that of Megatron's files; a bare prefix only if they are local."""
    if name.lower().endswith(SUFFIXES):
        return True
    return not is_remote(name) and os.path.isfile(local_path(f"{name}.idx"))


def open_megatron(names: Sequence[str], vocabulary: Vocabulary) -> TokenSource:
    """Opens Megatron's files.

    Args:
      names: prefixes, or names of the .bin or .idx files, or patterns of them, which are sorted.
      vocabulary: what the ids mean; the width of a token is in the index.

    Raises:
      UsageError: a file is not there.
      DataError: an index is damaged, or does not fit its tokens.
    """
    patience = file_patience()
    prefixes: dict[str, None] = {}
    for name in names:
        for found in expand(name, patience):
            bare = found[:-4] if found.lower().endswith(SUFFIXES) else found
            prefixes[bare] = None
    streams = map_files(list(prefixes), lambda name: _open(name, vocabulary, patience))
    return TokenFiles("megatron", vocabulary, streams)


def _open(prefix: str, vocabulary: Vocabulary, patience: Patience) -> "MegatronStream":
    try:
        tokens, index = (open_ranges(prefix + suffix, patience) for suffix in SUFFIXES)
    except UsageError as error:
        raise UsageError(f"{error}; a Megatron dataset is a .bin and its .idx") from None
    stream = MegatronStream(tokens, index, vocabulary)
    check_first(stream, vocabulary)
    return stream


class MegatronStream(FileStream):
    """One pair of files."""

    def __init__(self, tokens: Ranges, index: Ranges, vocabulary: Vocabulary):
        self._file = tokens
        self._dtype, ends = _read_index(index, tokens)
        num_tokens = tokens.size // self._dtype.itemsize
        key = (tokens.stamp, index.stamp)
        super().__init__(tokens.name, num_tokens, vocabulary, ends=ends, key=key)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Returns tokens [start, stop) as they are in the file."""
        size = self._dtype.itemsize
        return np.frombuffer(self._file.read(start * size, stop * size), self._dtype)


def _read_index(index: Ranges, tokens: Ranges) -> tuple[np.dtype, Ends]:
    """Returns the dtype of a token, and where documents end."""
    head = index.read(0, min(index.size, _HEAD))
    if len(head) < _HEAD or head[:9] != _MAGIC:
        raise DataError(f"{index.name}: not an index of Megatron; {_AGAIN}")
    version, num, boundaries = (int.from_bytes(head[at : at + 8], "little") for at in (9, 18, 26))
    code = head[17]
    if version != 1:
        raise DataError(f"{index.name}: version {version} of Megatron's index; only 1 is known")
    if code in _FLOATS:
        raise DataError(f"{index.name}: holds {_FLOATS[code]}, not token ids")
    if code not in _DTYPES:
        raise DataError(f"{index.name}: no dtype has the code {code}; {_AGAIN}")
    size = _HEAD + 12 * num + 8 * boundaries
    if index.size not in (size, size + num):
        raise DataError(
            f"{index.name}: {index.size} bytes, {size} are right for {num} sequences and"
            f" {boundaries} boundaries of documents; {_AGAIN}"
        )
    dtype = np.dtype(_DTYPES[code])
    if not num or boundaries < 2 or not tokens.size:
        raise DataError(f"{index.name}: holds no document; leave it out")
    if tokens.size % dtype.itemsize:
        raise DataError(
            f"{tokens.name}: {tokens.size} bytes are not a whole number of {dtype.name} tokens;"
            f" {_AGAIN}"
        )
    return dtype, _Documents(index, tokens, dtype, num, boundaries)


class _Documents:
    """Where documents end: the boundaries say with which sequence, the pointers where that is."""

    def __init__(self, index: Ranges, tokens: Ranges, dtype: np.dtype, num: int, boundaries: int):
        self.num = boundaries - 1
        self._index, self._tokens, self._dtype, self._sequences = index, tokens, dtype, num
        self._pointers = RisingList(
            num, tokens.size, self._read_pointers, f"{index.name} (pointers)"
        )
        after = _HEAD + 12 * num

        def read(first: int, stop: int) -> np.ndarray:
            return self._read(after, "<i8", first, stop)

        self._boundaries = RisingList(boundaries, num, read, f"{index.name} (documents)")
        self._boundaries.check()
        if self._boundaries.read(0, 1)[0] != 0:
            raise DataError(f"{index.name}: its first document is not at the start; {_AGAIN}")
        self._pointers.check(ends=False)

    def _read(self, at: int, dtype: str, first: int, stop: int) -> np.ndarray:
        size = np.dtype(dtype).itemsize
        return np.frombuffer(self._index.read(at + size * first, at + size * stop), dtype).astype(
            np.int64
        )

    def _read_pointers(self, first: int, stop: int) -> np.ndarray:
        """Returns pointers [first, stop), each checked against the length of its sequence."""
        more = min(stop + 1, self._sequences)
        pointers = self._read(_HEAD + 4 * self._sequences, "<i8", first, more)
        lengths = self._read(_HEAD, "<i4", first, stop)
        after = pointers[1:] if more > stop else np.append(pointers[1:], self._tokens.size)
        sizes = lengths * self._dtype.itemsize
        wrong = np.flatnonzero(after - pointers[: stop - first] != sizes)
        if not first and pointers[0]:
            wrong = np.zeros(1, np.int64)
        if wrong.size:
            raise DataError(
                f"{self._index.name}: sequence {first + int(wrong[0])} has {lengths[wrong[0]]}"
                f" tokens, which does not fit its pointers or the {self._tokens.size} bytes of"
                f" {self._tokens.name}; {_AGAIN}"
            )
        return pointers[: stop - first]

    def read(self, first: int, stop: int) -> np.ndarray:
        """Returns one past the last token of documents [first, stop)."""
        begins = self._boundaries.read(first + 1, stop + 1)
        if not begins.size:
            return begins
        low = int(begins[0])
        pointers = self._pointers.read(low, min(int(begins[-1]) + 1, self._sequences))
        pointers = np.append(pointers, self._tokens.size)  # where the last document ends
        return pointers[begins - low] // self._dtype.itemsize

    def at(self, token: int) -> int:
        """Returns the number of the document that holds a token."""
        sequence = self._pointers.at(token * self._dtype.itemsize) - 1
        return self._boundaries.at(sequence) - 1

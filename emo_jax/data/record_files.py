"""Files of records, each an array of token ids, as one stream: the records end to end.

If the end-of-document token is among the first tokens, it alone separates documents, and records
are mere cuts (as of packed samples). Otherwise every record is a document.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from emo_jax.data.ends import Ends
from emo_jax.data.token_files import FileStream, Vocabulary, check_first
from emo_jax.errors import DataError

_LOOK_AT = 1 << 20  # tokens searched for an end of document
_FEWEST_WORDS = 16


class EvenEnds:
    """Ends of `num` records of `size` tokens each."""

    def __init__(self, num: int, size: int):
        self.num, self._size = num, size

    def read(self, first: int, stop: int) -> np.ndarray:
        """Returns one past the last token of records [first, stop)."""
        return np.arange(first + 1, stop + 1, dtype=np.int64) * self._size

    def at(self, token: int) -> int:
        """Returns the number of the record that holds a token."""
        return token // self._size


class RecordStream(FileStream):
    """Records end to end.

    Args:
      name: path or URL.
      records: where each record ends, in tokens.
      vocabulary: what the ids mean.
      key, cache: see `FileStream`.

    Raises:
      DataError: there is no token, or one of the first is outside the vocabulary.
    """

    def __init__(
        self, name: str, records: Ends, vocabulary: Vocabulary, *, key: object, cache: Path | None
    ):
        self._records = records
        num_tokens = int(records.read(records.num - 1, records.num)[0]) if records.num else 0
        if not num_tokens:
            raise DataError(f"{name}: holds no token; leave it out")
        super().__init__(name, num_tokens, vocabulary, key=key, cache=cache)
        check_first(self, vocabulary)
        if not self._has_ends():
            self._index = records

    def _has_ends(self) -> bool:
        """Looks for the end-of-document token at the start, a bit at a time."""
        start, size = 0, 1 << 12
        while start < min(self.num_tokens, _LOOK_AT):
            stop = min(start + size, self.num_tokens)
            if (self.tokens(start, stop) == self._eos_id).any():
                return True
            start, size = stop, 4 * size
        return False

    @abstractmethod
    def arrays(self, first: int, stop: int) -> Iterable[np.ndarray]:
        """Returns the ids of records [first, stop)."""

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Returns tokens [start, stop) as they are in the records."""
        first, last = self._records.at(start), self._records.at(stop - 1)
        found = list(self.arrays(first, last + 1))
        ends = self._records.read(max(first - 1, 0), last + 1)
        begins = ends[:-1] if first else np.append(0, ends[:-1])
        sizes = (ends[1:] if first else ends) - begins
        if [len(ids) for ids in found] != sizes.tolist():
            raise DataError(
                f"{self.name}: records {first} to {last} have other lengths than before; it was"
                " changed while it was in use; run the same command again"
            )
        return np.concatenate(found)[start - begins[0] : stop - begins[0]]


def dtype_of(some: Callable[[], Sequence[bytes]], vocabulary: Vocabulary, name: str) -> np.dtype:
    """Returns the type of tokens that are stored as bytes, from some of the first of them.

    A `raw_dtype` that is set is taken. Otherwise the upper halves show it: all 0 in integers that
    are wider than the ids.

    Raises:
      DataError: the bytes are no whole number of tokens.
    """
    contents = some()
    dtype = vocabulary.stored
    if vocabulary.dtype == "auto":
        for wide, half in (("<i8", "<u4"), ("<u4", "<u2")):
            whole = all(len(c) % np.dtype(wide).itemsize == 0 for c in contents)
            words = np.frombuffer(b"".join(contents), half) if whole else np.zeros(0, half)
            if words.size >= _FEWEST_WORDS and words[::2].any() and not words[1::2].any():
                dtype = np.dtype(wide)
                break
    for content in contents:
        if len(content) % dtype.itemsize:
            raise DataError(
                f"{name}: a record of {len(content)} bytes is not a whole number of {dtype.name}"
                " tokens; set data.raw_dtype"
            )
    return dtype

"""ArrayRecord files of token arrays, read in place, through the `array_record` library.

A record is bare little-endian tokens, or a serialized `tf.train.Example` with a feature of int64
(read here, since its own reader is TensorFlow). The format keeps no lengths, so the files are
scanned once for them.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.data.example import Features, int64_features
from emo_jax.data.found_ends import FoundEnds
from emo_jax.data.record_files import RecordStream, dtype_of
from emo_jax.data.stream import TokenSource
from emo_jax.data.token_files import TokenFiles, Vocabulary, file_patience
from emo_jax.errors import DataError, UsageError, clipped, listed, one_line
from emo_jax.files.ranges import expand, local_path
from emo_jax.files.remote import is_remote
from emo_jax.files.steady import SteadyFile

NAME = ".array_record"
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # for reads here and there
_OPEN = 128  # readers kept, each with its file
_SCAN = 256  # records read at a time
_COLUMNS = ("tokens", "input_ids", "inputs", "targets")  # tried if data.raw_column says nothing


def is_array_record(name: str) -> bool:
    """Tells whether a name is that of ArrayRecord files, such as `c4.array_record-00-of-64`."""
    return NAME in name.rpartition("/")[2].lower()


def open_array_records(
    names: Sequence[str], column: str, vocabulary: Vocabulary, *, cache: Path | None = None
) -> TokenSource:
    """Opens ArrayRecord files, each a stream: its records end to end.

    Args:
      names: files, or patterns of them, which are sorted.
      column: feature with the tokens, of Examples; "auto": tokens, input_ids, inputs or targets.
      vocabulary: what the ids mean; also the width of a token, in bare records.
      cache: folder for the lengths of records.

    Raises:
      UsageError: no such file or feature, or the library is not installed.
      DataError: a file is damaged.
    """
    patience = file_patience()
    streams = []
    for name in names:
        if is_remote(name):
            raise UsageError(f"{name}: ArrayRecord files must be on a local disk; copy them there")
        for found in expand(name, patience):
            path = local_path(found)
            if not os.path.isfile(path):
                raise UsageError(f"{path}: no such file")
            file = SteadyFile(path, patience)
            streams.append(ArrayRecordStream(file, column, vocabulary, cache))
    return TokenFiles("array_record", vocabulary, streams)


def _library() -> Any:
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise UsageError(
            f"ArrayRecord files need a library that is not installed ({one_line(error)}); pip"
            " install array_record"
        ) from error
    return array_record_module


@functools.lru_cache(_OPEN)
def _reader(name: str, stamp: str) -> Any:
    """Returns a reader, which may be used by many threads."""
    reader = _library().ArrayRecordReader(name, options=_OPTIONS)
    if not reader.ok():
        raise ValueError("not an ArrayRecord file, or cut")
    return reader


class ArrayRecordStream(RecordStream):
    """The records of one file, end to end."""

    def __init__(self, file: SteadyFile, column: str, vocabulary: Vocabulary, cache: Path | None):
        self.name, self._file = file.name, file
        _library()
        num = self._read(lambda reader: reader.num_records())
        if not num:
            raise DataError(f"{self.name}: holds no record; leave it out")
        first = self._records_of(0, min(num, 16))
        features = int64_features(first[0])
        self._column = "" if features is None else self._choose(features, column)
        self._dtype = np.dtype("<i8")
        if not self._column:
            self._dtype = dtype_of(lambda: first, vocabulary, self.name)
        key = (file.path.name, file.size, file.stamp, self._column, str(self._dtype))
        ends = FoundEnds(self.name, ("records", key), lambda: self._scan_records(num), cache)
        super().__init__(self.name, ends, vocabulary, key=key, cache=cache)

    def _choose(self, features: Features, column: str) -> str:
        wanted = _COLUMNS if column == "auto" else (column,)
        for name in wanted:
            if name in features:
                return name
        have = listed(clipped(name, 60) for name in sorted(features))
        raise UsageError(
            f"{self.name}: has no feature {' or '.join(wanted)} of int64; set data.raw_column to"
            f" one of {have}"
        )

    def _read(self, use: Any) -> Any:
        # Read through the file too, so that one that was moved or replaced is named.
        self._file.read(0, 0)
        try:
            return use(_reader(self.name, self._file.stamp))
        except (ValueError, RuntimeError, IndexError, OSError) as error:
            raise DataError(
                f"{self.name}: cannot be read ({one_line(error)}); copy it again"
            ) from error

    def _records_of(self, first: int, stop: int) -> list[bytes]:
        return self._read(lambda reader: reader.read(first, stop))

    def _scan_records(self, num: int) -> Iterator[np.ndarray]:
        last = 0
        for first in range(0, num, _SCAN):
            lengths = [len(ids) for ids in self.arrays(first, min(first + _SCAN, num))]
            ends = np.cumsum(lengths, dtype=np.int64) + last
            last = int(ends[-1])
            yield ends

    def arrays(self, first: int, stop: int) -> Iterator[np.ndarray]:
        """Yields the ids of records [first, stop)."""
        for n, record in enumerate(self._records_of(first, stop), first):
            if self._column:
                features = int64_features(record)
                if features is None or self._column not in features:
                    raise DataError(
                        f"{self.name}: record {n} is no tf.train.Example with a feature"
                        f" {self._column} of int64, as the first one is; write it again"
                    )
                yield features[self._column]
            elif len(record) % self._dtype.itemsize:
                raise DataError(
                    f"{self.name}: record {n} has {len(record)} bytes, no whole number of"
                    f" {self._dtype.name} tokens; set data.raw_dtype"
                )
            else:
                yield np.frombuffer(record, self._dtype)

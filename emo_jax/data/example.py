"""The int64 features of a serialized `tf.train.Example`, without TensorFlow.

    Example   {Features features = 1}
    Features  {map<string, Feature> feature = 1}: entries {string key = 1; Feature value = 2}
    Feature   {BytesList = 1 | FloatList = 2 | Int64List = 3}
    Int64List {repeated int64 value = 1}, packed or not

Nothing is nested deeper than this, and nothing is allocated beyond the size of the record.
"""

from collections.abc import Iterator

import numpy as np

Features = dict[str, np.ndarray]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST = 10  # bytes of a varint
_MOST = 1 << 16  # fields of a message whose values are not packed tokens


class _WrongError(ValueError):
    """Not a message."""


def int64_features(record: bytes) -> Features | None:
    """Returns the int64 features of an Example; None if this is none, or has no such feature.

    Values are (N,) int64. Bare token ids are hardly ever mistaken for an Example: they would have
    to begin with the length of the rest.
    """
    try:
        found: Features = {}
        for number, features in _fields(memoryview(record)):
            if number != 1 or not isinstance(features, memoryview):
                raise _WrongError
            for _, entry in _fields(features):
                _read_entry(entry, found)
        return found or None
    except (_WrongError, UnicodeDecodeError):
        return None


def _read_entry(entry: "memoryview | int", found: Features) -> None:
    if not isinstance(entry, memoryview):
        raise _WrongError
    parts = dict(_fields(entry))
    name, feature = parts.get(1), parts.get(2)
    if not isinstance(name, memoryview) or not isinstance(feature, memoryview | None):
        raise _WrongError
    for kind, values in _fields(feature or memoryview(b"")):
        if kind == 3 and isinstance(values, memoryview):
            found[str(name, "utf-8")] = _read_values(values)


def _read_values(values: memoryview) -> np.ndarray:
    if values and values[0] == 1 << 3 | _VARINT:  # not packed: tags and values in turn
        content = np.frombuffer(values, np.uint8)
        every = _varints(content)
        if every.size % 2 or (every[::2] != 1 << 3).any():
            raise _WrongError
        return every[1::2]
    parts = []
    for number, part in _fields(values):
        if number != 1 or not isinstance(part, memoryview):
            raise _WrongError
        parts.append(_varints(np.frombuffer(part, np.uint8)))
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _varints(content: np.ndarray) -> np.ndarray:
    """Returns the integers of consecutive varints."""
    if not content.size:
        return np.zeros(0, np.int64)
    ends = np.flatnonzero(content < 0x80)
    if not ends.size or ends[-1] != content.size - 1:
        raise _WrongError
    begins = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - begins + 1
    if sizes.max() > _LONGEST:
        raise _WrongError
    place = np.arange(content.size) - np.repeat(begins, sizes)
    parts = (content & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(parts, begins).astype(np.int64)


def _fields(message: memoryview) -> Iterator[tuple[int, "memoryview | int"]]:
    """Yields number and value of the fields of a message."""
    at = 0
    for _ in range(_MOST):
        if at == len(message):
            return
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(kind)
        if size is None:
            if kind != _BYTES:
                raise _WrongError
            size, at = _varint(message, at)
        if not number or size > len(message) - at:
            raise _WrongError
        yield number, message[at : at + size]
        at += size
    raise _WrongError


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for n, byte in enumerate(message[at : at + _LONGEST]):
        value |= (byte & 0x7F) << 7 * n
        if byte < 0x80:
            return value, at + n + 1
    raise _WrongError

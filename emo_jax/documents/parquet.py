"""Reads rows of Parquet files a few at a time; memory does not grow with files or row groups.

The only place that imports pyarrow.
"""

import contextlib
import functools
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from emo_jax.documents.locations import is_remote, open_binary
from emo_jax.documents.text_files import MAX_DOCUMENT_BYTES, size_of, too_long
from emo_jax.errors import DataError, EmoError, UsageError

_BATCH_BYTES = 1 << 22
_BATCH_ROWS = 1024
_BUFFER, _REMOTE_BUFFER = 1 << 20, 1 << 23  # bytes of a column that are read at once
_LEAST_REFUSED = 1 << 26  # bytes per row


def check_installed(file: Path) -> None:
    """Raises UsageError if pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UsageError(f"{file}: pyarrow is not installed; pip install 'emo-jax[prepare]'")


class Columns:
    """The columns to read from Parquet files. A field may be inside a struct: `metadata.lang`.

    Args:
      text: column of the text, see `--text-field`.
      names: columns of ids and domains, by the option that names each.
      language: column of the language, if it is needed.
      ids: the text may be a list of token ids.
      max_bytes: limit for a text.
    """

    def __init__(
        self,
        *,
        text: str,
        names: Mapping[str, str],
        language: str | None = None,
        ids: bool = False,
        max_bytes: int = MAX_DOCUMENT_BYTES,
    ):
        self._text, self._names, self._language = text, names, language
        self._ids, self._max_bytes = ids, max_bytes

    def check(self, file: Path) -> None:
        """Checks the footer of a file, which describes its contents.

        Raises:
          UsageError: pyarrow is not installed.
          DataError: not a Parquet file, truncated, without one of the columns, or with one of an
            unsupported type.
        """
        check_installed(file)
        with _open(file) as parquet:
            schema = parquet.schema_arrow
            needed = {"--text-field": self._text}
            if self._language is not None:
                needed["--language-field"] = self._language
            for option, name in needed.items():
                if _type_of(schema, name) is None:
                    there = ", ".join(schema.names) or "none"
                    raise DataError(
                        f"{file}: no column {name!r}; it has {there}: name one with {option}"
                    )
            kind = _type_of(schema, self._text)
            if not _is_text(kind) and not (self._ids and _is_ids(kind)):
                raise DataError(
                    f"{file}: column {self._text!r} holds {kind}, no text; name another with"
                    " --text-field"
                )
            for option, name in self._names.items():
                kind = _type_of(schema, name)
                if kind is not None and not _is_name(kind):
                    raise DataError(
                        f"{file}: column {name!r} holds {kind}, which is no name; name another with"
                        f" {option}"
                    )
            mean = _largest_mean(parquet, self._text)
            if mean > max(4 * self._max_bytes, _LEAST_REFUSED):
                raise DataError(
                    f"{file}: column {self._text!r} has {mean / 1e6:,.0f} MB a row; cut its texts"
                )

    def rows(self, file: Path) -> Iterator[tuple[dict[str, Any], str]]:
        """Yields (record, "") for each row, with the fields that exist, or ({}, why) if unusable.

        Raises:
          DataError: the file is damaged.
        """
        with _open(file) as parquet:
            wanted = [self._text, *self._names.values(), *filter(None, [self._language])]
            there = {n for n in wanted if _type_of(parquet.schema_arrow, n) is not None}
            settings = {"columns": sorted(there), "use_threads": False}
            batches = parquet.iter_batches(batch_size=_rows_at_once(parquet), **settings)
            while True:
                try:
                    batch = next(batches, None)
                    columns = {} if batch is None else {n: _values(batch, n) for n in there}
                except Exception as error:  # pyarrow's errors have several bases
                    raise _damaged(file, error) from error
                if batch is None:
                    return
                for values in zip(*columns.values(), strict=True):
                    yield self._record(dict(zip(columns, values, strict=True)))

    def _record(self, record: dict[str, Any]) -> tuple[dict[str, Any], str]:
        if any(value is _INVALID for value in record.values()):
            return {}, "invalid UTF-8"
        text = record[self._text]
        if size_of(text, self._max_bytes) > self._max_bytes:
            return {}, too_long(self._max_bytes)
        return record, ""


_INVALID = object()


def _values(batch: Any, name: str) -> list[Any]:
    """Returns the column or inner field `name` of some rows as Python values."""
    array = _inner(batch, name)
    if _is_moment(_plain(array.type)):
        return _moments(array)
    try:
        return array.to_pylist()
    except UnicodeDecodeError:
        return [_value(item) for item in array]


def _value(item: Any) -> Any:
    try:
        return item.as_py()
    except UnicodeDecodeError:
        return _INVALID


def _inner(rows: Any, name: str) -> Any:
    """Finds a field as `records.lookup` does in each row."""
    import pyarrow.compute

    if isinstance(rows, pyarrow.RecordBatch):
        names, field = rows.schema.names, rows.column
    else:
        names = [rows.type.field(i).name for i in range(rows.type.num_fields)]
        # Null where the struct is null.
        field = functools.partial(pyarrow.compute.struct_field, rows)
    if name in names:
        return field(names.index(name))
    head, _, rest = name.partition(".")
    return _inner(field(names.index(head)), rest)


def _type_of(fields: Any, name: str) -> Any:
    """Returns the type of a field of a schema or struct; None if there is no such field."""
    names = [field.name for field in fields]
    if name in names:
        return fields.field(names.index(name)).type
    import pyarrow.types as types

    head, dot, rest = name.partition(".")
    if not dot or head not in names:
        return None
    inner = fields.field(names.index(head)).type
    return _type_of(inner, rest) if types.is_struct(inner) else None


# --- types ----------------------------------------------------------------------------------------


def _plain(kind: Any) -> Any:
    """Returns the type of the values of a dictionary column; any other type as is."""
    import pyarrow.types as types

    return kind.value_type if types.is_dictionary(kind) else kind


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    kind = _plain(kind)
    return any(
        getattr(types, f"is_{name}")(kind)
        for name in (
            *("string", "large_string", "string_view", "binary", "large_binary"),
            *("binary_view", "fixed_size_binary"),
        )
    )


def _is_ids(kind: Any) -> bool:
    import pyarrow.types as types

    return (
        types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    ) and types.is_integer(kind.value_type)


def _is_name(kind: Any) -> bool:
    import pyarrow.types as types

    kind = _plain(kind)
    return not (types.is_nested(kind) or types.is_duration(kind) or types.is_interval(kind))


def _is_moment(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_timestamp(kind) or types.is_date(kind) or types.is_time(kind)


def _is_nanoseconds(kind: Any) -> bool:
    import pyarrow.types as types

    return (types.is_timestamp(kind) or types.is_time64(kind)) and kind.unit == "ns"


def _moments(array: Any) -> list[Any]:
    """Converts points in time; beyond Python's calendar or zones, to the stored numbers."""
    import pyarrow as pa

    if array.type != _plain(array.type):
        array = array.dictionary_decode()
    try:
        return _nanoseconds(array) if _is_nanoseconds(array.type) else array.to_pylist()
    except (OverflowError, ValueError, KeyError):  # pyarrow's own is a ValueError, pytz's the last
        if len(array) > 1:
            return [moment for i in range(len(array)) for moment in _moments(array.slice(i, 1))]
        wide = pa.int32() if array.type.bit_width == 32 else pa.int64()
        return array.view(wide).to_pylist()


def _nanoseconds(array: Any) -> list[str | None]:
    """Formats points in time with all nine digits of the second; Python's own have six."""
    import pyarrow as pa

    kind = array.type
    coarse = pa.timestamp("us", kind.tz) if pa.types.is_timestamp(kind) else pa.time64("us")
    counts = array.cast(pa.int64()).to_pylist()
    whole = pa.array([None if c is None else c // 1000 for c in counts], pa.int64())
    found: list[str | None] = []
    for moment, count in zip(whole.cast(coarse).to_pylist(), counts, strict=True):
        text = None if moment is None else str(moment)
        if text is not None and count % 1000:
            text = f"{moment.replace(microsecond=0)}"
            cut = 8 if pa.types.is_time64(kind) else 19  # before the zone, if any
            text = f"{text[:cut]}.{count % 10**9:09d}{text[cut:]}"
        found.append(text)
    return found


@contextlib.contextmanager
def _open(file: Path) -> Iterator[Any]:
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        source: Any = file
        if is_remote(file):  # pyarrow asks for ranges of the size of its buffer
            source = stack.enter_context(open_binary(file, 1 << 16))
        try:
            # Columns are read through a buffer: without one, a whole row group is read at once.
            size = _REMOTE_BUFFER if is_remote(file) else _BUFFER
            parquet = pyarrow.parquet.ParquetFile(source, buffer_size=size, pre_buffer=False)
        except Exception as error:  # pyarrow's errors have several bases
            raise _damaged(file, error) from error
        yield stack.enter_context(parquet)


def _damaged(file: Path, error: Exception) -> DataError:
    if isinstance(error, EmoError):
        return DataError(str(error))
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{file}: cannot be read as Parquet ({reason}); copy it again or leave it out")


def _largest_mean(parquet: Any, name: str) -> float:
    """Returns the mean bytes per row of a column, in the row group where it is largest."""
    largest = 0.0
    for i in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(i)
        for k in range(group.num_columns):
            column = group.column(k)
            if column.path_in_schema.startswith(name):
                largest = max(largest, column.total_uncompressed_size / max(group.num_rows, 1))
    return largest


def _rows_at_once(parquet: Any) -> int:
    groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
    largest = max((g.total_byte_size / max(g.num_rows, 1) for g in groups), default=1.0)
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(largest, 1.0))))

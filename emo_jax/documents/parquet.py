"""Reads rows of Parquet and Arrow files a few at a time; memory does not grow with files.

Nor does it with row groups. An Arrow file on a disk is mapped into memory; of one in a store, a
batch is held, as its writer made them.
"""

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from emo_jax.documents import arrow_files
from emo_jax.documents.columns import INVALID, is_ids, is_name, is_text, path_of, type_of, values
from emo_jax.documents.file_kinds import ARROW, kind_of
from emo_jax.documents.locations import is_remote, open_binary
from emo_jax.documents.records import joined
from emo_jax.documents.text_files import MAX_DOCUMENT_BYTES, Part, size_of, too_long
from emo_jax.errors import DataError, EmoError, UsageError

_BATCH_BYTES = 1 << 22
_BATCH_ROWS = 1024
_BUFFER, _REMOTE_BUFFER = 1 << 20, 1 << 23  # bytes of a column that are read at once
_LEAST_REFUSED = 1 << 26  # bytes per row


def check_installed(file: Path) -> None:
    """Raises UsageError if pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UsageError(f"{file}: pyarrow is not installed; pip install 'emo-jax[prepare]'")


def row_groups(file: Path) -> list[tuple[int, int]]:
    """Returns (rows, bytes uncompressed) of each row group.

    Raises:
      DataError: the file is damaged.
    """
    with _open(file) as parquet:
        groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
        return [(group.num_rows, group.total_byte_size) for group in groups]


class Columns:
    """The columns to read from Parquet and Arrow files.

    A field may be inside a struct or a list: `metadata.lang`, `paragraphs.text`, see
    `records.lookup`. A list of texts is one text, see `records.joined`.

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
        if kind_of(file) == ARROW:
            with arrow_files.opened(file) as arrow:
                self._check_schema(file, arrow.schema)
            return
        with _open(file) as parquet:
            self._check_schema(file, parquet.schema_arrow)
            mean = _largest_mean(parquet, path_of(parquet.schema_arrow, self._text))
            if mean > max(4 * self._max_bytes, _LEAST_REFUSED):
                raise DataError(
                    f"{file}: column {self._text!r} has {mean / 1e6:,.0f} MB a row; cut its texts"
                )

    def names(self) -> list[str]:
        """Returns the names of all fields that are wanted, sorted."""
        return sorted({self._text, *self._names.values(), *filter(None, [self._language])})

    def _check_schema(self, file: Path, schema: Any) -> None:
        needed = {"--text-field": self._text}
        if self._language is not None:
            needed["--language-field"] = self._language
        for option, name in needed.items():
            if type_of(schema, name) is None:
                there = ", ".join(schema.names) or "none"
                raise DataError(
                    f"{file}: no column {name!r}; it has {there}: name one with {option}"
                )
        kind = type_of(schema, self._text)
        if not is_text(kind) and not (self._ids and is_ids(kind)):
            raise DataError(
                f"{file}: column {self._text!r} holds {kind}, no text; name another with"
                " --text-field"
            )
        for option, name in self._names.items():
            kind = type_of(schema, name)
            if kind is not None and not is_name(kind):
                raise DataError(
                    f"{file}: column {name!r} holds {kind}, which is no name; name another with"
                    f" {option}"
                )

    def rows(self, file: Path, part: Part | None = None) -> Iterator[tuple[dict[str, Any], str]]:
        """Yields (record, "") for each row, with the fields that exist, or ({}, why) if unusable.

        Args:
          part: read only these row groups.

        Raises:
          DataError: the file is damaged.
        """
        with contextlib.ExitStack() as stack:
            if kind_of(file) == ARROW:
                arrow = stack.enter_context(arrow_files.opened(file))
                there = self._there(arrow.schema)
                batches = arrow.batches(there)
            else:
                parquet = stack.enter_context(_open(file))
                there = self._there(parquet.schema_arrow)
                paths = sorted({path_of(parquet.schema_arrow, name) for name in there})
                settings: dict[str, Any] = {"columns": paths, "use_threads": False}
                if part is not None:
                    settings["row_groups"] = list(range(part.start, part.stop))
                batches = parquet.iter_batches(batch_size=_rows_at_once(parquet), **settings)
            while True:
                try:
                    batch = next(batches, None)
                    columns = {} if batch is None else {n: values(batch, n) for n in there}
                except Exception as error:  # pyarrow's errors have several bases
                    raise _damaged(file, error) from error
                if batch is None:
                    return
                for row in zip(*columns.values(), strict=True):
                    yield self._record(dict(zip(columns, row, strict=True)))

    def _there(self, schema: Any) -> list[str]:
        """Returns the names of the wanted fields that exist, sorted."""
        return sorted(name for name in self.names() if type_of(schema, name) is not None)

    def _record(self, record: dict[str, Any]) -> tuple[dict[str, Any], str]:
        if any(value is INVALID for value in record.values()):
            return {}, "invalid UTF-8"
        text = record[self._text] = joined(record[self._text])
        if size_of(text, self._max_bytes) > self._max_bytes:
            return {}, too_long(self._max_bytes)
        return record, ""


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
    what = "Arrow" if kind_of(file) == ARROW else "Parquet"
    return DataError(f"{file}: cannot be read as {what} ({reason}); copy it again or leave it out")


def _largest_mean(parquet: Any, name: str) -> float:
    """Returns the mean bytes per row of a column, in the row group where it is largest."""
    largest = 0.0
    for i in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(i)
        for k in range(group.num_columns):
            column = group.column(k)
            if f"{column.path_in_schema}.".startswith(f"{name}."):
                largest = max(largest, column.total_uncompressed_size / max(group.num_rows, 1))
    return largest


def _rows_at_once(parquet: Any) -> int:
    groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
    largest = max((g.total_byte_size / max(g.num_rows, 1) for g in groups), default=1.0)
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(largest, 1.0))))

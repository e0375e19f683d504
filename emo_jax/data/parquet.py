"""Rows of Parquet files, a few at a time: what is held does not grow with a file or a row group.

The only place that imports pyarrow.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emo_jax.errors import DataError, UsageError

_BATCH_BYTES = 1 << 22
_BATCH_ROWS = 1024


def check_installed(file: Path) -> None:
    """Raises UsageError where pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UsageError(f"{file}: pyarrow is not installed; pip install 'emo-jax[prepare]'")


def check(file: Path, needed: Mapping[str, str]) -> None:
    """Looks at the end of a file, which says what is in it.

    Args:
      needed: columns by the option that names each.

    Raises:
      UsageError: pyarrow is not installed.
      DataError: not a Parquet file, cut short, or without one of the columns.
    """
    check_installed(file)
    with _open(file) as parquet:
        columns = _columns(parquet)
        for option, name in needed.items():
            if name not in columns:
                there = ", ".join(parquet.schema_arrow.names) or "none"
                raise DataError(
                    f"{file}: no column {name!r}; it has {there}: name one with {option}"
                )


def rows(file: Path, fields: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    """Every row, with those of the fields that are there; None for one that is invalid UTF-8.

    A field may be inside a struct: `metadata.lang`.

    Raises:
      DataError: the file is damaged.
    """
    with _open(file) as parquet:
        there = _columns(parquet)
        columns = sorted({name for name in fields if name in there})
        settings = {"columns": columns, "use_threads": False}
        batches = parquet.iter_batches(batch_size=_rows_at_once(parquet), **settings)
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:  # pyarrow's errors have several bases
                raise _damaged(file, error) from error
            if batch is None:
                return
            try:
                yield from batch.to_pylist()
            except UnicodeDecodeError:
                yield from (_row(batch, i) for i in range(batch.num_rows))


def _row(batch: Any, i: int) -> dict[str, Any] | None:
    try:
        return batch.slice(i, 1).to_pylist()[0]
    except UnicodeDecodeError:
        return None


def _open(file: Path) -> Any:
    import pyarrow.parquet

    try:
        # Columns are read through a buffer: without one, a whole row group is read at once.
        return pyarrow.parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
    except Exception as error:  # pyarrow's errors have several bases
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{file}: cannot be read as Parquet ({reason}); copy it again or leave it out")


def _columns(parquet: Any) -> set[str]:
    """Names of all columns and of the structs and lists that they are in."""
    found = set()
    for i in range(parquet.metadata.num_columns):
        parts = parquet.schema.column(i).path.split(".")
        found |= {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return found


def _rows_at_once(parquet: Any) -> int:
    groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
    largest = max((g.total_byte_size / max(g.num_rows, 1) for g in groups), default=1.0)
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(largest, 1.0))))

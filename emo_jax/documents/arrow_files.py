"""Arrow files and streams, as `datasets` and others write them, and folders of `save_to_disk`."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from emo_jax.documents.columns import inner
from emo_jax.documents.locations import is_remote, open_binary
from emo_jax.errors import DataError
from emo_jax.files.json_files import Fields, NotReadableError, parse

STATE = "state.json"  # lists the files of a folder of save_to_disk
_FILE_MAGIC = b"ARROW1"
_ENDS = (b"\xff\xff\xff\xff\0\0\0\0", b"\0\0\0\0")  # of a stream, since 0.15 and before
_ROWS, _BYTES = 1024, 1 << 22  # that are turned into Python values at once
_MAX_STATE = 1 << 26  # bytes


class Opened:
    """An open Arrow file or stream.

    Attributes:
      schema: of its rows.
    """

    def __init__(self, source: Any, size: int):
        self._source, self._size = source, size
        self._is_file = self._read_at(0, len(_FILE_MAGIC)) == _FILE_MAGIC
        self.schema = self._reader(None).schema

    def _read_at(self, where: int, size: int) -> bytes:
        self._source.seek(where)
        return self._source.read(size)

    def _reader(self, fields: list[int] | None) -> Any:
        import pyarrow.ipc

        self._source.seek(0)
        opened = pyarrow.ipc.open_file if self._is_file else pyarrow.ipc.open_stream
        options = pyarrow.ipc.IpcReadOptions(use_threads=False, included_fields=fields)
        return opened(self._source, options=options)

    def batches(self, names: Sequence[str]) -> Iterator[Any]:
        """Yields rows, a few at a time, with the columns that `names` lead to.

        Raises:
          Exception: of pyarrow, of several bases, or NotReadableError: the file is damaged.
        """
        columns = self.schema.names
        heads = {n if n in columns else n.partition(".")[0] for n in names}
        reader = self._reader(sorted(columns.index(head) for head in heads))
        for batch in self._whole_batches(reader):
            batch.validate()
            mean = batch.nbytes / max(1, batch.num_rows)
            step = max(1, min(_ROWS, int(_BYTES / max(mean, 1.0))))
            for name in names:
                _check(inner(batch, name)[0])
            for start in range(0, batch.num_rows, step):
                yield batch.slice(start, step)

    def _whole_batches(self, reader: Any) -> Iterator[Any]:
        if self._is_file:
            for i in range(reader.num_record_batches):
                yield reader.get_batch(i)
            return
        yield from reader
        # A stream may end anywhere; its writers say where it does.
        where = self._source.tell()
        last = self._read_at(max(0, where - 8), 8)
        if not last.endswith(_ENDS):
            raise NotReadableError("it is cut short")
        if where != self._size:
            raise NotReadableError("more follows behind its end")


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Opened]:
    """Opens an Arrow file or stream.

    Raises:
      DataError: it is not one, or damaged.
    """
    import pyarrow

    with contextlib.ExitStack() as stack:
        try:
            source: Any = stack.enter_context(open_binary(file))  # a regular file
            size = source.seek(0, os.SEEK_END)
            if not is_remote(file):
                source = stack.enter_context(pyarrow.memory_map(str(file)))
            found = Opened(source, size)
        except DataError:
            raise
        except Exception as error:  # pyarrow's errors have several bases
            raise damaged(file, error) from error
        yield found


def damaged(file: Path, error: Exception) -> DataError:
    """Returns the error for a file that pyarrow, or this module, cannot read."""
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{file}: cannot be read as Arrow ({reason}); copy it again or leave it out")


def _check(array: Any) -> None:
    """Checks the offsets of an array, which are read as they are; not whether texts are UTF-8."""
    kind = _as_bytes(array.type)
    (array if kind == array.type else array.view(kind)).validate(full=True)


def _as_bytes(kind: Any) -> Any:
    """Returns a type with bytes in place of texts."""
    import pyarrow as pa
    import pyarrow.types as types

    simple = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    simple[pa.string_view()] = pa.binary_view()
    if kind in simple:
        return simple[kind]
    if types.is_struct(kind):
        return pa.struct([f.with_type(_as_bytes(f.type)) for f in kind])
    made = {types.is_list: pa.list_, types.is_large_list: pa.large_list}
    for is_kind, make in made.items():
        if is_kind(kind):
            return make(kind.value_field.with_type(_as_bytes(kind.value_type)))
    return kind


# --- folders of save_to_disk ----------------------------------------------------------------------


def saved_files(state: Path) -> list[Path]:
    """Returns the files that a folder of `save_to_disk` consists of, by its `state.json`.

    Beside them may be what `map` and the like have cached.

    Raises:
      DataError: the file is damaged, or one of the files is missing.
    """
    try:
        with open_binary(state, 1 << 16) as stream:
            fields = Fields(parse(stream.read(_MAX_STATE)))
        if fields.value("_indices_data_files", None):
            raise NotReadableError("rows are chosen by an index, in a format of before datasets 2")
        names = [Fields(item).line("filename") for item in fields.items("_data_files")]
    except (OSError, NotReadableError) as error:
        raise DataError(f"{state}: cannot be read ({error}); save the data set again") from error
    files = []
    for name in names:
        if "/" in name or name in ("", ".", ".."):
            raise DataError(f"{state}: names a file outside of its folder; save the data set again")
        file = state.parent / name
        if not file.is_file():
            raise DataError(f"{file}: missing, {STATE} names it; save the data set again")
        files.append(file)
    return files

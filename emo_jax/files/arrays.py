"""The only way in which arrays on disk are opened for reading, through tensorstore.

By itself, tensorstore reads a missing chunk as zeros, and remembers that it was missing. Here it is
an error, and is looked for again first (see `waiting`). Files that change under an open array are
detected too.
"""

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorstore as ts

from emo_jax.errors import one_line
from emo_jax.files import remote
from emo_jax.files.json_files import NotReadableError, parse
from emo_jax.files.shards import LocalShards, UnusualLayoutError, layout_of
from emo_jax.files.steady import SteadyFiles
from emo_jax.files.waiting import AwayError, Patience, SpoiltError

Where = slice | tuple[slice, ...]


class Files(Protocol):
    """Files in use, such as `steady.SteadyFiles` and `remote.RemoteFiles`."""

    def check(self, *names: str) -> None:
        """Raises AwayError or SpoiltError if they are not what they were."""
        ...


_METADATA = {"zarr3": "zarr.json", "zarr": ".zarray"}


def check_metadata(
    spec: Mapping[str, Any],
    context: ts.Context,
    wait: Callable[[Any], Any] = lambda future: future.result(),
) -> None:
    """Reads what describes an array before tensorstore does, which does not count levels of JSON.

    Args:
      spec: tensorstore's, of the drivers zarr and zarr3.
      wait: returns what a future gives.

    Raises:
      NotReadableError: it is no JSON, or nested deeply.
      Exception: of `wait`.
    """
    folder = wait(ts.KvStore.open(spec["kvstore"], context=context))
    folder.path = folder.path.rstrip("/") + "/"
    found = wait(folder.read(_METADATA[spec["driver"]]))
    if found.state == "value":  # else opening it says that it is missing
        parse(found.value)


class StoredArray:
    """An array to read from, in any number of threads.

    Args:
      spec: tensorstore's, as for `ts.open`.
      name: name of the array in error messages.
      patience: how long to wait for unavailable files, and what to raise afterwards.
      context: makes a new tensorstore context each time the array is opened.
      files: files that must not change; after every read, those with its chunks and those in
        `watched` are checked. None: nothing is waited for or checked.
      folder: folder of the array in `files`.

    Raises:
      EmoError: it cannot be opened.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        *,
        name: str,
        patience: Patience,
        context: Callable[[], ts.Context],
        files: Files | None = None,
        folder: str = "",
        watched: tuple[str, ...] = (),
    ):
        # Opening it again rechecks the cache, including the absence of chunks.
        self._spec = {"recheck_cached_data": "open", **spec, "fill_missing_data_reads": False}
        self._name, self._patience, self._context = name, patience, context
        self._files, self._folder, self._watched = files, folder, watched
        # None if it has to be opened again: its cache may be of another file.
        self._array: ts.TensorStore | None = None
        first = patience.read(self._open_first)
        self.shape: tuple[int, ...] = first.shape
        self.dtype: np.dtype = first.dtype.numpy_dtype
        layout: Any = first.chunk_layout
        self.chunk: tuple[int, ...] = tuple(layout.read_chunk.shape)  # smallest unit of a read
        self.file_shape: tuple[int, ...] = tuple(layout.write_chunk.shape)
        self._array = first
        self._local = self._local_shards(first)
        self._local_lock = threading.Lock()

    def _local_shards(self, array: ts.TensorStore) -> LocalShards | None:
        """Returns what reads many parts at once, if the array's files allow it."""
        if not isinstance(self._files, SteadyFiles) or len(self.shape) != 1:
            return None
        layout = layout_of(array.spec().to_json())
        if layout is None:
            return None
        return LocalShards(f"{self._files.folder}/{self._folder}", *layout, self.dtype)

    def start(self, where: Where) -> Callable[[], np.ndarray]:
        """Starts to read `array[where]`; the returned function waits for it and returns it."""
        return self._start(lambda array: array[where], lambda: self._chunk_files(where))

    def start_rows(self, starts_N: Sequence[int], length: int) -> Callable[[], np.ndarray]:
        """Starts to read (N, length) items of a one-dimensional array, `length` from each start."""
        begun = time.monotonic()

        def files() -> list[str]:
            size = self.file_shape[0]
            parts = {start // size for start in starts_N}
            parts |= {(start + length - 1) // size for start in starts_N}
            return [f"{self._folder}/c/{part}" for part in sorted(parts)] if self._folder else []

        def view(array: ts.TensorStore) -> ts.TensorStore:
            # One read of many parts costs a fraction of as many reads.
            parts = [array[start : start + length] for start in starts_N]
            return ts.stack([part.translate_to[0] for part in parts])

        if self._local is None:
            return self._start(view, files)
        return lambda: self._patience.read(
            lambda: self._read_local(starts_N, length, files, view), begun=begun
        )

    def _read_local(
        self,
        starts_N: Sequence[int],
        length: int,
        files: Callable[[], list[str]],
        view: Callable[[ts.TensorStore], ts.TensorStore],
    ) -> np.ndarray:
        try:
            with self._local_lock:
                if self._local is None:
                    return self._start(view, files)()
                found = self._local.read_rows(starts_N, length)
            self._check(files)
            return found
        except UnusualLayoutError:
            self._local = None
            return self._start(view, files)()
        except (AwayError, SpoiltError):
            with self._local_lock:
                if self._local is not None:
                    self._local.close()
            self._check(files)  # an error that names the file is better
            raise

    def _start(
        self, view: Callable[[ts.TensorStore], ts.TensorStore], files: Callable[[], list[str]]
    ) -> Callable[[], np.ndarray]:
        array, begun = self._array, time.monotonic()
        reading = None if array is None else view(array).read()

        def finish() -> np.ndarray:
            nonlocal array, reading
            try:
                if reading is None or array is not self._array:
                    self._check(files)
                    array = self._open() if self._array is None else self._array
                    self._array = array
                    reading = view(array).read()
                value = self._result(reading)
                self._check(files)
                return value
            except (AwayError, SpoiltError):
                self._array = reading = None
                self._check(files)  # an error that names the file is better
                raise

        return lambda: self._patience.read(finish, begun=begun)

    def read(self, where: Where) -> np.ndarray:
        """Returns `array[where]`.

        Raises:
          EmoError: it stays unavailable, is damaged, or was replaced by another.
        """
        return self.start(where)()

    def _open_first(self) -> ts.TensorStore:
        try:
            return self._open()
        except (AwayError, SpoiltError):
            if self._files is not None:
                self._files.check(*self._watched)  # an error that names the file is better
            raise

    def _open(self) -> ts.TensorStore:
        context = self._context()
        try:
            check_metadata(self._spec, context, self._result)
        except NotReadableError as error:
            raise SpoiltError(f"{self._name}: cannot be read ({error})") from None
        array = self._result(ts.open(dict(self._spec), open=True, read=True, context=context))
        if hasattr(self, "dtype") and (array.shape, array.dtype.numpy_dtype) != (
            self.shape,
            self.dtype,
        ):
            raise SpoiltError(f"{self._name}: was replaced by another array while it was in use")
        return array

    def _result(self, future: Any) -> Any:
        if isinstance(self._files, remote.RemoteFiles):
            return remote.answer(future, self._name)
        try:
            return future.result()
        except (ValueError, OSError) as error:
            text = f"{self._name}: cannot be read ({one_line(error)})"
            if self._files is None or str(error).startswith(remote.DAMAGE):
                raise SpoiltError(text) from error
            raise AwayError(text) from error

    def _check(self, files: Callable[[], list[str]]) -> None:
        if self._files is not None:
            self._files.check(*files(), *self._watched)

    def _chunk_files(self, where: Where) -> list[str]:
        """Returns the names that zarr 3 gives the files that hold a part of an array."""
        if not self._folder:
            return []
        slices = where if isinstance(where, tuple) else (where,)
        slices += (slice(None),) * (len(self.shape) - len(slices))
        ranges = []
        for part, whole, size in zip(slices, self.shape, self.file_shape, strict=True):
            start, stop, _ = part.indices(whole)
            ranges.append(range(start // size, max(stop - 1, start) // size + 1))
        return [f"{self._folder}/c/{'/'.join(map(str, at))}" for at in itertools.product(*ranges)]

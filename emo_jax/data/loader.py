"""Batches by number: the windows of a batch depend only on (config, windows consumed).

The only state to save is one integer. The order is the same on every host, after a restart and with
another batch size, because a batch is a slice of it: windows [start, start + batch_size), of which
each process reads the rows that its devices hold (`parallel/rows.py`).
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import grain
import numpy as np

from emo_jax.batch import Batch
from emo_jax.config import Config
from emo_jax.data.run_windows import RunWindows, open_run_windows
from emo_jax.data.sources import open_data
from emo_jax.data.stream import TRAIN
from emo_jax.data.windows import Windows
from emo_jax.errors import ConfigError, DataError
from emo_jax.files.waiting import wait_unless

_REMOTE_READERS = 32  # parts of a batch read at once from an object store
_BATCHES_AT_ONCE = 2
_LOOK_SECONDS = 0.1  # between checks whether to stop, while waiting for a batch


def _never() -> bool:
    return False


class _Opened:
    """The windows of a run; a process that gets this object, as grain's workers do, opens them."""

    def __init__(self, config: Config, split: str, expected: str | None = None):
        self._config, self._split = config, split
        self.windows = open_run_windows(config, open_data(config.data), split=split)
        self._fingerprint = self.windows.fingerprint_at(self.windows.length)
        if expected not in (None, self._fingerprint):
            names = ", ".join(config.data.stores[:3])
            raise DataError(
                f"{names}: was replaced while it was in use; run the same command again"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return _Opened, (self._config, self._split, self._fingerprint)


class _Part(Sequence[Batch]):
    """The windows of one source."""

    def __init__(self, opened: _Opened, k: int):
        self._opened, self._k = opened, k

    def __len__(self) -> int:
        return len(self._opened.windows.parts[self._k])

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]
        return self._opened.windows.parts[self._k][index]


class _Selection:
    """The order of a run, as grain's `select_from_datasets` wants it."""

    def __init__(self, opened: _Opened):
        self._opened = opened

    def __len__(self) -> int:
        return self._opened.windows.length

    def __getitem__(self, place: int) -> tuple[int, int]:
        (source,), (window,) = self._opened.windows.locate(np.array([place]))
        return int(source), int(window)


def dataset(config: Config, *, split: str = TRAIN) -> grain.MapDataset:
    """The windows of `config.data`, in the order in which a run with this config reads them.

    Item n is window n of the run: a `Batch` with NumPy fields (S,), where S is `data.seq_len`. Step
    k of the run, counted from 0, reads items k·B to k·B + B - 1, where B is `train.batch_size`. The
    dataset of a store is endless, with a new order in every epoch; that of a mixture ends with the
    run. It can be mapped, filtered, batched and mixed like any other, and read in grain's worker
    processes, which open the store again; an item is read when it is accessed.

    Args:
      config: a config from `emo_jax.load_config`; its section `data`, with `data.store` or
        `data.sources` set.
      split: "train", or for a token store "select" or "test"; `data.repetition_filter` and
        `data.packing` apply to "train" only.

    Raises:
      UsageError: no such store or split.
      DataError: the store is damaged, or the split has no window.
    """
    opened = _Opened(config, split)
    parts = [_Part(opened, k) for k in range(len(opened.windows.parts))]
    sources = [grain.MapDataset.source(part) for part in parts]
    return grain.MapDataset.select_from_datasets(sources, _Selection(opened))


class Loader:
    """Training batches.

    Args:
      windows: the windows in their order.
      batch_size: B, rows of the global batch.
      rows: rows of the batch to read, in order; None: all.
      prefetch: number of batches that `iterate` prepares ahead.

    Raises:
      ConfigError: `batch_size` is below 1, or a row is not in the batch.
    """

    def __init__(
        self,
        windows: RunWindows,
        *,
        batch_size: int,
        rows: Sequence[int] | None = None,
        prefetch: int = 2,
    ):
        self.windows, self.batch_size, self.prefetch = windows, batch_size, prefetch
        self.rows = np.array(_checked_rows(batch_size, rows), np.int64)
        # NumPy holds the interpreter's lock: on a local disk, more readers are slower.
        readers = min(_REMOTE_READERS, len(self.rows)) if windows.remote else 1
        self._parts = np.array_split(self.rows, readers)
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="windows")
        self._close = weakref.finalize(self, self._readers.shutdown, wait=False)

    def close(self) -> None:
        """Stops the reader threads, as dropping the loader does; `batch` cannot be called after."""
        self._close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def batch(self, start_window: int, *, stopped: Callable[[], bool] = _never) -> Batch:
        """Returns the rows of the global batch that starts at window `start_window`.

        Args:
          start_window: number of windows before the batch.
          stopped: once it returns True, the call no longer waits for files that are unavailable.

        Returns:
          A `Batch` with NumPy fields (rows, S).
        """

        def read(rows: np.ndarray) -> Batch:
            with wait_unless(stopped):
                return self.windows.read(start_window + rows)

        if len(self._parts) == 1:
            return read(self.rows)
        parts = list(self._readers.map(read, self._parts))
        return Batch(*(np.concatenate(field) for field in zip(*parts, strict=True)))

    def iterate(
        self,
        start_window: int = 0,
        *,
        stopped: Callable[[], bool] = _never,
        following: Callable[[int], int] = int,
    ) -> Generator[tuple[int, Batch], None, None]:
        """Yields (windows consumed after this batch, batch) endlessly, preparing batches ahead.

        An error while preparing a batch is raised when that batch is requested. Close the iterator
        (or drop it) to stop the background work.

        Args:
          start_window: number of windows consumed before the first batch.
          stopped: polled while a batch is not ready; the iterator ends once it returns True.
          following: given the windows consumed, returns the window that the next batch starts at.
        """
        closed = threading.Event()
        background = ThreadPoolExecutor(
            min(_BATCHES_AT_ONCE, self.prefetch), thread_name_prefix="batches"
        )
        ahead: deque[tuple[int, Future[Batch]]] = deque()
        try:
            while True:
                while len(ahead) <= self.prefetch:
                    start_window = following(start_window)
                    next_start = start_window + self.batch_size
                    making = background.submit(self.batch, start_window, stopped=closed.is_set)
                    ahead.append((next_start, making))
                    start_window = next_start
                consumed, future = ahead.popleft()
                while not wait([future], timeout=_LOOK_SECONDS).done:
                    if stopped():
                        return
                yield consumed, future.result()
        finally:
            closed.set()
            background.shutdown(wait=True, cancel_futures=True)


def heldout_batches(
    windows: Windows,
    *,
    batch_size: int,
    max_windows: int | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yields held-out windows in order, the same on every call; the last batch is padded.

    Args:
      windows: windows of the split "select" or "test".
      batch_size: B, rows of the global batch.
      max_windows: if there are more, read this many of them, spread evenly over the split.
      rows: rows of each batch to read, in order; None: all.

    Yields:
      These rows of each batch, (rows, S).
    """
    rows = _checked_rows(batch_size, rows)
    total = len(windows)
    wanted = total if max_windows is None else min(max_windows, total)
    chosen = np.arange(wanted, dtype=np.int64) * total // max(wanted, 1)
    for first in range(0, wanted, batch_size):
        numbers = np.array([first + row for row in rows])
        real = np.flatnonzero(numbers < wanted)
        batch = windows.padding(len(rows))
        if real.size:
            for field, values in zip(batch, windows.read(chosen[numbers[real]]), strict=True):
                field[real] = values
        yield batch


def _checked_rows(batch_size: int, rows: Sequence[int] | None) -> list[int]:
    if batch_size < 1:
        raise ConfigError(f"config.train.batch_size = {batch_size}: must be at least 1")
    found = list(range(batch_size) if rows is None else rows)
    if not found or min(found) < 0 or max(found) >= batch_size:
        raise ConfigError(f"rows {found}: must be some of 0..{batch_size - 1}")
    return found

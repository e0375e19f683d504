"""Batches by number: the windows of a batch depend only on (seed, windows consumed).

The only state to save is one integer. The order is the same on every host, after a restart and with
another batch size, because a batch is a slice of it: windows [start, start + batch_size), of which
each process reads the rows that its devices hold (`parallel/rows.py`).
"""

import hashlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import grain
import numpy as np

from emo_jax.batch import Batch
from emo_jax.config import Config
from emo_jax.data.stream import TRAIN
from emo_jax.data.windows import Windows, open_windows
from emo_jax.errors import ConfigError
from emo_jax.files.waiting import wait_unless

_READERS = 8  # rows read at once; the threads mostly wait for storage
_LOOK_SECONDS = 0.1  # between checks whether to stop, while waiting for a batch


def _never() -> bool:
    return False


def in_order(windows: Windows, seed: int) -> grain.MapDataset:
    """Windows in the order given by a seed: endless, with a new order in every epoch.

    Item n, a `Batch` with NumPy fields (S,), is a function of (windows, seed, n) alone.
    """
    # grain takes a 32-bit seed and adds the epoch to it, so neighbouring seeds would share orders;
    # a hash keeps them apart.
    digest = hashlib.sha256(str(seed).encode()).digest()
    shuffled = grain.MapDataset.source(windows).shuffle(seed=int.from_bytes(digest[:4], "little"))
    return shuffled.repeat()


def dataset(config: Config, *, split: str = TRAIN) -> grain.MapDataset:
    """The windows of `config.data.store`, in the order in which a run with this config reads them.

    Item n is window n of the run: a `Batch` with NumPy fields (S,), where S is `data.seq_len`. Step
    k of the run, counted from 0, reads items k·B to k·B + B - 1, where B is `train.batch_size`. The
    dataset is endless, with a new order in every epoch. It can be mapped, filtered, batched and
    mixed like any other; an item is read from the store when it is accessed.

    Args:
      config: a config from `emo_jax.load_config`; its section `data`, with `data.store` set.
      split: "train", or for a token store "select" or "test"; `data.repetition_filter` applies to
        "train" only.

    Raises:
      UsageError: no such store or split.
      DataError: the store is damaged, or the split has no window.
    """
    return in_order(open_windows(config.data, split=split), config.data.seed)


class Loader:
    """Shuffled training batches.

    Args:
      windows: the windows to shuffle; each epoch has its own order.
      batch_size: B, rows of the global batch.
      seed: seed of the order.
      rows: rows of the batch to read, in order; None: all.
      prefetch: number of batches that `iterate` prepares ahead.

    Raises:
      ConfigError: `batch_size` is below 1, or a row is not in the batch.
    """

    def __init__(
        self,
        windows: Windows,
        *,
        batch_size: int,
        seed: int,
        rows: Sequence[int] | None = None,
        prefetch: int = 2,
    ):
        self.windows, self.batch_size, self.prefetch = windows, batch_size, prefetch
        self.rows = _checked_rows(batch_size, rows)
        self._order = in_order(windows, seed)
        self._readers = ThreadPoolExecutor(
            min(_READERS, len(self.rows)), thread_name_prefix="windows"
        )
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

        def read(number: int) -> Batch:
            with wait_unless(stopped):
                return self._order[number]

        numbers = [start_window + row for row in self.rows]
        return stack(list(self._readers.map(read, numbers)))

    def iterate(
        self, start_window: int = 0, *, stopped: Callable[[], bool] = _never
    ) -> Generator[tuple[int, Batch], None, None]:
        """Yields (windows consumed after this batch, batch) endlessly, preparing batches ahead.

        An error while preparing a batch is raised when that batch is requested. Close the iterator
        (or drop it) to stop the background work.

        Args:
          start_window: number of windows consumed before the first batch.
          stopped: polled while a batch is not ready; the iterator ends once it returns True.
        """
        closed = threading.Event()
        background = ThreadPoolExecutor(1, thread_name_prefix="batches")
        ahead: deque[tuple[int, Future[Batch]]] = deque()
        try:
            while True:
                while len(ahead) <= self.prefetch:
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
    padding = windows.padding()
    for first in range(0, wanted, batch_size):
        numbers = [first + row for row in rows]
        yield stack([windows[chosen[n]] if n < wanted else padding for n in numbers])


def stack(rows: Sequence[Batch]) -> Batch:
    """Stacks windows with fields (S,) into one batch with fields (B,S)."""
    return Batch(*(np.stack(field) for field in zip(*rows, strict=True)))


def _checked_rows(batch_size: int, rows: Sequence[int] | None) -> list[int]:
    if batch_size < 1:
        raise ConfigError(f"config.train.batch_size = {batch_size}: must be at least 1")
    found = list(range(batch_size) if rows is None else rows)
    if not found or min(found) < 0 or max(found) >= batch_size:
        raise ConfigError(f"rows {found}: must be some of 0..{batch_size - 1}")
    return found

"""Batches by number: a batch's windows follow from (seed, windows consumed) alone.

The only state to save is one integer. Hosts, restarts and changed batch sizes see the same order,
because a batch is a slice of it: windows [start, start + batch_size), of which each process reads
the rows that its devices hold (`parallel/rows.py`).
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
    """Windows in the order of a seed, another one in every epoch, without end.

    Item n is a function of (windows, seed, n) alone: a `Batch` with NumPy fields (S,).
    """
    # grain takes 32 bits and adds the epoch to the seed, so neighbouring seeds would share orders;
    # a hash keeps them apart.
    digest = hashlib.sha256(str(seed).encode()).digest()
    shuffled = grain.MapDataset.source(windows).shuffle(seed=int.from_bytes(digest[:4], "little"))
    return shuffled.repeat()


def dataset(config: Config, *, split: str = TRAIN) -> grain.MapDataset:
    """The windows of `config.data.store`, in the order in which a run with this config reads them.

    Item n is window n of the run: a `Batch` with NumPy fields (S,), S being `data.seq_len`; step k
    of the run reads items k·B to k·B + B - 1, B being `train.batch_size`. The dataset has no end:
    every epoch has an order of its own. It may be mapped, filtered, batched and mixed as any other;
    tensorstore reads are made when an item is asked for.

    Args:
      config: of `emo_jax.load_config`; its section `data`, and `data.store` in it.
      split: "train", or "select" and "test" of a token store; in these no window is filtered.

    Raises:
      UsageError: no such store or split.
      DataError: the store is damaged.
    """
    return in_order(open_windows(config.data, split=split), config.data.seed)


class Loader:
    """Shuffled training batches.

    Args:
      windows: what to shuffle; each epoch has its own order.
      batch_size: B, rows of the global batch.
      seed: seed of the order.
      rows: rows of the batch to read, in order; None: all.
      prefetch: batches that `iterate` prepares ahead.

    Raises:
      ConfigError: a row is not in the batch.
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
        """Ends its threads, as dropping the loader does; `batch` cannot be called afterwards."""
        self._close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def batch(self, start_window: int, *, stopped: Callable[[], bool] = _never) -> Batch:
        """Returns the rows of the global batch that starts at window `start_window`.

        Args:
          stopped: once it returns True, the call does not wait for files that are unavailable.

        Returns:
          NumPy fields, (rows, S).
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

        An error in preparing a batch is raised when that batch is requested. Close the iterator (or
        drop it) to stop the background work.

        Args:
          stopped: called while a batch is not ready; the iterator ends once it returns True.
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

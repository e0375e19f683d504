"""Batches by number: which windows a batch holds follows from (seed, windows consumed) alone.

There is no state to save but one integer. Hosts, restarts and changed batch sizes see the same
order, because a batch is a slice of it: windows [start, start + batch_size), of which each process
reads its own rows.
"""

import hashlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import grain
import numpy as np

from emo_jax.batch import Batch
from emo_jax.data.windows import Windows
from emo_jax.errors import ConfigError

_READERS = 8  # rows read at once; what is waited for is the storage


class Loader:
    """Shuffled training batches.

    Args:
      windows: what to shuffle; each epoch has an order of its own.
      batch_size: B, rows of the global batch.
      seed: of the order.
      process_index: this process, of `process_count` that share the batch in equal parts.
      prefetch: batches made ahead by `iterate`.

    Raises:
      ConfigError: the batch does not divide over the processes.
    """

    def __init__(
        self,
        windows: Windows,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        prefetch: int = 2,
    ):
        self.windows, self.batch_size, self.prefetch = windows, batch_size, prefetch
        self._rows = _rows_of_process(batch_size, process_index, process_count)
        # grain takes 32 bits and counts the seed up with the epoch, so that neighbouring seeds
        # would share orders; a hash keeps them apart.
        digest = hashlib.sha256(str(seed).encode()).digest()
        self._order = (
            grain.MapDataset.source(windows)
            .shuffle(seed=int.from_bytes(digest[:4], "little"))
            .repeat()
        )
        self._readers = ThreadPoolExecutor(
            min(_READERS, len(self._rows)), thread_name_prefix="windows"
        )

    def batch(self, start_window: int) -> Batch:
        """This process's rows of the global batch that begins at window `start_window`.

        Returns:
          NumPy fields, (B / process_count, S).
        """
        numbers = [start_window + row for row in self._rows]
        return stack(list(self._readers.map(self._order.__getitem__, numbers)))

    def iterate(self, start_window: int = 0) -> Generator[tuple[int, Batch], None, None]:
        """Endless (windows consumed after this batch, batch), made ahead in the background.

        An error in making a batch is raised when that batch is asked for. Close the iterator (or
        drop it) to stop the background work.
        """
        background = ThreadPoolExecutor(1, thread_name_prefix="batches")
        ahead: deque[tuple[int, Future[Batch]]] = deque()
        try:
            while True:
                while len(ahead) <= self.prefetch:
                    next_start = start_window + self.batch_size
                    ahead.append((next_start, background.submit(self.batch, start_window)))
                    start_window = next_start
                consumed, future = ahead.popleft()
                yield consumed, future.result()
        finally:
            background.shutdown(wait=True, cancel_futures=True)


def heldout_batches(
    windows: Windows,
    *,
    batch_size: int,
    max_windows: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Held-out windows in order, the same on every call; the last batch is filled with padding.

    Args:
      windows: of the split "select" or "test".
      batch_size: B, rows of the global batch.
      max_windows: where there are more, this many of them, spread evenly over the split.
      process_index: this process, of `process_count` that share the batch in equal parts.

    Yields:
      This process's rows of each batch, (B / process_count, S).
    """
    rows = _rows_of_process(batch_size, process_index, process_count)
    total = len(windows)
    wanted = total if max_windows is None else min(max_windows, total)
    chosen = np.arange(wanted, dtype=np.int64) * total // max(wanted, 1)
    padding = windows.padding()
    for first in range(0, wanted, batch_size):
        numbers = [first + row for row in rows]
        yield stack([windows[chosen[n]] if n < wanted else padding for n in numbers])


def stack(rows: Sequence[Batch]) -> Batch:
    """Windows with fields (S,) as one batch with fields (B,S)."""
    return Batch(*(np.stack(field) for field in zip(*rows, strict=True)))


def _rows_of_process(batch_size: int, process_index: int, process_count: int) -> range:
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(
            f"config.train.batch_size = {batch_size}: must be a multiple of the {process_count}"
            " processes"
        )
    if not 0 <= process_index < process_count:
        raise ConfigError(f"process_index = {process_index}: must be in 0..{process_count - 1}")
    local = batch_size // process_count
    return range(process_index * local, (process_index + 1) * local)

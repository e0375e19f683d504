"""Batches by number: which windows a batch holds follows from (seed, windows consumed) alone.

There is no state to save but one integer. Hosts, restarts and changed batch sizes see the same
order, because a batch is a slice of it: windows [start, start + batch_size), of which each process
reads the rows that its devices hold (`parallel/rows.py`).
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
      rows: of the batch, those to read, in order; None: all.
      prefetch: batches made ahead by `iterate`.

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
        # grain takes 32 bits and counts the seed up with the epoch, so that neighbouring seeds
        # would share orders; a hash keeps them apart.
        digest = hashlib.sha256(str(seed).encode()).digest()
        self._order = (
            grain.MapDataset.source(windows)
            .shuffle(seed=int.from_bytes(digest[:4], "little"))
            .repeat()
        )
        self._readers = ThreadPoolExecutor(
            min(_READERS, len(self.rows)), thread_name_prefix="windows"
        )

    def batch(self, start_window: int) -> Batch:
        """The rows of the global batch that begins at window `start_window`.

        Returns:
          NumPy fields, (rows, S).
        """
        numbers = [start_window + row for row in self.rows]
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
    rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Held-out windows in order, the same on every call; the last batch is filled with padding.

    Args:
      windows: of the split "select" or "test".
      batch_size: B, rows of the global batch.
      max_windows: where there are more, this many of them, spread evenly over the split.
      rows: of a batch, those to read, in order; None: all.

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
    """Windows with fields (S,) as one batch with fields (B,S)."""
    return Batch(*(np.stack(field) for field in zip(*rows, strict=True)))


def _checked_rows(batch_size: int, rows: Sequence[int] | None) -> list[int]:
    if batch_size < 1:
        raise ConfigError(f"config.train.batch_size = {batch_size}: must be at least 1")
    found = list(range(batch_size) if rows is None else rows)
    if not found or min(found) < 0 or max(found) >= batch_size:
        raise ConfigError(f"rows {found}: must be some of 0..{batch_size - 1}")
    return found

"""Where documents end: long rising lists on disk, searched with few reads and bounded memory."""

import bisect
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from emo_jax.errors import DataError

PAGE = 4096  # integers read at a time
_KEPT = 64  # pages in memory, of one list
_FEW = 8  # pages read one by one, and kept
_MOST_KNOWN = 1 << 16  # pages whose first and last integers are remembered
_INTERPOLATE = 4  # guesses before the search only halves


class Ends(Protocol):
    """One past the last token of each document of a stream."""

    num: int

    def read(self, first: int, stop: int) -> np.ndarray:
        """Returns those of documents [first, stop): (stop - first,) int64."""
        ...

    def at(self, token: int) -> int:
        """Returns the number of the document that holds a token."""
        ...


class RisingList:
    """N integers in a file, none less than the one before; a page of them is read at a time.

    Nothing is read when it is made. A search guesses where a number stands from the pages seen so
    far, as if the integers rose evenly, and halves what is left if that does not help: usually one
    or two reads, at most 4 + log2(N / 4096).

    Args:
      num: N.
      last: the last of them; also the most that any may be.
      read: returns integers [first, stop) as int64.
      name: what they are, for errors.

    Raises:
      DataError: (when read) they do not rise, or go beyond `last`.
    """

    def __init__(self, num: int, last: int, read: Callable[[int, int], np.ndarray], name: str):
        self.num, self.last, self.name, self._read = num, last, name, read
        self._lock = threading.Lock()
        self._pages: OrderedDict[int, np.ndarray] = OrderedDict()
        self._known: list[int] = []  # numbers of pages, sorted; with their first and last integers
        self._firsts: list[int] = []
        self._lasts: list[int] = []

    def read(self, first: int, stop: int) -> np.ndarray:
        """Returns integers [first, stop)."""
        if not 0 <= first <= stop <= self.num:
            raise IndexError(f"{self.name}: [{first}, {stop}) of {self.num}")
        if first == stop:
            return np.zeros(0, np.int64)
        low, high = first // PAGE, (stop - 1) // PAGE + 1
        if high - low > _FEW:
            return self._checked(self._read(first, stop), first)
        pages = [self._page(n) for n in range(low, high)]
        whole = pages[0] if len(pages) == 1 else np.concatenate(pages)
        return whole[first - low * PAGE : stop - low * PAGE]

    def at(self, value: int) -> int:
        """Returns how many of the integers are at most `value`."""
        if value >= self.last or not self.num:
            return self.num
        low, high, below, above = self._bracket(value)
        guesses = 0
        while low <= high:
            middle = (low + high) // 2
            if guesses < _INTERPOLATE and above > below:
                middle = low + (value - below) * (high - low + 1) // (above - below)
                middle = min(max(middle, low), high)
            guesses += 1
            page = self._page(middle)
            if value < page[0]:
                high, above = middle - 1, int(page[0])
            elif value >= page[-1]:
                low, below = middle + 1, int(page[-1])
            else:
                return middle * PAGE + int(np.searchsorted(page, value, side="right"))
        return min(low * PAGE, self.num)

    def check(self, *, ends: bool = True) -> None:
        """Reads all of a short list, and both ends of a long one, so that damage is found early.

        Args:
          ends: the list must end with `last`.

        Raises:
          DataError: it is damaged.
        """
        pages = -(-self.num // PAGE)
        if pages <= _KEPT:  # in one read
            whole = self._checked(self._read(0, self.num), 0) if self.num else np.zeros(1, int)
            for n in range(pages):
                self._keep(n, whole[n * PAGE : (n + 1) * PAGE])
            before = int(whole[-1])
        else:
            self._page(0)
            before = int(self._page(pages - 1)[-1])
        if ends and before != self.last:
            raise DataError(f"{self.name}: ends with {before}, not {self.last}; copy it again")

    def _bracket(self, value: int) -> tuple[int, int, int, int]:
        """Returns first and last page to look at, and the integers that bound them."""
        with self._lock:
            n = bisect.bisect_right(self._lasts, value)
            low, below = (self._known[n - 1] + 1, self._lasts[n - 1]) if n else (0, 0)
            high, above = -(-self.num // PAGE) - 1, self.last
            if n < len(self._known):
                inside = self._firsts[n] <= value
                low = self._known[n] if inside else low
                high = self._known[n] if inside else self._known[n] - 1
                above = self._firsts[n]
            return low, high, below, above

    def _page(self, number: int) -> np.ndarray:
        with self._lock:
            if number in self._pages:
                self._pages.move_to_end(number)
                return self._pages[number]
        first = number * PAGE
        page = self._checked(self._read(first, min(first + PAGE, self.num)), first)
        self._keep(number, page)
        return page

    def _keep(self, number: int, page: np.ndarray) -> None:
        with self._lock:
            self._pages[number] = page
            while len(self._pages) > _KEPT:
                self._pages.popitem(last=False)
            where = bisect.bisect_left(self._known, number)
            new = where == len(self._known) or self._known[where] != number
            if new and len(self._known) < _MOST_KNOWN:
                rises = not where or self._lasts[where - 1] <= page[0]
                if not rises or (where < len(self._known) and page[-1] > self._firsts[where]):
                    raise self._wrong(number * PAGE)
                self._known.insert(where, number)
                self._firsts.insert(where, int(page[0]))
                self._lasts.insert(where, int(page[-1]))

    def _checked(self, values: np.ndarray, first: int) -> np.ndarray:
        falls = np.flatnonzero(values[1:] < values[:-1])
        if falls.size:
            raise self._wrong(first + int(falls[0]) + 1)
        if values[0] < 0 or values[-1] > self.last:
            raise DataError(
                f"{self.name}: has {values[0] if values[0] < 0 else values[-1]}, outside"
                f" 0..{self.last}; copy it again"
            )
        return values

    def _wrong(self, where: int) -> DataError:
        return DataError(f"{self.name}: entry {where} is less than the one before; copy it again")


def pieces(ends: Ends, first: int) -> Iterator[np.ndarray]:
    """Yields the ends of documents from `first` on, a page at a time."""
    while first < ends.num:
        stop = min((first // PAGE + 1) * PAGE, ends.num)
        yield ends.read(first, stop)
        first = stop


def segments(ends: Ends, start: int, stop: int) -> np.ndarray:
    """Returns the segment ids of tokens [start, stop): (stop - start,) int32, from 0, no gaps.

    Documents without tokens are left out.
    """
    begins = np.zeros(stop - start, np.int32)
    for some in pieces(ends, ends.at(start)):
        inside = some[some < stop] - start
        begins[inside] = 1
        if some[-1] >= stop:
            break
    return np.cumsum(begins, dtype=np.int32)

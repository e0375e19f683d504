"""Standard output and error that a command can lose without losing its work.

`emo train 2>&1 | head`, a terminal that is gone or a full disk under a log: what is said on the way
(standard error) is dropped then, and the work goes on. What a command is for (standard output) ends
it, where nobody reads it any more; nothing is said of that, as of other commands in a pipe.
"""

import io
import os
import sys
from typing import TextIO

from emo_jax.errors import EmoError, OutputClosedError


class _Stream(io.FileIO):
    """A file descriptor that is written to until that fails.

    Args:
      needed: raise the first failure; otherwise it is as if all was written.
    """

    def __init__(self, fd: int, *, needed: bool):
        super().__init__(fd, "wb", closefd=False)
        self._needed, self._lost = needed, False

    def write(self, content) -> int:
        size = memoryview(content).nbytes
        if self._lost:
            return size
        try:
            return super().write(content) or 0
        except OSError as error:
            self._lost = True
            if not self._needed:
                return size
            if isinstance(error, BrokenPipeError):
                raise OutputClosedError("standard output was closed") from error
            raise EmoError(f"standard output: {error.strerror}; nothing more is shown") from error


def protect() -> None:
    """Takes over standard output and error of this process, also where they were closed.

    Those that a caller in Python has put in their place stay as they are.
    """
    for fd in (0, 1, 2):  # a file must not be opened under the number of a stream
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(sys.stdout, 1, needed=True)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(sys.stderr, 2, needed=False)


def _text(before: TextIO | None, fd: int, *, needed: bool) -> io.TextIOWrapper:
    """Text of a descriptor; a character that its encoding lacks is escaped, not an error."""
    if before is not None:
        before.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Stream(fd, needed=needed)),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=not needed or os.isatty(fd),
    )

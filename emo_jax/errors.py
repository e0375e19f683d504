"""Errors a user can act on, each with the process exit code that it means.

Exit codes (also for schedulers): 0 finished, 1 failed, 2 bad usage, 75 state saved: run again.
Also 130, interrupted with nothing to save, and 141, nobody reads the output.
A message is one line: what is wrong, where, and what to do about it.
"""

import re
from collections.abc import Iterable

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_RUN_AGAIN = 75
EXIT_CLOSED = 141  # as shells show a program that SIGPIPE ended


class EmoError(Exception):
    """Something failed that the user can mend; shown without a traceback."""

    exit_code = EXIT_FAILED


class UsageError(EmoError):
    """The command line or the config is wrong; nothing was started."""

    exit_code = EXIT_USAGE


class ConfigError(UsageError):
    """A config field has an unknown name or a value that is not allowed."""


class DataError(EmoError):
    """Documents, a tokenizer or a token store cannot be used as they are."""


class CheckpointError(EmoError):
    """A checkpoint is damaged, missing, or belongs to another run."""


class HfFormatError(EmoError):
    """A Hugging Face folder is of another architecture or is incomplete."""


class PreemptedError(EmoError):
    """The run was asked to stop, saved its state, and wants to be started again."""

    exit_code = EXIT_RUN_AGAIN


class OutputClosedError(EmoError):
    """Whoever read standard output is gone; there is nobody to tell."""

    exit_code = EXIT_CLOSED


BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # control characters, ends of lines
_MOST_SHOWN = 2000  # characters


def escaped(text: str) -> str:
    """As one line that changes nothing in a terminal; of a long one the middle is left out.

    Names of files, and what files say, may hold line breaks and control characters.
    """
    text = BREAKS.sub(lambda found: repr(found[0])[1:-1], text)
    half = _MOST_SHOWN // 2
    return text if len(text) <= _MOST_SHOWN else f"{text[:half]} … {text[-half:]}"


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first of some names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - most:,} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def clipped(text: str, most: int = 120) -> str:
    """What somebody wrote, as part of a message: printable, of a long one the start."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:most])
    return shown if len(shown) <= most and len(text) <= most else shown[: most - 1] + "…"


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception as one short line; of a long one the end is kept, where the cause stands.

    What tensorstore adds to the cause (`[tensorstore_spec='…']`) is left out.
    """
    text = " ".join(re.sub(r"\s*\[[\w ]+='.*?'\]", "", str(error), flags=re.DOTALL).split())
    text = text or type(error).__name__
    return text if len(text) <= limit else "…" + text[-limit:]

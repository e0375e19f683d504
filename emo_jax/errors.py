"""Errors a user can act on, each with its process exit code.

Exit codes (also for schedulers): 0 finished, 1 failed, 2 bad usage, 75 state saved, run again.
Also 130 (interrupted with nothing to save) and 141 (the reader of the output has gone away).
A message is one line: what is wrong, where, and what to do about it. No message holds a secret of a
URL or of the environment, see `without_secrets`.
"""

import os
import re
from collections.abc import Iterable

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_RUN_AGAIN = 75
EXIT_CLOSED = 141  # what shells report for a program killed by SIGPIPE


_HIDDEN = "…"
# What stands between `://` and the host: NAME:PASSWORD@, whatever the password is made of (people
# type keys with a slash in them); with https, where it may be a token, NAME@ too. Paths lose one
# of the slashes.
_USER = re.compile(
    r"(\b[a-z][a-z0-9+.-]*:/{1,2})(?:[^\s/?#@:\[]*:(?!\d+(?:[/?#]|\s|$))\S*@"
    r"|(?:(?<=http:/)|(?<=https:/)|(?<=http://)|(?<=https://))[^\s/?#@]+@)",
    re.IGNORECASE,
)
# Values of a query that sign or unlock: X-Amz-Signature and its like, Azure's sig, token, api_key.
_QUERY = re.compile(
    r"([?&;#](?:[\w.-]*(?:signature|token|secret|passw|credential|api-?_?key|access-?_?key)[\w.-]*"
    r"|sig|sign|key|auth|pwd|pass|code|session|Key-Pair-Id|Policy)=)[^\s&;#'\"]+",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|SECRET_KEY|PRIVATE_KEY)$", re.IGNORECASE
)
_SHORTEST_SECRET = 8  # characters of a variable's value that is looked for


def without_secrets(text: str) -> str:
    """Text to show, with `…` for passwords, keys and signatures in its URLs.

    Likewise for the values of environment variables whose names end as those of secrets do
    (HF_TOKEN, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY), which libraries quote.
    """
    if ":/" in text:
        text = _QUERY.sub(rf"\1{_HIDDEN}", _USER.sub(rf"\1{_HIDDEN}@", text))
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and value in text and _SECRET_VARIABLE.search(name):
            text = text.replace(value, _HIDDEN)
    return text


def has_secret(location: str) -> bool:
    """Returns whether a URL, or text with URLs in it, holds a password, key or signature."""
    return "://" in location and bool(_USER.search(location) or _QUERY.search(location))


class EmoError(Exception):
    """A failure the user can fix; shown without a traceback, and without secrets."""

    exit_code = EXIT_FAILED

    def __init__(self, *args: object):
        super().__init__(*(without_secrets(a) if isinstance(a, str) else a for a in args))


class UsageError(EmoError):
    """The command line or the config is wrong; nothing was started."""

    exit_code = EXIT_USAGE


class ConfigError(UsageError):
    """A config field has an unknown name or a value that is not allowed."""


class DataError(EmoError):
    """Documents, a tokenizer or a token store cannot be used as they are."""


class CheckpointError(EmoError):
    """A checkpoint is damaged, missing, or belongs to another run."""


class TakenOverError(CheckpointError):
    """Another run has taken over the workdir; this one must not write there any more."""


class HfFormatError(EmoError):
    """A Hugging Face folder is incomplete or has an unsupported architecture."""


class PreemptedError(EmoError):
    """The run was asked to stop, saved its state, and should be started again."""

    exit_code = EXIT_RUN_AGAIN


class NotFiniteError(EmoError):
    """The loss or the gradient norm is not finite; the state before the step is saved."""


class OutputClosedError(EmoError):
    """The reader of standard output has gone away, so nothing can be reported."""

    exit_code = EXIT_CLOSED


BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # control characters and line breaks
_MOST_SHOWN = 2000  # characters


def escaped(text: str) -> str:
    """Text as one line that is safe to print in a terminal; the middle of long text is cut.

    File names and file contents may include line breaks and control characters.
    """
    text = BREAKS.sub(lambda found: repr(found[0])[1:-1], without_secrets(text))
    half = _MOST_SHOWN // 2
    return text if len(text) <= _MOST_SHOWN else f"{text[:half]} … {text[-half:]}"


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - most:,} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def clipped(text: str, most: int = 120) -> str:
    """User-supplied text made printable for use in a message; long text is truncated."""
    text = without_secrets(text)
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:most])
    return shown if len(shown) <= most and len(text) <= most else shown[: most - 1] + "…"


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception as one short line; if long, only the end is kept, where the cause is.

    What tensorstore appends to the cause (`[tensorstore_spec='…']`) is removed.
    """
    text = " ".join(re.sub(r"\s*\[[\w -]+='.*?'\]", "", str(error), flags=re.DOTALL).split())
    text = without_secrets(text) or type(error).__name__
    return text if len(text) <= limit else "…" + text[-limit:]

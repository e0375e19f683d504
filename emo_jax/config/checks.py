"""Helpers for checks of config values and their messages."""

import difflib
from typing import Any

from emo_jax.errors import ConfigError, has_secret


def require(ok: bool, name: str, value: Any, allowed: str) -> None:
    """Raises ConfigError with the field, its value and what is allowed unless `ok`."""
    if not ok:
        raise ConfigError(f"config.{name} = {value!r}: must be {allowed}")


def refuse_secret(name: str, value: Any) -> None:
    """Raises ConfigError for a URL with a password, key or signature, without showing it.

    The config goes to the workdir, to trackers and to the page of a report.
    """
    if has_secret(str(value)):
        raise ConfigError(
            f"config.{name}: must not hold a user and password, or keys, or a signature; the"
            " environment does (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the like)"
        )


def nearest(name: str, known: list[str], path: str = "") -> str:
    """Returns `; did you mean X?` for the closest known name, with `path` before X; or nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {path + close[0]!r}?" if close else ""

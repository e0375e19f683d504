"""Code that the user names: `seqio:MODULE:NAME`, a task or a vocabulary of a module of theirs."""

import difflib
import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

from emo_jax.errors import UsageError

PREFIX = "seqio:"


def short(error: BaseException) -> str:
    """Formats an exception as one short line; seqio's messages list every known task."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def nearest(name: str, known: Sequence[str]) -> str:
    """Returns a suggestion to append to an error about an unknown name."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def split(spec: str, what: str, example: str) -> tuple[str, str]:
    """Splits `seqio:MODULE:REST` into (module, the rest).

    Raises:
      UsageError: `spec` is malformed, or seqio is not installed.
    """
    module, _, rest = spec.removeprefix(PREFIX).partition(":")
    if not module or not rest:
        raise UsageError(f"{spec}: must be {PREFIX}MODULE:{what}, e.g. {PREFIX}{example}")
    if importlib.util.find_spec("seqio") is None:
        raise UsageError(f"{spec}: seqio is not installed; pip install 'emo-jax[prepare]'")
    return module, rest


def import_module(name: str, spec: str) -> Any:
    """Imports one of the user's modules.

    Raises:
      UsageError: it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:  # the user's code may raise anything
        raise UsageError(
            f"{spec}: module {name!r} cannot be imported ({short(error)}); mend it, or put its"
            " folder on PYTHONPATH"
        ) from error

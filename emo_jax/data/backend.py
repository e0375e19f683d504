"""The library `tokenizers`, with every failure of it as an error of ours.

It is written in Rust, and panics where a file makes no sense to it: in loading, and in encoding or
decoding too. A panic is a BaseException, so that `except Exception` lets it through, and what it
prints goes to standard error by itself.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from emo_jax.errors import DataError, one_line

_LARGEST_ID = 2**31 - 1


@contextlib.contextmanager
def failing_as(what: str, advice: str) -> Iterator[None]:
    """Whatever the library raises inside becomes a DataError: `WHAT (the reason); ADVICE`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as reason:  # bare Exceptions, and pyo3_runtime.PanicException
        raise DataError(f"{what} ({one_line(reason, 200)}); {advice}") from reason


def load(content: str, where: str) -> Tokenizer:
    """The text of a tokenizer.json as the library's tokenizer.

    Raises:
      DataError: it is none.
    """
    with failing_as(f"{where}: not a tokenizer.json", "save it again"), silent_panics():
        _check_prefix(json.loads(content))
        found = Tokenizer.from_str(content)
        largest = max(found.get_vocab(with_added_tokens=True).values(), default=-1)
        if not 0 <= largest < _LARGEST_ID:
            raise ValueError("no tokens" if largest < 0 else f"a token has the id {largest}")
        return found


def _check_prefix(value: Any) -> None:
    """Raises ValueError where the library would take a prefix off a token that is shorter.

    It cuts bytes, whatever characters they are of, and ends the process where none come of it.
    """
    model = value.get("model") if isinstance(value, dict) else None
    prefix = model.get("continuing_subword_prefix") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(prefix, str) or not prefix:
        return
    for merge in model.get("merges") or ():
        second = merge.split(" ")[-1] if isinstance(merge, str) else merge[-1]
        second.encode()[len(prefix.encode()) :].decode()
        if len(second.encode()) < len(prefix.encode()):
            raise ValueError(f"the merge {merge!r} does not go on with {prefix!r}")


@contextlib.contextmanager
def silent_panics() -> Iterator[None]:
    """Nothing on standard error meanwhile: what a panic says is in its exception too."""
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

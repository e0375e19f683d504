"""The `tokenizers` library, with all its failures turned into our errors.

The library is written in Rust and panics on files that make no sense to it, while loading and also
while encoding or decoding. A panic is a BaseException, so `except Exception` does not catch it, and
it prints its message to standard error by itself.
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
    """Turns whatever the library raises inside into a DataError: `WHAT (the reason); ADVICE`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as reason:  # plain Exceptions, and pyo3_runtime.PanicException
        raise DataError(f"{what} ({one_line(reason, 200)}); {advice}") from reason


def load(content: str, where: str) -> Tokenizer:
    """Loads the text of a tokenizer.json as the library's tokenizer.

    Raises:
      DataError: it is not a tokenizer.json.
    """
    with failing_as(f"{where}: not a tokenizer.json", "save it again"), silent_panics():
        _check_prefix(json.loads(content))
        found = Tokenizer.from_str(content)
        largest = max(found.get_vocab(with_added_tokens=True).values(), default=-1)
        if not 0 <= largest < _LARGEST_ID:
            raise ValueError("no tokens" if largest < 0 else f"a token has the id {largest}")
        return found


def _check_prefix(value: Any) -> None:
    """Raises ValueError if the library would strip a prefix from a token that is shorter.

    The library cuts bytes regardless of character boundaries, and aborts the process if what
    remains is not text.
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
    """Silences standard error inside: a panic's message is in its exception too."""
    try:
        kept = os.dup(2)
    except OSError:  # standard error is closed
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

"""Mix files of Dolma and OLMo: which token files a corpus is made of, one to a line.

    # comment
    dclm,preprocessed/dclm/{TOKENIZER}/part-00-00000.npy
    code,s3://bucket/preprocessed/starcoder/{TOKENIZER}/part-0-00000.npy

The label of a line is the domain of its file. Paths are below a base folder or URL, unless they
are absolute. Files keep the order of the lines, by which the reference numbers its windows.
"""

import os
from pathlib import Path
from typing import NamedTuple

from emo_jax.data.raw import RawTokens
from emo_jax.data.stream import TokenSource
from emo_jax.data.token_files import Vocabulary, file_patience
from emo_jax.errors import DataError, UsageError, clipped
from emo_jax.files.ranges import read_all
from emo_jax.files.remote import is_remote

SUFFIX = ".txt"
PLACEHOLDER = "{TOKENIZER}"
_MOST_BYTES = 1 << 26
_MOST_FILES = 1 << 20


class Part(NamedTuple):
    """A line: the domain and where the file is."""

    label: str
    path: str


def read_mix(location: str, *, base: str = "", tokenizer: str = "") -> list[Part]:
    """Reads a mix file.

    Args:
      location: path or URL.
      base: folder or URL that paths are below; "": the folder of the mix file.
      tokenizer: stands for `{TOKENIZER}`.

    Raises:
      UsageError: there is no such file, or `{TOKENIZER}` stands for nothing.
      DataError: it names no file, a file twice, or has a line that is not `label,path`.
    """
    content = read_all(location, _MOST_BYTES, file_patience())
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{location}: not a mix file (not UTF-8); {_form()}") from None
    base = base or location.rpartition("/")[0] or ("/" if location.startswith("/") else ".")
    found: dict[str, Part] = {}
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{location}, line {number}"
        label, comma, path = (part.strip() for part in line.partition(","))
        if not comma or not label or not path or "\0" in path:
            raise DataError(f"{where}: {clipped(line)!r} is no line of a mix file; {_form()}")
        if PLACEHOLDER in path and not tokenizer:
            raise UsageError(
                f"{where}: names {PLACEHOLDER}; set data.raw_tokenizer, such as"
                " allenai/dolma2-tokenizer"
            )
        path = _below(base, path.replace(PLACEHOLDER, tokenizer))
        if path in found:
            raise DataError(f"{where}: {clipped(path)} is in an earlier line too; name it once")
        if len(found) == _MOST_FILES:
            raise DataError(f"{location}: names more than {_MOST_FILES} files; split it")
        found[path] = Part(label, path)
    if not found:
        raise DataError(f"{location}: names no file; {_form()}")
    return list(found.values())


def open_mix(
    location: str,
    vocabulary: Vocabulary,
    *,
    base: str = "",
    tokenizer: str = "",
    floor_to: int = 1,
    cache: Path | None = None,
) -> TokenSource:
    """Opens the files of a mix file; arguments as of `read_mix` and `RawTokens`.

    Raises:
      UsageError: a file is not there.
      DataError: see `read_mix` and `RawTokens`.
    """
    parts = read_mix(location, base=base, tokenizer=tokenizer)
    try:
        return RawTokens(
            [part.path for part in parts],
            vocab_size=vocabulary.size,
            eos_id=vocabulary.eos_id,
            pad_id=vocabulary.pad_id,
            dtype=vocabulary.dtype,
            labels=[part.label for part in parts],
            floor_to=floor_to,
            patterns=False,
            cache=cache,
        )
    except UsageError as error:
        raise UsageError(
            f"{location}: {error}; data.raw_base is what its paths are below"
        ) from None


def _below(base: str, path: str) -> str:
    if is_remote(path) or path.startswith(("/", "file://")):
        return path
    return f"{base.rstrip('/')}/{path}" if is_remote(base) else os.path.join(base, path)


def _form() -> str:
    return "give lines such as dclm,dclm/part-00.npy"

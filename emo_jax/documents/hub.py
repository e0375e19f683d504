"""Documents of data sets of the Hugging Face hub, streamed by the library `datasets`.

An input is `hf://NAME`, `hf://NAME/CONFIG` or either with `:SPLIT`, where NAME is `ORG/DATASET`, or
a folder that the library can load: `hf:///data/mine`. Only data is read, never a script: the
library has none since version 4.
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emo_jax.errors import DataError, UsageError
from emo_jax.files.named_code import short

PREFIX = "hf://"
_DEFAULT_SPLIT = "train"


@dataclass(frozen=True)
class HubDataset:
    """A split of a data set.

    Attributes:
      spec: as given.
      name: ORG/DATASET, or a folder.
      config: None if there is only one.
      split: the split to read.
      fields: names of the columns to read; None if they are not known before reading.
    """

    spec: str
    name: str
    config: str | None
    split: str
    fields: tuple[str, ...] | None

    @property
    def label(self) -> str:
        """The name in ids and domains; moving a folder does not change it."""
        name = Path(self.name).name if self.name.startswith("/") else self.name
        return name if self.config is None else f"{name}/{self.config}"


def parse(spec: str) -> tuple[str, str | None, str]:
    """Splits an input into (name, config, split).

    Raises:
      UsageError: it is malformed.
    """
    whole, _, split = spec.removeprefix(PREFIX).partition(":")
    whole = whole if whole == "/" else whole.rstrip("/")
    if whole.startswith("/"):
        folder, _, config = whole.rpartition("/")
        if not os.path.isdir(whole) and os.path.isdir(folder):
            return folder, config, split or _DEFAULT_SPLIT
        return whole, None, split or _DEFAULT_SPLIT
    parts = whole.split("/")
    if not all(parts) or len(parts) > 3 or spec.endswith(":"):
        raise UsageError(
            f"{spec}: must be {PREFIX}ORG/DATASET, {PREFIX}ORG/DATASET/CONFIG or a folder, each"
            " also with :SPLIT"
        )
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or _DEFAULT_SPLIT


def find(spec: str, wanted: list[str], text_field: str) -> HubDataset:
    """Looks up a data set.

    Args:
      wanted: names of fields; what does not exist is not read.

    Raises:
      UsageError: `spec` is malformed, or `datasets` is not installed.
      DataError: no such data set, config, split or text.
    """
    name, config, split = parse(spec)
    if importlib.util.find_spec("datasets") is None:
        raise UsageError(f"{spec}: datasets is not installed; pip install 'emo-jax[datasets]'")
    if name.startswith("/") and not os.path.isdir(name):
        raise UsageError(f"{spec}: no such folder")
    with _errors(spec):
        columns = _load(name, config, split).column_names
    fields = None
    if columns is not None:
        heads = {n if n in columns else n.partition(".")[0] for n in (*wanted, text_field)}
        fields = tuple(column for column in columns if column in heads)
        if not {text_field, text_field.partition(".")[0]} & set(fields):
            there = ", ".join(columns) or "none"
            raise DataError(
                f"{spec}: no column {text_field!r}; it has {there}: name one with --text-field"
            )
    return HubDataset(spec, name, config, split, fields)


def read(found: HubDataset) -> Iterator[tuple[Any, str, str]]:
    """Yields (record, id, domain) of every row, in the order of the data set.

    Raises:
      DataError: it cannot be read.
    """
    mark = "" if found.split == _DEFAULT_SPLIT else f"{found.split}:"
    with _errors(found.spec):
        rows = _load(found.name, found.config, found.split)
        if found.fields is not None:  # images are not decoded
            rows = rows.select_columns(list(found.fields))
        rows = iter(rows)
    number = 0
    while True:
        with _errors(found.spec):
            row = next(rows, None)
        if row is None:
            return
        yield row, f"{found.label}:{mark}{number}", found.label
        number += 1


def _load(name: str, config: str | None, split: str) -> Any:
    import datasets

    return datasets.load_dataset(name, config, split=split, streaming=True)


@contextlib.contextmanager
def _errors(spec: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of the library and of those below it
        raise DataError(
            f"{spec}: cannot be read ({short(error)}); check its name, config and split, the"
            " network, and hf auth login"
        ) from error

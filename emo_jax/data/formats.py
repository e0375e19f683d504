"""Which format `data.store` names, if it is not one of ours, and how it is opened."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from emo_jax.config import DataConfig
from emo_jax.data import array_records, mds, megatron, raw, token_mix
from emo_jax.data.order import OLMO_UNIT_TOKENS
from emo_jax.data.stream import TokenSource
from emo_jax.data.token_files import Vocabulary


class Asked(NamedTuple):
    """What is opened: the names and patterns between commas, the config, the cache."""

    names: list[str]
    config: DataConfig
    vocabulary: Vocabulary
    cache: Path | None

    @property
    def floor_to(self) -> int:
        """What the length of a headerless file is cut to a multiple of."""
        return OLMO_UNIT_TOKENS if self.config.order == "olmo" else 1


def _raw(asked: Asked) -> TokenSource:
    vocabulary = asked.vocabulary
    return raw.RawTokens(
        asked.names,
        vocab_size=vocabulary.size,
        eos_id=vocabulary.eos_id,
        pad_id=vocabulary.pad_id,
        dtype=vocabulary.dtype,
        floor_to=asked.floor_to,
        cache=asked.cache,
    )


def _megatron(asked: Asked) -> TokenSource:
    return megatron.open_megatron(asked.names, asked.vocabulary)


def _mds(asked: Asked) -> TokenSource:
    column = asked.config.raw_column
    return mds.open_mds(asked.names, column, asked.vocabulary, cache=asked.cache)


def _array_records(asked: Asked) -> TokenSource:
    column = asked.config.raw_column
    return array_records.open_array_records(
        asked.names, column, asked.vocabulary, cache=asked.cache
    )


def _mix(asked: Asked) -> TokenSource:
    config = asked.config
    return token_mix.open_mix(
        ",".join(asked.names),
        asked.vocabulary,
        base=config.raw_base,
        tokenizer=config.raw_tokenizer,
        floor_to=asked.floor_to,
        cache=asked.cache,
    )


class _Format(NamedTuple):
    fits: Callable[[str], bool]  # the last of the names
    open: Callable[[Asked], TokenSource]


FORMATS: tuple[_Format, ...] = (
    _Format(lambda name: name.lower().endswith(raw.SUFFIXES), _raw),
    _Format(lambda name: name.lower().endswith(token_mix.SUFFIX), _mix),
    _Format(megatron.is_megatron, _megatron),
    _Format(array_records.is_array_record, _array_records),
    _Format(mds.is_mds, _mds),
)


def open_tokens(
    location: str | os.PathLike[str], config: DataConfig, *, cache: Path | None = None
) -> TokenSource | None:
    """Opens token files of another tool.

    Args:
      location: see `data.store`; several names and patterns are separated by commas.
      config: its `raw_…` fields describe what the files do not.
      cache: folder that keeps where documents end, if this has to be looked for; None: a temporary
        one.

    Returns:
      Their source; None if this is no format of another tool, as a token store.

    Raises:
      UsageError, DataError: it is one, and cannot be opened.
    """
    names = os.fspath(location).split(",")
    for form in FORMATS:
        if form.fits(names[-1]):
            return form.open(Asked(names, config, Vocabulary.of_config(config), cache))
    return None

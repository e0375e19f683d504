"""Builds the frozen dataclasses from a `ConfigDict` or the JSON of a config.

An error about a wrong field gives its name, its value, what is allowed and the nearest known name.
"""

import dataclasses
import math
import numbers
import os
import typing
from collections.abc import Mapping
from typing import Any, Literal

from emo_jax.config.checks import nearest
from emo_jax.config.fields import Config, section_of
from emo_jax.config.retired import of_today
from emo_jax.errors import ConfigError, clipped
from emo_jax.files.json_files import is_text


def _shown(value: Any) -> str:
    """`repr` of a value on one line, truncated if long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:79] + "…"


def _is_text(value: Any) -> bool:
    """Whether it is a string of whole characters without NULs, which can be written to files."""
    return isinstance(value, str) and "\0" not in value and is_text(value)


def _whole(value: Any) -> Any:
    """Any integer, NumPy's included, as an int; anything else unchanged."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return int(value) if is_whole else value


def _leaf(value: Any, kind: Any, path: str) -> Any:
    def wrong(what: str) -> ConfigError:
        return ConfigError(f"config.{path} = {_shown(value)}: must be {what}")

    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if not isinstance(value, str) or value not in choices:
            raise wrong(f"one of {list(choices)}{nearest(str(value), list(choices))}")
        return value
    if kind == tuple[str, ...]:
        # A list in JSON; `a,b` on the command line arrives as ("a,b",).
        if not isinstance(value, list | tuple) or not all(_is_text(x) for x in value):
            raise wrong("names, like ('a', 'b')")
        return tuple(name for text in ",".join(value).split(",") if (name := text.strip()))
    if kind == tuple[int, ...]:
        found = value
        # `16,8` or `(16,8)` on the command line arrives as one string.
        if isinstance(value, list | tuple) and value and all(isinstance(x, str) for x in value):
            text = ",".join(value).strip()
            brackets = len(text) > 1 and text[0] + text[-1] in ("()", "[]")
            text = text[1:-1] if brackets else text
            texts = [x.strip() for x in text.split(",") if x.strip()]
            found = [int(x) if x.isdecimal() and len(x) < 10 else x for x in texts]
        if isinstance(found, list | tuple):
            found = tuple(_whole(x) for x in found)
        if not isinstance(found, tuple) or any(type(x) is not int for x in found):
            raise wrong("whole numbers, like (16, 8)")
        return found
    value = _whole(value)
    if kind is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            raise wrong("finite") from None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise wrong(f"{kind.__name__}, not {type(value).__name__}")
    if kind is int and not path.endswith("seed") and abs(value) >= 2**31:
        raise wrong("below 2**31")
    if kind is str and not _is_text(value):
        raise wrong("text without NULs and halves of surrogate pairs")
    if kind is float and not math.isfinite(value):
        raise wrong("finite")
    return value


def _build(cls: type, values: Mapping[str, Any], path: str) -> Any:
    hints = typing.get_type_hints(cls)
    dot = f"{path}." if path else ""
    for name in values:
        if name not in hints:
            raise ConfigError(
                f"config.{dot}{clipped(str(name))} = {_shown(values[name])}: no such field"
                f"{nearest(str(name), list(hints))}"
                f" (allowed: {', '.join(hints)})"
            )
    made: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        if f.name not in values:
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise ConfigError(f"config.{dot}{f.name}: missing, and it has no default")
            continue
        value, kind = values[f.name], hints[f.name]
        section = section_of(kind)
        if section is not None and typing.get_origin(kind) is tuple:
            made[f.name] = _entries(section, value, dot + f.name)
        elif section is None:
            made[f.name] = _leaf(value, kind, dot + f.name)
        elif value is None and type(None) in typing.get_args(kind):
            made[f.name] = None
        elif isinstance(value, Mapping):
            made[f.name] = _build(section, value, dot + f.name)
        else:
            raise ConfigError(
                f"config.{dot}{f.name} = {_shown(value)}: must be a section of fields"
            )
    return cls(**made)


def _entries(section: type, value: Any, path: str) -> tuple[Any, ...]:
    """Builds a tuple of sections from a list of mappings, or of texts `STORE=WEIGHT[@STEP]`."""
    if not isinstance(value, list | tuple):
        raise ConfigError(f"config.{path} = {_shown(value)}: must be a list of entries")
    made = []
    for entry in value:
        if isinstance(entry, str):
            made += [_build(section, _entry(text, path), path) for text in _items(entry)]
        elif isinstance(entry, Mapping):
            made.append(_build(section, entry, path))
        elif isinstance(entry, section):
            made.append(entry)
        else:
            raise ConfigError(f"config.{path} = {_shown(entry)}: must be fields with their values")
    return tuple(made)


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _entry(text: str, path: str) -> dict[str, Any]:
    """Reads `STORE=WEIGHT` or `STORE=WEIGHT@STEP`, as typed on the command line."""
    store, _, rest = text.rpartition("=")
    store, (weight, _, step) = store.strip(), rest.partition("@")
    home = store == "~" or store.startswith("~/")  # a shell expands only the first of a list
    try:
        found: dict[str, Any] = {"weight": float(weight)}
        found["store"] = os.path.expanduser(store) if home else store
        return found | ({"from_step": int(step)} if step else {})
    except ValueError:
        raise ConfigError(
            f"config.{path} = {_shown(text)}: must be STORE=WEIGHT or STORE=WEIGHT@STEP"
        ) from None


def from_config_dict(config: Mapping[str, Any]) -> Config:
    """A `ConfigDict` (or the mapping `to_dict` returns) as a checked `Config`.

    Raises:
      ConfigError: names the field, its value, what is allowed and the nearest known name.
    """
    values = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(values, Mapping):
        raise ConfigError(f"config = {_shown(values)}: must be a section of fields")
    return _build(Config, of_today(values), "")

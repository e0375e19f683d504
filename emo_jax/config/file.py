"""Reads experiment files and `--config.section.field=value` overrides by ml_collections' flags."""

import contextlib
import copy
import io
import os
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from emo_jax.config import Config, experiment, from_config_dict
from emo_jax.config.checks import nearest
from emo_jax.errors import ConfigError, UsageError, clipped

_MAX_DEPTH = 8  # of nested sections; a config has two


def load_config(file: str, overrides: Sequence[str] = ()) -> Config:
    """Loads and checks the config of `file.py[:arg]` with overrides.

    Args:
      file: path of a Python file with `get_config(arg="")`, and its argument after a colon.
      overrides: `--config.section.field=value`, as typed.

    Raises:
      ConfigError: names the field, its value, what is allowed and the nearest known name, or says
        what is wrong with the file.
      UsageError: no such file, or an option that is not an override.
    """
    defaults = experiment.load(file)
    leaves = _leaves(defaults)
    path, _ = experiment.find(file)
    overrides = [_at_home(override) for override in overrides]
    for i, override in enumerate(overrides):
        name = _name(override)
        if name not in leaves:
            raise ConfigError(f"{clipped(override)}: {_unknown(name, defaults, path.name)}")
        text = override.partition("=")[2].strip()
        if isinstance(leaves[name], list | tuple) and text.startswith("{"):
            raise ConfigError(f"{clipped(override)}: must be values with commas between, or ()")
        if isinstance(leaves[name], list | tuple) and "=" in text:  # STORE=WEIGHT,…: a text
            overrides[i] = override = f"--config.{name}=({text!r},)"
        _override(defaults, [override], leaves)  # one by one, so the message names the wrong one
    return from_config_dict(_override(defaults, overrides, leaves))


def _at_home(override: str) -> str:
    """Expands a leading `~` in the value, which shells do not expand inside a word."""
    name, equals, value = override.partition("=")
    home = value == "~" or value.startswith("~/")
    return f"{name}={os.path.expanduser(value)}" if equals and home else override


def _unknown(name: str, defaults: ConfigDict, file: str) -> str:
    """Message for an unknown name: the fault, what is allowed, and the nearest known name."""
    *parents, field = name.split(".")
    section, path = defaults, ""
    for parent in parents:
        inner = section.get(parent)
        if not isinstance(inner, ConfigDict):
            return _no_section(parent, section, path, file)
        section, path = inner, f"{path}{parent}."
    if field not in section:
        leaves = list(_leaves(defaults))
        namesakes = [leaf for leaf in leaves if leaf.rpartition(".")[2] == field]  # elsewhere
        near = nearest(name, namesakes) or nearest(field, list(section), path)
        near = near or nearest(name, leaves)
        where = path.rstrip(".") or "config"
        return f"no such field of {file}{near} (allowed in {where}: {', '.join(section)})"
    if section[field] is None:
        return _no_section(field, section, path, file)
    inside = ", ".join(section[field])
    return f"{name} is a section of {file}; set its fields (allowed in {name}: {inside})"


def _no_section(name: str, parent: ConfigDict, path: str, file: str) -> str:
    sections = [key for key, value in parent.items() if isinstance(value, ConfigDict)]
    # A section that this file omits (moe, in a dense model) is not a misspelling.
    near = "" if name in parent else nearest(name, sections, path)
    allowed = ", ".join(path + key for key in sections) or "none"
    return f"there is no section {path + clipped(name)} in {file}{near} (sections: {allowed})"


def _name(override: str) -> str:
    if not override.startswith("--config."):
        raise UsageError(
            f"{clipped(override)}: no such option; overrides look like --config.model.num_layers=8"
        )
    name, equals, _ = override.removeprefix("--config.").partition("=")
    if not equals:
        shown = clipped(override)
        raise UsageError(f"{shown}: no value; write {shown}=VALUE")
    return name


def _override(defaults: ConfigDict, overrides: Sequence[str], leaves: dict[str, Any]) -> ConfigDict:
    values = flags.FlagValues()
    argv = ["emo", *overrides]
    config = _copy(defaults)
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            values(argv)
    except Exception as error:
        name = _name(overrides[0])
        kind, like = _type(defaults, name), leaves[name]
        shown = "" if like is None else f", like {like!r}"
        raise ConfigError(f"{clipped(overrides[0])}: must be {kind.__name__}{shown}") from error
    return values.config


def _copy(config: ConfigDict) -> ConfigDict:
    """A copy with its own references; if a value cannot be copied, the error names the first."""
    try:
        return copy.deepcopy(config)
    except Exception:
        from_config_dict(config)
        raise


def _leaves(config: ConfigDict, path: str = "") -> dict[str, Any]:
    """Every field that has a value, or accepts one of a known type, by its dotted name.

    An omitted section is None, and None has no other meaning in any field.
    """
    out: dict[str, Any] = {}
    if path.count(".") > _MAX_DEPTH:
        top = path.partition(".")[0]
        raise ConfigError(f"config.{top}: its sections lie too deep, or hold themselves")
    try:
        keys = list(config)  # sorted
    except TypeError:  # keys of several types
        keys = [None]
    if not all(isinstance(key, str) for key in keys):
        where = f"config.{path}".rstrip(".")
        raise ConfigError(f"{where}: the name of every field must be a text")
    for key in keys:
        try:
            value = config[key]
        except config_dict.RequiredValueError:
            raise ConfigError(
                f"config.{path}{clipped(key)}: is a required_placeholder, which takes no value from"
                " the command line; use ml_collections' placeholder"
            ) from None
        if isinstance(value, ConfigDict):
            out |= _leaves(value, f"{path}{key}.")
        elif value is not None or config.get_type(key) is not type(None):
            out[path + key] = value
    return out


def _type(config: ConfigDict, name: str) -> type:
    *parents, field = name.split(".")
    for parent in parents:
        config = config[parent]
    return config.get_type(field)

"""Experiment files and `--config.section.field=value` overrides, read by ml_collections' flags."""

import contextlib
import difflib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from emo_jax import config as config_lib
from emo_jax.config import Config
from emo_jax.errors import ConfigError, EmoError, UsageError


def load_config(file: str, overrides: Sequence[str] = ()) -> Config:
    """The checked config of `file.py[:arg]` with overrides.

    Args:
      file: path of a Python file with `get_config(arg="")`, and its argument after a colon.
      overrides: `--config.section.field=value`, as typed.

    Raises:
      ConfigError: naming the field, its value, what is allowed and the nearest known name.
      UsageError: no such file, or an option that is not an override.
    """
    path = Path(file.partition(":")[0])
    if not path.is_file():
        raise UsageError(
            f"--config {file}: no such file; give an experiment file, such as one of "
            "experiments/*.py"
        )
    defaults = _parse(file, [])
    # A section that is left out is None, and no field has another meaning of None.
    known = {name for name, value in _leaves(defaults).items() if value is not None}
    for override in overrides:
        name = _name(override)
        if name not in known:
            raise ConfigError(f"{override}: {_unknown(name, defaults, path.name)}")
        _parse(file, [override])  # one by one, so that the message names the one that is wrong
    return config_lib.from_config_dict(_parse(file, overrides))


def _unknown(name: str, defaults: ConfigDict, file: str) -> str:
    """What is wrong with a name that is no field, what is allowed, and the nearest known name."""
    *parents, field = name.split(".")
    section, path = defaults, ""
    for parent in parents:
        inner = section.get(parent)
        if not isinstance(inner, ConfigDict):
            return _no_section(parent, section, path, file)
        section, path = inner, f"{path}{parent}."
    if field not in section:
        near = _near(field, list(section), path) or _near(name, list(_leaves(defaults)))
        where = path.rstrip(".") or "config"
        return f"no such field of {file}{near} (allowed in {where}: {', '.join(section)})"
    if section[field] is None:
        return _no_section(field, section, path, file)
    inside = ", ".join(section[field])
    return f"{name} is a section of {file}; set its fields (allowed in {name}: {inside})"


def _no_section(name: str, parent: ConfigDict, path: str, file: str) -> str:
    sections = [key for key, value in parent.items() if isinstance(value, ConfigDict)]
    # A section that this file leaves out (moe, in a dense model) is not a misspelling.
    near = "" if name in parent else _near(name, sections, path)
    allowed = ", ".join(path + key for key in sections) or "none"
    return f"there is no section {path + name} in {file}{near} (sections: {allowed})"


def _near(name: str, known: list[str], path: str = "") -> str:
    """`; did you mean X?` with `path` before X, or nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {path + close[0]!r}?" if close else ""


def _name(override: str) -> str:
    if not override.startswith("--config."):
        raise UsageError(
            f"{override}: no such option; overrides look like --config.model.num_layers=8"
        )
    name, equals, _ = override.removeprefix("--config.").partition("=")
    if not equals:
        raise UsageError(f"{override}: no value; write --config.{name}=VALUE")
    return name


def _parse(file: str, overrides: Sequence[str]) -> ConfigDict:
    sys.modules.pop("config_config", None)  # of a file before: its get_config would be this one's
    values = flags.FlagValues()
    argv = ["emo", f"--config={file}", *overrides]
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            values(argv)
        return values.config
    except EmoError:
        raise
    except Exception as error:  # the file is the user's and may raise anything
        if isinstance(error, AttributeError) and "'get_config'" in str(error):
            raise ConfigError(
                f"--config {file}: has no get_config(); give an experiment file, such as"
                " experiments/emo_tiny.py"
            ) from error
        if not overrides:
            raise ConfigError(f"--config {file}: {type(error).__name__}: {error}") from error
        defaults, name = _leaves(_parse(file, [])), _name(overrides[0])
        raise ConfigError(
            f"{overrides[0]}: must be {type(defaults[name]).__name__}, like {defaults[name]!r}"
        ) from error


def _leaves(config: ConfigDict, path: str = "") -> dict:
    out: dict = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            out |= _leaves(value, f"{path}{key}.")
        else:
            out[path + key] = value
    return out

"""Experiment files: finding them, running them like a script, and calling their `get_config()`.

The file is the user's and may do anything; a failure in it is reported in one line with its
location, before anything has been started.
"""

import contextlib
import importlib.util
import inspect
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from ml_collections import ConfigDict, FrozenConfigDict

from emo_jax.config import Config, to_dict
from emo_jax.errors import ConfigError, UsageError, one_line
from emo_jax.files.json_files import NotReadableError, read_regular

_ADVICE = "give an experiment file, such as one of experiments/*.py"
_MODULE = "emo_experiment"  # not the file's own name, which another module may have


def find(file: str) -> tuple[Path, list[str]]:
    """The path in `file.py[:arg]` and its argument, if any. Folder names may contain colons.

    Raises:
      UsageError: no such file.
    """
    parts = file.split(":")
    for count in range(1, len(parts) + 1):
        path = ":".join(parts[:count])
        if os.path.isfile(path):
            return Path(path), [":".join(parts[count:])] if count < len(parts) else []
    if any(os.path.isdir(path) for path in (file, parts[0]) if path):
        raise UsageError(f"--config {file}: is a folder; give an experiment file in it")
    raise UsageError(f"--config {file}: no such file; {_ADVICE}")


def load(file: str) -> ConfigDict:
    """The result of `get_config()` in `file.py[:arg]`, as a mutable ConfigDict.

    While the file runs, it can import modules in its own folder, as a script can.

    Raises:
      ConfigError: the file cannot be run, or returns no config; names the line in the file.
      UsageError: no such file.
    """
    path, arg = find(file)
    try:
        source = importlib.util.decode_source(read_regular(path))
        code = compile(source, str(path), "exec", dont_inherit=True)
    except (OSError, NotReadableError) as error:
        raise ConfigError(f"--config {file}: {one_line(error)}; {_ADVICE}") from None
    except Exception as error:  # broken Python, or not Python
        _refuse(file, path, error)
    module = types.ModuleType(_MODULE)
    module.__file__ = str(path)
    with _modules_beside(path), _named(module):
        try:
            exec(code, module.__dict__)
            config = _getter(file, path, module, arg)(*arg)
        except (KeyboardInterrupt, UsageError):
            raise
        except BaseException as error:  # even sys.exit(0): nothing was trained
            _refuse(file, path, error)
    if isinstance(config, Config):
        config = to_dict(config)
    if not isinstance(config, ConfigDict | FrozenConfigDict | Mapping):
        forgotten = "; is its return forgotten?" if config is None else ""
        raise ConfigError(
            f"--config {file}: what get_config() returns is {_kind(config)}, must be an"
            f" ml_collections.ConfigDict{forgotten}"
        )
    # A frozen one is copied into a mutable one; a mutable one is kept, with its references.
    if not isinstance(config, ConfigDict) or isinstance(config, FrozenConfigDict):
        try:
            config = ConfigDict(config)
        except Exception as error:
            _refuse(file, path, error)
    return config


def _getter(file: str, path: Path, module: types.ModuleType, arg: list[str]) -> Callable[..., Any]:
    """`get_config` of the file, checked to accept the given argument."""
    get_config = getattr(module, "get_config", None)
    if get_config is None:
        raise ConfigError(f"--config {file}: has no get_config(); {_ADVICE}")
    if not callable(get_config):
        raise ConfigError(
            f"--config {file}: get_config is {_kind(get_config)}, must be a function that returns"
            " an ml_collections.ConfigDict"
        )
    try:
        signature = inspect.signature(get_config)
    except (TypeError, ValueError):
        return get_config
    try:
        signature.bind(*arg)
    except TypeError:
        if arg and not signature.parameters:
            raise ConfigError(
                f"--config {file}: its get_config() takes no argument; give --config {path}"
            ) from None
        takes = f"get_config{signature} of {path}"
        if not arg:
            raise ConfigError(f"--config {file}: {takes} needs one: {path}:ARG") from None
        raise ConfigError(f"--config {file}: {takes} must take one argument, a text") from None
    return get_config


def _refuse(file: str, path: Path, error: BaseException) -> NoReturn:
    place = _place(error, path)
    if isinstance(error, SystemExit):
        said = f"calls sys.exit({'' if error.code is None else repr(error.code)})"
        said += f"{place}; an experiment file returns a config and does nothing else"
    else:
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        said = f"{type(error).__name__}{f': {one_line(Exception(text))}' if text else ''}{place}"
    raise ConfigError(f"--config {file}: {said}") from error


def _place(error: BaseException, path: Path) -> str:
    """` (FILE:LINE)`: where in the user's files it was raised, or an empty string."""
    folder = path.resolve().parent
    found = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve().parent == folder
    ]
    if isinstance(error, SyntaxError) and error.filename and os.path.isfile(error.filename):
        found.append((error.filename, error.lineno))
    if not found:
        return ""
    name, line = found[-1]
    return f" ({name}:{line})" if line else f" ({name})"


@contextlib.contextmanager
def _modules_beside(path: Path) -> Iterator[None]:
    """Context in which modules in a file's folder can be imported; they are unloaded afterwards.

    Another file may have different modules of the same names in its folder.
    """
    folder = path.resolve().parent
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        new = {name for name in sys.modules if name.partition(".")[0] not in before}
        beside = {name for name in new if "." not in name and _is_in(folder, sys.modules[name])}
        for name in new:
            if name.partition(".")[0] in beside:
                del sys.modules[name]


def _is_in(folder: Path, module: types.ModuleType) -> bool:
    places = [*getattr(module, "__path__", ()), getattr(module, "__file__", None)]
    return any(place and Path(place).parent == folder for place in places)


@contextlib.contextmanager
def _named(module: types.ModuleType) -> Iterator[None]:
    """Context in which the module can be found by name, as its dataclasses require."""
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        sys.modules.pop(module.__name__, None)


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"

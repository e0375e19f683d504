"""Detects code named in a Hugging Face folder's files, which whoever loads it is asked to run.

Nothing here reads such fields, so they are harmless to us. But a folder that is passed on must not
carry them to others unnoticed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emo_jax.errors import HfFormatError
from emo_jax.files.json_files import read_object

# Fields by which transformers loads modules from the folder itself or from another repository.
_FIELDS = ("auto_map", "trust_remote_code", "custom_pipelines", "custom_generate")
_CLASSES = ("tokenizer_class", "processor_class")
_FILES = ("config.json", "generation_config.json", "tokenizer_config.json")


def naming_code(values: Mapping[str, Any]) -> list[str]:
    """The top-level fields that name code, including classes given by more than a plain name."""
    found = [name for name in _FIELDS if values.get(name)]
    classes = [(name, values.get(name)) for name in _CLASSES]
    return found + [
        name for name, value in classes if isinstance(value, str) and set(value) & set("./:\\")
    ]


def without_code(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that do not name code."""
    named = naming_code(values)
    return {name: value for name, value in values.items() if name not in named}


def code_in(folder: Path, *, readable: bool = True) -> dict[str, list[str]]:
    """The fields that name code, by file name; files without any are omitted.

    Args:
      folder: a Hugging Face folder.
      readable: whether every file must be readable; otherwise an unreadable one is skipped.

    Raises:
      HfFormatError: a file is not readable.
    """
    found = {}
    for name in _FILES:
        try:
            values = read_object(folder / name, error=HfFormatError, advice="copy it again")
        except FileNotFoundError:
            continue
        except HfFormatError:
            if readable:
                raise
            continue
        if fields := naming_code(values):
            found[name] = fields
    return found

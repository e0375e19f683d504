"""Code that files of a Hugging Face folder name, which whoever loads it is asked to run.

Nothing here reads such fields, so they do no harm by themselves. But a folder that is passed on
must not bring them to others unseen.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emo_jax.errors import HfFormatError
from emo_jax.files.json_files import read_object

# Those of transformers that lead to modules of the folder itself, or of another repository.
_FIELDS = ("auto_map", "trust_remote_code", "custom_pipelines", "custom_generate")
_CLASSES = ("tokenizer_class", "processor_class")
_FILES = ("config.json", "generation_config.json", "tokenizer_config.json")


def naming_code(values: Mapping[str, Any]) -> list[str]:
    """The fields of a file that name code, at its top: a class by more than its name is one."""
    found = [name for name in _FIELDS if values.get(name)]
    classes = [(name, values.get(name)) for name in _CLASSES]
    return found + [
        name for name, value in classes if isinstance(value, str) and set(value) & set("./:\\")
    ]


def without_code(values: Mapping[str, Any]) -> dict[str, Any]:
    """The other fields."""
    named = naming_code(values)
    return {name: value for name, value in values.items() if name not in named}


def code_in(folder: Path, *, readable: bool = True) -> dict[str, list[str]]:
    """By name of a file those of its fields that name code; files that have none are left out.

    Args:
      readable: whether every file must be; one that is not names nothing.

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

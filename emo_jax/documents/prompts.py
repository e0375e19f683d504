"""Prompt files: one text per line, or JSON lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emo_jax.documents import input_files
from emo_jax.documents.archives import READ_ERRORS, unreadable
from emo_jax.documents.text_files import json_lines, read_lines, too_long
from emo_jax.errors import DataError, UsageError
from emo_jax.files.json_files import NotReadableError, is_text, loads


def read_prompts(path: Path) -> list[str]:
    """Reads the prompts of a file, which may be compressed.

    Each line is a JSON object with a text "prompt" if the file's name says so or the first line is
    one; otherwise each line is a text. Blank lines are skipped.

    Raises:
      UsageError: no such file, or no prompt in it.
      DataError: a line that is not a prompt, or a file of another kind.
    """
    kind = input_files.kind_of(path)
    input_files.refuse_foreign(path, kind)
    try:
        if kind == input_files.LINES or _first_is_json(path):
            prompts = [_prompt(path, *line) for line in json_lines(path)]
        else:
            prompts = list(_texts(path))
    except READ_ERRORS as error:
        raise unreadable(path, error) from error
    if not prompts:
        raise UsageError(f"{path}: has no prompt; write one on each line")
    return prompts


def _texts(path: Path) -> Iterator[str]:
    for number, line in read_lines(path):
        if line is None:
            raise _bad(path, number, too_long())
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise _bad(path, number, "invalid UTF-8") from None
        if text.strip():
            yield text.removesuffix("\r")


def _first_is_json(path: Path) -> bool:
    for _, line in read_lines(path):
        if line is None:
            return False
        if line.strip():
            try:
                value = loads(line.decode("utf-8"))
            except (NotReadableError, UnicodeDecodeError):
                return False
            return isinstance(value, dict) and "prompt" in value
    return False


def _prompt(path: Path, number: int, value: Any, why: str) -> str:
    prompt = value.get("prompt") if isinstance(value, dict) else None
    if why or not isinstance(prompt, str):
        raise _bad(path, number, why or 'not a JSON object with a text "prompt"')
    if not is_text(prompt):
        raise _bad(path, number, "half of a surrogate pair")
    return prompt


def _bad(path: Path, number: int, why: str) -> DataError:
    return DataError(f"{path}:{number}: {why}; mend that line")

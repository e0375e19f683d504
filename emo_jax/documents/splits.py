"""Recognises splits in file names; a folder that mixes them is refused."""

import re
from pathlib import Path

from emo_jax.documents.archives import packing

_SPLITS = {
    "train": "train|training|trainset",
    "validation": "validation|valid|val|dev|devset|valset",
    "test": "test|testing|testset|eval|evaluation|evalset|held[-_]?out|hold[-_]?out",
}
_SPLIT = re.compile(
    rf"(?:^|[-._ 0-9])(?:{'|'.join(f'(?P<{name}>{words})' for name, words in _SPLITS.items())})"
    r"(?=$|[-._ 0-9])",
    re.IGNORECASE,
)


def split_of(name: str, *, named: bool) -> str | None:
    """Returns the split that a path names: `data/train-00000-of-00002.parquet`, `test/a.jsonl`.

    Args:
      named: the file's own name counts too, not just its folders: `test.py` is a program.
    """
    *folders, file = name.split("/")
    for part in folders:
        found = _SPLIT.fullmatch(part)
        if found is not None:
            return found.lastgroup
    found = _SPLIT.search(_stem(file)) if named else None
    return found.lastgroup if found else None


def mixed(path: Path, splits: dict[str, list[str]]) -> str:
    """Returns the error for mixed splits: what was found, and how to name one of them."""
    counts = ", ".join(
        f"{split} ({len(splits[split])} file{'s' * (len(splits[split]) > 1)})"
        for split in _SPLITS
        if split in splits
    )
    split = "train" if "train" in splits else next(iter(splits))
    return (
        f"{path}: holds the splits {counts}, which would be mixed; name one, such as"
        f" {path / _example(splits[split])}, or each of them to mix them"
    )


def _example(names: list[str]) -> str:
    """Returns a name for all of these files: a folder, a pattern, or the file."""
    first = names[0]
    *folders, file = first.split("/")
    for i, part in enumerate(folders):
        if _SPLIT.fullmatch(part):
            return "/".join(folders[: i + 1])
    if len(names) == 1:
        return first
    found = _SPLIT.search(_stem(file))
    assert found is not None
    return "/".join([*folders, f"{file[: found.end()]}*{file[len(_stem(file)) :]}"])


def _stem(name: str) -> str:
    """Returns a name without the extension that gives the file's kind."""
    return Path(Path(name).stem if packing(Path(name)) else name).stem

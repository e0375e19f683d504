"""The kinds of files that hold documents, by their names."""

from pathlib import Path

from emo_jax.documents.archives import packing

LINES, ROWS, TEXT = "jsonl", "parquet", "text"
_JSONL = (".jsonl", ".ndjson", ".json")
_TEXT = (".txt", ".md")
_PARQUET = ".parquet"
_PLAIN = (".txt", ".tokens")  # extensions of text corpora that come in splits


def kind_of(path: Path) -> str | None:
    """Returns LINES, ROWS or TEXT, by the extension; None for any other."""
    suffix = path.suffix.lower()
    if suffix == _PARQUET:
        return ROWS
    if packing(path):
        suffix = Path(path.stem).suffix.lower()
    return LINES if suffix in _JSONL else TEXT if suffix in _TEXT else None


def is_plain(file: Path) -> bool:
    """Returns whether a file has the extension of text corpora that come in splits."""
    return Path(file.stem if packing(file) else file.name).suffix.lower() in _PLAIN

"""The kinds of files that hold documents, by their names."""

from pathlib import Path

from emo_jax.documents.archives import packing

LINES, ROWS, ARROW, TAR, TEXT = "jsonl", "parquet", "arrow", "tar", "text"
_JSONL = (".jsonl", ".ndjson", ".json")
_TEXT = (".txt", ".md")
_PARQUET = ".parquet"
_ARROW = (".arrow", ".arrows", ".feather", ".ipc")
_PLAIN = (".txt", ".tokens")  # extensions of text corpora that come in splits


def kind_of(path: Path) -> str | None:
    """Returns LINES, ROWS, ARROW, TAR or TEXT, by the extension; None for any other."""
    suffix = path.suffix.lower()
    if suffix == _PARQUET or suffix in _ARROW:
        return ROWS if suffix == _PARQUET else ARROW
    if packing(path):
        suffix = ".tar" if suffix == ".tgz" else Path(path.stem).suffix.lower()
    if suffix == ".tar":
        return TAR
    return LINES if suffix in _JSONL else TEXT if suffix in _TEXT else None


def is_plain(file: Path) -> bool:
    """Returns whether a file has the extension of text corpora that come in splits."""
    return Path(file.stem if packing(file) else file.name).suffix.lower() in _PLAIN

"""Writes a token store: all of it or nothing.

Everything is written to a folder next to the target and renamed at the end, so a store that is
visible is complete. See `store` for the layout.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from emo_jax.data import store_manifest, store_stream
from emo_jax.data.stream import SPLITS, check_ids, token_dtype
from emo_jax.errors import DataError, UsageError
from emo_jax.files.partial import partial_folder
from emo_jax.tokenizer.base import Tokenizer

# A file holds this many items and is written from one buffer; a chunk is the unit of reading and
# carries its own CRC-32C.
_SHARD_ITEMS = 1 << 25
_CHUNK_ITEMS = 1 << 14
_TEXT_CHUNK_ITEMS = 1 << 17  # of bytes, which compress better in larger chunks
_ZSTD_LEVEL = 3

PARTIAL = "tmp"
# Top-level entries of a store, complete or half written.
TOP = (store_manifest.MANIFEST, "tokenizer", *SPLITS)


@dataclass(frozen=True)
class SplitContent:
    """The documents of a split, in their final order.

    Args:
      lengths: (D,) int64 tokens of each document, including the end-of-document token.
      domain_ids: (D,) index into the store's domains.
      blocks: the tokens, document after document, split anywhere.
      ids: (D,) ids of the documents; None: the store keeps none.
    """

    lengths: np.ndarray
    domain_ids: np.ndarray
    blocks: Iterable[np.ndarray]
    ids: Sequence[str] | None = None


@dataclass(frozen=True)
class ArrayPlan:
    """One zarr array of a store.

    Args:
      name: in the store: `train/tokens`.
      size: number of items.
      dtype: name of the type of an item.
      shard: items of a file.
      chunk: items that are read at once.
      compressed: chunks are compressed with zstd.
    """

    name: str
    size: int
    dtype: str
    shard: int
    chunk: int
    compressed: bool = False

    @classmethod
    def of(cls, name: str, size: int, dtype: Any) -> "ArrayPlan":
        """Returns the plan of an array as stores have it."""
        what = name.rpartition("/")[2]
        chunk = _TEXT_CHUNK_ITEMS if what == "doc_ids" else _CHUNK_ITEMS
        shard = min(_SHARD_ITEMS, -(-size // chunk) * chunk)
        compressed = what in ("doc_ids", "doc_id_ends")
        return cls(name, size, np.dtype(dtype).name, shard, chunk, compressed)

    def shards(self) -> list[tuple[int, int]]:
        """Returns the items [start, stop) of each file."""
        return [(a, min(a + self.shard, self.size)) for a in range(0, self.size, self.shard)]


def check_target(path: str | os.PathLike[str]) -> Path:
    """Returns the folder to write to, which must not exist yet or be empty.

    Raises:
      UsageError: it is a file, is not empty, or is not on this machine.
    """
    if "://" in str(path):
        raise UsageError(f"{path}: write the store to a local folder and copy it there afterwards")
    target = Path(path).absolute()
    if target.exists() and not target.is_dir():
        raise UsageError(f"{path}: is a file; give a new folder")
    if target.is_dir() and any(target.iterdir()):
        what = "a token store" if (target / store_manifest.MANIFEST).exists() else "not empty"
        raise UsageError(f"{path}: is {what}; give a new folder (nothing is overwritten)")
    return target


def write_store(
    path: str | os.PathLike[str],
    *,
    tokenizer: Tokenizer,
    domains: Sequence[str],
    splits: Mapping[str, SplitContent],
    seed: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes a token store at `path`; `facts` are added to its manifest.

    Raises:
      UsageError: `path` is not empty.
      DataError: a token is not in the tokenizer's vocabulary.
    """
    target = check_target(path)
    with new_folder(target) as folder:
        tokenizer.save(folder / "tokenizer")
        described = {
            name: _write_split(folder / name, content, domains, tokenizer)
            for name, content in splits.items()
        }
        write_manifest(
            folder,
            tokenizer=tokenizer,
            domains=domains,
            splits=described,
            files=dict(describe_files(folder)),
            seed=seed,
            facts=facts,
        )


def write_manifest(
    folder: Path,
    *,
    tokenizer: Tokenizer,
    domains: Sequence[str],
    splits: Mapping[str, Any],
    files: Mapping[str, Any],
    seed: int,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes the manifest of a store whose other files are complete."""
    manifest: dict[str, Any] = {
        "format": store_manifest.FORMAT,
        "version": store_manifest.VERSION,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "seed": seed,
        "domains": list(domains),
        "splits": splits,
        "files": files,
        **(facts or {}),
    }
    manifest["checksum"] = store_manifest.checksum(manifest)
    (folder / store_manifest.MANIFEST).write_text(
        json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yields a folder next to `target` that is renamed to it, or removed if the body fails."""
    with partial_folder(target, PARTIAL) as folder:
        yield folder
        check_target(target)
        folder.rename(target)  # an empty folder may exist there, nothing else


def _write_split(
    folder: Path, content: SplitContent, domains: Sequence[str], tokenizer: Tokenizer
) -> dict[str, Any]:
    lengths = np.asarray(content.lengths, np.int64)
    domain_ids = np.asarray(content.domain_ids, np.int64)
    documents = np.bincount(domain_ids, minlength=len(domains))
    tokens = np.zeros(len(domains), np.int64)
    np.add.at(tokens, domain_ids, lengths)
    if lengths.size:
        ends = np.cumsum(lengths)
        stride = store_stream.INDEX_STRIDE
        _write_array(folder / "tokens", content.blocks, int(ends[-1]), tokenizer)
        _write_array(folder / "doc_ends", [ends], ends.size)
        _write_array(folder / "doc_domains", [domain_ids.astype(np.int32)], ends.size)
        index = ends[
            np.minimum(np.arange(stride - 1, ends.size + stride - 1, stride), ends.size - 1)
        ]
        _write_array(folder / "doc_index", [index], index.size)
        if content.ids is not None:
            encoded = [name.encode("utf-8") for name in content.ids]
            id_ends = np.cumsum([len(name) for name in encoded])
            text = np.frombuffer(b"".join(encoded), np.uint8)
            _write_array(folder / "doc_ids", [text], text.size)
            _write_array(folder / "doc_id_ends", [id_ends], id_ends.size)
    return describe_split(documents, tokens, domains)


def describe_split(
    documents_M: np.ndarray, tokens_M: np.ndarray, domains: Sequence[str]
) -> dict[str, Any]:
    """Returns what the manifest says of a split, given the counts of each domain."""
    return {
        "tokens": int(tokens_M.sum()),
        "documents": int(documents_M.sum()),
        "domains": {
            name: {"documents": int(documents_M[i]), "tokens": int(tokens_M[i])}
            for i, name in enumerate(domains)
        },
    }


def _write_array(
    folder: Path, blocks: Iterable[np.ndarray], size: int, tokenizer: Tokenizer | None = None
) -> None:
    """Writes one zarr array of (size,), a shard at a time; checks ids if given a tokenizer."""
    array, buffer, filled, written = None, np.empty(0), 0, 0
    for block in blocks:
        if tokenizer is not None:
            check_ids(block, tokenizer.vocab_size, str(folder))
            block = block.astype(token_dtype(tokenizer.vocab_size), copy=False)
        if array is None:
            plan = ArrayPlan.of(folder.name, size, block.dtype)
            array = create_array(folder, plan)
            buffer = np.empty(plan.shard, block.dtype)
        while block.size:
            part = block[: buffer.size - filled]
            buffer[filled : filled + part.size] = part
            block, filled = block[part.size :], filled + part.size
            if filled == buffer.size:
                _write(array, written, buffer)
                written, filled = written + filled, 0
    if array is not None and filled:
        _write(array, written, buffer[:filled])
        written += filled
    if written != size:
        raise DataError(f"{folder}: {written} items written, {size} expected; prepare it again")


def create_array(folder: Path, plan: ArrayPlan) -> ts.TensorStore:
    """Creates an array without items, or opens the same one again."""
    packed = [{"name": "zstd", "configuration": {"level": _ZSTD_LEVEL}}] if plan.compressed else []
    plain = [{"name": "bytes", "configuration": {"endian": "little"}}]
    crc = [{"name": "crc32c"}]
    sharding = {
        "chunk_shape": [plan.chunk],
        "codecs": plain + packed + crc,
        "index_codecs": plain + crc,
    }
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "metadata": {
            "shape": [plan.size],
            "data_type": plan.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [plan.shard]}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        },
        # Zeros are written too: a missing chunk always means damage.
        "store_data_equal_to_fill_value": True,
    }
    try:
        return ts.open(spec, create=True, open=True).result()
    except (ValueError, OSError) as error:
        raise OSError(str(error).splitlines()[0]) from error


def write_shard(folder: Path, plan: ArrayPlan, start: int, items: np.ndarray) -> Path:
    """Writes one file of an array, all its items from `start`; returns its path."""
    _write(create_array(folder, plan), start, items)
    return folder / "c" / str(start // plan.shard)


def _write(array: ts.TensorStore, start: int, items: np.ndarray) -> None:
    try:
        array[start : start + items.size].write(items).result()
    except (ValueError, OSError) as error:  # a full disk raises either
        raise OSError(str(error).splitlines()[0]) from error


def describe_files(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the name of each file below a folder, and its size and SHA-256."""
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        yield file.relative_to(folder).as_posix(), describe_file(file)


def describe_file(file: Path) -> dict[str, Any]:
    """Returns what the manifest says of a file."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}

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
    """

    lengths: np.ndarray
    domain_ids: np.ndarray
    blocks: Iterable[np.ndarray]


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
        manifest: dict[str, Any] = {
            "format": store_manifest.FORMAT,
            "version": store_manifest.VERSION,
            "tokenizer": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
            "pad_id": tokenizer.pad_id,
            "seed": seed,
            "domains": list(domains),
            "splits": described,
            "files": dict(_describe_files(folder)),
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
    tokens = np.bincount(domain_ids, weights=lengths, minlength=len(domains))
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
    return {
        "tokens": int(lengths.sum()),
        "documents": int(lengths.size),
        "domains": {
            name: {"documents": int(documents[i]), "tokens": int(tokens[i])}
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
            shard = min(_SHARD_ITEMS, -(-size // _CHUNK_ITEMS) * _CHUNK_ITEMS)
            array = _create(folder, size, block.dtype, shard)
            buffer = np.empty(shard, block.dtype)
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


def _create(folder: Path, size: int, dtype: np.dtype, shard: int) -> ts.TensorStore:
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = {"chunk_shape": [_CHUNK_ITEMS], "codecs": codecs, "index_codecs": codecs}
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "metadata": {
            "shape": [size],
            "data_type": np.dtype(dtype).name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard]}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        },
        # Zeros are written too: a missing chunk always means damage.
        "store_data_equal_to_fill_value": True,
    }
    return ts.open(spec, create=True).result()


def _write(array: ts.TensorStore, start: int, items: np.ndarray) -> None:
    try:
        array[start : start + items.size].write(items).result()
    except (ValueError, OSError) as error:  # a full disk raises either
        raise OSError(str(error).splitlines()[0]) from error


def _describe_files(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        yield (
            file.relative_to(folder).as_posix(),
            {"bytes": file.stat().st_size, "sha256": digest},
        )

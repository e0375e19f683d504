"""Token stores of any size that take little disk: every chunk of tokens is the same one.

    python tests/sparse_store.py FOLDER [TOKENS [DOMAINS]]

The files have the names, sizes and indexes of a real store, but are sparse. All token files are
hard links of one, whose index sends every chunk to the same bytes, with their true checksum. Ends
of documents are there only near the windows asked for; every other chunk of them is missing.
"""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tensorstore as ts

from emo_jax.data import store_manifest, store_stream, store_writer
from emo_jax.tokenizer.load import byte_tokenizer

DOCUMENT = 500  # tokens of every document
CHUNK, SHARD = store_writer._CHUNK_ITEMS, store_writer._SHARD_ITEMS
_MISSING = 2**64 - 1
_MOST_LINKS = 30_000


def _encoded(items: np.ndarray) -> bytes:
    """As a chunk, or the index of a shard, is written: with its CRC-32C."""
    with tempfile.TemporaryDirectory() as folder:
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{folder}/"},
            "metadata": {
                "shape": [items.size],
                "data_type": items.dtype.name,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [items.size]}},
                "codecs": codecs,
            },
        }
        ts.open(spec, create=True).result().write(items).result()
        return (Path(folder) / "c/0").read_bytes()


def _shard(path: Path, chunks: dict[int, bytes], itemsize: int, every: bool) -> None:
    """Writes a shard with some of its chunks; `every`: all are the one that is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    index = np.full((SHARD // CHUNK, 2), _MISSING, np.uint64)
    length = CHUNK * itemsize + 4
    with path.open("wb") as stream:
        for i, content in chunks.items():
            stream.seek(i * length)
            stream.write(content)
            index[slice(None) if every else i] = (i * length, len(content))
        stream.truncate(SHARD // CHUNK * length)
        stream.seek(0, os.SEEK_END)
        stream.write(_encoded(index.ravel()))


def _create(folder: Path, size: int, dtype: np.dtype) -> None:
    plan = store_writer.ArrayPlan(folder.name, size, dtype.name, SHARD, CHUNK)
    store_writer.create_array(folder, plan)


def _alike(folder: Path, chunk: np.ndarray, size: int) -> None:
    """An array that repeats one chunk."""
    _create(folder, size, chunk.dtype)
    first = folder / "c/0"
    for n in range(-(-size // SHARD)):
        file = folder / f"c/{n}"
        if n % _MOST_LINKS == 0:
            first = file
            _shard(file, {0: _encoded(chunk)}, chunk.dtype.itemsize, every=True)
        else:
            os.link(first, file)


def _ends(folder: Path, documents: int, wanted: Iterable[int]) -> None:
    """The ends of documents, in the chunks with `wanted` documents only."""
    _create(folder, documents, np.dtype(np.int64))
    by_shard: dict[int, dict[int, bytes]] = {n: {} for n in range(-(-documents // SHARD))}
    for chunk in sorted({document // CHUNK for document in wanted}):
        ends = (np.arange(chunk * CHUNK, (chunk + 1) * CHUNK, dtype=np.int64) + 1) * DOCUMENT
        by_shard[chunk * CHUNK // SHARD][chunk % (SHARD // CHUNK)] = _encoded(ends)
    for n, chunks in by_shard.items():
        _shard(folder / f"c/{n}", chunks, 8, every=False)


def make(
    path: Path, tokens: int = 10**12, *, starts: Sequence[int] = (0,), domains: int = 3
) -> Path:
    """Makes a store of documents of `DOCUMENT` tokens; may be read near token `starts`."""
    documents, stride = tokens // DOCUMENT, store_stream.INDEX_STRIDE
    tokens = documents * DOCUMENT
    split = path / "train"
    tokenizer = byte_tokenizer()
    tokenizer.save(path / "tokenizer")
    content = np.random.default_rng(0).integers(3, 259, CHUNK).astype(np.uint16)
    _alike(split / "tokens", content, tokens)
    _alike(split / "doc_domains", np.arange(CHUNK, dtype=np.int32) % domains, documents)
    near = {s // DOCUMENT // stride * stride + d * stride for s in starts for d in (0, 1)}
    _ends(split / "doc_ends", documents, (min(n, documents - 1) for n in near))
    index = np.minimum(np.arange(1, -(-documents // stride) + 1) * stride, documents) * DOCUMENT
    store_writer._write_array(split / "doc_index", [index.astype(np.int64)], index.size)
    each = {f"domain {i}": _count(i, documents, domains) for i in range(domains)}
    manifest = {
        "format": store_manifest.FORMAT,
        "version": store_manifest.VERSION,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "seed": 0,
        "domains": list(each),
        "splits": {
            "train": {
                "tokens": tokens,
                "documents": documents,
                "domains": {n: {"documents": c, "tokens": c * DOCUMENT} for n, c in each.items()},
            }
        },
        "files": {
            file.relative_to(path).as_posix(): _described(file)
            for file in sorted(p for p in path.rglob("*") if p.is_file())
        },
    }
    manifest["checksum"] = store_manifest.checksum(manifest)
    (path / store_manifest.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return path


def _described(file: Path) -> dict[str, int | str]:
    """Size and digest; that of a chunk, which would be read in full, is wrong."""
    chunk = file.parent.name == "c"
    digest = "0" * 64 if chunk else hashlib.sha256(file.read_bytes()).hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _count(domain: int, documents: int, domains: int) -> int:
    """Documents of a domain: number `n` is of domain `n % CHUNK % domains`."""
    whole, rest = divmod(documents, CHUNK)
    in_chunk = len(range(domain, CHUNK, domains))
    return whole * in_chunk + len(range(domain, rest, domains))


if __name__ == "__main__":
    _, folder, *numbers = sys.argv
    given = dict(zip(("tokens", "domains"), (int(float(n)) for n in numbers), strict=False))
    make(Path(folder), starts=(0, 2 * 10**8 * 4096), **given)

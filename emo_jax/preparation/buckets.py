"""The second step: ranges of the order key, from all runs, sorted and divided into splits."""

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emo_jax.data.stream import SPLITS
from emo_jax.preparation.runs import INDEX, SORT_BYTES, OpenRun, RunFile, RunPart
from emo_jax.preparation.splits import split_of
from emo_jax.preparation.tasks import Job, Outcome, Task, name_of, whole_file

BUCKET_BYTES = 1 << 27
_WHOLE_BYTES = 3 * BUCKET_BYTES  # of tokens that are read at once
_BLOCK_DOCUMENTS = 1 << 14


class Merged(NamedTuple):
    """What the runs of all pieces are together.

    Args:
      runs: all of them, with the number of the piece of each.
      ranks: for each piece, the file with the store's number of each of its domains.
      edges: first keys of the splits select and test.
    """

    runs: list[tuple[RunFile, int]]
    ranks: list[str]
    edges: tuple[int, int]

    def save(self, path: Path) -> None:
        """Writes it for the tasks."""
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(self))


@functools.lru_cache(maxsize=1)
def _load_merged(path: Path) -> Merged:
    runs, ranks, (first, second) = json.loads(path.read_text())
    return Merged([(RunFile(*run), piece) for run, piece in runs], ranks, (first, second))


def bucket_tasks(job: Job, merged: Merged, key: str) -> list[Task]:
    """Returns the tasks that sort all runs, each of a range of keys that fits in memory.

    Args:
      key: stands for the runs and the splits.
    """
    name = f"merged-{key}.json"
    merged.save(job.path(name))
    sizes = np.zeros((job.bins, 3), np.int64)
    dtype = job.token
    for run, _ in merged.runs:
        with OpenRun(job.path(run.name), run, dtype, job.bins) as opened:
            sizes += np.diff(opened.bin_starts(), axis=0)
    weights = sizes @ np.array([SORT_BYTES, dtype.itemsize, 1])
    return [
        {"kind": "bucket", "name": name_of("bucket", key, *keys), "keys": keys, "merged": name}
        for keys in _ranges(weights.tolist())
    ]


def _ranges(weights: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields ranges [low, high) of keys, given the size of each of the equal bins."""
    width = (1 << 64) // len(weights)
    low = size = 0
    for i, weight in enumerate(weights):
        if size and size + weight > BUCKET_BYTES:
            yield low, i * width
            low, size = i * width, 0
        size += weight
        if weight > BUCKET_BYTES:  # the keys in a bin are spread evenly
            parts = 1 << (weight // BUCKET_BYTES).bit_length()
            yield from (
                (low + k * width // parts, low + (k + 1) * width // parts) for k in range(parts)
            )
            low, size = (i + 1) * width, 0
    if low < 1 << 64:
        yield low, 1 << 64


def sort_bucket(task: Task, job: Job) -> Outcome:
    """Writes a file for each split: its documents in their final order.

    It holds, one after the other: the tokens, the ids (UTF-8), and for each document the number of
    tokens (int64), the number of bytes of its id (int64) and its domain (int32).
    """
    merged = _load_merged(job.path(task["merged"]))
    dtype = job.token
    low, high = task["keys"]
    parts = []
    for run, piece in merged.runs:
        with OpenRun(job.path(run.name), run, dtype, job.bins) as opened:
            part = opened.part(low, high)
        if len(part.rows):
            rank = np.load(job.path(merged.ranks[piece]))
            parts.append((run, part, rank[part.rows["domain"]]))
    source = _Source(job, parts, dtype)
    index, domains = source.index, source.domains
    # Documents that these cannot tell apart are equal.
    order = np.lexsort((domains, index["length"], index["content"], index["split"], index["order"]))
    twice, first = source.find_twice(order)
    outcome: dict[str, Any] = {"files": {}, "splits": [], "twice": twice, "first_twice": first}
    splits = split_of(index["split"], merged.edges)
    for i, split in enumerate(SPLITS):
        chosen = order[splits[order] == i]
        lengths, id_lengths = (index[f][chosen].astype(np.int64) for f in ("length", "id_length"))
        name = f"buckets/{task['name']}.{split}"
        described = {
            "file": name,
            "documents": len(chosen),
            "tokens": int(lengths.sum()),
            "id_bytes": int(id_lengths.sum()),
            "domains": _count(domains[chosen], lengths),
        }
        outcome["splits"].append(described)
        if not len(chosen):
            continue
        path = job.path(name)
        with whole_file(path) as temporary, temporary.open("wb") as file:
            for block in source.tokens(chosen):
                file.write(block)
            for block in source.ids(chosen):
                file.write(block)
            for items in (lengths, id_lengths, domains[chosen].astype(np.int32)):
                file.write(items.tobytes())
        outcome["files"][name] = path.stat().st_size
    return outcome


def _count(domains: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    """Returns [domain, documents, tokens, documents of length 1, of 2–3, of 4–7, …] of each."""
    if not domains.size:
        return []
    order = np.argsort(domains, kind="stable")
    found, starts = np.unique(domains[order], return_index=True)
    counts = []
    for domain, part in zip(found.tolist(), np.split(lengths[order], starts[1:]), strict=True):
        powers = np.bincount(np.frexp(part.astype(np.float64))[1] - 1)
        counts.append([domain, part.size, int(part.sum()), *powers.tolist()])
    return counts


class _Source:
    """The documents of a range of keys in all runs, with their tokens and ids.

    Args:
      parts: for each run that has any: the run, its documents, and their domains.
    """

    def __init__(
        self, job: Job, parts: Sequence[tuple[RunFile, RunPart, np.ndarray]], dtype: np.dtype
    ):
        self._job, self._dtype = job, dtype
        self._runs = [run for run, _, _ in parts]
        self._parts = [part for _, part, _ in parts]
        self.index = np.concatenate([np.zeros(0, INDEX), *(part.rows for part in self._parts)])
        self.domains = np.concatenate([np.zeros(0, np.int32), *(domains for *_, domains in parts)])
        self._run_D = np.repeat(np.arange(len(parts)), [len(part.rows) for part in self._parts])
        none = np.zeros(0, np.int64)
        self._token_at_D, self._id_at_D = (
            np.concatenate([none, *(_starts(part.rows[field]) for part in self._parts)])
            for field in ("length", "id_length")
        )
        self._ids = [
            opened.ids(part.id_start, int(part.rows["id_length"].sum(dtype=np.int64)))
            for opened, part in self._opened()
        ]

    def _opened(self) -> Iterator[tuple[OpenRun, RunPart]]:
        for k, part in enumerate(self._parts):
            with self._open(k) as opened:
                yield opened, part

    def _open(self, k: int) -> OpenRun:
        run = self._runs[k]
        return OpenRun(self._job.path(run.name), run, self._dtype, self._job.bins)

    def tokens(self, chosen: np.ndarray) -> Iterator[bytes]:
        """Yields the tokens of some documents, in blocks."""
        size = int(self.index["length"].sum()) * self._dtype.itemsize
        held = None
        if size <= _WHOLE_BYTES:  # more only if very many documents have one id
            held = [
                opened.tokens(part.token_start, int(part.rows["length"].sum()))
                for opened, part in self._opened()
            ]
        for some in _blocks(chosen):
            found = []
            runs, starts = self._run_D[some].tolist(), self._token_at_D[some].tolist()
            for k, at, n in zip(runs, starts, self.index["length"][some].tolist(), strict=True):
                if held is not None:
                    found.append(held[k][at : at + n])
                else:
                    with self._open(k) as opened:
                        found.append(opened.tokens(self._parts[k].token_start + at, n))
            yield np.concatenate(found).tobytes()

    def ids(self, chosen: np.ndarray) -> Iterator[bytes]:
        """Yields the ids of some documents, in blocks."""
        for some in _blocks(chosen):
            yield b"".join(self._id(i) for i in some.tolist())

    def _id(self, i: int) -> bytes:
        at = int(self._id_at_D[i])
        return self._ids[self._run_D[i]][at : at + int(self.index["id_length"][i])]

    def find_twice(self, order: np.ndarray) -> tuple[int, str]:
        """Counts documents whose id an earlier one has; returns the first such id too."""
        count, first = 0, ""
        keys, splits = self.index["order"][order], self.index["split"][order]
        equal = (keys[1:] == keys[:-1]) & (splits[1:] == splits[:-1])
        for i in np.flatnonzero(equal).tolist():
            if (name := self._id(order[i])) == self._id(order[i + 1]):
                first = first or name.decode("utf-8")
                count += 1
        return count, first


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths, dtype=np.int64) - lengths


def _blocks(chosen: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(chosen), _BLOCK_DOCUMENTS):
        yield chosen[start : start + _BLOCK_DOCUMENTS]

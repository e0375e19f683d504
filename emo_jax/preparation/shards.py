"""The last step: the files of the store's arrays, each of a range of the sorted documents."""

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emo_jax.data import store_stream, store_writer
from emo_jax.data.store_writer import ArrayPlan
from emo_jax.data.stream import SPLITS
from emo_jax.errors import DataError
from emo_jax.preparation.runs import read_exactly
from emo_jax.preparation.tasks import Job, Outcome, Task, name_of, whole_file


class Bucket(NamedTuple):
    """The documents of a split in a bucket: the file, and how many there are of each thing."""

    file: str
    documents: int
    tokens: int
    id_bytes: int

    def size(self, token: np.dtype) -> int:
        """Returns the bytes of the file."""
        return self.tokens * token.itemsize + self.id_bytes + 20 * self.documents


Layout = list[list[Bucket]]  # of each split: its buckets, in order


class _Section(NamedTuple):
    """Where the items of an array are in a bucket: `at` bytes from the start, as `dtype`."""

    at: int
    size: int
    dtype: np.dtype


def _section(bucket: Bucket, what: str, token: np.dtype) -> _Section:
    D = bucket.documents
    ids = bucket.tokens * token.itemsize
    lengths = ids + bucket.id_bytes
    long, short = np.dtype(np.int64), np.dtype(np.int32)
    return {
        "tokens": _Section(0, bucket.tokens, token),
        "doc_ids": _Section(ids, bucket.id_bytes, np.dtype(np.uint8)),
        "doc_ends": _Section(lengths, D, long),
        "doc_id_ends": _Section(lengths + 8 * D, D, long),
        "doc_domains": _Section(lengths + 16 * D, D, short),
    }[what]


_GROUP_BYTES = 1 << 26  # that a task writes
_SUMMED = ("doc_ends", "doc_id_ends")  # kept as lengths


def array_plans(job: Job, layout: Layout) -> list[ArrayPlan]:
    """Returns the arrays of all splits, except the short index of documents."""
    plans = []
    for split, buckets in zip(SPLITS, layout, strict=True):
        for what in ("tokens", "doc_ends", "doc_domains", "doc_ids", "doc_id_ends"):
            sections = [_section(bucket, what, job.token) for bucket in buckets]
            if size := sum(section.size for section in sections):
                plans.append(ArrayPlan.of(f"{split}/{what}", size, sections[0].dtype))
    return plans


def shard_tasks(job: Job, layout: Layout, plans: Sequence[ArrayPlan], key: str) -> list[Task]:
    """Returns the tasks that write a file each; `key` stands for the buckets."""
    name = f"layout-{key}.json"
    with whole_file(job.path(name)) as temporary:
        temporary.write_text(json.dumps(layout))
    groups: list[list[Any]] = []
    size = 0
    for plan in plans:
        for start, stop in plan.shards():
            bytes_ = (stop - start) * np.dtype(plan.dtype).itemsize
            if not groups or size + bytes_ > _GROUP_BYTES:
                groups.append([])
                size = 0
            groups[-1].append([vars(plan), start, stop])
            size += bytes_
    stride = store_stream.INDEX_STRIDE
    return [
        {
            "kind": "shard",
            "name": name_of("shard", key, group, stride),
            "layout": name,
            "shards": group,
            "stride": stride,
        }
        for group in groups
    ]


@functools.lru_cache(maxsize=1)
def _load_layout(path: Path) -> Layout:
    return [[Bucket(*bucket) for bucket in split] for split in json.loads(path.read_text())]


def write_shards(task: Task, job: Job) -> Outcome:
    """Writes some files of arrays of the store."""
    layout = _load_layout(job.path(task["layout"]))
    outcome: dict[str, Any] = {"files": {}, "described": {}, "index": []}
    for described, start, stop in task["shards"]:
        plan = ArrayPlan(**described)
        items = _gather(job, layout, plan, start, stop)
        file = store_writer.write_shard(job.store / plan.name, plan, start, items)
        name = file.relative_to(job.store).as_posix()
        outcome["described"][name] = store_writer.describe_file(file)
        outcome["files"][f"store/{name}"] = outcome["described"][name]["bytes"]
        split, _, what = plan.name.partition("/")
        if what == "doc_ends":
            outcome["index"].append([split, _index(items, start, plan.size, task["stride"])])
    return outcome


def _gather(job: Job, layout: Layout, plan: ArrayPlan, start: int, stop: int) -> np.ndarray:
    """Returns items [start, stop) of an array."""
    split, _, what = plan.name.partition("/")
    items = np.empty(stop - start, plan.dtype)
    filled = 0
    for part in _items(job, layout[SPLITS.index(split)], what, start, stop):
        items[filled : filled + part.size] = part
        filled += part.size
    if filled != items.size:
        raise DataError(f"{job.work}: {plan.name} has {filled} items; run the same command again")
    return items


def _index(ends: np.ndarray, start: int, size: int, stride: int) -> list[int]:
    """Returns the entries of `doc_index` among documents [start, start + len(ends))."""
    found = ends[(-start - 1) % stride :: stride].tolist()
    last = start + ends.size == size and size % stride
    return [*found, int(ends[-1])] if last else found


def _items(
    job: Job, buckets: Sequence[Bucket], what: str, start: int, stop: int
) -> Iterator[np.ndarray]:
    """Yields items [start, stop) of an array."""
    at = total = 0
    for bucket in buckets:
        section = _section(bucket, what, job.token)
        first, last = max(start - at, 0), min(stop - at, section.size)
        if first < last:
            if what in _SUMMED:
                lengths = _read(job.path(bucket.file), section, 0, last)
                yield (total + np.cumsum(lengths))[first:]
            else:
                yield _read(job.path(bucket.file), section, first, last)
        at += section.size
        total += bucket.tokens if what == "doc_ends" else bucket.id_bytes


def _read(path: Path, section: _Section, first: int, last: int) -> np.ndarray:
    width = section.dtype.itemsize
    with path.open("rb") as file:
        size = (last - first) * width
        content = read_exactly(file.fileno(), section.at + first * width, size)
    if len(content) != size:
        raise DataError(f"{path}: was cut short; run the same command again")
    return np.frombuffer(content, section.dtype)


def write_index(job: Job, split: str, entries: Sequence[int]) -> None:
    """Writes `doc_index` of a split."""
    items = np.array(entries, np.int64)
    plan = ArrayPlan.of(f"{split}/doc_index", items.size, items.dtype)
    for start, stop in plan.shards():
        store_writer.write_shard(job.store / plan.name, plan, start, items[start:stop])

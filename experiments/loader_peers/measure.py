"""Measures one way of loading the benchmark's corpus; what every script here has in common.

python SCRIPT FOLDER --list
python SCRIPT FOLDER --prepare [--seq-len S …]
python SCRIPT FOLDER --way WAY [--seq-len S] [--batch B]

FOLDER holds `corpus` (see `corpus.py`) and what the scripts make of it. The last form prints one
line of JSON: tokens a second (the median of some passes over consecutive batches), tokens by second
of CPU time, what a batch holds, and memory.
"""

import argparse
import itertools
import json
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import corpus
import numpy as np

# What the ways have in a batch; of the same, the fastest is compared.
TOKENS = "tokens"
WITH_LABELS = "tokens, labels, mask, positions"
WITH_DOCUMENTS = f"{WITH_LABELS}, documents"
FILTER = ", filter"
EVERYTHING = f"{WITH_DOCUMENTS}, domains{FILTER}"

WARM_UP = 0.5  # seconds
SEED = 16


class Job(NamedTuple):
    """What to load, and how much at once."""

    folder: Path
    seq_len: int
    batch: int

    @property
    def tokens(self) -> Path:
        """The headerless tokens."""
        return self.folder / "corpus/tokens.npy"

    def made(self, name: str) -> Path:
        """Where a script keeps what it makes of the corpus."""
        return self.folder / name


class Way(NamedTuple):
    """One way to load.

    Args:
      batches: opens it, and returns an endless iterator of batches: dicts of arrays (B,S), or
        whatever the loader yields.
      does: what a batch holds, one of the constants above.
      reads: the files that must be in the page cache.
    """

    batches: Callable[[Job], Iterator[Mapping[str, Any]]]
    does: str
    reads: Callable[[Job], list[Path]]


def main(
    name: str,
    packages: tuple[str, ...],
    ways: Mapping[str, Way],
    *,
    prepare: Callable[[Job], None] | None = None,
    field: str = "tokens",
    whole_windows: bool = True,
) -> None:
    """Runs the command line of one script.

    Args:
      name: of the loader, in the tables.
      packages: whose versions are reported.
      ways: by name.
      prepare: makes its own files, once; does nothing if they are there.
      field: the field of a batch that holds the tokens (B,S).
      whole_windows: a row is a window [i·S, (i+1)·S) of the corpus, which is checked.
    """
    options = argparse.ArgumentParser()
    options.add_argument("folder", type=Path)
    options.add_argument("--list", action="store_true")
    options.add_argument("--prepare", action="store_true")
    options.add_argument("--way", choices=tuple(ways))
    options.add_argument("--seq-len", type=int, default=4096)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--passes", type=int, default=5)
    options.add_argument("--seconds", type=float, default=1.0)
    given = options.parse_args()
    job = Job(given.folder.absolute(), given.seq_len, given.batch)
    if given.list:
        print(json.dumps(list(ways)))
    elif given.prepare:
        if prepare is not None:
            prepare(job)
    else:
        way = ways[given.way]
        _warm(way.reads(job))
        start = time.perf_counter()
        batches = way.batches(job)
        first = next(batches)
        opened = time.perf_counter() - start
        _check(first[field], job, whole_windows)
        speeds, speed_of_a_core = _passes(batches, field, given.passes, given.seconds)
        peak, own = _memory()
        found = {
            "loader": name,
            "way": given.way,
            "does": way.does,
            "versions": {package: version(package) for package in packages},
            "seq_len": job.seq_len,
            "batch": job.batch,
            "tokens_per_second": round(statistics.median(speeds)),
            "tokens_per_core_second": round(speed_of_a_core),
            "passes": [round(speed) for speed in speeds],
            "seconds_to_first_batch": round(opened, 3),
            "fields": dict(_fields(first)),
            "peak_rss_MB": peak,
            "without_files_MB": own,
        }
        print(json.dumps(found), flush=True)


def _passes(
    batches: Iterator[Any], field: str, passes: int, seconds: float
) -> tuple[list[float], float]:
    """Returns tokens a second of each pass, and tokens by second of CPU time of all of them."""
    end = time.perf_counter() + WARM_UP
    while time.perf_counter() < end:
        next(batches)
    speeds, tokens, cpu = [], 0, _cpu_seconds()
    for _ in range(passes):
        start, count, took = time.perf_counter(), 0, 0.0
        while took < seconds:
            count += int(np.prod(tuple(next(batches)[field].shape)))
            took = time.perf_counter() - start
        speeds.append(count / took)
        tokens += count
    return speeds, tokens / (_cpu_seconds() - cpu)


def _warm(paths: list[Path]) -> None:
    """Reads files once, so that they are in the page cache."""
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb", buffering=0) as stream:
                    while stream.read(1 << 24):
                        pass


def _check(tokens: Any, job: Job, whole_windows: bool) -> None:
    """Checks that a batch is of the shape asked for and, if it can be, what is in it."""
    got = np.asarray(tokens)
    if got.shape != (job.batch, job.seq_len):
        raise SystemExit(f"a batch is {got.shape}, not ({job.batch}, {job.seq_len})")
    if not whole_windows:
        return
    heads = {row[:8].astype(corpus.DTYPE).tobytes(): row for row in got}
    seen, size = [], corpus.DTYPE.itemsize
    with job.tokens.open("rb") as file:  # not mapped: that would count as memory of the loader
        for number in range(job.tokens.stat().st_size // size // job.seq_len):
            head = os.pread(file.fileno(), 8 * size, number * job.seq_len * size)
            if head in heads:
                content = os.pread(file.fileno(), job.seq_len * size, number * job.seq_len * size)
                if (np.frombuffer(content, corpus.DTYPE) == heads[head]).all():
                    seen.append(number)
    if len(set(seen)) != job.batch:
        raise SystemExit(f"{len(set(seen))} of {job.batch} rows are windows of the corpus")
    if max(seen) - min(seen) < 2 * job.batch:
        raise SystemExit("the rows are neighbours: not shuffled")


def _fields(batch: Any) -> Iterator[tuple[str, str]]:
    for name, value in batch.items():
        shape = getattr(value, "shape", None)
        kind = type(value).__name__ if shape is None else f"{value.dtype} {tuple(shape)}"
        yield name, kind.removeprefix("torch.")


def _memory() -> tuple[int, int]:
    """Peak resident MB, and what of it is no file now, of this process and its children."""
    peak = own = 0
    for number in _processes("self"):
        try:
            text = Path(f"/proc/{number}/status").read_text()
        except FileNotFoundError:
            continue
        kB = {key: int(value) for key, value in re.findall(r"(\w+):\s+(\d+) kB", text)}
        peak += kB["VmHWM"]
        own += kB["RssAnon"] + kB["RssShmem"]
    return round(peak / 1000), round(own / 1000)


def _cpu_seconds() -> float:
    """CPU time of this process and its children, which is not longer where others share cores."""
    ticks = 0
    for number in _processes("self"):
        try:
            fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _processes(number: str) -> Iterator[str]:
    yield number
    for task in Path(f"/proc/{number}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from _processes(child)


def endless(epochs: Callable[[int], Iterator[Any]]) -> Iterator[Any]:
    """Yields the batches of epoch 0, then 1, and so on."""
    return itertools.chain.from_iterable(epochs(epoch) for epoch in itertools.count())

"""Finds ids that several documents have, without holding all ids in memory.

Hashes of ids go to files by their first bits, so that each file fits in memory; equal hashes are
then compared as ids. A document takes 16 bytes of disk.
"""

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from emo_jax.data.stream import DocumentStream

_READ = 1 << 14  # ids read at once
_IN_MEMORY = 1 << 22  # hashes of a file
_MOST_FILES = 512
_RECORD = np.dtype([("hash", "<u8"), ("document", "<i8")])

Place = tuple[str, int]  # name of a stream, number of a document in it


def repeated_ids(
    streams: Sequence[DocumentStream], show: Callable[[str], None] = lambda line: None
) -> Iterator[tuple[str, list[Place]]]:
    """Yields each id that is not "" and that several documents have, with these, in their order."""
    firsts = np.cumsum([0, *(stream.num_documents for stream in streams)])
    total = int(firsts[-1])
    # Eight times the files that would do if hashes were even: a file is never much too large.
    bits = math.ceil(math.log2(max(1, min(8 * total / _IN_MEMORY, _MOST_FILES))))
    with tempfile.TemporaryDirectory(prefix="emo_ids_") as folder:
        names = [Path(folder, str(n)) for n in range(1 << bits)]
        with ExitStack() as stack:
            files = [stack.enter_context(name.open("wb")) for name in names]
            for stream, first in zip(streams, firsts.tolist(), strict=False):
                for start in range(0, stream.num_documents, _READ):
                    stop = min(start + _READ, stream.num_documents)
                    found = _hashes(stream.document_ids(start, stop), first + start)
                    which = (found["hash"] >> np.uint64(64 - bits)) if bits else None
                    for n, file in enumerate(files):
                        here = found if which is None else found[which == n]
                        file.write(here.tobytes())
                    show(f"{first + stop:,} of {total:,} ids read")
        for name in names:
            records = np.fromfile(name, _RECORD)
            for documents in _alike(records):
                yield from _same(streams, firsts, documents)


def _hashes(ids: list[str], first: int) -> np.ndarray:
    records = np.empty(len(ids), _RECORD)
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    records["hash"] = np.frombuffer(digests, "<u8")
    records["document"] = np.arange(first, first + len(ids))
    return records[[bool(name) for name in ids]]


def _alike(records: np.ndarray) -> Iterator[list[int]]:
    """Yields the documents of each hash that occurs more than once."""
    records = np.sort(records, order=["hash", "document"])
    new = np.flatnonzero(np.diff(records["hash"], prepend=~records["hash"][:1]) != 0)
    for start, size in zip(new, np.diff(np.append(new, len(records))), strict=True):
        if size > 1:
            yield records["document"][start : start + size].tolist()


def _same(
    streams: Sequence[DocumentStream], firsts: np.ndarray, documents: list[int]
) -> Iterator[tuple[str, list[Place]]]:
    by_id: dict[str, list[Place]] = {}
    for document in documents:
        k = int(np.searchsorted(firsts, document, side="right")) - 1
        number = document - int(firsts[k])
        (name,) = streams[k].document_ids(number, number + 1)
        by_id.setdefault(name, []).append((streams[k].name, number))
    yield from ((name, places) for name, places in by_id.items() if len(places) > 1)

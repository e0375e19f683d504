"""The first step: documents of a piece of the inputs, tokenised, as sorted runs."""

import hashlib
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from emo_jax.data.stream import check_ids
from emo_jax.documents import text_files
from emo_jax.documents.records import NUM_EXAMPLES, Document, ReadReport
from emo_jax.errors import DataError
from emo_jax.preparation import drop
from emo_jax.preparation.plan import Span
from emo_jax.preparation.runs import INDEX, RunFile, write_run
from emo_jax.preparation.tasks import Job, Outcome, Task, whole_file

_BATCH_CHARS = 500_000  # text tokenised at once: more takes memory and is no faster
_DOCUMENT_BYTES = 600  # that a document takes in memory besides its tokens and id
_PIECE = re.compile(r"~\d+$")


def count_lines(task: Task, job: Job) -> Outcome:
    """Counts the line feeds that the numbers of the lines of the next part depend on."""
    span = Span.of(task["span"])
    assert span.file is not None and span.part is not None
    start, stop, _ = span.part
    try:
        count = text_files.count_lines(span.file.path, max(start - 1, 0), stop - 1)
    except OSError as error:
        raise DataError(f"{span.file.path}: cannot be read ({error.strerror})") from error
    return {"count": count, "files": {}}


def read_piece(task: Task, job: Job) -> Outcome:
    """Reads, selects and tokenises documents, and writes them as runs."""
    report = ReadReport(strict=job.reading.strict)
    piece = _Piece(job, task["name"], report)
    started = time.monotonic()
    for batch in _batches(_documents(task, job, report)):
        piece.add(batch)
        job.show(f"{report.documents:,} documents, {piece.num_tokens:,} tokens of this piece")
    piece.flush()
    return {
        "files": piece.files,
        "runs": [list(run) for run in piece.runs],
        "domains": list(piece.domains),
        "sources": {source: list(counts) for source, counts in piece.sources.items()},
        "report": describe_report(report),
        "text_bytes": piece.text_bytes,
        "seconds": time.monotonic() - started,
    }


def _documents(task: Task, job: Job, report: ReadReport) -> Iterator[tuple[str, Document]]:
    """Yields (input as given, document)."""
    reader = job.reading.documents(report)
    for described in task["spans"]:
        span = Span.of(described)
        if span.file is not None:
            documents = reader.file(span.file, span.part)
        else:
            documents = reader.source(span.given)
        for document in documents:
            yield span.source, document


def _batches(
    documents: Iterator[tuple[str, Document]],
) -> Iterator[list[tuple[str, Document]]]:
    batch: list[tuple[str, Document]] = []
    size = 0
    for source, document in documents:
        batch.append((source, document))
        size += len(document.text)
        if size >= _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def hash64(*parts: str) -> int:
    """Returns a number that is the same on every machine, unlike Python's own hash."""
    return _hash("\x00".join(parts).encode())


def without_piece(document_id: str) -> str:
    """Returns the id of the whole document, of which `document_id` may be a piece (`…~2`)."""
    return _PIECE.sub("", document_id)


def split_key(document_id: str) -> int:
    """Returns the number that decides a document's split; pieces of a document share it."""
    return hash64("split", without_piece(document_id))


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


class _Piece:
    """The documents of a piece; at most `job.run_bytes` of them are held in memory."""

    def __init__(self, job: Job, name: str, report: ReadReport):
        self._job, self._name, self._report = job, name, report
        tokenizer = job.tokenizer
        self._dtype = job.token
        self._around = [[tokenizer.bos_id] if job.add_bos else [], [tokenizer.eos_id]]
        self.runs: list[RunFile] = []
        self.files: dict[str, int] = {}
        self.domains: dict[str, int] = {}
        self.sources: dict[str, list[int]] = {}
        self.num_tokens = self.text_bytes = 0
        self._clear()

    def _clear(self) -> None:
        self._index: list[tuple[int, ...]] = []
        self._tokens: list[np.ndarray] = []
        self._ids: list[bytes] = []
        self._size = 0

    def add(self, batch: list[tuple[str, Document]]) -> None:
        """Tokenises documents and keeps them."""
        job, report = self._job, self._report
        if job.drop is not None:
            dropped = job.drop.has([document.id for _, document in batch])
            report.documents -= int(dropped.sum())
            report.dropped[drop.REASON] += int(dropped.sum())
            batch = [one for one, out in zip(batch, dropped.tolist(), strict=True) if not out]
        encoded = job.tokenizer.encode_batch([document.text for _, document in batch])
        for (source, document), ids in zip(batch, encoded, strict=True):
            self.text_bytes += text_files.size_of(document.text, 0)
            tokens = self._kept(document, ids)
            if tokens is not None:
                self._keep(source, document, tokens)

    def _kept(self, document: Document, ids: np.ndarray) -> np.ndarray | None:
        """Returns the tokens of a document with what begins and ends it; None if it is unusable."""
        tokenizer, report = self._job.tokenizer, self._report
        eos = tokenizer.eos_id
        if tokenizer.reads_ids and ids.size and ids[-1] == eos:
            ids = ids[:-1]  # such documents often include their end already
        if not ids.size:
            report.documents -= 1
            report.skip(document.id, "no tokens")
            return None
        check_ids(ids, tokenizer.vocab_size, document.id)
        if (ids == eos).any():
            raise DataError(
                f"{document.id}: its tokens hold the end-of-document id {eos}; "
                + (
                    "make a document of each part"
                    if tokenizer.reads_ids
                    else "use a tokenizer that marks that token as special"
                )
            )
        against = self._job.reading.wanted.against_tokens(ids.size)
        if against is not None:
            report.documents -= 1
            report.dropped[against] += 1
            return None
        begin, end = self._around
        return np.concatenate([begin, ids, end]).astype(self._dtype)

    def _keep(self, source: str, document: Document, tokens: np.ndarray) -> None:
        name = document.id.encode("utf-8")
        self._index.append(
            (
                hash64("order", str(self._job.seed), document.id),
                split_key(document.id),
                _hash(tokens.tobytes()),
                tokens.size,
                len(name),
                self.domains.setdefault(document.domain, len(self.domains)),
            )
        )
        self._tokens.append(tokens)
        self._ids.append(name)
        counts = self.sources.setdefault(source, [0, 0])
        counts[0] += 1
        counts[1] += tokens.size
        self.num_tokens += tokens.size
        self._size += tokens.nbytes + len(name) + _DOCUMENT_BYTES
        if self._size >= self._job.run_bytes:
            self.flush()

    def flush(self) -> None:
        """Writes the documents in memory as a run."""
        if not self._index:
            return
        index = np.array(self._index, INDEX)
        name = f"runs/{self._name}.{len(self.runs)}"
        path = self._job.path(name)
        with whole_file(path) as temporary:
            write_run(temporary, index, self._tokens, self._ids, self._job.bins)
        self.files[name] = path.stat().st_size
        tokens, id_bytes = (int(index[f].sum(dtype=np.int64)) for f in ("length", "id_length"))
        self.runs.append(RunFile(name, len(index), tokens, id_bytes))
        self._clear()


# --- reports --------------------------------------------------------------------------------------

_COUNTS = ("skipped", "dropped", "without", "unnamed")


def describe_report(report: ReadReport) -> dict[str, Any]:
    """Returns a report as JSON values."""
    counts = {name: dict(getattr(report, name)) for name in _COUNTS}
    return counts | {
        "documents": report.documents,
        "examples": report.examples,
        "left_out": {what: list(found) for what, found in report.left_out.items()},
    }


def add_report(report: ReadReport, described: dict[str, Any]) -> None:
    """Adds the report of a piece to that of all."""
    report.documents += described["documents"]
    for name in _COUNTS:
        getattr(report, name).update(Counter(described[name]))
    report.examples += described["examples"]
    del report.examples[NUM_EXAMPLES:]
    for what, (count, first) in described["left_out"].items():
        report.leave_out(first, what, count)

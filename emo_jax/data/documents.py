"""Readers: JSONL files and folders of text become a stream of documents.

Nothing is held in memory but the document at hand. What cannot be used is counted, and the first
few cases are named, so that a broken line is neither fatal nor silent.
"""

import gzip
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import zstandard

from emo_jax.data import seqio_tasks
from emo_jax.errors import DataError, UsageError

UNKNOWN_DOMAIN = "unknown"
NUM_EXAMPLES = 5
_BOM = b"\xef\xbb\xbf"
_JSONL = (".jsonl", ".ndjson", ".json")
_TEXT = (".txt", ".md")
_PACKED = (".gz", ".zst")


class Document(NamedTuple):
    """One text, the name of it, and the domain that it is reported under."""

    text: str
    id: str
    domain: str


@dataclass
class ReadReport:
    """What was read and what was left out; `examples` names the first few."""

    documents: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    strict: bool = False

    def skip(self, where: str, why: str) -> None:
        """Counts one unusable document.

        Raises:
          DataError: at once, when strict.
        """
        if self.strict:
            raise DataError(f"{where}: {why} (leave out --strict to skip such documents)")
        self.skipped[why] += 1
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append(f"{where}: {why}")

    def summary(self) -> str:
        """One line of counts, then the named examples."""
        lines = [f"{self.documents} documents read, {self.skipped.total()} skipped"]
        lines += [f"  {count} x {why}" for why, count in sorted(self.skipped.items())]
        lines += [f"  e.g. {example}" for example in self.examples]
        return "\n".join(lines)


def read_documents(
    inputs: Sequence[str | os.PathLike[str]],
    *,
    text_field: str = "text",
    id_field: str = "id",
    domain_field: str = "domain",
    strict: bool = False,
    report: ReadReport | None = None,
) -> Iterator[Document]:
    """Streams the documents of files and folders, in the order given and sorted within a folder.

    An input `seqio:MODULE:TASK` is a seqio task or mixture that importing MODULE registers, see
    `seqio_tasks`.

    A JSONL line is one document (`.jsonl`, `.ndjson`, `.json`, each also `.gz` or `.zst`); without
    a domain it is "unknown", without an id its `file:line`. Any other file of a folder is one
    document: its id is the relative path, its domain the first sub-folder.

    Args:
      inputs: files, folders or seqio tasks.
      text_field: JSONL key of the text; likewise `id_field` and `domain_field`.
      strict: stop at the first document that cannot be used.
      report: filled while reading, where given.

    Raises:
      UsageError: at once, for a path that does not exist or a file of unknown kind.
      DataError: a damaged archive, no usable document at all, or (strict) a bad document.
    """
    report = report if report is not None else ReadReport()
    report.strict = strict
    if not inputs:
        raise UsageError("no input: name at least one JSONL file or folder of text files")
    paths: list[Path | str] = []
    for given in (os.fspath(i) for i in inputs):
        if given.startswith(seqio_tasks.PREFIX):
            seqio_tasks.check(given)
            paths.append(given)
            continue
        path = Path(given)
        paths.append(path)
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        if path.is_file() and _kind(path) is None:
            raise UsageError(
                f"{path}: unknown kind of file; give .jsonl, .txt or .md (also .gz, .zst) or a"
                " folder"
            )
    return _read_all(paths, (text_field, id_field, domain_field), report)


def _read_all(
    paths: list[Path | str], fields: tuple[str, str, str], report: ReadReport
) -> Iterator[Document]:
    for path in paths:
        if isinstance(path, str):
            for text, name, domain in seqio_tasks.read(path):
                yield from _usable(text, name, name, domain, report)
            continue
        for file, name, domain in _files(path):
            try:
                if _kind(file) == "jsonl":
                    yield from _read_jsonl(file, name, domain, fields, report)
                else:
                    yield from _read_text(file, name, domain, report)
            except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
                raise DataError(
                    f"{file}: cannot be read to its end ({error}); copy it again or leave it out"
                ) from error
    if not report.documents:
        where = ", ".join(str(p) for p in paths)
        first = f"; the first: {report.examples[0]}" if report.examples else ""
        raise DataError(
            f"{where}: no usable document ({report.skipped.total()} skipped{first});"
            " check the input and the field names"
        )


def _files(path: Path) -> Iterator[tuple[Path, str, str]]:
    """(file, name used in ids, default domain) of every file under `path`, hidden ones left out.

    Names are relative to `path`: the split of a document hangs on its id and must not change with
    the folder that a corpus happens to lie in.
    """
    if path.is_file():
        yield path, path.name, UNKNOWN_DOMAIN
        return
    for folder, subfolders, files in os.walk(path, onerror=_unreadable):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        for file in sorted(f for f in files if not f.startswith(".")):
            relative = (Path(folder) / file).relative_to(path)
            domain = relative.parts[0] if len(relative.parts) > 1 else UNKNOWN_DOMAIN
            yield path / relative, relative.as_posix(), domain


def _unreadable(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: cannot be listed ({error.strerror}); allow it or leave it out"
    )


def _kind(path: Path) -> str | None:
    suffixes = path.suffixes
    if suffixes and suffixes[-1] in _PACKED:
        suffixes = suffixes[:-1]
    last = suffixes[-1].lower() if suffixes else ""
    return "jsonl" if last in _JSONL else "text" if last in _TEXT else None


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstdReader(path), 1 << 20)
    return path.open("rb")


def _zstd_frame() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()


class _ZstdReader(io.RawIOBase):
    """Frames of a .zst file; unlike zstandard's own reader it notices a file cut short."""

    def __init__(self, path: Path):
        self._file = path.open("rb")
        self._frame = _zstd_frame()
        self._ready = b""
        self._inside = False  # a frame has begun and not ended

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._frame.unused_data or self._file.read(1 << 18)
            if self._frame.eof:
                self._frame = _zstd_frame()
                self._inside = False
            if not block:
                if self._inside:
                    raise EOFError("the compressed stream is cut short")
                return 0
            self._inside = True
            self._ready = self._frame.decompress(block)
            self._inside = not self._frame.eof
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _read_jsonl(
    file: Path, name: str, default_domain: str, fields: tuple[str, str, str], report: ReadReport
) -> Iterator[Document]:
    text_field, id_field, domain_field = fields
    with _open(file) as stream:
        for number, line in enumerate(stream, 1):
            if number == 1:
                line = line.removeprefix(_BOM)
            if not line.strip():
                continue
            where = f"{file}:{number}"
            try:
                record = json.loads(line)
            except UnicodeDecodeError:
                report.skip(where, "invalid UTF-8")
                continue
            except (ValueError, RecursionError):
                report.skip(where, "broken JSON")
                continue
            if not isinstance(record, dict):
                report.skip(where, "not a JSON object")
                continue
            if text_field not in record:
                report.skip(where, f"no field {text_field!r}")
                continue
            text = record[text_field]
            if not isinstance(text, str):
                report.skip(where, f"field {text_field!r} is not a string")
                continue
            document_id, domain = record.get(id_field), record.get(domain_field)
            yield from _usable(
                text,
                where,
                f"{name}:{number}" if document_id in (None, "") else str(document_id),
                default_domain if domain in (None, "") else str(domain),
                report,
            )


def _read_text(file: Path, name: str, domain: str, report: ReadReport) -> Iterator[Document]:
    with _open(file) as stream:
        content = stream.read().removeprefix(_BOM)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        report.skip(str(file), "invalid UTF-8")
        return
    yield from _usable(text, str(file), name, domain, report)


def _usable(
    text: str, where: str, document_id: str, domain: str, report: ReadReport
) -> Iterator[Document]:
    if not text or text.isspace():
        report.skip(where, "empty document")
        return
    try:
        # JSON can spell half of a surrogate pair, which no tokenizer can take.
        text.isascii() or text.encode("utf-8")
    except UnicodeEncodeError:
        report.skip(where, "invalid UTF-8")
        return
    report.documents += 1
    yield Document(text, _printable(document_id), _printable(domain))


def _printable(name: str) -> str:
    """A name that can be written to a file whatever it was made from."""
    return name.encode("utf-8", "replace").decode()

"""Readers: JSONL, Parquet and text files, folders of them and seqio tasks, as one stream.

Nothing is held in memory but a few documents. What cannot be used is counted, and the first few
cases are named, so that a broken line is neither fatal nor silent.
"""

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import zstandard

from emo_jax.data import parquet, seqio_tasks
from emo_jax.data.archives import PACKED, open_packed
from emo_jax.data.records import UNKNOWN_DOMAIN, Document, Documents, Fields, ReadReport, Source
from emo_jax.data.selection import Selection
from emo_jax.errors import DataError, UsageError

__all__ = ["Document", "ReadReport", "read_documents"]

_BOM = b"\xef\xbb\xbf"
_JSONL = (".jsonl", ".ndjson", ".json")
_TEXT = (".txt", ".md")
_PARQUET = ".parquet"


def read_documents(
    inputs: Sequence[str | os.PathLike[str]],
    *,
    text_field: str = "text",
    id_field: str = "id",
    domain_field: str = "domain",
    selection: Selection | None = None,
    ids: bool = False,
    strict: bool = False,
    report: ReadReport | None = None,
) -> Iterator[Document]:
    """Streams the documents of files and folders, in the order given and sorted within a folder.

    An input `seqio:MODULE:TASK` (or `…:SPLIT`) is a seqio task or mixture that importing MODULE
    registers, see `seqio_tasks`.

    A JSONL line (`.jsonl`, `.ndjson`, `.json`, each also `.gz` or `.zst`) or a row of a Parquet
    file (`.parquet`) is one document; without a domain it is "unknown", without an id its
    `file:number`. Any other file of a folder is one document: its id is the relative path, its
    domain the first sub-folder.

    Args:
      inputs: files, folders or seqio tasks.
      text_field: key or column of the text; likewise `id_field` and `domain_field`. A dot leads
        inside: `metadata.source`.
      selection: the documents wanted; the others are counted in `report.dropped`.
      ids: the texts are token ids, see `Documents`.
      strict: stop at the first document that cannot be used.
      report: filled while reading, where given.

    Raises:
      UsageError: at once, for a path that does not exist or a file of unknown kind.
      DataError: at once, for a Parquet file that is damaged or has no such column; later for a
        damaged archive, no usable document at all, or (strict) a bad document.
    """
    report = report if report is not None else ReadReport()
    report.strict = strict
    fields = Fields(text_field, id_field, domain_field)
    selection = selection or Selection()
    if not inputs:
        raise UsageError(
            "no input: name at least one JSONL or Parquet file or folder of text files"
        )
    needed = {"--text-field": text_field}
    if selection.languages:
        needed["--language-field"] = selection.language_field
    paths: list[Path | seqio_tasks.Tasks] = []
    for given in (os.fspath(i) for i in inputs):
        if given.startswith(seqio_tasks.PREFIX):
            paths.append(seqio_tasks.find(given, text_field))
            continue
        path = Path(given)
        paths.append(path)
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        if path.is_file() and _kind(path) is None:
            raise UsageError(
                f"{path}: unknown kind of file; give .jsonl, .parquet, .txt or .md (.jsonl and"
                " texts also .gz, .zst) or a folder"
            )
        # A file without texts is found now, not after the hours that those before it take.
        for file, _, _ in _files(path):
            if _kind(file) == "parquet":
                parquet.check(file, needed)
    made = Documents(fields, selection, ids=ids, report=report)
    wanted = [text_field, id_field, domain_field]
    if selection.languages:
        wanted.append(selection.language_field)
    return _read_all(paths, made, wanted)


def _read_all(
    paths: list[Path | seqio_tasks.Tasks], made: Documents, wanted: list[str]
) -> Iterator[Document]:
    for path in paths:
        if isinstance(path, seqio_tasks.Tasks):
            for text, name, domain in seqio_tasks.read(path):
                yield from made.of_text(text, Source(name, name, domain))
            continue
        for file, name, domain in _files(path):
            kind = _kind(file)
            try:
                if kind == "jsonl":
                    yield from _read_jsonl(file, name, domain, made)
                elif kind == "parquet":
                    yield from _read_parquet(file, name, domain, made, wanted)
                else:
                    yield from _read_text(file, name, domain, made)
            except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
                raise DataError(
                    f"{file}: cannot be read to its end ({error}); copy it again or leave it out"
                ) from error
    report = made.report
    if not report.documents:
        where = ", ".join(p.spec if isinstance(p, seqio_tasks.Tasks) else str(p) for p in paths)
        first = f"; the first: {report.examples[0]}" if report.examples else ""
        dropped = "".join(f", {n} dropped by {why}" for why, n in sorted(report.dropped.items()))
        raise DataError(
            f"{where}: no usable document ({report.skipped.total()} skipped{first}{dropped});"
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
    if suffixes and suffixes[-1].lower() == _PARQUET:
        return "parquet"
    if suffixes and suffixes[-1] in PACKED:
        suffixes = suffixes[:-1]
    last = suffixes[-1].lower() if suffixes else ""
    return "jsonl" if last in _JSONL else "text" if last in _TEXT else None


def _read_jsonl(file: Path, name: str, domain: str, made: Documents) -> Iterator[Document]:
    with open_packed(file) as stream:
        for number, line in enumerate(stream, 1):
            if number == 1:
                line = line.removeprefix(_BOM)
            if not line.strip():
                continue
            source = Source(f"{file}:{number}", f"{name}:{number}", domain)
            try:
                record = json.loads(line)
            except UnicodeDecodeError:
                made.report.skip(source.where, "invalid UTF-8")
                continue
            except (ValueError, RecursionError):
                made.report.skip(source.where, "broken JSON")
                continue
            yield from made.of_record(record, source)


def _read_parquet(
    file: Path, name: str, domain: str, made: Documents, wanted: list[str]
) -> Iterator[Document]:
    for number, record in enumerate(parquet.rows(file, wanted), 1):
        source = Source(f"{file}:{number}", f"{name}:{number}", domain)
        if record is None:
            made.report.skip(source.where, "invalid UTF-8")
        else:
            yield from made.of_record(record, source)


def _read_text(file: Path, name: str, domain: str, made: Documents) -> Iterator[Document]:
    with open_packed(file) as stream:
        content = stream.read().removeprefix(_BOM)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        made.report.skip(str(file), "invalid UTF-8")
        return
    yield from made.of_text(text, Source(str(file), name, domain))

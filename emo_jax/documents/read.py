"""Reads files, folders and archives of documents, seqio tasks and data sets as one stream.

Only a few documents are held in memory. Unusable input is counted and its first few cases are
named, so a broken line is neither fatal nor silent.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from emo_jax.documents import (
    file_kinds,
    foreign,
    hub,
    input_files,
    parquet,
    seqio_tasks,
    tars,
    text_files,
)
from emo_jax.documents.archives import READ_ERRORS, unreadable
from emo_jax.documents.document_filter import DocumentFilter
from emo_jax.documents.input_files import File, Input
from emo_jax.documents.locations import concurrently, is_remote, location
from emo_jax.documents.records import (
    Document,
    Documents,
    Fields,
    ReadReport,
    Source,
    joined,
    lookup,
)
from emo_jax.documents.text_files import Part
from emo_jax.errors import DataError, UsageError

__all__ = ["Document", "ReadReport", "find_inputs", "read_documents", "read_file", "read_found"]

Found = (
    Input | seqio_tasks.Tasks | hub.HubDataset
)  # a unit of an input: files, or a source that is not of files


def read_documents(
    inputs: Sequence[str | os.PathLike[str]],
    *,
    text_field: str = "text",
    id_field: str = "id",
    domain_field: str = "domain",
    wanted: DocumentFilter | None = None,
    ids: bool = False,
    strict: bool = False,
    max_document_bytes: int = text_files.MAX_DOCUMENT_BYTES,
    report: ReadReport | None = None,
) -> Iterator[Document]:
    """Streams the documents of files and folders, in the order given and sorted within a folder.

    An input `seqio:MODULE:TASK` (or `…:SPLIT`) is a seqio task or mixture that importing MODULE
    registers, see `seqio_tasks`; `hf://ORG/DATASET` (or `…/CONFIG`, `…:SPLIT`) is a data set of the
    Hugging Face hub, see `hub`. Any other URL, such as `s3://` or `gs://`, is a file, a folder or a
    pattern in an object store, see `locations`.

    A JSONL line (`.jsonl`, `.ndjson`, `.json`, each also `.gz` or `.zst`) or a row of a Parquet or
    Arrow file (`.parquet`, `.arrow`) is one document; without a domain it is "unknown", without an
    id its id is `file:number`. A text file is one document: its id is the relative path, its domain
    the first sub-folder. A tar archive (`.tar`, also `.gz` or `.zst`) is a WebDataset or holds
    texts, see `tars`. In a folder that has lines, rows or archives, only these and `.txt` and `.md`
    files are read; in any other folder, every file that is text. See `input_files` and `foreign`.

    Args:
      inputs: files, folders, patterns of them, seqio tasks or data sets.
      text_field: key or column of the text; likewise `id_field` and `domain_field`. A dot reaches
        into an object or a list: `metadata.source`, see `records.lookup`. A list of strings is one
        text, see `records.joined`.
      wanted: the documents to keep; the others are counted in `report.dropped`.
      ids: the texts are token ids, see `Documents`.
      strict: stop at the first unusable document.
      max_document_bytes: limit for a line, a text file or a row's text; longer ones are skipped.
      report: filled in while reading, if given.

    Raises:
      UsageError: immediately, for a path that does not exist, an unsupported file or folder, or a
        folder that mixes splits.
      DataError: immediately, for a Parquet file that is damaged or lacks a column, and for a file
        whose content is not what its name says; while reading, for a damaged archive, no usable
        document at all, or (strict) an unusable document.
    """
    report = report if report is not None else ReadReport()
    report.strict = strict
    fields = Fields(text_field, id_field, domain_field)
    wanted = wanted or DocumentFilter()
    if not inputs:
        raise UsageError(
            "no input: name at least one JSONL or Parquet file or folder of text files"
        )
    columns = parquet.Columns(
        text=text_field,
        names={"--id-field": id_field, "--domain-field": domain_field},
        language=wanted.language_field if wanted.languages else None,
        ids=ids,
        max_bytes=max_document_bytes,
    )
    found = find_inputs(inputs, report, columns, text_field=text_field)
    made = Documents(fields, wanted, ids=ids, report=report)
    return _read_all(found, made, columns, max_document_bytes)


def find_inputs(
    inputs: Sequence[str | os.PathLike[str]],
    report: ReadReport,
    columns: parquet.Columns,
    *,
    text_field: str = "text",
) -> list[Found]:
    """Checks all inputs and returns what there is to read, in the order given.

    Args:
      report: updated with what is left out.

    Raises:
      UsageError, DataError: as `read_documents` does immediately.
    """
    names = list(input_files.expand(inputs))
    places = [location(n) for n in names if not n.startswith((seqio_tasks.PREFIX, hub.PREFIX))]

    def look(path: Path) -> tuple[Input, ReadReport]:
        own = ReadReport(strict=report.strict)
        check = columns.check
        return input_files.look_at(path, own, text_field=text_field, check_rows=check), own

    looks = concurrently(look, places, any(map(is_remote, places)))
    found: list[Found] = []
    files: list[Input] = []
    for given in names:
        if given.startswith(seqio_tasks.PREFIX):
            tasks = seqio_tasks.find(given, text_field)
            for what, count in tasks.unread().items():
                report.leave_out(given, what, count)
            found.append(tasks)
        elif given.startswith(hub.PREFIX):
            found.append(hub.find(given, columns.names(), text_field))
        else:
            looked, own = next(looks)
            report.add_left_out(own)
            found.append(looked)
            files.append(looked)
    papers = input_files.leave_out_papers(files, report)
    return [source for source in found if source not in papers]


def read_found(
    source: Found, made: Documents, columns: parquet.Columns, max_bytes: int
) -> Iterator[Document]:
    """Streams the documents of one of `find_inputs`."""
    if isinstance(source, seqio_tasks.Tasks):
        for text, name, domain in seqio_tasks.read(source):
            if text_files.size_of(text, max_bytes) > max_bytes:
                made.report.skip(name, text_files.too_long(max_bytes))
            else:
                yield from made.of_text(text, Source(name, name, domain))
        return
    if isinstance(source, hub.HubDataset):
        for record, name, domain in hub.read(source):
            text = joined(lookup(record, made.fields.text))
            if text_files.size_of(text, max_bytes) > max_bytes:
                made.report.skip(name, text_files.too_long(max_bytes))
            else:
                yield from made.of_record(record, Source(name, name, domain))
        return
    for file in source.files():
        yield from read_file(file, made, columns, max_bytes)


def read_file(
    file: File,
    made: Documents,
    columns: parquet.Columns,
    max_bytes: int,
    part: Part | None = None,
) -> Iterator[Document]:
    """Streams the documents of one file; it needs nothing of the files beside it.

    Args:
      part: read only these bytes of a file of lines, or row groups of a Parquet file.

    Raises:
      DataError: the file is damaged.
    """
    try:
        if file.kind == file_kinds.LINES:
            yield from _read_jsonl(file, made, max_bytes, part)
        elif file.kind in (file_kinds.ROWS, file_kinds.ARROW):
            yield from _read_rows(file, made, columns, part)
        elif file.kind == file_kinds.TAR:
            yield from tars.read(file.path, file.name, file.domain, made, max_bytes)
        else:
            yield from _read_text(file, made, max_bytes)
    except READ_ERRORS as error:
        raise unreadable(file.path, error) from error


def no_document(found: Sequence[Found], report: ReadReport) -> DataError:
    """Returns the error for inputs without a usable document."""
    where = ", ".join(str(s.path) if isinstance(s, Input) else s.spec for s in found)
    first = f"; the first: {report.examples[0]}" if report.examples else ""
    dropped = "".join(f", {n} dropped by {why}" for why, n in sorted(report.dropped.items()))
    left = "".join(f", {line}" for line in report.files_left_out())
    return DataError(
        f"{where}: no usable document ({report.skipped.total()} skipped{first}{dropped}{left});"
        " check the input and the field names"
    )


def _read_all(
    found: list[Found], made: Documents, columns: parquet.Columns, max_bytes: int
) -> Iterator[Document]:
    for source in found:
        yield from read_found(source, made, columns, max_bytes)
    if not made.report.documents:
        raise no_document(found, made.report)


def _read_jsonl(
    file: File, made: Documents, max_bytes: int, part: Part | None
) -> Iterator[Document]:
    path, name, domain = file.path, file.name, file.domain
    for number, record, why in text_files.json_lines(path, max_bytes, part):
        if why:
            made.report.skip(f"{path}:{number}", why)
        else:
            yield from made.of_record(
                record, Source(f"{path}:{number}", f"{name}:{number}", domain)
            )


def _read_rows(
    file: File, made: Documents, columns: parquet.Columns, part: Part | None
) -> Iterator[Document]:
    first = 1 if part is None else part.first
    for number, (record, why) in enumerate(columns.rows(file.path, part), first):
        source = Source(f"{file.path}:{number}", f"{file.name}:{number}", file.domain)
        if why:
            made.report.skip(source.where, why)
        else:
            yield from made.of_record(record, source)


def _read_text(file: File, made: Documents, max_bytes: int) -> Iterator[Document]:
    where = str(file.path)
    try:
        content = text_files.read_text(file.path, max_bytes)
        other = foreign.of_text(content, made.fields.text)
    except text_files.EncodingError as error:
        made.report.skip(where, str(error))
        return
    except text_files.TooLongError as error:
        other = foreign.of_text(text_files.read_start(file.path), made.fields.text)
        if other is None:
            made.report.skip(where, str(error))
            return
    if other is foreign.POINTER:  # the file it stands for would be missing
        raise DataError(f"{where}: {other.what}; {other.advice}")
    if other is not None:
        made.report.leave_out(where, str(other), text=True)
        return
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        made.report.skip(where, "invalid UTF-8")
        return
    yield from made.of_text(text, Source(where, file.name, file.domain))

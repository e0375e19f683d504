"""How the documents of a command are read."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emo_jax.documents import input_files, parquet, read
from emo_jax.documents.document_filter import DocumentFilter
from emo_jax.documents.input_files import File, Input
from emo_jax.documents.read import Found
from emo_jax.documents.records import Document, Documents, Fields, ReadReport
from emo_jax.documents.text_files import Part


@dataclass(frozen=True)
class Reading:
    """How documents are read; see `read_documents` for the fields."""

    fields: Fields
    wanted: DocumentFilter
    ids: bool
    strict: bool
    max_document_bytes: int

    @classmethod
    def of(cls, described: dict[str, Any]) -> "Reading":
        """Returns what `described` describes."""
        wanted = described["wanted"] | {"languages": tuple(described["wanted"]["languages"])}
        made = {"fields": Fields(**described["fields"]), "wanted": DocumentFilter(**wanted)}
        return cls(**described | made)

    def described(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        return asdict(self)

    def _columns(self) -> parquet.Columns:
        return parquet.Columns(
            text=self.fields.text,
            names={"--id-field": self.fields.id, "--domain-field": self.fields.domain},
            language=self.wanted.language_field if self.wanted.languages else None,
            ids=self.ids,
            max_bytes=self.max_document_bytes,
        )

    def find(
        self, inputs: Sequence[str | os.PathLike[str]], report: ReadReport
    ) -> list[tuple[str, Found]]:
        """Finds and checks all inputs; returns them with the argument that each comes from."""
        report.strict = self.strict
        found = read.find_inputs(inputs, report, self._columns(), text_field=self.fields.text)
        source_of = {
            name_of(given): as_given(argument)
            for argument in inputs
            for given in input_files.expand([argument])
        }
        return [(source_of.get(name_of(one), name_of(one)), one) for one in found]

    def documents(self, report: ReadReport) -> "Reader":
        """Returns what reads documents and counts them in `report`."""
        report.strict = self.strict
        made = Documents(self.fields, self.wanted, ids=self.ids, report=report)
        return Reader(self, made, self._columns())


class Reader:
    """Reads documents of files and of other sources."""

    def __init__(self, reading: Reading, made: Documents, columns: parquet.Columns):
        self._reading, self._made, self._columns = reading, made, columns
        self._most = reading.max_document_bytes

    def file(self, file: File, part: Part | None) -> Iterator[Document]:
        """Yields the documents of a file, or a part of it."""
        return read.read_file(file, self._made, self._columns, self._most, part)

    def source(self, given: str) -> Iterator[Document]:
        """Yields the documents of a source that is not of files, such as a seqio task."""
        for found in read.find_inputs(
            [given], ReadReport(), self._columns, text_field=self._reading.fields.text
        ):
            yield from read.read_found(found, self._made, self._columns, self._most)


def as_given(argument: str | os.PathLike[str]) -> str:
    """Returns an input as text; a path of an object store is no `os.PathLike`."""
    return os.fspath(argument) if isinstance(argument, os.PathLike) else str(argument)


def name_of(found: Found | str) -> str:
    """Returns the name of an input: its path, or what specifies it."""
    if isinstance(found, str):
        return found if ":" in found else os.path.normpath(found)
    return str(found.path) if isinstance(found, Input) else found.spec

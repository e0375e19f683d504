"""Turns a record (a JSONL line or a Parquet row) into a document, or counts it as unusable."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from emo_jax.documents.document_filter import DocumentFilter
from emo_jax.errors import DataError
from emo_jax.files.json_files import is_text

UNKNOWN_DOMAIN = "unknown"  # for documents that name none
NUM_EXAMPLES = 5
_LONGEST_DOMAIN = 1000  # characters; a page's URL is a name, its text is not


class Document(NamedTuple):
    """One text, its id, and the domain that it is reported under."""

    text: str
    id: str
    domain: str


@dataclass
class ReadReport:
    """What was read and what was skipped; `examples` names the first few.

    Attributes:
      documents: documents used.
      skipped: unusable documents, by reason.
      dropped: usable documents that the user's filters rejected, by filter.
      without: used documents that lack a field the user named, by field.
      unnamed: used documents whose id or domain is not a name, by what the field holds instead.
      left_out: files that are not documents: how many, and the first, by what they are.
    """

    documents: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    strict: bool = False
    dropped: Counter[str] = field(default_factory=Counter)
    without: Counter[str] = field(default_factory=Counter)
    unnamed: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)

    def leave_out(self, file: str, what: str, count: int = 1, *, text: bool = False) -> None:
        """Counts files or folders of an input that are not read; `file` is one of them.

        Args:
          text: they may hold text.

        Raises:
          DataError: immediately, if strict and they may hold text.
        """
        if text and self.strict:
            raise DataError(f"{file}: {what} (leave out --strict to leave such files out)")
        before, first = self.left_out.get(what, (0, _printable(file)))
        self.left_out[what] = (before + count, first)

    def add_left_out(self, other: "ReadReport") -> None:
        """Adds what another report has left out."""
        for what, (count, first) in other.left_out.items():
            self.leave_out(first, what, count)

    def files_left_out(self) -> list[str]:
        """Returns a line for each kind of skipped file."""
        return [
            f"{count} x {what} left out, the first: {first}"
            for what, (count, first) in sorted(self.left_out.items())
        ]

    def skip(self, where: str, why: str) -> None:
        """Counts one unusable document.

        Raises:
          DataError: immediately, if strict.
        """
        if self.strict:
            raise DataError(f"{where}: {why} (leave out --strict to skip such documents)")
        self.skipped[why] += 1
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append(f"{_printable(where)}: {why}")

    def summary(self) -> str:
        """Returns one line of counts, then the reasons and the named examples."""
        line = f"{self.documents} documents read, {self.skipped.total()} skipped"
        if self.dropped:
            line += f", {self.dropped.total()} dropped by filters"
        lines = [line]
        lines += [f"  {count} x {why}" for why, count in sorted(self.skipped.items())]
        lines += [f"  {count} x dropped by {why}" for why, count in sorted(self.dropped.items())]
        lines += [f"  {count} x no {what}" for what, count in sorted(self.without.items())]
        lines += [f"  {count} x {why}" for why, count in sorted(self.unnamed.items())]
        lines += [f"  {line}" for line in self.files_left_out()]
        lines += [f"  e.g. {example}" for example in self.examples]
        return "\n".join(lines)


@dataclass(frozen=True)
class Fields:
    """Where a record has the parts of a document; `metadata.lang` looks inside, see `lookup`."""

    text: str = "text"
    id: str = "id"
    domain: str = "domain"


class Source(NamedTuple):
    """Where a record comes from: `where` for the user, and its default id and domain."""

    where: str
    id: str
    domain: str


_MISSING = object()


def lookup(record: Any, name: str) -> Any:
    """Returns the field with exactly this name, else the inner one that its dots lead to.

    In a list, a number is a place, counted from 0: `choices.0.text`. Any other name is looked up in
    each entry: `paragraphs.text` is the list of what the paragraphs have as `text`.
    """
    if isinstance(record, list):
        head, dot, rest = name.partition(".")
        place = at_index(head)
        if place is not None:
            value = record[place] if place < len(record) else _MISSING
            return lookup(value, rest) if dot else value
        found = [value for value in (lookup(v, name) for v in record) if value is not _MISSING]
        return _MISSING if record and not found else found
    if not isinstance(record, Mapping):
        return _MISSING
    if name in record:
        return record[name]
    head, dot, rest = name.partition(".")
    return lookup(record[head], rest) if dot and head in record else _MISSING


def at_index(part: str) -> int | None:
    """Returns the place in a list that a part of a name stands for; None if it is another name."""
    return int(part) if part.isascii() and part.isdecimal() and len(part) < 10 else None


def found_in(value: Any, name: str) -> Any:
    """Returns what `lookup` does, but None for a field that is missing."""
    found = lookup(value, name)
    return None if found is _MISSING else found


def joined(value: Any) -> Any:
    """Returns the strings in a list as one, a line each; anything else as it is.

    Lists in it are parts of it, and nulls are left out. A list that holds anything else, such as
    the messages of a chat, is returned as it is: name the field in them, `messages.content`.
    """
    if not isinstance(value, list):
        return value
    parts = value
    while any(isinstance(part, list) for part in parts):
        parts = [p for part in parts for p in (part if isinstance(part, list) else [part])]
    parts = [part for part in parts if part is not None]
    for kind, newline in ((str, "\n"), (bytes, b"\n")):
        if all(isinstance(part, kind) for part in parts):
            return newline.join(parts)
    return value


class Documents:
    """Makes documents from records, and counts those that cannot or must not be used.

    Args:
      fields: where a record has the parts of a document.
      wanted: the user's filters.
      ids: the text is token ids: a list of integers, or decimal numbers separated by spaces.
      report: updated with the counts.
    """

    def __init__(self, fields: Fields, wanted: DocumentFilter, *, ids: bool, report: ReadReport):
        self.fields, self.report = fields, report
        self._wanted, self._ids = wanted, ids
        # Else a misspelt name would go unnoticed: documents without the field are used.
        usual = Fields()
        self._names = (
            ("id", fields.id, "--id-field", None, fields.id != usual.id),
            (
                *("domain", fields.domain, "--domain-field"),
                *(_LONGEST_DOMAIN, fields.domain != usual.domain),
            ),
        )

    def of_record(self, record: Any, source: Source) -> Iterator[Document]:
        """Yields at most one document from a record."""
        if not isinstance(record, Mapping):
            self.report.skip(source.where, "not a JSON object")
            return
        names = self.fields
        text = joined(lookup(record, names.text))
        if text is _MISSING:
            self.report.skip(source.where, f"no field {names.text!r}")
            return
        language = None
        if self._wanted.languages:
            language = lookup(record, self._wanted.language_field)
        found, unnamed, without = [source.id, source.domain], [], []
        for i, (what, name, option, longest, named) in enumerate(self._names):
            try:
                value = name_of(lookup(record, name), longest)
                if value is not None:
                    found[i] = value
                elif named:
                    without.append(f"field {name!r} ({option})")
            except NotANameError as why:
                unnamed.append(f"field {name!r} ({option}) is {why}: the document has no {what}")
        for document in self.of_text(
            text,
            Source(source.where, *found),
            language=None if language is _MISSING else language,
            what=f"field {names.text!r}",
        ):
            if without or unnamed:
                self.report.without.update(without)
                self.report.unnamed.update(unnamed)
            yield document

    def of_text(
        self, text: Any, source: Source, *, language: Any = None, what: str = "the text"
    ) -> Iterator[Document]:
        """Yields at most one document from a text."""
        if self._ids and isinstance(text, list) and all(type(i) is int for i in text):
            text = " ".join(map(str, text))
        if isinstance(text, bytes):
            try:
                text = text.decode("utf-8")
            except UnicodeDecodeError:
                self.report.skip(source.where, "invalid UTF-8")
                return
        if not isinstance(text, str):
            self.report.skip(source.where, f"{what} is not a string")
            return
        if not text or text.isspace() or not text.strip("\0"):
            self.report.skip(source.where, "empty document")
            return
        if not is_text(text):
            self.report.skip(source.where, "half of a surrogate pair")
            return
        against = self._wanted.against_text(text, language)
        if against is not None:
            self.report.dropped[against] += 1
            return
        self.report.documents += 1
        yield Document(text, _printable(source.id), _printable(source.domain))


class NotANameError(Exception):
    """A value that is not a name; says what it is."""


def name_of(value: Any, longest: int | None = None) -> str | None:
    """Returns an id or a domain; None if it is missing: no field, null, NaN or a blank text.

    3.0 is the name 3: pandas turns integers into floats if some are missing. Bytes that are not
    UTF-8 are written in hexadecimal.

    Args:
      longest: maximum number of characters.

    Raises:
      NotANameError: a value that is not a name.
    """
    if not isinstance(value, str):
        if value is _MISSING or value is None or value != value:
            return None
        if isinstance(value, bool):
            raise NotANameError("true or false")
        if isinstance(value, Mapping):
            raise NotANameError("an object")
        if isinstance(value, list | tuple):
            raise NotANameError("a list")
        if isinstance(value, float):
            if math.isinf(value):
                raise NotANameError("an infinite number")
            value = int(value) if value.is_integer() and abs(value) < 2**53 else value
        elif isinstance(value, bytes):
            try:
                value = value.decode("utf-8")
            except UnicodeDecodeError:
                value = value.hex()
        value = str(value)
    if not value or value.isspace():
        return None
    if "\0" in value:
        raise NotANameError("a text with NULs")
    if longest is not None and len(value) > longest:
        raise NotANameError(f"a text of more than {longest:,} characters")
    return value


def _printable(name: str) -> str:
    """Returns a name that can be written to a file, whatever it was made from."""
    return name if name.isascii() else name.encode("utf-8", "replace").decode()

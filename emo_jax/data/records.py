"""A record of a JSONL line or a Parquet row becomes a document, or is counted as unusable."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from emo_jax.data.selection import Selection
from emo_jax.errors import DataError

UNKNOWN_DOMAIN = "unknown"  # of documents that name none


NUM_EXAMPLES = 5


class Document(NamedTuple):
    """One text, the name of it, and the domain that it is reported under."""

    text: str
    id: str
    domain: str


@dataclass
class ReadReport:
    """What was read and what was left out; `examples` names the first few.

    Attributes:
      documents: that are used.
      skipped: unusable ones, by reason.
      dropped: usable ones that the user's filters left out, by filter.
      without: used ones that have no such field, by field: of those that the user named.
    """

    documents: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    strict: bool = False
    dropped: Counter[str] = field(default_factory=Counter)
    without: Counter[str] = field(default_factory=Counter)

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
        """One line of counts, then the reasons and the named examples."""
        line = f"{self.documents} documents read, {self.skipped.total()} skipped"
        if self.dropped:
            line += f", {self.dropped.total()} dropped by filters"
        lines = [line]
        lines += [f"  {count} x {why}" for why, count in sorted(self.skipped.items())]
        lines += [f"  {count} x dropped by {why}" for why, count in sorted(self.dropped.items())]
        lines += [f"  {count} x no {what}" for what, count in sorted(self.without.items())]
        lines += [f"  e.g. {example}" for example in self.examples]
        return "\n".join(lines)


@dataclass(frozen=True)
class Fields:
    """Where the parts of a document are in a record; `metadata.lang` looks inside `metadata`."""

    text: str = "text"
    id: str = "id"
    domain: str = "domain"


class Source(NamedTuple):
    """Where a record comes from: `where` for the user, the id and domain it has by default."""

    where: str
    id: str
    domain: str


_MISSING = object()


def lookup(record: Mapping[str, Any], name: str) -> Any:
    """The field `name`: of that very name, else the inner one that its dots lead to."""
    if name in record:
        return record[name]
    head, dot, rest = name.partition(".")
    inner = record.get(head) if dot else None
    return lookup(inner, rest) if isinstance(inner, Mapping) else _MISSING


class Documents:
    """Makes documents of what readers find, and counts what cannot or shall not be used.

    Args:
      fields: see there.
      selection: the user's filters.
      ids: the text is token ids: a list of whole numbers, or decimal numbers with spaces between.
      report: filled.
    """

    def __init__(self, fields: Fields, selection: Selection, *, ids: bool, report: ReadReport):
        self.fields, self.report = fields, report
        self._selection, self._ids = selection, ids
        # A name that is misspelt would else go unnoticed: documents without it are used.
        own, usual = fields, Fields()
        self._named = [
            (name, f"field {name!r} ({option})")
            for name, default, option in (
                (own.id, usual.id, "--id-field"),
                (own.domain, usual.domain, "--domain-field"),
            )
            if name != default
        ]

    def of_record(self, record: Any, source: Source) -> Iterator[Document]:
        """At most one document out of a record."""
        if not isinstance(record, Mapping):
            self.report.skip(source.where, "not a JSON object")
            return
        names = self.fields
        text = lookup(record, names.text)
        if text is _MISSING:
            self.report.skip(source.where, f"no field {names.text!r}")
            return
        language = None
        if self._selection.languages:
            language = lookup(record, self._selection.language_field)
        try:
            for document in self.of_text(
                _text(text),
                source._replace(
                    id=_name(lookup(record, names.id), source.id),
                    domain=_name(lookup(record, names.domain), source.domain),
                ),
                language=None if language is _MISSING else language,
                what=f"field {names.text!r}",
            ):
                self.report.without.update(
                    what for name, what in self._named if lookup(record, name) is _MISSING
                )
                yield document
        except UnicodeDecodeError:
            self.report.skip(source.where, "invalid UTF-8")

    def of_text(
        self, text: Any, source: Source, *, language: Any = None, what: str = "the text"
    ) -> Iterator[Document]:
        """At most one document out of a text."""
        if self._ids and isinstance(text, list) and all(type(i) is int for i in text):
            text = " ".join(map(str, text))
        if not isinstance(text, str):
            self.report.skip(source.where, f"{what} is not a string")
            return
        if not text or text.isspace():
            self.report.skip(source.where, "empty document")
            return
        try:
            # JSON can spell half of a surrogate pair, which no tokenizer can take.
            text.isascii() or text.encode("utf-8")
        except UnicodeEncodeError:
            self.report.skip(source.where, "invalid UTF-8")
            return
        against = self._selection.against_text(text, language)
        if against is not None:
            self.report.dropped[against] += 1
            return
        self.report.documents += 1
        yield Document(text, _printable(source.id), _printable(source.domain))


def _text(value: Any) -> Any:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _name(value: Any, default: str) -> str:
    if value is _MISSING or value in (None, ""):
        return default
    return str(_text(value))


def _printable(name: str) -> str:
    """A name that can be written to a file whatever it was made from."""
    return name.encode("utf-8", "replace").decode()

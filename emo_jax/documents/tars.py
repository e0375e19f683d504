"""Documents of tar archives: samples as WebDataset has them, or texts. Nothing is extracted.

Members in a row whose names are equal up to the first dot of the last part are a sample: `a/7.txt`,
`a/7.json` and `a/7.jpg`. Its text is `.txt` or `.text`; else it is in the object `.json`, as in a
line of JSON. An object beside a text has the id, the domain and the language. Any other `.txt` or
`.md`, such as `7.part.txt`, is a document of its own, and everything else is counted.

An archive is read once, from its beginning to its end, holding one sample.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from emo_jax.documents import foreign
from emo_jax.documents.archives import READ_ERRORS, open_packed, unreadable
from emo_jax.documents.file_kinds import kind_of
from emo_jax.documents.records import Document, Documents, Source
from emo_jax.documents.text_files import EncodingError, TooLongError, decoded_text, too_long
from emo_jax.errors import DataError
from emo_jax.files.json_files import NotReadableError, loads

_TEXT, _OBJECT = ("txt", "text"), "json"
_LOOSE = (".txt", ".text", ".md")
_MAX_HEADER = 1 << 20  # bytes of a name or of other facts of a member
_EMPTY_READS = 100  # more than a whole archive has
_HEADERS = {
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
}


class _Member(tarfile.TarInfo):
    """A header that is read with less trust: tarfile takes most damage for the end."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: Any, errors: Any) -> "_Member":
        made = super().frombuf(buf, encoding, errors)
        if made.size < 0 or (made.type in _HEADERS and made.size > _MAX_HEADER):
            raise NotReadableError("a header with a size that cannot be")
        return made

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise NotReadableError(f"cut short or damaged ({error})") from error


def check(file: Path) -> None:
    """Checks the first header of an archive.

    Raises:
      DataError: it is not an archive.
    """
    try:
        with open_packed(file, 1 << 16) as stream:
            start = stream.read(tarfile.BLOCKSIZE)
        if start.strip(b"\0") or len(start) < tarfile.BLOCKSIZE:
            _Member.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise DataError(f"{file}: not a tar archive ({error}); leave it out") from error
    except READ_ERRORS as error:
        raise unreadable(file, error) from error


def read(file: Path, name: str, domain: str, made: Documents, max_bytes: int) -> Iterator[Document]:
    """Yields the documents of an archive; their ids are `NAME:KEY`.

    Args:
      name: used in ids.
      domain: of documents that name none.

    Raises:
      READ_ERRORS of `archives`: it is damaged or cut short.
    """
    with open_packed(file) as stream:
        try:
            yield from _Samples(file, name, domain, made, max_bytes).read(stream)
        except (tarfile.TarError, ValueError, OverflowError) as error:
            if isinstance(error, READ_ERRORS):
                raise
            raise NotReadableError(f"a damaged archive: {error}") from error


class _Ended:
    """A file for tarfile, which reads on behind its end for as many blocks as a header says."""

    def __init__(self, stream: IO[bytes]):
        self._stream, self._empty = stream, 0

    def read(self, size: int) -> bytes:
        found = self._stream.read(size)
        self._empty += not found
        if self._empty > _EMPTY_READS:
            raise NotReadableError("cut short")
        return found


class _Samples:
    def __init__(self, file: Path, name: str, domain: str, made: Documents, max_bytes: int):
        self._file, self._name, self._domain = file, name, domain
        self._made, self._max_bytes = made, max_bytes
        self._key = ""
        self._parts: dict[str, bytes] = {}  # of the sample, by what is behind the dot
        self._bad = ""  # why the sample cannot be used

    def read(self, stream: IO[bytes]) -> Iterator[Document]:
        whole = cast(IO[bytes], _Ended(stream))
        with tarfile.open(fileobj=whole, mode="r|", tarinfo=_Member) as tar:
            while (member := tar.next()) is not None:
                # Else all headers are kept.
                tar.members = []  # type: ignore[attr-defined]
                yield from self._member(tar, member)
            rest = tar.fileobj
            assert rest is not None
            while block := rest.read(1 << 16):
                if block.strip(b"\0"):
                    raise NotReadableError("more follows behind its end")
        yield from self._end()

    def _member(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[Document]:
        name = member.name.removeprefix("./")
        folder, _, base = name.rpartition("/")
        if member.isdir() or base.startswith("."):
            return
        stem, _, kind = base.partition(".")
        key, kind = f"{folder}/{stem}" if folder else stem, kind.lower()
        if key != self._key:
            yield from self._end()
            self._key = key
        where = f"{self._file}:{name}"
        if not member.isreg() or member.issparse():
            self._made.report.leave_out(where, "a link, device or sparse file in an archive")
        elif kind in (*_TEXT, _OBJECT):
            self._keep("txt" if kind in _TEXT else kind, tar, member, where)
        elif name.lower().endswith(_LOOSE):
            yield from self._loose(tar, member, where, name)
        else:
            self._leave_out(where, base)

    def _keep(self, kind: str, tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> None:
        if kind in self._parts:
            self._bad = self._bad or f"a second .{kind} in a sample of an archive"
            return
        try:
            self._parts[kind] = self._content(tar, member)
        except (TooLongError, EncodingError) as error:
            self._parts[kind], self._bad = b"", self._bad or str(error)
            return
        if kind == "txt":
            other = foreign.of_text(self._parts[kind], self._made.fields.text)
            if other is not None:
                self._made.report.leave_out(where, f"{other.what} in an archive", text=True)
                self._parts[kind], self._bad = b"", "left out"

    def _content(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
        if member.size > self._max_bytes:
            raise TooLongError(too_long(self._max_bytes))
        stream = tar.extractfile(member)
        assert stream is not None
        content = stream.read()
        if len(content) != member.size:
            raise NotReadableError("cut short")
        return decoded_text(content)

    def _loose(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, where: str, name: str
    ) -> Iterator[Document]:
        try:
            content = self._content(tar, member)
        except (TooLongError, EncodingError) as error:
            self._made.report.skip(where, str(error))
            return
        other = foreign.of_text(content, self._made.fields.text)
        if other is not None:
            self._made.report.leave_out(where, f"{other.what} in an archive", text=True)
            return
        yield from self._made.of_text(content, self._source(where, name))

    def _end(self) -> Iterator[Document]:
        """Yields the document of the sample, whose last member has been read."""
        parts, bad, self._parts, self._bad = self._parts, self._bad, {}, ""
        where = f"{self._file}:{self._key}"
        if not parts or bad == "left out":
            return
        if bad:
            self._made.report.skip(where, bad)
            return
        source = self._source(where, self._key)
        if _OBJECT not in parts:
            yield from self._made.of_text(parts["txt"], source)
            return
        try:
            record = loads(parts[_OBJECT].decode("utf-8"))
        except UnicodeDecodeError:
            self._made.report.skip(where, "invalid UTF-8")
            return
        except NotReadableError as error:
            self._made.report.skip(where, str(error).partition(" (")[0])
            return
        if "txt" in parts and isinstance(record, dict):
            record[self._made.fields.text] = parts["txt"]
        yield from self._made.of_record(record, source)

    def _leave_out(self, where: str, base: str) -> None:
        other = foreign.of_name(Path(base))
        if kind_of(Path(base)) is not None:
            what, text = "lines, rows or packed texts", True
        elif other is not None:
            what, text = other.what, other.may_hold_text
        else:
            what, text = Path(base).suffix.lower() or "a file without an ending", False
        self._made.report.leave_out(where, f"{what} in an archive", text=text)

    def _source(self, where: str, key: str) -> Source:
        return Source(where, f"{self._name}:{key}".replace("\0", ""), self._domain)

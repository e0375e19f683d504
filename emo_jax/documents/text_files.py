"""Text files as UTF-8, whatever their compression and encoding: whole, or as JSON lines.

The only reader of JSON lines: documents, pairs and prompts all use `json_lines`.
"""

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from emo_jax.documents.archives import open_packed, packing
from emo_jax.files import json_files
from emo_jax.files.json_files import UTF8_MARK, NotReadableError

# For a line or a text file. A tokenizer needs a hundred bytes or more per token while encoding.
MAX_DOCUMENT_BYTES = 16_000_000
_ENDLESS = 1 << 30  # bytes; a file with a line this long is not made of lines
_CHUNK = 1 << 20
_START = 1 << 16
_MARK = UTF8_MARK.decode()


class Part(NamedTuple):
    """A part of a file: lines that begin in bytes [start, stop), or row groups [start, stop).

    Attributes:
      first: number, from 1, of its first line or row. For lines and `start` > 0 it is 2 + the line
        feeds in bytes [0, start - 1), since the first line begins after one that is not among them.
    """

    start: int
    stop: int
    first: int


class EncodingError(NotReadableError):
    """A file that starts as UTF-16 or UTF-32 but does not continue so."""


class TooLongError(NotReadableError):
    """A text file that is longer than the limit."""


def too_long(max_bytes: int = MAX_DOCUMENT_BYTES) -> str:
    """Returns the reason why a document longer than the limit is skipped."""
    return f"longer than {max_bytes / 1e6:,.10g} MB (emo prepare --max-document-mb)"


def size_of(text: Any, enough: int) -> int:
    """Returns a text's bytes in UTF-8, exact if they may exceed `enough`; 0 if it is not text."""
    if not isinstance(text, str | bytes):
        return 0
    if isinstance(text, bytes) or 4 * len(text) <= enough:
        return len(text)
    return len(text.encode("utf-8", "replace"))


def read_chunks(path: Path, size: int = _CHUNK, block: int | None = None) -> Iterator[bytes]:
    """Yields a text file as pieces of UTF-8, at most a few megabytes each, without a BOM.

    UTF-16 and UTF-32 are recognised by their byte order mark, or by the zero bytes of a first ASCII
    character. Unpaired surrogates in them become invalid UTF-8; so does what is not UTF-8 to begin
    with.

    Raises:
      READ_ERRORS of `archives`: not a regular file, damaged, or truncated.
    """
    with open_packed(path, block) as stream:
        yield from decoded_chunks(stream, size)


def decoded_chunks(stream: IO[bytes], size: int = _CHUNK) -> Iterator[bytes]:
    """Yields what an open file holds as pieces of UTF-8, see `read_chunks`."""
    chunk = stream.read(size)
    codec = json_files.codec_of(chunk)
    if codec is None:
        chunk = chunk.removeprefix(UTF8_MARK)
        while chunk:
            yield chunk
            chunk = stream.read(size)
        return
    decoder = codecs.getincrementaldecoder(codec)("surrogatepass")
    begun = False
    try:
        while chunk or not begun:
            text = decoder.decode(chunk)
            yield (text if begun else text.removeprefix(_MARK)).encode("utf-8", "surrogatepass")
            begun = True
            chunk = stream.read(size)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise EncodingError(f"invalid {codec[:6].upper()}") from error


def decoded_text(content: bytes) -> bytes:
    """Returns a text in UTF-8, whatever its encoding was, see `read_chunks`.

    Raises:
      EncodingError: it does not go on as it begins.
    """
    return b"".join(decoded_chunks(io.BytesIO(content)))


def has_parts(path: Path) -> bool:
    """Returns whether a file can be read in parts: UTF-8, not compressed, lines that end in LF."""
    if packing(path):
        return False
    with open_packed(path) as stream:
        chunk = stream.read(_CHUNK)
    return json_files.codec_of(chunk) is None and b"\n" in chunk


def count_lines(path: Path, start: int, stop: int) -> int:
    """Returns the number of line feeds in bytes [start, stop) of a file."""
    count = 0
    with open_packed(path) as stream:
        stream.seek(start)
        while start < stop and (chunk := stream.read(min(_CHUNK, stop - start))):
            count += chunk.count(b"\n")
            start += len(chunk)
    return count


def _part_chunks(path: Path, start: int, stop: int, size: int = _CHUNK) -> Iterator[bytes]:
    """Yields the lines that begin in bytes [start, stop), as `read_chunks` yields a whole file."""
    with open_packed(path) as stream:
        at = max(start - 1, 0)
        stream.seek(at)
        inside = start > 0  # of a line that begins earlier
        ended = True
        while at < stop and (chunk := stream.read(min(size, stop - at))):
            at += len(chunk)
            if inside:
                _, found, chunk = chunk.partition(b"\n")
                inside = not found
            elif not start and at == len(chunk):
                chunk = chunk.removeprefix(UTF8_MARK)
            if chunk:
                ended = chunk.endswith(b"\n")
                yield chunk
        while not ended and (chunk := stream.read(size)):
            line, found, _ = chunk.partition(b"\n")
            ended = bool(found)
            yield line + found


def read_start(path: Path) -> bytes:
    """Returns the beginning of a text file, as `read_chunks` yields it."""
    return next(read_chunks(path, _START, _START), b"")


def read_text(path: Path, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
    """Returns a whole text file in UTF-8.

    Raises:
      READ_ERRORS of `archives`: including TooLongError.
    """
    held, size = [], 0
    for chunk in read_chunks(path):
        held.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise TooLongError(too_long(max_bytes))
    return b"".join(held)


def read_lines(
    path: Path, max_bytes: int = MAX_DOCUMENT_BYTES, part: Part | None = None
) -> Iterator[tuple[int, bytes | None]]:
    """Yields the lines of a text file, numbered from 1; None for one longer than the limit.

    Empty lines are counted but not yielded.

    Lines end in LF or CR LF, or in CR in a file without any LF. Nothing else ends a line, so it may
    contain U+2028.

    Args:
      part: read only this part of a file that `has_parts`.

    Raises:
      READ_ERRORS of `archives`: including NotReadableError for a line that does not end.
    """
    number, held, size = 1, list[bytes](), 0
    end = b""  # not known yet
    chunks = read_chunks(path)
    if part is not None:
        number, end, chunks = part.first, b"\n", _part_chunks(path, part.start, part.stop)
    for chunk in chunks:
        if not end:
            end = b"\n" if b"\n" in chunk else b"\r" if b"\r" in chunk[:-1] else b""
        if end and not size and not chunk.strip(end):  # nothing but empty lines
            number += len(chunk)
            continue
        first, *others = chunk.split(end) if end else (chunk,)
        size += len(first)
        if size <= max_bytes:
            held.append(first)
        elif size > max(_ENDLESS, max_bytes):
            raise NotReadableError(
                f"line {number} has more than {size / 1e6:,.0f} MB; it is no file of lines"
            )
        else:
            held.clear()
        if not others:
            continue
        if size:
            yield number, b"".join(held) if size <= max_bytes else None
        *whole, last = others
        for line in whole:
            number += 1
            if line:
                yield number, line if len(line) <= max_bytes else None
        number += 1
        held, size = [last], len(last)
    if size:
        yield number, b"".join(held) if size <= max_bytes else None


def json_lines(
    path: Path, max_bytes: int = MAX_DOCUMENT_BYTES, part: Part | None = None
) -> Iterator[tuple[int, Any, str]]:
    """Yields (number, value, "") for every line of JSON, and (number, None, why) for any other.

    Blank lines are skipped. If a key occurs twice in an object, the last one counts. NaN, Infinity
    and unpaired surrogates are accepted; see `json_files.loads`.

    Raises:
      READ_ERRORS of `archives`.
    """
    for number, line in read_lines(path, max_bytes, part):
        if line is None:
            yield number, None, too_long(max_bytes)
            continue
        if not line or line.isspace():
            continue
        try:
            yield number, json_files.loads(_decoded(line)), ""
        except NotReadableError as error:
            yield number, None, str(error).partition(" (")[0]


def _decoded(line: bytes) -> str:
    try:
        # A file concatenated from others has their BOMs inside.
        return line.removeprefix(UTF8_MARK).decode("utf-8")
    except UnicodeDecodeError:
        raise NotReadableError("invalid UTF-8") from None

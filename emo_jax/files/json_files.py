"""Small JSON files: every format error is named on reading, and what is written is strict JSON.

A file of ours may have been truncated, edited or made by someone else. `read_object` returns its
object or says in one line what is wrong; `Fields` returns the object's values by type. On writing,
a number that is not finite becomes null.
"""

import codecs
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

from emo_jax.errors import BREAKS, DataError, EmoError, one_line

_LOOK_AT = 64  # bytes that are enough to detect another encoding
MAX_LINE = 4096  # characters, at most, of a value that is shown
MAX_BYTES = 1 << 28  # of a small file; the largest common one, a tokenizer.json, has 35 MB
MAX_DEPTH = 200  # of nested objects and lists; people write ten or so
_BEGINS_JSON = re.compile(r"\s*\{\s*\"|\s*\[\s*[\"{\[]")
UTF8_MARK = b"\xef\xbb\xbf"
_BYTE_ORDER_MARKS = (  # the longer ones first: UTF-32's starts like UTF-16's
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)


class NotReadableError(ValueError):
    """Why some bytes, or a value in them, are not what they should be."""


def codec_of(start: bytes) -> str | None:
    """Returns Python's name for UTF-16 or UTF-32 if the first bytes say so; None if maybe UTF-8.

    They say so by a byte order mark, or by the zero bytes of ASCII characters: if the text starts
    with one and at least a third of it is ASCII, or if it starts like JSON, whatever its strings
    contain.
    """
    for mark, codec in _BYTE_ORDER_MARKS:
        if start.startswith(mark):
            return codec
    if b"\0" not in start[:4]:
        return None
    for codec in ("utf-32-be", "utf-32-le", "utf-16-be", "utf-16-le"):
        text = codecs.getincrementaldecoder(codec)("replace").decode(start[:_LOOK_AT])
        plain = sum(c.isascii() for c in text)
        enough = 3 * plain >= len(text) > 3 or plain == len(text)  # few bytes match by chance
        if text[:1].isascii() and enough and not set("\0\ufffd") & set(text):
            return codec
        if _BEGINS_JSON.match(text):
            return codec
    return None


def other_encoding(start: bytes) -> str | None:
    """Returns UTF-16 or UTF-32 in the form to show a user; see `codec_of`."""
    codec = codec_of(start)
    return codec[:6].upper() if codec else None


def decode(content: bytes) -> str:
    """Decodes bytes as UTF-8 text, without a byte order mark.

    Raises:
      NotReadableError: they are not UTF-8.
    """
    if found := other_encoding(content):
        raise NotReadableError(f"{found} text, must be UTF-8")
    try:
        return content.removeprefix(UTF8_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotReadableError(f"invalid UTF-8 at byte {error.start}") from None


def loads(text: str) -> Any:
    """Returns the value of a JSON text, nested less deeply than Python's limit.

    NaN and Infinity, which are not JSON, are read as Python's `json` does. Strings may contain
    unpaired surrogates, see `check_characters`.

    Raises:
      NotReadableError: it is not such a text.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise NotReadableError("JSON that is nested too deep") from None
    except ValueError as error:
        if not isinstance(error, json.JSONDecodeError):  # Python limits the digits of a number
            raise NotReadableError("JSON with a number of too many digits") from None
        raise NotReadableError(f"broken JSON ({one_line(error)})") from None


def parse(content: bytes | str) -> Any:
    """Returns the value of a JSON text: UTF-8, as `loads` reads it, without unpaired surrogates.

    It is nested at most `MAX_DEPTH` deep, so that it can also be shown, compared and written.

    Raises:
      NotReadableError: it is not such a text.
    """
    text = decode(content) if isinstance(content, bytes) else content
    value = loads(text)
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
        raise NotReadableError("JSON that is nested too deep")
    # JSON can spell an unpaired surrogate, but UTF-8 cannot encode it.
    if "\\ud" in text or "\\uD" in text:
        check_characters(value)
    return value


def _is_deep(value: Any) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        inner = [v.values() if isinstance(v, dict) else v for v in level]
        level = [x for v in inner for x in v if isinstance(x, dict | list)]
        if not level:
            return False
    return True


def check_characters(value: Any) -> None:
    """Raises NotReadableError if a string inside a JSON value has an unpaired surrogate."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise NotReadableError("half of a surrogate pair") from None


def is_text(value: str) -> bool:
    """Whether a string has no unpaired surrogate, which UTF-8 and tokenizers cannot encode."""
    try:
        return value.isascii() or bool(value.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Opens a regular file for reading: a pipe would block, and a device never ends.

    Raises:
      NotReadableError: it is not a regular file.
      OSError: it cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotReadableError("not a regular file")
    return os.fdopen(fd, "rb")


def read_regular(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> bytes:
    """Returns the content of a regular file, see `open_regular`.

    A URL that etils supports (gs://, s3://) is read without these checks.

    Raises:
      NotReadableError: it is not a regular file, or is larger than `max_bytes`.
      OSError: it cannot be read.
    """
    if "://" in os.fspath(path):
        from etils import epath  # slow to load, and not needed to read configs

        return epath.Path(path).read_bytes()
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise NotReadableError(f"{size} bytes, more than {max_bytes}")
        return file.read()


def read_object(
    path: str | os.PathLike[str], *, error: type[EmoError] = DataError, advice: str
) -> dict[str, Any]:
    """Reads the JSON object in a file.

    Args:
      error: raised as `PATH: what is wrong; ADVICE`.
      advice: what to do about it.

    Raises:
      FileNotFoundError: no such file.
      EmoError: of the type `error`, for anything else.
    """
    try:
        value = parse(read_regular(path))
        if not isinstance(value, dict):
            raise NotReadableError(f"must hold a JSON object, not {name_of(value)}")
    except FileNotFoundError:
        raise
    except (OSError, NotReadableError) as reason:
        raise error(f"{path}: {one_line(reason)}; {advice}") from None
    return value


def plain(value: Any) -> Any:
    """Replaces every number that is not finite, which JSON does not have, by null."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def dumps(value: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """Returns a value as JSON text; see `plain`."""
    return json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=ensure_ascii)


# --- values of an object --------------------------------------------------------------------------


def is_integer(value: Any) -> bool:
    """Whether a value is an integer; True and 1.0 are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; True is not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an integer too large for a float
        return False


def name_of(value: Any) -> str:
    """Returns what a JSON value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return kinds.get(type(value), "null" if value is None else f"the number {value}"[:40])


_NEEDED = object()


class Fields:
    """The values of a JSON object, each read by the type it must have.

    Every method raises NotReadableError, which names the field, if the value has another type, or
    is missing and there is no `default`. A `default` is returned as is.
    """

    def __init__(self, values: Any, path: str = ""):
        if not isinstance(values, Mapping):
            raise NotReadableError(
                f"{path.removesuffix('.') or 'it'} must be an object, not {name_of(values)}"
            )
        self._values, self._path = values, path

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def value(self, name: str, default: Any = _NEEDED) -> Any:
        """Returns the value as it is."""
        if name in self._values:
            return self._values[name]
        if default is _NEEDED:
            raise NotReadableError(f"no field {self._path}{name}")
        return default

    def _of(self, name: str, default: Any, fits: Callable[[Any], bool], what: str) -> Any:
        value = self.value(name, default)
        if value is default and default is not _NEEDED:
            return value
        if not fits(value):
            raise NotReadableError(f"{self._path}{name} must be {what}, not {_shown(value)}")
        return value

    def text(self, name: str, default: Any = _NEEDED) -> str:
        """Returns a string without NULs."""
        return self._of(
            name, default, lambda v: isinstance(v, str) and "\0" not in v, "a string without NULs"
        )

    def line(self, name: str, default: Any = _NEEDED) -> str:
        """Returns a string of one short line, to be shown in errors and tables."""
        return self._of(
            name,
            default,
            lambda v: isinstance(v, str) and len(v) <= MAX_LINE and not BREAKS.search(v),
            f"a string of one line, at most {MAX_LINE} characters",
        )

    def choice(self, name: str, allowed: Sequence[str], default: Any = _NEEDED) -> str:
        """Returns one of the `allowed` strings."""
        return self._of(
            name,
            default,
            lambda v: isinstance(v, str) and v in allowed,
            f"one of {', '.join(allowed)}",
        )

    def integer(
        self, name: str, default: Any = _NEEDED, *, low: int = 0, high: int = 2**31 - 1
    ) -> int:
        """Returns an integer, low ≤ value ≤ high."""
        return self._of(
            name,
            default,
            lambda v: is_integer(v) and low <= v <= high,
            f"a whole number of {low}..{high}",
        )

    def number(self, name: str, default: Any = _NEEDED) -> float:
        """Returns a finite number."""
        return self._of(name, default, is_number, "a finite number")

    def flag(self, name: str, default: Any = _NEEDED) -> bool:
        """Returns True or False."""
        return self._of(name, default, lambda v: isinstance(v, bool), "true or false")

    def items(self, name: str, default: Any = _NEEDED) -> list[Any]:
        """Returns a list of anything."""
        return self._of(name, default, lambda v: isinstance(v, list), "a list")

    def rows(
        self,
        name: str,
        fits: Callable[[Any], bool],
        what: str,
        default: Any = _NEEDED,
    ) -> list[list[Any]]:
        """Returns a list of lists of values that fit."""
        return self._of(
            name,
            default,
            lambda v: (
                isinstance(v, list)
                and all(isinstance(row, list) and all(map(fits, row)) for row in v)
            ),
            f"lists of {what} in a list",
        )

    def inner(self, name: str, default: Any = _NEEDED) -> "Fields":
        """Returns an object."""
        value = self.value(name, default)
        return Fields(value, f"{self._path}{name}.")


def _shown(value: Any) -> str:
    return name_of(value) if isinstance(value, dict | list) else repr(value)[:40]

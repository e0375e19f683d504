"""Valid files made malformed: bytes, JSON, lines of JSON, and the formats that have both inside.

All of it is a function of the random generator, so that a seed gives the same file again.
"""

import gzip
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import zstandard

LONG = 200_000  # characters, items, levels: what a quadratic reader shows at
_INTEGERS = (0, 1, 2, 7, 127, 128, 255, 256, 2**15, 2**16, 2**24, 2**31 - 1, 2**31, 2**32, 2**40)
_INTEGERS += (2**53, 2**63 - 1, 2**63, 2**64)


# --- bytes ----------------------------------------------------------------------------------------


def bytes_of(rng: random.Random, content: bytes) -> bytes:
    """One of the ways in which bytes go wrong."""
    return rng.choice(_BYTES)(rng, content)


def _range(rng: random.Random, content: bytes) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    longest = rng.choice((1, 4, 32, 1000, len(content)))
    return start, min(len(content), start + rng.randint(1, max(1, longest)))


def _flip(rng: random.Random, content: bytes) -> bytes:
    out = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 30))):
        if out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _cut_start(rng: random.Random, content: bytes) -> bytes:
    return content[rng.randrange(len(content) + 1) :]


def _delete(rng: random.Random, content: bytes) -> bytes:
    start, stop = _range(rng, content)
    return content[:start] + content[stop:]


def _repeat(rng: random.Random, content: bytes) -> bytes:
    start, stop = _range(rng, content)
    times = rng.choice((2, 3, 50))
    return content[:start] + content[start:stop] * times + content[stop:]


def _swap(rng: random.Random, content: bytes) -> bytes:
    a, b, c, d = sorted(rng.randrange(len(content) + 1) for _ in range(4))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def _insert(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content) + 1)
    fill = rng.choice((b"\0", b"\xff", b"[", b"{", b'"', b"\n", b"9", b"\xed\xa0\x80", b"\xc3("))
    size = rng.choice((1, 4, 300, LONG))
    extra = fill * size if rng.random() < 0.7 else rng.randbytes(min(size, 300))
    return content[:start] + extra + content[start:]


def _zero(rng: random.Random, content: bytes) -> bytes:
    start, stop = _range(rng, content)
    return content[:start] + rng.choice((b"\0", b"\xff")) * (stop - start) + content[stop:]


def _number(rng: random.Random, content: bytes) -> bytes:
    """A number of 2, 4 or 8 bytes written over what is there: lengths, offsets, counts."""
    size = rng.choice((2, 4, 8))
    if len(content) < size:
        return content + b"\xff" * size
    start = rng.choice((0, 8, len(content) - size, rng.randrange(len(content) - size + 1)))
    start = min(max(start, 0), len(content) - size)
    value = rng.choice(_INTEGERS) - rng.choice((0, 0, 1)) & (1 << 8 * size) - 1
    written = value.to_bytes(size, rng.choice(("little", "big")))
    return content[:start] + written + content[start + size :]


def _random(rng: random.Random, content: bytes) -> bytes:
    return rng.randbytes(rng.choice((1, 10, 1000)))


def _empty(rng: random.Random, content: bytes) -> bytes:
    return rng.choice((b"", b"\0", b"\n", b" ", b"\xef\xbb\xbf", b"\xff\xfe"))


def _spaces(rng: random.Random, content: bytes) -> bytes:
    return rng.choice((b" ", b"\n", b"\0", b"\r\n")) * LONG


_BYTES = (_flip, _flip, _cut, _cut, _cut_start, _delete, _repeat, _swap, _insert, _zero, _number)
_BYTES += (_number, _random, _empty, _spaces)


# --- text -----------------------------------------------------------------------------------------


def text_of(rng: random.Random, content: bytes) -> bytes:
    """Other encodings and ends of lines; else bytes."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return bytes_of(rng, content)
    way = rng.randrange(8)
    if way == 0:
        code = rng.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "utf-8-sig"))
        return text.encode(code)
    if way == 1:
        return text.encode("latin-1", "replace") + b"\xe9\xe8"
    if way == 2:
        return text.replace("\n", rng.choice(("\r\n", "\r", "\u2028", "\0", ""))).encode()
    if way == 3:
        where = rng.randrange(len(text) + 1)
        strange = rng.choice(("\\ud800", "\ufeff", "\0", "\u202e", "\x1b[31m", "\U0010ffff"))
        return (text[:where] + strange + text[where:]).encode()
    return bytes_of(rng, content)


# --- JSON -----------------------------------------------------------------------------------------


def _anything(rng: random.Random) -> Any:
    return rng.choice(
        (
            *(None, True, False, 0, -1, 1.5, -0.0, 1e308, 10**30, -(2**63), ""),
            *("x", "é", "\0", "\ud800", "a\nb", "../../etc/passwd", "/dev/zero", "x" * LONG),
            *([], {}, [[]], {"": {}}, [None], ["a", 1], {"a": [1, {"b": None}]}),
            *(float("nan"), float("inf"), "nan", "1", [0] * 1000, list(range(LONG // 10))),
        )
    )


def _changed(rng: random.Random, value: Any) -> Any:
    """Another value, of the same kind or of another."""
    if isinstance(value, bool):
        return rng.choice((not value, int(value), str(value), None))
    if isinstance(value, int):
        near = (value + 1, value - 1, -value, value * 2, float(value), str(value), [value])
        return rng.choice((*near, *_INTEGERS, *(-i for i in _INTEGERS)))
    if isinstance(value, float):
        return rng.choice((-value, value * 1e300, 0.0, float("nan"), float("inf"), str(value), 3))
    if isinstance(value, str):
        cut = value[: rng.randrange(len(value) + 1)]
        return rng.choice((cut, value + "x", value * 3, value.upper(), [value], {value: value}, 5))
    if isinstance(value, list):
        some = list(value)
        rng.shuffle(some)
        return rng.choice((some, value * 2, value[:-1], value[1:], [value], {"0": value}, None))
    if isinstance(value, dict):
        return rng.choice((list(value), list(value.values()), {**value, "more": 1}, None, {}))
    return _anything(rng)


def _places(value: Any, place: tuple = ()) -> list[tuple]:
    """Where values are inside of one, itself too; of long lists some."""
    found = [place]
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = list(enumerate(value))[:20]
    for key, item in inner:
        found += _places(item, (*place, key))
    return found


def _at(value: Any, place: tuple) -> Any:
    for key in place:
        value = value[key]
    return value


def value_of(rng: random.Random, value: Any) -> Any:
    """A JSON value with one of its parts changed, away, doubled, moved or wrapped."""
    value = json.loads(json.dumps(value))
    place = rng.choice(_places(value))
    if not place:
        return _anything(rng) if rng.random() < 0.3 else _changed(rng, value)
    holder, key = _at(value, place[:-1]), place[-1]
    way = rng.randrange(10)
    if way < 4:
        holder[key] = _changed(rng, holder[key])
    elif way < 6:
        holder[key] = _anything(rng)
    elif way == 6:
        del holder[key]
    elif way == 7 and isinstance(holder, dict):
        holder[rng.choice((f"{key}x", "", "__class__", "a.b", "é"))] = holder.pop(key)
    elif way == 8:
        holder[key] = _at(value, rng.choice(_places(value)))
        return json.loads(_without_loops(value))
    else:
        holder[key] = [holder[key]]
    return value


def _without_loops(value: Any) -> str:
    try:
        return json.dumps(value)
    except ValueError:  # a part was put into itself
        return "{}"


def json_of(rng: random.Random, content: bytes) -> bytes:
    """JSON of another shape, or no JSON at all."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return text_of(rng, content)
    way = rng.randrange(20)
    if way < 12:
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            value = value_of(rng, value)
        return json.dumps(value, ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")
    text = content.decode("utf-8", "replace")
    if way == 12:
        depth = rng.choice((100, 5000, LONG))
        return rng.choice((b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth))
    if way == 13:  # a number of many digits, or none at all, where a number is
        numbers = [i for i, c in enumerate(text) if c.isdigit()]
        where = rng.choice(numbers or [0])
        put = rng.choice(("9" * 5000, "1e999", "-", "NaN", "Infinity", "0x10", "01", "1" * 30))
        return (text[:where] + put + text[where + 1 :]).encode()
    if way == 14:  # the same key twice
        return text.replace("{", '{"format": 5, ', 1).encode()
    if way == 15:
        return text.replace(",", rng.choice((",,", ",]", "", ",\n//\n"))).encode()
    return text_of(rng, content)


def lines_of(rng: random.Random, content: bytes) -> bytes:
    """Lines of JSON, some of them changed, doubled, joined or away."""
    if rng.random() < 0.3:
        return text_of(rng, content)
    lines = content.split(b"\n")
    for _ in range(rng.choice((1, 2, 10))):
        at = rng.randrange(len(lines))
        way = rng.randrange(6)
        if way < 4:
            lines[at] = json_of(rng, lines[at])
        elif way == 4:
            lines[at] = lines[at] * 2
        else:
            lines.insert(at, rng.choice((b"", b"null", b"[]", b'""', b"{}", b"\xff", b"5")))
    return b"\n".join(lines)


# --- formats with a file inside -------------------------------------------------------------------


def packed_of(inner: Callable[[random.Random, bytes], bytes]) -> Callable:
    """A .gz or .zst: damaged itself, packed anew around damage, or growing without end."""

    def mutate(rng: random.Random, content: bytes) -> bytes:
        zipped = content[:2] == b"\x1f\x8b"
        pack = gzip.compress if zipped else zstandard.ZstdCompressor().compress
        way = rng.randrange(10)
        if way < 4:
            return bytes_of(rng, content)
        if way == 4:  # 200 MB of one character
            return _many(rng.choice((b"x", b"\n", b"\0", b"[", b'{"a":')) * (1 << 20), 200, zipped)
        if way == 5:
            return content + rng.choice((content, b"\0" * 50, rng.randbytes(20)))
        unpack = gzip.decompress if zipped else zstandard.ZstdDecompressor().decompress
        return pack(inner(rng, unpack(content)))

    return mutate


def _many(block: bytes, times: int, zipped: bool) -> bytes:
    if zipped:  # members one after the other are one file
        return gzip.compress(block) * times
    return zstandard.ZstdCompressor().compress(block) * times


def safetensors_of(rng: random.Random, content: bytes) -> bytes:
    """Length and header of a .safetensors, or its bytes."""
    (size,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + size], content[8 + size :]
    way = rng.randrange(4)
    if way < 2:
        header = json_of(rng, header)
        return struct.pack("<Q", len(header)) + header + data
    if way == 2:
        return struct.pack("<Q", rng.choice(_INTEGERS) % 2**64) + header + data
    return bytes_of(rng, content)


def zip_of(rng: random.Random, content: bytes) -> bytes:
    """An .npz: its bytes, or its members changed and zipped anew."""
    if rng.random() < 0.4:
        return bytes_of(rng, content)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        chosen, way = rng.choice(names), rng.randrange(5)
        for name in names:
            held = old.read(name)
            if name == chosen and way == 0:
                continue
            if name == chosen and way < 4:
                held = npy_of(rng, held)
            new.writestr(name, held, zipfile.ZIP_DEFLATED)
        if way == 4:
            new.writestr(rng.choice(("../x.npy", chosen, "a" * 300)), b"\x93NUMPY")
    return out.getvalue()


def npy_of(rng: random.Random, content: bytes) -> bytes:
    """An .npy: shape, dtype and order in its header, or its bytes."""
    if content[:6] != b"\x93NUMPY" or rng.random() < 0.4:
        return bytes_of(rng, content)
    size = int.from_bytes(content[8:10], "little")
    header, data = content[10 : 10 + size].decode("latin-1"), content[10 + size :]
    old, new = rng.choice(
        (
            ("'shape': (", f"'shape': ({rng.choice(_INTEGERS)}, "),
            ("'shape': (", "'shape': (-1, "),
            ("'descr': '", "'descr': '>"),
            ("<i4", rng.choice(("|O", "<f8", "<U1000", "|V0", "<i8", "|b1"))),
            ("False", "True"),
            ("{", "{'x': " * 50),
            (",", ""),
            ("(", "[" * 2000),
        )
    )
    header = header.replace(old, new, 1)
    return content[:8] + (len(header) % 2**16).to_bytes(2, "little") + header.encode() + data


def tar_of(rng: random.Random, content: bytes) -> bytes:
    """A tar archive: its bytes, or a field of a header, whose checksum is made anew."""
    if rng.random() < 0.3:
        return bytes_of(rng, content)
    out = bytearray(content)
    headers = [i for i in range(0, len(out), 512) if out[i + 257 : i + 262] == b"ustar"]
    for _ in range(rng.choice((1, 1, 3))):
        at = rng.choice(headers)
        start, size = rng.choice(((0, 100), (124, 12), (124, 12), (136, 12), (156, 1), (345, 155)))
        value = rng.choice(
            (
                rng.randbytes(size),
                b"%0*o\0" % (size - 1, rng.choice(_INTEGERS)),
                b"\x80" + rng.choice(_INTEGERS).to_bytes(size - 1, "big")[-size:]
                if size == 12
                else b"xgLKSD12"[(kind := rng.randrange(8)) : kind + 1],
                b"\xff" * size,
                b"a.txt",
            )
        )[:size]
        out[at + start : at + start + len(value)] = value
        out[at + 148 : at + 156] = b" " * 8
        out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)

"""Reads arrays from an .npz; a header is checked against the file before memory is allocated."""

import io
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np

from emo_jax.files.json_files import NotReadableError, open_regular

_HEADER_BYTES = 1 << 16
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those that NumPy uses
_GROWTH, _ALWAYS = 1000, 1 << 26  # an .npz is deflated, by a factor of 1032 at most
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError)


def read_npz(path: Path, wanted: dict[str, str]) -> dict[str, np.ndarray]:
    """Reads some arrays of a file, each of the given dtype, or kind if that is one letter.

    Raises:
      NotReadableError: not an .npz, damaged, or its arrays differ from what their headers say.
      OSError: it cannot be opened.
    """
    with open_regular(path) as file:
        size = file.seek(0, io.SEEK_END)
        try:
            with zipfile.ZipFile(file) as archive:
                return {name: _read(archive, name, dtype, size) for name, dtype in wanted.items()}
        except NotReadableError:
            raise
        except (*_DAMAGE, OSError) as error:  # OSError: an offset outside the file
            raise NotReadableError(f"no archive of arrays ({error})") from None


def _read(archive: zipfile.ZipFile, name: str, dtype: str, size: int) -> np.ndarray:
    try:
        member = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise NotReadableError(f"no array {name}") from None
    if member.compress_type not in _METHODS:
        raise NotReadableError(f"{name} is packed in another way than NumPy's")
    if member.file_size > max(_ALWAYS, _GROWTH * size):
        raise NotReadableError(f"{name} grows to more than {_GROWTH} times the file")
    with archive.open(member) as stream:
        content = stream.read(member.file_size)
    shape, found, data = _header(content, name)
    if found.name != dtype and found.kind != dtype:
        raise NotReadableError(f"{name} is {found.name}, must be {dtype}")
    if not found.itemsize or math.prod(shape) * found.itemsize != len(data):
        raise NotReadableError(f"{name} has {len(data)} bytes for shape {shape}")
    return np.frombuffer(data, found).reshape(shape)


def _header(content: bytes, name: str) -> tuple[tuple[int, ...], np.dtype, memoryview]:
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(cast(Any, stream))
        read = {(1, 0): np.lib.format.read_array_header_1_0}
        read[2, 0] = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read[version](cast(Any, stream), max_header_size=_HEADER_BYTES)
        if fortran or dtype.hasobject or not all(n >= 0 for n in shape):
            raise ValueError("an order or a kind that is not written here")
    except Exception as error:  # NumPy's parser also raises errors of tokenize and ast
        text = " ".join(str(error).split())[:100]
        raise NotReadableError(f"{name} has no header of an array ({text})") from None
    return shape, dtype, memoryview(content)[stream.tell() :]

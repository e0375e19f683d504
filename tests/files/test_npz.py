"""What an .npz says of itself is held to its size before room is made for it."""

import io
import zipfile

import numpy as np
import pytest

from emo_jax.files.json_files import NotReadableError
from emo_jax.files.npz import read_npz

HEADER = "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 3), }"


def _npz(path, header, data=b"\0" * 24, name="a.npy", method=zipfile.ZIP_DEFLATED):
    raw = header.encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + data
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, content)
    return path


def test_what_numpy_writes(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.array("é{}")}
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    found = read_npz(tmp_path / "x.npz", {"a": "int32", "b": "U"})
    np.testing.assert_array_equal(found["a"], arrays["a"])
    assert str(found["b"]) == "é{}"
    assert read_npz(_npz(tmp_path / "y.npz", HEADER), {"a": "int32"})["a"].shape == (2, 3)


@pytest.mark.parametrize(
    ("header", "named"),
    [
        (HEADER.replace("2, 3", "2, 4"), "a has 24 bytes for shape"),
        (HEADER.replace("2, 3", "1099511627776, 1099511627776"), "a has 24 bytes for shape"),
        (HEADER.replace("2, 3", "-2, -3"), "a has no header of an array"),
        (HEADER.replace("<i4", "|O"), "a has no header of an array"),
        (HEADER.replace("<i4", "<f4"), "a is float32, must be int32"),
        (HEADER.replace("False", "True"), "a has no header of an array"),
        (HEADER.replace("(2, 3)", "(" * 300), "a has no header of an array"),
        (HEADER.replace("}", ""), "a has no header of an array"),
        ("", "a has no header of an array"),
    ],
)
def test_headers_that_cannot_be(tmp_path, header, named):
    with pytest.raises(NotReadableError, match=named):
        read_npz(_npz(tmp_path / "x.npz", header), {"a": "int32"})


def test_no_archive(tmp_path):
    path = tmp_path / "x.npz"
    good = _npz(path, HEADER).read_bytes()
    for content in (b"", b"PK", good[:-10], good[10:], np.arange(9).tobytes()):
        path.write_bytes(content)
        with pytest.raises(NotReadableError, match="no archive of arrays"):
            read_npz(path, {"a": "int32"})
    with pytest.raises(NotReadableError, match="no array b"):
        read_npz(_npz(path, HEADER), {"b": "int32"})
    with pytest.raises(NotReadableError, match="packed in another way"):
        read_npz(_npz(path, HEADER, method=zipfile.ZIP_LZMA), {"a": "int32"})


def test_an_array_that_goes_on_and_on(tmp_path):
    path = tmp_path / "x.npz"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\0" * 100_000_000)
    # The size of what is inside is what the archive says: 4 GB, where there are 100 MB.
    path.write_bytes(out.getvalue().replace((100_000_000).to_bytes(4, "little"), b"\xf0" * 4))
    with pytest.raises(NotReadableError, match="a grows to more than 1000 times the file"):
        read_npz(path, {"a": "int32"})

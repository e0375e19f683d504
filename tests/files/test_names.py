"""Names of files that a file gives stay inside of its folder."""

import pytest

from emo_jax.files.json_files import NotReadableError
from emo_jax.files.names import plain_name


@pytest.mark.parametrize(
    "name", ["a", "a/b/c.json", "params/d/0123abc", ".zarray", "a b", "ä", "..a"]
)
def test_plain(name):
    assert plain_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../a",
        "a/../../b",
        "a/..",
        "./a",
        "a//b",
        "a/",
        "a\0b",
        "a\nb",
        "..\\a",
        "C:a",
        "gs://bucket/a",
        "x" * 256,
        "/".join(["x"] * 4000),
        None,
        5,
        ["a"],
    ],
)
def test_not_plain(name):
    with pytest.raises(NotReadableError, match="is no name of a file inside of the folder"):
        plain_name(name)

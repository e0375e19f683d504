"""File names read from a file, such as a manifest, which may come from anywhere."""

from typing import Any

from emo_jax.files.json_files import NotReadableError

_MAX_NAME, _MAX_PART = 4096, 255  # bytes, limits of file systems


def plain_name(name: Any) -> str:
    """Returns a name such as `a/b.json` that stays inside the folder it is looked up in.

    Raises:
      NotReadableError: it is not a string, or could be a path to somewhere else.
    """
    parts = name.split("/") if isinstance(name, str) else []
    encoded = name.encode("utf-8", "replace") if isinstance(name, str) else b""
    plain = (
        0 < len(encoded) <= _MAX_NAME
        and all(part not in ("", ".", "..") for part in parts)
        and all(len(part.encode("utf-8", "replace")) <= _MAX_PART for part in parts)
        and not any(c in name for c in "\0\n\r\\:")
    )
    if not plain:
        shown = repr(name) if isinstance(name, str) else f"a {type(name).__name__}"
        raise NotReadableError(f"{shown[:60]} is no name of a file inside of the folder")
    return name

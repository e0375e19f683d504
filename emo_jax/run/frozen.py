"""The code and the libraries of a run, kept in its workdir.

WORKDIR/frozen/ID has `source.tar.gz`, the Python files of emo_jax as they were at a start, whatever
git knows of them, and `packages.txt`, what pip would have to install. ID is a digest of both: a
start with the same code adds nothing.
"""

import gzip
import hashlib
import importlib.metadata
import io
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

from etils import epath

import emo_jax
from emo_jax.errors import UsageError
from emo_jax.files.atomic import sync_folder

FROZEN_FOLDER = "frozen"
SOURCE_FILE, PACKAGES_FILE = "source.tar.gz", "packages.txt"
_FIELD = re.compile(r"^(Name|Version): *(.*?)\s*$", re.MULTILINE)


def freeze(workdir: Path) -> str:
    """Writes the code and versions of this process to a workdir, if they are not there.

    Returns:
      Their ID.

    Raises:
      UsageError: `frozen` is a link, which may lead out of the workdir.
      OSError: they cannot be written.
    """
    sources, packages = _sources(), _packages()
    digest = hashlib.sha256(packages.encode())
    for name, content in sources.items():
        digest.update(f"\0{name}\0{len(content)}\0".encode() + content)
    name = digest.hexdigest()[:16]
    parent = workdir / FROZEN_FOLDER
    if parent.is_symlink():
        raise UsageError(f"{parent}: a link; take it away: a run keeps its code there")
    folder = parent / name
    if folder.is_dir():
        return name
    parent.mkdir(exist_ok=True)
    for left in parent.glob(".*.tmp"):  # by a killed run; the workdir is locked
        shutil.rmtree(left, ignore_errors=True)
    unfinished = parent / f".{name}.{secrets.token_hex(4)}.tmp"
    try:
        unfinished.mkdir()
        (unfinished / SOURCE_FILE).write_bytes(_archive(sources))
        (unfinished / PACKAGES_FILE).write_text(packages)
        os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    sync_folder(epath.Path(parent))
    return name


def _sources() -> dict[str, bytes]:
    """The Python files of the package, by name from its parent folder."""
    package = Path(emo_jax.__file__).parent
    files = sorted(package.rglob("*.py"))
    return {str(file.relative_to(package.parent)): file.read_bytes() for file in files}


def _packages() -> str:
    """Lines `name==version`, without where they came from, which may hold a password."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        # Its own parser takes four times as long, 0.2 s for 300 packages at each start.
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
        fields = dict(_FIELD.findall(text.partition("\n\n")[0]))
        name = re.sub(r"[-_.]+", "-", fields.get("Name", "")).lower()
        # The first of a name is the one that is imported.
        found.setdefault(name, f"{name}=={fields.get('Version')}\n")
    return "".join(line for name, line in sorted(found.items()) if name not in ("", "emo-jax"))


def _archive(files: Mapping[str, bytes]) -> bytes:
    """A .tar.gz without times and owners: equal files give equal bytes."""
    out = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()

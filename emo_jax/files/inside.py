"""Guards against links that bring files from outside into a folder made by someone else.

Such a folder may contain a link to any file of this machine, whose content would then be copied,
exported and pushed. The one kind of link that people need is the hub cache's, from
`snapshots/REVISION/…/FILE` to `blobs/…` next to `snapshots`.
"""

import os
import stat
from collections.abc import Container, Iterable
from pathlib import Path

from emo_jax.errors import EmoError, one_line
from emo_jax.files.json_files import NotReadableError


def check_own_file(
    path: str | os.PathLike[str], *, within: str | os.PathLike[str] | None = None
) -> None:
    """Refuses a file that is not regular, or that a link brings in from outside its folder.

    Nothing is opened.

    Args:
      within: the folder of someone else; None: the folder of `path`. A `within` that is itself a
        link stands for its target.

    Raises:
      NotReadableError: says which of the two.
      OSError: there is no such file, or it cannot be accessed.
    """
    real = _inside(path, os.path.dirname(path) or "." if within is None else within)
    if not stat.S_ISREG(os.stat(real).st_mode):
        raise NotReadableError("not a regular file")


def _inside(path: str | os.PathLike[str], within: str | os.PathLike[str]) -> str:
    """Resolves a path; raises NotReadableError if it is neither in a folder nor in its blobs."""
    folder, real = (os.path.realpath(name, strict=True) for name in (within, path))
    allowed = [folder]
    for place in (Path(folder), *Path(folder).parents):
        if place.parent.name == "snapshots":
            allowed.append(str(place.parent.with_name("blobs")))
    if not any(real.startswith(place.rstrip(os.sep) + os.sep) for place in allowed):
        raise NotReadableError(f"a link to {real}, outside of its folder")
    return real


def check_tree(folder: str | os.PathLike[str], known: Container[str] = ()) -> None:
    """Refuses anything below a folder that is not a file or folder, and links out of it.

    Args:
      known: paths in the folder of files whose digests are known: where such a link leads does not
        matter.

    Raises:
      NotReadableError: names the first of them by its path in the folder.
      OSError: something cannot be accessed.
    """
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        with os.scandir(os.path.join(folder, prefix)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = prefix + entry.name
                if entry.is_symlink() and name not in known:
                    try:
                        _inside(entry.path, folder)
                    except NotReadableError as reason:
                        raise NotReadableError(f"{name} is {reason}") from None
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{name}/")
                elif not entry.is_file() and not entry.is_dir():
                    raise NotReadableError(f"{name} is not a regular file")


def check_own_files(
    folder: str | os.PathLike[str],
    names: Iterable[str],
    *,
    error: type[EmoError],
    within: str | os.PathLike[str] | None = None,
) -> None:
    """Calls `check_own_file` for those of some names that exist in a folder.

    Raises:
      EmoError: of the type `error`, in one line that names the file and says what to do.
    """
    for name in names:
        path = Path(folder) / name
        try:
            check_own_file(path, within=within)
        except (FileNotFoundError, NotADirectoryError):
            if path.is_symlink():
                raise error(f"{path}: a link to nothing; copy the file again") from None
        except NotReadableError as reason:
            raise error(
                f"{path}: {one_line(reason)}; put the file itself there if it is meant, or take it"
                " away"
            ) from None
        except OSError as reason:
            raise error(
                f"{path}: cannot be read ({one_line(reason)}); give access to it, or copy it again"
            ) from None

"""A list of document ids to leave out, as hashes: a file of millions of ids fits in memory."""

import hashlib
from array import array
from pathlib import Path

import numpy as np

from emo_jax.documents import text_files
from emo_jax.documents.archives import READ_ERRORS, unreadable
from emo_jax.errors import DataError, UsageError

_FILE = "drop_ids.npy"
REASON = "--drop-ids"


def _hash(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(b"drop\0" + name, digest_size=8).digest(), "little")


class DropIds:
    """A set of ids.

    Only 64-bit hashes are kept: of a billion documents, one that is not in a list of a million ids
    is left out by mistake with a probability of 1 in 18 000.
    """

    def __init__(self, hashes: np.ndarray):
        self._hashes = hashes

    def __len__(self) -> int:
        return int(self._hashes.size)

    @classmethod
    def read(cls, path: Path) -> "DropIds | None":
        """Reads a text file with an id on each line; None if it is empty, as without duplicates.

        Raises:
          UsageError: no such file.
          DataError: it cannot be read, or holds no id.
        """
        if not path.is_file():
            raise UsageError(f"--drop-ids {path}: no such file")
        hashes = array("Q")
        try:
            for number, line in text_files.read_lines(path):
                if line is None:
                    raise DataError(f"{path}:{number}: too long for an id; give a list of ids")
                if line := line.rstrip(b"\r"):
                    hashes.append(_hash(line))
        except READ_ERRORS as error:
            raise unreadable(path, error) from error
        if not hashes and not path.stat().st_size:
            return None
        if not hashes:
            raise DataError(f"--drop-ids {path}: holds no id")
        return cls(np.unique(np.asarray(hashes, np.uint64)))

    @classmethod
    def open(cls, folder: Path) -> "DropIds":
        """Opens what `save` wrote."""
        return cls(np.load(folder / _FILE, mmap_mode="r"))

    def save(self, folder: Path) -> None:
        """Writes the set for other processes."""
        np.save(folder / _FILE, self._hashes)

    @property
    def digest(self) -> str:
        """A hash of the whole set."""
        return hashlib.sha256(self._hashes.tobytes()).hexdigest()

    def has(self, names: list[str]) -> np.ndarray:
        """Returns which ids are in the set: (N,) bool."""
        hashes = np.array([_hash(name.encode("utf-8")) for name in names], np.uint64)
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self) - 1)
        return self._hashes[at] == hashes

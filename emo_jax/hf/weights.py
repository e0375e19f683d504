"""The safetensors files of a folder: written piece by piece, read by header and rows.

The safetensors package writes a file from a dict of all its tensors, and reads by mapping the file,
which counts as memory of the process. Here a 54 GB model needs the memory of only a few slices:
pieces are written to, and rows read from, the offsets in the header. The package checks the headers
of all files, including those written here.
"""

import contextlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from emo_jax.checkpoint.slices import WRITE_BYTES
from emo_jax.errors import HfFormatError, one_line
from emo_jax.files.inside import check_own_files
from emo_jax.files.json_files import Fields, NotReadableError
from emo_jax.files.names import plain_name
from emo_jax.files.steady import SteadyFile
from emo_jax.files.waiting import Patience
from emo_jax.hf.hf_config import load_json
from emo_jax.hf.tensors import HfTensor, LeafSource
from emo_jax.model.params import Shape

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# DeepSeek-V3 has 91 991 tensors; as one file, they would have a header of 12 MB.
MAX_TENSORS = 500_000
MAX_HEADER_BYTES = 1 << 25
READABLE_DTYPES = {  # upcast to float32 without loss
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


# --- writing -------------------------------------------------------------------------------------


def plan_shards(tensors: Sequence[HfTensor], max_shard_bytes: int) -> dict[str, list[HfTensor]]:
    """File name → its tensors, in order; a tensor above the limit gets its own file."""
    shards: list[list[HfTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    n = len(shards)
    return {f"model-{i:05d}-of-{n:05d}.safetensors": part for i, part in enumerate(shards, 1)}


def _header(tensors: Sequence[HfTensor]) -> tuple[bytes, dict[str, int]]:
    """The head of a file, and the offset of each tensor in the file."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end, starts = 0, {}
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        starts[tensor.name] = start
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins aligned
    first = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {n: first + at for n, at in starts.items()}


def write_shards(
    folder: Path,
    shards: Mapping[str, Sequence[HfTensor]],
    source: LeafSource,
    on_bytes: Callable[[int], None] = lambda n: None,
) -> None:
    """Writes the float32 files of a folder; calls `on_bytes` with the size of every piece.

    The order is leaf by leaf, not file by file: what is adjacent in a checkpoint is read once.
    """
    places: dict[str | None, list[tuple[HfTensor, int, int]]] = {}
    with contextlib.ExitStack() as stack:
        for name, tensors in shards.items():
            file = stack.enter_context(open(folder / name, "wb"))
            head, starts = _header(tensors)
            file.write(head)
            file.flush()
            file.truncate(len(head) + sum(tensor.nbytes for tensor in tensors))
            for tensor in tensors:
                place = (tensor, file.fileno(), starts[tensor.name])
                places.setdefault(tensor.path, []).append(place)
        for held in places.values():
            for tensor, fd, start in held:
                row_bytes = tensor.nbytes // tensor.shape[0]
                for row, piece in tensor.pieces(WRITE_BYTES):
                    write_at(fd, piece.read(source), start + row * row_bytes)
                    on_bytes(piece.nbytes)


def write_at(fd: int, value: np.ndarray, start: int) -> None:
    """Writes the bytes of an array at an offset of a file."""
    data = value.reshape(-1).view(np.uint8).data
    while data:
        done = os.pwrite(fd, data, start)
        data, start = data[done:], start + done


def write_index(folder: Path, shards: Mapping[str, Sequence[HfTensor]]) -> None:
    """Writes the map from tensor to file; a folder with a single file has none."""
    if SINGLE in shards:
        return
    total = sum(tensor.nbytes for part in shards.values() for tensor in part)
    names = {tensor.name: file for file, part in shards.items() for tensor in part}
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


# --- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as described by a file's header, with access to its rows."""

    content: SteadyFile
    shape: Shape
    dtype: str
    start: int  # offset of its bytes in the file

    @property
    def file(self) -> Path:
        """The file that contains it."""
        return self.content.path

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Rows of axis 0, in the tensor's dtype, which must be one of `READABLE_DTYPES`.

        Raises:
          HfFormatError: the file is gone for good, was truncated, or was replaced.
        """
        dtype = READABLE_DTYPES[self.dtype]
        row_bytes = math.prod(self.shape[1:]) * dtype.itemsize
        rows = self.content.read(self.start + start * row_bytes, self.start + stop * row_bytes)
        return np.frombuffer(rows, dtype).reshape((stop - start, *self.shape[1:]))

    def parts(self, count: int, shape: Shape) -> list["StoredTensor"]:
        """Splits it into `count` consecutive tensors of `shape`; the sizes must match."""
        nbytes = math.prod(shape) * READABLE_DTYPES[self.dtype].itemsize
        return [replace(self, shape=shape, start=self.start + i * nbytes) for i in range(count)]


def _check_file(path: Path) -> None:
    """Raises HfFormatError unless the safetensors package accepts the file as complete."""
    check_own_files(path.parent, [path.name], error=HfFormatError)
    try:
        # Opened here first: the package reports every file that it cannot open as missing.
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if path.stat().st_size > length > MAX_HEADER_BYTES:
            raise HfFormatError(
                f"{path}: its header has {length} bytes, no model has one above"
                f" {MAX_HEADER_BYTES}; copy it again"
            )
        with safe_open(path, framework="numpy"):
            pass
    except FileNotFoundError:
        raise HfFormatError(f"{path}: this file is missing; copy the folder again") from None
    except OSError as error:
        raise HfFormatError(
            f"{path}: cannot be read ({one_line(error)}); give access to it, or copy it again"
        ) from None
    except SafetensorError as error:
        raise HfFormatError(
            f"{path}: not a whole safetensors file ({one_line(error)}); copy it again"
        ) from None


def weight_files(folder: Path) -> list[Path]:
    """The files named by the index, or the single file."""
    if not os.path.lexists(folder / INDEX):
        return [folder / SINGLE]
    try:
        names = Fields(load_json(folder / INDEX)).inner("weight_map")
        files = sorted({_beside(names.value(tensor)) for tensor in names})
    except NotReadableError as error:
        raise HfFormatError(f"{folder / INDEX}: {one_line(error)}; copy it again") from None
    if not files:
        raise HfFormatError(f"{folder / INDEX}: its weight_map names no files; copy it again")
    if SINGLE not in files and (folder / SINGLE).exists():
        raise HfFormatError(
            f"{folder}: has {SINGLE} and {INDEX}, which does not name it: two models, of which"
            " transformers takes the first; remove the one that is not meant"
        )
    return [folder / name for name in files]


def _beside(name: Any) -> str:
    if "/" in plain_name(name):
        raise NotReadableError(f"weight_map must name files beside it, not {name[:60]!r}")
    return name


def read_file_headers(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file; only the header is read."""
    _check_file(path)
    patience = Patience(
        HfFormatError, away="bring the folder back and try again", spoilt="try again"
    )
    content = SteadyFile(path, patience)
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(
            content, tuple(entry["shape"]), entry["dtype"], 8 + length + entry["data_offsets"][0]
        )
        for name, entry in header.items()
    }


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder; each must be in only one of its files."""
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        held = read_file_headers(path)
        for name in sorted(held.keys() & found.keys()):
            raise HfFormatError(
                f"{path}: tensor {name} is in {found[name].file.name} too; remove one"
            )
        found |= held
        if len(found) > MAX_TENSORS:
            raise HfFormatError(
                f"{folder}: its files have more than {MAX_TENSORS} tensors, no model of ours has;"
                " copy the folder again"
            )
    return found


def check_dtype(name: str, stored: StoredTensor) -> None:
    """Rejects a tensor whose dtype may not fit in float32."""
    if stored.dtype not in READABLE_DTYPES:
        raise HfFormatError(
            f"{stored.file}: {name} is {stored.dtype}, must be one of "
            f"{', '.join(READABLE_DTYPES)}; convert the folder to one of them"
        )


def describe(names: Iterable[str], count: int = 3) -> str:
    """The number of names, and the first few of them."""
    listed = sorted(names)
    more = f" and {len(listed) - count} more" if len(listed) > count else ""
    return f"{len(listed)} ({', '.join(listed[:count])}{more})"


def check_names(found: Iterable[str], expected: Iterable[str], where: Path, layout: str) -> None:
    """Rejects a set of tensors that is not exactly the layout's."""
    found, expected = set(found), set(expected)
    if found != expected:
        wrong = {"missing": expected - found, "unexpected": found - expected}
        parts = [f"{what} tensors: {describe(names)}" for what, names in wrong.items() if names]
        raise HfFormatError(
            f"{where}: not a whole model of layout {layout}; {'; '.join(parts)}. Copy the folder "
            "again, or mend its config.json"
        )

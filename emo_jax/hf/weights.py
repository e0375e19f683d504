"""safetensors files of a folder: written one tensor at a time, read lazily by their headers.

The safetensors package writes a file from a dict that holds all its tensors; the writer here needs
one tensor at a time, so that a 54 GB model is exported in the memory of its largest tensor. What it
wrote is always read back through the package.
"""

import json
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes  # noqa: F401  (safetensors reads bfloat16 into NumPy only where this is known)
import numpy as np
from safetensors import SafetensorError, safe_open

from emo_jax.errors import HfFormatError
from emo_jax.hf.hf_config import load_json
from emo_jax.hf.tensors import HfTensor
from emo_jax.hf.tree import Shape

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
READABLE_DTYPES = ("F32", "F16", "BF16")  # upcast to float32 without loss
F32_BYTES = 4


def plan_shards(tensors: Sequence[HfTensor], max_shard_bytes: int) -> dict[str, list[HfTensor]]:
    """File name → its tensors, in order; a tensor above the limit gets a file of its own."""
    shards: list[list[HfTensor]] = [[]]
    size = 0
    for tensor in tensors:
        nbytes = math.prod(tensor.shape) * F32_BYTES
        if shards[-1] and size + nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += nbytes
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    n = len(shards)
    return {f"model-{i:05d}-of-{n:05d}.safetensors": part for i, part in enumerate(shards, 1)}


def write_file(path: Path, tensors: Sequence[HfTensor], values: Iterable[np.ndarray]) -> None:
    """One safetensors file of float32; `values` are asked for one at a time, in order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + math.prod(tensor.shape) * F32_BYTES
        header[tensor.name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins aligned
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in values:
            file.write(value.data)


def write_index(folder: Path, shards: dict[str, list[HfTensor]]) -> None:
    """The map from tensor to file; a folder of one file has none."""
    if SINGLE in shards:
        return
    total = sum(math.prod(t.shape) * F32_BYTES for part in shards.values() for t in part)
    names = {tensor.name: file for file, part in shards.items() for tensor in part}
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True)
class StoredTensor:
    """What a file's header says of a tensor."""

    file: Path
    shape: Shape
    dtype: str


def _open(path: Path):
    try:
        return safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise HfFormatError(f"{path}: this file is missing; copy the folder again") from None
    except (SafetensorError, OSError) as error:
        raise HfFormatError(
            f"{path}: not a whole safetensors file ({' '.join(str(error).split())}); copy it again"
        ) from None


def weight_files(folder: Path) -> list[Path]:
    """The files that the index names, or the single one."""
    if not (folder / INDEX).exists():
        return [folder / SINGLE]
    names = load_json(folder / INDEX).get("weight_map")
    if not isinstance(names, dict) or not all(
        isinstance(n, str) and n == Path(n).name for n in names.values()
    ):
        raise HfFormatError(f"{folder / INDEX}: weight_map must map tensors to files beside it")
    return [folder / name for name in sorted(set(names.values()))]


def read_file_headers(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file; nothing but the header is read."""
    found: dict[str, StoredTensor] = {}
    with _open(path) as file:
        for name in file.keys():  # noqa: SIM118  (not a mapping)
            view = file.get_slice(name)
            found[name] = StoredTensor(path, tuple(view.get_shape()), str(view.get_dtype()))
    return found


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder, which must be in one of its files only."""
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        held = read_file_headers(path)
        for name in sorted(held.keys() & found.keys()):
            raise HfFormatError(
                f"{path}: tensor {name} is in {found[name].file.name} too; remove one"
            )
        found |= held
    return found


def describe(names: Iterable[str], count: int = 3) -> str:
    """The first few names and how many there are."""
    listed = sorted(names)
    more = f" and {len(listed) - count} more" if len(listed) > count else ""
    return f"{len(listed)} ({', '.join(listed[:count])}{more})"


def check_names(found: Iterable[str], expected: Iterable[str], where: Path, layout: str) -> None:
    """Refuses a set of tensors that is not exactly the layout's."""
    found, expected = set(found), set(expected)
    if found != expected:
        wrong = {"missing": expected - found, "unexpected": found - expected}
        parts = [f"{what} tensors: {describe(names)}" for what, names in wrong.items() if names]
        raise HfFormatError(
            f"{where}: not a whole model of layout {layout}; {'; '.join(parts)}. Copy the folder "
            "again, or mend its config.json"
        )

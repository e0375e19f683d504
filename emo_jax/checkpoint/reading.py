"""Reads checkpoints: the parameters without the rest, whole or block by block."""

import functools
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from emo_jax.checkpoint.manifest import (
    DamagedError,
    LeafPath,
    compare,
    item_of,
    leaves_of,
    like,
    newest_good,
    param_specs,
)
from emo_jax.checkpoint.slices import Block, SlicedLeaf, SliceReader, check_metadata_of
from emo_jax.errors import CheckpointError, one_line
from emo_jax.files.trees import nest
from emo_jax.parallel import processes
from emo_jax.run.workdir import CHECKPOINTS

_LEAST_BYTES = 128 * 2**20  # in flight at once, of however small a state


def checkpoints_of(workdir: str | os.PathLike[str]) -> epath.Path:
    """The folder of a run's checkpoints: an absolute path, as orbax requires, or a URL."""
    if "://" in os.fspath(workdir):
        return epath.Path(workdir) / CHECKPOINTS
    return epath.Path(Path(workdir).absolute()) / CHECKPOINTS


def restore_params(
    workdir: str | os.PathLike[str], step: int | None = None, abstract_params: Any = None
) -> tuple[Any, dict[str, Any], int]:
    """The sub-tree `params` of a checkpoint as (params, extra, step), without the rest.

    The result is nested dicts of host arrays, or has the tree and shardings of `abstract_params` if
    given: the shapes stated by a checkpoint of unknown origin are better not trusted.
    """
    wanted = None if abstract_params is None else leaves_of({"params": abstract_params})

    def load(folder: epath.Path, manifest: dict[str, Any]) -> dict[LeafPath, Any]:
        if wanted is not None:
            compare(folder, manifest, wanted, ("params",))
        return dict(read_leaves(folder, manifest, wanted or param_specs(manifest)))

    folder = checkpoints_of(workdir)
    values, extra, found = newest_good(folder, step, {"params"}, load, [])
    if wanted is None:
        return nest(values).get("params", {}), extra, found
    return like({"params": abstract_params}, values)["params"], extra, found


def open_params(
    workdir: str | os.PathLike[str], step: int | None = None, abstract_params: Any = None
) -> tuple[SliceReader, dict[str, Any], int]:
    """Like `restore_params`, but for reading block by block: (reader, extra, step).

    Paths are below `params`, joined by `/`. Only the requested blocks are held in memory.
    """
    wanted = None if abstract_params is None else leaves_of({"params": abstract_params})

    def load(folder: epath.Path, manifest: dict[str, Any]) -> SliceReader:
        if wanted is not None:
            compare(folder, manifest, wanted, ("params",))
        specs = {"/".join(path[1:]): spec for path, spec in param_specs(manifest).items()}
        return SliceReader(folder / manifest["data"] / "params", specs, ("params",))

    return newest_good(checkpoints_of(workdir), step, {"params"}, load, [])


def open_state(
    workdir: str | os.PathLike[str], step: int | None = None
) -> tuple[dict[LeafPath, SlicedLeaf], dict[str, Any], int]:
    """All leaves of a checkpoint, to be read block by block: (leaves by path, extra, step)."""

    def load(folder: epath.Path, manifest: dict[str, Any]) -> dict[LeafPath, SlicedLeaf]:
        specs = {
            tuple(leaf["path"]): jax.ShapeDtypeStruct(leaf["shape"], jnp.dtype(leaf["dtype"]))
            for leaf in manifest["leaves"]
        }
        single = {path: spec for path, spec in specs.items() if not spec.shape}
        found = {
            path: SlicedLeaf((), np.dtype(value.dtype), functools.partial(_whole, value))
            for path, value in read_leaves(folder, manifest, single)
        }
        for item in ("params", "rest"):
            named = {
                "/".join(path): spec
                for path, spec in specs.items()
                if spec.shape and item_of(path) == item
            }
            reader = SliceReader(folder / manifest["data"] / item, named, ())
            for name, spec in named.items():
                read = functools.partial(reader.read, name)
                leaf = SlicedLeaf(tuple(spec.shape), np.dtype(spec.dtype), read)
                found[tuple(name.split("/"))] = leaf
        return found

    return newest_good(checkpoints_of(workdir), step, {"params", "rest"}, load, [])


def _whole(value: np.ndarray, block: Block) -> np.ndarray:
    """The only block of a single number."""
    return np.asarray(value)[block]


def read_leaves(
    folder: epath.Path, manifest: dict[str, Any], wanted: Mapping[LeafPath, Any]
) -> Iterator[tuple[LeafPath, Any]]:
    """Yields the wanted leaves, as arrays placed by their specs, item by item.

    Raises:
      DamagedError: the files cannot be read.
      CheckpointError: a device cannot hold a leaf as it is.
    """
    for path, spec in wanted.items():
        held = None if _sharding(spec) is None else jax.dtypes.canonicalize_dtype(spec.dtype)
        if held not in (None, spec.dtype):  # orbax would cut the numbers without a word
            raise CheckpointError(
                f"state {'/'.join(path)}: {jnp.dtype(spec.dtype).name} does not fit devices, which"
                f" have {held.name} here; restore it without a sharding, as an array of the host"
            )
    empty = {path for path, spec in wanted.items() if math.prod(spec.shape) == 0}
    for path in empty:
        zeros, sharding = np.zeros(wanted[path].shape, wanted[path].dtype), _sharding(wanted[path])
        yield path, zeros if sharding is None else jax.device_put(zeros, sharding)
    for item in sorted({item_of(path) for path in wanted if path not in empty}):
        specs = {p: x for p, x in wanted.items() if item_of(p) == item and p not in empty}
        args = {
            path: ocp.RestoreArgs(restore_type=np.ndarray)
            if (sharding := _sharding(spec)) is None
            else ocp.ArrayRestoreArgs(
                sharding=sharding, global_shape=tuple(spec.shape), dtype=spec.dtype
            )
            for path, spec in specs.items()
        }
        data = folder / manifest["data"] / item
        try:
            check_metadata_of(data, [".".join(path) for path in specs])
        except Exception as e:
            raise DamagedError(f"{item} cannot be read: {one_line(e)}") from e
        handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=limit_gb(specs.values()))
        how = ocp.args.PyTreeRestore(
            item=nest(specs), restore_args=nest(args), partial_restore=True
        )
        try:
            with processes.pulse.reading(str(data)):
                tree = handler.restore(data, args=how)
        except Exception as e:
            raise DamagedError(f"{item} cannot be read: {one_line(e)}") from e
        yield from leaves_of(tree).items()


def _sharding(spec: Any) -> Any:
    return getattr(spec, "sharding", None)


def limit_gb(leaves: Iterable[Any]) -> float:
    """GB that orbax may have in flight at once, beyond the staged copy: a tenth of the leaves.

    Its default of 96 GB can amount to a second copy of the state. It rejects an array above the
    limit instead of waiting, and rounds reads up to whole chunks, hence twice the largest array.
    """
    sizes = [math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in leaves]
    return max(_LEAST_BYTES, sum(sizes) // 10, 2 * max(sizes, default=0)) / 1e9

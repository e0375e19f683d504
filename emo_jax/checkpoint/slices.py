"""Writes and reads checkpoint arrays slice by slice: only a few slices are in memory.

orbax handles whole arrays, and one expert weight of a large model is many GB. `SlicedLeaf` is a
leaf of a state that is read while it is written, through an orbax type handler, so that the files
are in orbax's own format. `SliceReader` reads blocks of existing arrays.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from emo_jax.errors import CheckpointError
from emo_jax.files.arrays import StoredArray, check_metadata
from emo_jax.files.steady import SteadyFiles
from emo_jax.files.waiting import Patience, SpoiltError
from emo_jax.run.workdir import MANIFEST

Block = tuple[slice, ...]  # start and stop on every axis

WRITE_BYTES = 16 * 2**20  # read and written at once, unless one chunk is larger
_INDEX_BYTES = 64 * 2**20  # cache for the index of chunks in the files
_CACHE_BYTES = 2 * 2**30  # maximum cache for chunks shared by the blocks being read


def extent(block: Block) -> tuple[int, ...]:
    """The shape of a block."""
    return tuple(part.stop - part.start for part in block)


@dataclass(frozen=True)
class SlicedLeaf:
    """An array supplied block by block by `read(block)` while orbax writes it.

    Attributes:
      chunk_axes: axes along which a chunk has size 1, so that readers can get single indices.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Block], np.ndarray]
    chunk_axes: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def blocks(shape: tuple[int, ...], chunk: tuple[int, ...], size: int) -> Iterator[Block]:
    """Covers a shape with whole chunks: runs of about `size` elements along the last split axis."""
    step = [min(part, whole) for part, whole in zip(chunk, shape, strict=True)]
    cut = [axis for axis, part in enumerate(step) if part < shape[axis]]
    if cut:
        step[cut[-1]] *= max(1, size // math.prod(step))
    starts = (range(0, whole, part) for whole, part in zip(shape, step, strict=True))
    for corner in itertools.product(*starts):
        ends = (min(a + part, whole) for a, part, whole in zip(corner, step, shape, strict=True))
        yield tuple(slice(a, b) for a, b in zip(corner, ends, strict=True))


def _chunk_of(store: Any) -> tuple[int, ...]:
    return tuple(store.chunk_layout.read_chunk.shape or ())  # none of a single number


class _SlicedHandler(ocp.type_handlers.NumpyHandler):
    """Writes sliced leaves as orbax NumPy arrays, reading a block while the last one is stored."""

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
        """Futures of the write; nothing is copied beforehand."""
        args = args or [ocp.SaveArgs()] * len(values)
        return [
            ocp.future.CommitFutureAwaitingContractedSignals(
                self._write_all(values, infos, args), name="sliced_leaves"
            )
        ]

    async def _write_all(self, values: Any, infos: Any, args: Any) -> None:
        # Synced once at the end: syncing after every block would take most of the time.
        context = ts.Context(
            {"file_io_sync": False, "cache_pool#ocdbt": {"total_bytes_limit": _INDEX_BYTES}}
        )
        for leaf, info, arg in zip(values, infos, args, strict=True):
            await info.await_path_creation()
            spec = ocp.type_handlers.get_json_tspec_write(
                info,
                use_ocdbt=info.is_ocdbt_checkpoint,
                global_shape=leaf.shape,
                local_shape=leaf.shape,
                dtype=leaf.dtype,
                process_index=0,
                arg=arg,
            )
            store = await ts.open(ts.Spec(spec), create=True, open=True, context=context)
            chunk = _chunk_of(store)
            before: Any = None
            for block in blocks(leaf.shape, chunk, WRITE_BYTES // leaf.dtype.itemsize):
                value = leaf.read(block)  # in this thread, which has nothing else to do
                if before is not None:
                    await before
                before = store[block].write(value, can_reference_source_data_indefinitely=True)
                del value
            await before
        _sync_files(infos[0].parent_dir)


def _sync_files(folder: epath.Path) -> None:
    """Syncs a local folder's files, so that they survive a power cut."""
    if "://" in str(folder):
        return
    for path in Path(folder).rglob("*"):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def sliced_registry() -> Any:
    """The type handlers that orbax needs to write an item of sliced leaves."""
    return ocp.type_handlers.create_type_handler_registry(
        (SlicedLeaf, _SlicedHandler()), (jax.Array, ocp.type_handlers.ArrayHandler())
    )


def _spec(folder: epath.Path, name: str, ocdbt: bool) -> dict[str, Any]:
    info = ocp.type_handlers.ParamInfo(
        name=name,
        parent_dir=folder,
        is_ocdbt_checkpoint=ocdbt,
        use_zarr3=False,
        ts_context=ts.Context(),
    )
    return ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=ocdbt)


def check_metadata_of(folder: epath.Path, names: Iterable[str]) -> None:
    """Calls `check_metadata` for arrays in one item, by their names there."""
    ocdbt = ocp.type_handlers.is_ocdbt_checkpoint(folder)
    context = ts.Context({"cache_pool#ocdbt": {"total_bytes_limit": _INDEX_BYTES}})
    for name in names:
        check_metadata(_spec(folder, name, ocdbt), context)


class SliceReader:
    """Reads blocks of the arrays in one item that orbax wrote.

    Chunks are cached as long as blocks of the same array share them: read all blocks of one array,
    in order, then those of the next.

    Args:
      folder: folder of the item.
      specs: the arrays by `/`-joined path, each with a shape and a dtype.
      prefix: the path above them in the item.
    """

    def __init__(self, folder: epath.Path, specs: Mapping[str, Any], prefix: tuple[str, ...]):
        self.shapes = {path: tuple(spec.shape) for path, spec in specs.items()}
        self._specs, self._folder, self._prefix = specs, folder, prefix
        self._ocdbt = ocp.type_handlers.is_ocdbt_checkpoint(folder)
        self._path, self._cached = "", 0
        self._store: Any = None
        self._files = None if "://" in str(folder) else _StepFiles(Path(folder).parent.parent)
        self._patience = Patience(
            CheckpointError,
            away="bring it back and try again",
            spoilt="try again, or with another step",
        )

    def read(self, path: str, block: Block) -> np.ndarray:
        """`array[block]` on the host, in the array's dtype.

        Raises:
          CheckpointError: the files cannot be read, or not any more.
        """
        if 0 in extent(block):
            return np.zeros(extent(block), self._specs[path].dtype)
        return self._read(path, block)

    def _read(self, path: str, block: Block) -> np.ndarray:
        if path != self._path:
            self._open(path, 0)
        needed = self._shared_bytes(path, block)
        if needed > self._cached:
            self._open(path, needed)
        return self._store.read(block)

    def _shared_bytes(self, path: str, block: Block) -> int:
        """Bytes of the chunks that a block touches, or 0 if it consists of whole chunks."""
        chunk, shape = self._store.chunk, self.shapes[path]
        whole = [
            min(-(-part.stop // c) * c, n) - part.start // c * c
            for part, c, n in zip(block, chunk, shape, strict=True)
        ]
        if tuple(whole) == extent(block):
            return 0
        return min(math.prod(whole) * self._specs[path].dtype.itemsize, _CACHE_BYTES)

    def _open(self, path: str, cache_bytes: int) -> None:
        spec = _spec(self._folder, ".".join((*self._prefix, *path.split("/"))), self._ocdbt)
        # The files were verified and nothing writes to them: do not recheck them for every block.
        spec["recheck_cached_data"] = False
        sizes = {
            "cache_pool": {"total_bytes_limit": cache_bytes},
            "cache_pool#ocdbt": {"total_bytes_limit": _INDEX_BYTES},
        }
        self._store = None  # frees the previous array's chunks first
        self._store = StoredArray(
            spec,
            name=f"{self._folder}: {path}",
            patience=self._patience,
            context=lambda: ts.Context(sizes),
            files=self._files,
        )
        self._path, self._cached = path, cache_bytes


class _StepFiles:
    """Watches a step's manifest, which is deleted first when the step is removed."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._steady = SteadyFiles(folder, {MANIFEST: None})

    def check(self, *names: str) -> None:
        """See `SteadyFiles`."""
        if not self._folder.exists() and self._folder.parent.exists():
            raise SpoiltError(
                f"{self._folder}: was removed while it was read, as a run that is training does"
                " with its older checkpoints"
            )
        self._steady.check(MANIFEST)

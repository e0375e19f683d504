"""How a state is written: copied to the host, and from there to files by orbax."""

from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from emo_jax.checkpoint.manifest import LeafPath, item_of
from emo_jax.checkpoint.reading import limit_gb
from emo_jax.checkpoint.slices import WRITE_BYTES, SlicedLeaf, sliced_registry
from emo_jax.checkpoint.together import Meeting
from emo_jax.files.trees import STACKS, nest

_CHUNK_BYTES = 64 * 2**20  # unit of reading: another mesh reads little more than its own shards
_SAVE_TIMEOUT = 1800  # seconds for which processes wait for each other's writes


def start_writing(
    folder: epath.Path,
    processes: ocp.options.MultiprocessingOptions,
    leaves: dict[LeafPath, Any],
    meeting: Meeting,
) -> Any:
    """Copies the leaves to the host and lets orbax write them from there; returns its writer."""
    # A new writer for each save: a failed one is not reused, and processes cannot meet at the
    # barrier of a different save.
    limit = limit_gb(leaves.values())
    items: dict[str, dict[LeafPath, Any]] = {}
    for path, leaf in leaves.items():
        if leaf.size:  # orbax rejects empty arrays; their shape in the manifest is enough
            items.setdefault(item_of(path), {})[path] = leaf
    # Compression saves under a tenth on weights and takes CPU time from the input pipeline.
    handlers = {
        name: ocp.PyTreeCheckpointHandler(
            save_concurrent_gb=limit,
            use_compression=False,
            multiprocessing_options=processes,
            **_handler_options(of),
        )
        for name, of in items.items()
    }
    # Directories are created synchronously: one that cannot be created is then an error now; in a
    # thread, it would leave others waiting for minutes.
    options = ocp.AsyncOptions(
        timeout_secs=_SAVE_TIMEOUT,
        create_directories_asynchronously=False,
        barrier_sync_fn=meeting.barrier(),
    )
    writer = ocp.AsyncCheckpointer(
        ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(
                async_options=options, multiprocessing_options=processes
            ),
            **handlers,
        ),
        async_options=options,
        multiprocessing_options=processes,
    )
    args = {
        name: ocp.args.PyTreeSave(nest(of), nest({p: _save_args(p, x) for p, x in of.items()}))
        for name, of in items.items()
    }
    writer.save(folder, args=ocp.args.Composite(**args))
    return writer


def _handler_options(leaves: Mapping[LeafPath, Any]) -> dict[str, Any]:
    if all(isinstance(leaf, SlicedLeaf) for leaf in leaves.values()):
        return {"type_handler_registry": sliced_registry()}
    return {}


def _save_args(path: LeafPath, leaf: Any) -> Any:
    """How an array is split into chunks on disk.

    A chunk of stacked layers covers one layer, whatever mesh wrote it: by default orbax splits the
    longest axes, and then a layer, or an expert, is spread over all chunks of the array.
    """
    axes: tuple[int, ...] = (0,) if set(STACKS) & set(path) and len(leaf.shape) > 1 else ()
    if isinstance(leaf, SlicedLeaf):
        return ocp.SaveArgs(chunk_byte_size=WRITE_BYTES, shard_axes=leaf.chunk_axes)
    return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=axes)

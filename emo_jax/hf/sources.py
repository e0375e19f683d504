"""Sources of leaves: a tree in memory, or the files of a Hugging Face folder.

The third source, a checkpoint, is `emo_jax.checkpoint.checkpointer.open_params`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emo_jax.checkpoint.slices import Block, extent
from emo_jax.config import Config
from emo_jax.errors import HfFormatError, UsageError
from emo_jax.hf.tensors import HfTensor
from emo_jax.hf.weights import StoredTensor
from emo_jax.model.params import Shape, leaf_shapes


class TreeSource:
    """Parameters in memory: NumPy arrays, or JAX arrays of this process, sharded or not."""

    def __init__(self, leaves: Mapping[str, Any]):
        self._leaves = leaves
        self.shapes: dict[str, Shape] = {path: tuple(x.shape) for path, x in leaves.items()}

    def read(self, path: str, block: Block) -> np.ndarray:
        """`leaf[block]` as float32.

        A JAX array is read shard by shard: indexing the whole array would gather a leaf that is
        sharded along the indexed axis onto every device, and compile once per block.
        """
        leaf = self._leaves[path]
        shards = getattr(leaf, "addressable_shards", None)
        if shards is None:
            return np.asarray(leaf[block], np.float32)
        if not leaf.is_fully_addressable:
            raise UsageError(
                "parameters: an array has parts on other hosts; restore the checkpoint in one"
                " process and export there"
            )
        out = np.empty(extent(block), np.float32)
        for shard in shards:
            if shard.replica_id == 0:
                _copy_overlap(shard, block, leaf.shape, out)
        return out


def _copy_overlap(shard: Any, block: Block, shape: Shape, out: np.ndarray) -> None:
    """Copies the part of `block` that lies in one shard of a leaf into `out`."""
    import jax  # imported here because reading a NumPy tree needs no JAX

    inside, target = [], []
    for want, held, size in zip(block, shard.index, shape, strict=True):
        first, last, _ = held.indices(size)
        start, stop = max(want.start, first), min(want.stop, last)
        if start >= stop:
            return
        inside.append((start - first, stop - start))
        target.append(slice(start - want.start, stop - want.start))
    starts, sizes = zip(*inside, strict=True)
    # The starts are arguments of the compiled slice: it compiles once per block shape.
    out[tuple(target)] = np.asarray(jax.lax.dynamic_slice(shard.data, starts, sizes))


class FolderSource:
    """The tensors of a Hugging Face folder as leaves; rows not in any tensor are zero."""

    def __init__(
        self, stored: Mapping[str, StoredTensor], tensors: Sequence[HfTensor], config: Config
    ):
        self.shapes: dict[str, Shape] = leaf_shapes(config)
        self._stored = stored
        self._constants = [tensor for tensor in tensors if tensor.path is None]
        # By leaf and layer, so that a block is not compared with the tensors of all layers.
        self._by_layer: dict[str, dict[tuple[int, int], list[HfTensor]]] = {}
        for tensor in tensors:
            if tensor.path is not None:
                first = tensor.block[0]
                layers = self._by_layer.setdefault(tensor.path, {})
                layers.setdefault((first.start, first.stop), []).append(tensor)

    def check_constants(self) -> None:
        """Rejects a tensor that is constant in all of our models but different here."""
        for tensor in self._constants:
            stored = self._stored[tensor.name]
            if not tensor.is_constant(stored.read_rows(0, tensor.shape[0])):
                said = f"2**{math.log2(tensor.fill):.0f} or " if tensor.fill else ""
                raise HfFormatError(
                    f"{stored.file}: {tensor.name} must be all {said}zeros, as it was exported:"
                    " training elsewhere moved it, and no model of ours computes that; train again"
                    " with it frozen, as shared_expert_gate and the biases of q, k and v must be"
                    " (docs/huggingface.md)"
                )

    def read(self, path: str, block: Block) -> np.ndarray:
        """`leaf[block]` as float32."""
        out = np.zeros(extent(block), np.float32)
        for (start, stop), tensors in self._by_layer.get(path, {}).items():
            if start >= block[0].stop or stop <= block[0].start:
                continue
            for tensor in tensors:
                if found := tensor.within(block):
                    row, part = found
                    value = self._stored[tensor.name].read_rows(row, row + part.shape[0])
                    part.write(value, out, block)
        return out

    def read_whole(self, path: str) -> np.ndarray:
        """A leaf as float32."""
        return self.read(path, tuple(slice(0, size) for size in self.shapes[path]))

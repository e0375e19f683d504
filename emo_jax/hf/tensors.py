"""One Hugging Face tensor and its place in our tree; the same entry is used in both directions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from emo_jax.hf.tree import Shape, read_block


@dataclass(frozen=True)
class HfTensor:
    """`value = leaf[block].transpose(axes).reshape(shape) * scale`, and back.

    A tensor without a path holds zeros: written as such, and refused if it holds anything else.
    """

    name: str
    shape: Shape
    path: str | None = None
    block: tuple[slice, ...] = ()  # start and stop on every axis of the leaf
    axes: tuple[int, ...] = ()
    scale: float = 1.0  # a power of two, so that dividing by it gives the same bits back
    is_vocab: bool = False  # axis 0 is the vocabulary: files may hold its padding rows too

    def read(self, leaves: Mapping[str, Any]) -> np.ndarray:
        """The float32 tensor of `shape`, from the flat tree."""
        if self.path is None:
            return np.zeros(self.shape, np.float32)
        value = read_block(leaves[self.path], self.block).transpose(self.axes).reshape(self.shape)
        value = value if self.scale == 1.0 else value * np.float32(self.scale)
        return np.ascontiguousarray(value, "<f4")

    def write(self, value: np.ndarray, leaves: Mapping[str, np.ndarray]) -> None:
        """Puts a tensor of `shape` and any floating dtype into the flat tree, in place."""
        if self.path is None:
            return
        view = leaves[self.path][self.block].transpose(self.axes)
        view[...] = value.astype(np.float32, copy=False).reshape(view.shape)
        if self.scale != 1.0:
            view /= np.float32(self.scale)

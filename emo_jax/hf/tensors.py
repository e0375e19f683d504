"""One Hugging Face tensor and its place in our tree; the same entry serves both directions."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from emo_jax.checkpoint.slices import Block, extent
from emo_jax.model.params import Shape

F32_BYTES = 4


class LeafSource(Protocol):
    """Parameters read block by block: a tree, a checkpoint or a Hugging Face folder."""

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every leaf by its `/`-joined path."""

    def read(self, path: str, block: Block) -> np.ndarray:
        """`leaf[block]` on the host, in any floating dtype."""


@dataclass(frozen=True)
class HfTensor:
    """`value = leaf[block].transpose(axes).reshape(shape) * scale`, and back.

    A tensor without a path is `fill` everywhere. When read, it may also be zero, or what rounding
    and averaging make of `fill`; anything else would be a different function, and is rejected.
    """

    name: str
    shape: Shape
    path: str | None = None
    block: Block = ()  # start and stop on every axis of the leaf
    axes: tuple[int, ...] = ()
    scale: float = 1.0  # a power of two, so that dividing by it restores the same bits
    fill: float = 0.0
    is_vocab: bool = False  # axis 0 is the vocabulary: files may include its padding rows

    @property
    def nbytes(self) -> int:
        """Bytes in a file we write, which is float32."""
        return math.prod(self.shape) * F32_BYTES

    def read(self, source: LeafSource) -> np.ndarray:
        """The float32 tensor of `shape`."""
        if self.path is None:
            return np.full(self.shape, self.fill, np.float32)
        value = source.read(self.path, self.block).astype(np.float32, copy=False)
        value = value.transpose(self.axes).reshape(self.shape)
        value = value if self.scale == 1.0 else value * np.float32(self.scale)
        return np.ascontiguousarray(value, "<f4")

    def pieces(self, max_bytes: int) -> Iterator[tuple[int, "HfTensor"]]:
        """Yields (first row, tensor of some rows) in order; whole if rows are not a single axis."""
        rows = max(1, max_bytes // max(1, self.nbytes // self.shape[0]))
        if self._row_axis() is None or rows >= self.shape[0]:
            yield 0, self
            return
        for start in range(0, self.shape[0], rows):
            yield start, self._rows(start, min(start + rows, self.shape[0]))

    def within(self, block: Block) -> tuple[int, "HfTensor"] | None:
        """(first row, the rows that overlap a block of the leaf), or None if none do."""
        overlap = [
            (max(a.start, b.start), min(a.stop, b.stop))
            for a, b in zip(self.block, block, strict=True)
        ]
        if any(start >= stop for start, stop in overlap):
            return None
        axis = self._row_axis()
        if axis is None:
            return 0, self
        first = self.block[axis].start
        start, stop = overlap[axis][0] - first, overlap[axis][1] - first
        return start, self._rows(start, stop)

    def is_constant(self, value: np.ndarray) -> bool:
        """Whether the values from a file are allowed in a tensor without a path."""
        return bool(np.all(np.abs(value.astype(np.float32, copy=False)) <= 2 * self.fill))

    def write(self, value: np.ndarray, out: np.ndarray, block: Block) -> None:
        """Copies the part that lies in `block` of the leaf into `out`, which is that block.

        `value` has this tensor's shape and any floating dtype.
        """
        sizes = extent(self.block)
        held = value.reshape([sizes[axis] for axis in self.axes])
        held = held.transpose(np.argsort(self.axes))
        inside, target = [], []
        for ours, theirs in zip(self.block, block, strict=True):
            start, stop = max(ours.start, theirs.start), min(ours.stop, theirs.stop)
            inside.append(slice(start - ours.start, stop - ours.start))
            target.append(slice(start - theirs.start, stop - theirs.start))
        view = out[tuple(target)]
        view[...] = held[tuple(inside)]
        if self.scale != 1.0:
            view /= np.float32(self.scale)

    def _row_axis(self) -> int | None:
        """The leaf axis that alone makes up axis 0 of the tensor, or None."""
        sizes = extent(self.block)
        wide = [axis for axis in self.axes if sizes[axis] > 1]
        return wide[0] if wide and sizes[wide[0]] == self.shape[0] else None

    def _rows(self, start: int, stop: int) -> "HfTensor":
        axis, block = self._row_axis(), list(self.block)
        assert axis is not None
        first = block[axis].start
        block[axis] = slice(first + start, first + stop)
        return replace(self, block=tuple(block), shape=(stop - start, *self.shape[1:]))

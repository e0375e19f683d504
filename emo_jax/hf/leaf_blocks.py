"""Tensors of a folder as blocks of our parameters: what the layouts are made of.

Legend: D width, F hidden size of an expert.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from emo_jax.config import Config, moe_of
from emo_jax.hf.tensors import HfTensor


class LeafBlocks:
    """Builds the entries of a layout, resolving every slice against the leaf's shape."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self._shapes = shapes

    def block(
        self,
        name: str,
        shape: tuple[int, ...],
        path: str,
        *slices: slice,
        axes: tuple[int, ...] | None = None,
        **options: Any,
    ) -> HfTensor:
        """Tensor `name` of `shape`, taken from `leaf[slices]` with its axes in order `axes`."""
        sizes = self._shapes[path]
        slices += (slice(None),) * (len(sizes) - len(slices))
        block = tuple(
            slice(*part.indices(size)[:2]) for part, size in zip(slices, sizes, strict=True)
        )
        return HfTensor(name, shape, path, block, axes or tuple(range(len(sizes))), **options)


def experts(at: LeafBlocks, config: Config, i: int, places: Sequence[int]) -> Iterator[HfTensor]:
    """Experts of layer i, one tensor each, by their places in the leaf; weights are [out,in]."""
    D, F = config.model.embed_dim, moe_of(config).expert_dim
    for e, place in enumerate(places):
        for name, shape in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
            yield at.block(
                f"model.layers.{i}.mlp.experts.{e}.{name}_proj.weight",
                shape,
                f"layers/mlp/experts/{name}",
                slice(i, i + 1),
                slice(place, place + 1),
                axes=(0, 1, 3, 2),
            )


def router(at: LeafBlocks, config: Config, i: int, rows: int) -> HfTensor:
    """The first `rows` rows of the router's weight, [out,in]."""
    return at.block(
        f"model.layers.{i}.mlp.gate.weight",
        (rows, config.model.embed_dim),
        "layers/mlp/router/kernel",
        slice(i, i + 1),
        slice(None),
        slice(rows),
        axes=(0, 2, 1),
    )

"""Tensors of a folder as blocks of our parameters: what the layouts are made of.

Legend: D width, F hidden size of an expert.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from emo_jax.config import Config, moe_of
from emo_jax.hf.tensors import HfTensor
from emo_jax.model.params import DENSE_LAYERS, LAYERS, ROUTER


class Place(NamedTuple):
    """Where a layer is: in a folder, and in our parameters."""

    prefix: str  # of its tensors
    stack: str  # of its leaves
    number: int  # in the stack

    @property
    def layer(self) -> slice:
        """Of a leaf's first axis."""
        return slice(self.number, self.number + 1)


def places(config: Config) -> Iterator[Place]:
    """All layers in order; those of `model.dense_layers` come first."""
    first = config.model.dense_layers
    for i in range(config.model.num_layers):
        stack, number = (DENSE_LAYERS, i) if i < first else (LAYERS, i - first)
        yield Place(f"model.layers.{i}", stack, number)


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


def dense(at: LeafBlocks, config: Config, place: Place) -> Iterator[HfTensor]:
    """The feed-forward of a dense layer; weights are [out,in]."""
    D, F = config.model.embed_dim, config.model.mlp_dim
    for name, shape in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
        yield at.block(
            f"{place.prefix}.mlp.{name}_proj.weight",
            shape,
            f"{place.stack}/mlp/{name}",
            place.layer,
            axes=(0, 2, 1),
        )


def experts(
    at: LeafBlocks, config: Config, place: Place, which: Sequence[int]
) -> Iterator[HfTensor]:
    """Experts of a layer, one tensor each, by their numbers in the leaf; weights are [out,in]."""
    D, F = config.model.embed_dim, moe_of(config).expert_dim
    for e, number in enumerate(which):
        for name, shape in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
            yield at.block(
                f"{place.prefix}.mlp.experts.{e}.{name}_proj.weight",
                shape,
                f"layers/mlp/experts/{name}",
                place.layer,
                slice(number, number + 1),
                axes=(0, 1, 3, 2),
            )


def router(at: LeafBlocks, config: Config, place: Place, rows: int) -> HfTensor:
    """The first `rows` rows of the router's weight, [out,in]."""
    return at.block(
        f"{place.prefix}.mlp.gate.weight",
        (rows, config.model.embed_dim),
        ROUTER,
        place.layer,
        slice(None),
        slice(rows),
        axes=(0, 2, 1),
    )

"""A model assembled from the experts of others, read block by block.

Pruning, composing, merging back and extending are one operation here: it says, for every layer and
every place of a routed expert, which expert of which model goes there. Nothing is copied until it
is read, so that a model larger than memory can be written.

Legend: L layers, R routed experts (the places in the new config), E all experts.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from emo_jax.checkpoint.slices import Block, extent
from emo_jax.config import Config, MeshConfig, moe_of
from emo_jax.errors import UsageError
from emo_jax.hf.tensors import LeafSource
from emo_jax.model.params import EXPERTS, ROUTER, SCORE_BIAS, Shape, leaf_shapes


class Part(NamedTuple):
    """A part of the content of a place: an expert of one of the models, and its share."""

    model: int  # index of the model
    expert: int  # its place in that model's arrays
    share: float = 1.0


Place = Sequence[Part]  # weighted sum of its parts


class Assembled:
    """A `LeafSource` made of parts of others.

    Args:
      sources: the models.
      config: config of the new model.
      experts: for each layer, the places of the routed experts, at most R of them.
      router: likewise for the router's columns; None: as for the experts.
      shared: places of the shared experts, the same in every layer; None: those of the first model.
      rest: share of each model in everything else.
    """

    def __init__(
        self,
        sources: Sequence[LeafSource],
        config: Config,
        experts: Sequence[Sequence[Place]],
        *,
        router: Sequence[Sequence[Place]] | None = None,
        shared: Sequence[Place] | None = None,
        rest: Sequence[float] = (1.0,),
    ):
        moe = moe_of(config)
        self.shapes: dict[str, Shape] = leaf_shapes(config)
        self._sources, self._rest = sources, tuple(rest)
        E0, s = sources[0].shapes[EXPERTS[0]][1], moe.num_shared_experts
        of_first: list[Place] = [[Part(0, E0 - s + n)] for n in range(s)]
        shared = of_first if shared is None else shared
        free = [moe.num_routed_experts - len(places) for places in experts]
        router = experts if router is None else router
        whole = {
            name: [[*p, *([[]] * n), *last] for p, n in zip(places, free, strict=True)]
            # The router's columns of shared experts are unused, and not stored by all layouts.
            for name, places, last in (("router", router, of_first), ("experts", experts, shared))
        }
        self._places = {path: whole["experts"] for path in EXPERTS}
        self._places |= {path: whole["router"] for path in (ROUTER, SCORE_BIAS)}

    def read(self, path: str, block: Block) -> np.ndarray:
        """`leaf[block]` as float32; places without a part are zero."""
        places = self._places.get(path)
        if places is None:
            return _mixed((self._sources[m].read(path, block), share) for m, share in self._parts())
        axis = 2 if path == ROUTER else 1  # of the experts
        out = np.zeros(extent(block), np.float32)
        for row, layer in enumerate(range(block[0].start, block[0].stop)):
            for column, place in enumerate(range(block[axis].start, block[axis].stop)):
                parts = places[layer][place]
                if not parts:
                    continue
                found = _mixed((self._expert(path, block, axis, layer, p), p.share) for p in parts)
                where = [slice(None)] * len(block)
                where[0], where[axis] = slice(row, row + 1), slice(column, column + 1)
                out[tuple(where)] = found
        return out

    def _parts(self) -> list[tuple[int, float]]:
        return [(m, share) for m, share in enumerate(self._rest) if share]

    def _expert(self, path: str, block: Block, axis: int, layer: int, part: Part) -> np.ndarray:
        wanted = list(block)
        wanted[0] = slice(layer, layer + 1)
        wanted[axis] = slice(part.expert, part.expert + 1)
        return self._sources[part.model].read(path, tuple(wanted))


def _mixed(values) -> np.ndarray:
    """Σ share · value in float32; a single value with share 1 keeps its bits."""
    total = None
    for value, share in values:
        value = np.asarray(value, np.float32)
        value = value if share == 1.0 else value * np.float32(share)
        total = value if total is None else total + value
    assert total is not None
    return total


def refuse_router_state(source: LeafSource, where: str, *, but: Collection[str] = ()) -> None:
    """Raises UsageError if a router has more than its columns: a score bias, a table of labels."""
    known = (ROUTER, *but)
    more = [path for path in source.shapes if "/router/" in path and path not in known]
    if more:
        raise UsageError(
            f"{where}: its router has {', '.join(more)} besides its columns, which new experts"
            " would have to have too, and cannot be copied here"
        )


def smaller_config(config: Config, routed_L: Sequence[int], *, top_k: int = 0) -> Config:
    """The config of a model with only some of the routed experts in each layer.

    Top-k is at most the number of experts in the smallest layer (SPEC 7.3). There is no pool: pools
    are for training the whole model.

    Args:
      config: config of the whole model.
      routed_L: number of routed experts in each layer.
      top_k: requested top-k; 0: that of `config`.
    """
    moe = moe_of(config)
    s = moe.num_shared_experts
    counts = [count + s for count in routed_L]
    smaller = moe.without_pools(
        num_experts=max(counts),
        experts_per_layer=tuple(counts) if len(set(counts)) > 1 else (),
        top_k=min(top_k or moe.top_k, *(count + moe.num_shared_picks for count in routed_L)),
    )
    # The whole model may have been evaluated with more experts than there are here.
    train = dataclasses.replace(config.train, eval_keep=())
    return dataclasses.replace(config, moe=smaller, train=train, mesh=MeshConfig())


def pruned(source: LeafSource, config: Config, kept_LR: np.ndarray) -> tuple[Assembled, Config]:
    """A model with some of the routed experts, and its config.

    Nothing is rescaled: the softmax over fewer logits is that of a pool of this size (SPEC 7.3).

    Args:
      source: parameters of the whole model.
      config: its config.
      kept_LR: bool, the experts to keep.
    """
    places = [[[Part(0, int(e))] for e in np.flatnonzero(kept_R)] for kept_R in kept_LR]
    smaller = smaller_config(config, [len(p) for p in places])
    return Assembled([source], smaller, places), smaller


def same_shape(config: Config, other: Config) -> list[str]:
    """Fields of the architecture in which two models differ, apart from the number of experts."""
    moe, other_moe = moe_of(config), moe_of(other)
    fields = ("vocab_size", "num_layers", "embed_dim", "num_heads", "kv_heads", "head_dim")
    further = ("dense_layers", "mlp_dim", "rope_theta", "norm_eps", "attention")
    out = [
        f"model.{f}: {getattr(config.model, f)} and {getattr(other.model, f)}"
        for f in (*fields, *further)
        if getattr(config.model, f) != getattr(other.model, f)
    ]
    for f in ("expert_dim", "num_shared_experts", "normalize_picks", "gate"):
        if getattr(moe, f) != getattr(other_moe, f):
            out.append(f"moe.{f}: {getattr(moe, f)} and {getattr(other_moe, f)}")
    if (moe.score_bias == "none") != (other_moe.score_bias == "none"):
        out.append(f"moe.score_bias: {moe.score_bias} and {other_moe.score_bias}")
    return out

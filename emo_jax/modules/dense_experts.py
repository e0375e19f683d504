"""A mixture of experts made of dense models, read block by block.

Legend: L layers, D width, E experts, F hidden size of a dense model and of an expert.
"""

from collections.abc import Sequence

import numpy as np

from emo_jax.checkpoint.slices import Block
from emo_jax.config import Config
from emo_jax.hf.tensors import LeafSource
from emo_jax.model.params import EXPERTS, ROUTER, Shape, leaf_shapes


class DenseExperts:
    """A `LeafSource` whose expert e is the feed-forward of model e, and all else their mean.

    The mean is of float64 sums, so that what is the same in all models keeps its bits.

    Args:
      sources: E dense models of one shape.
      config: of a mixture of E experts, none of them shared, as wide as the feed-forwards.
      router_LDE: the router.
    """

    def __init__(self, sources: Sequence[LeafSource], config: Config, router_LDE: np.ndarray):
        self.shapes: dict[str, Shape] = leaf_shapes(config)
        self._sources, self._router_LDE = sources, router_LDE

    def read(self, path: str, block: Block) -> np.ndarray:
        """`leaf[block]` as float32."""
        if path == ROUTER:
            return self._router_LDE[block].astype(np.float32)
        if path in EXPERTS:
            layers, experts, *rest = block
            dense = path.replace("/experts/", "/")
            found = [
                np.asarray(self._sources[e].read(dense, (layers, *rest)), np.float32)
                for e in range(experts.start, experts.stop)
            ]
            return np.stack(found, axis=1)
        total = sum(np.asarray(source.read(path, block), np.float64) for source in self._sources)
        return np.asarray(total / len(self._sources), np.float32)


def random_router(config: Config, seed: int) -> np.ndarray:
    """A router (L,D,E) as a fresh model's: normal, cut at three standard deviations, float32."""
    moe = config.moe
    assert moe is not None
    L, D, E = config.model.stacked_layers, config.model.embed_dim, moe.num_experts
    drawn = np.random.default_rng(seed).standard_normal((L, D, E), np.float32)
    return np.float32(config.model.init_std) * np.clip(drawn, -3.0, 3.0)

"""A layer's mixture of experts: router, experts, and what differs between layers.

Legend: B windows, S tokens, G documents, M domains, L layers, D width, E experts, R routed experts.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from emo_jax.config import ModelConfig, MoeConfig
from emo_jax.model.few_tokens import few_token_experts
from emo_jax.model.layers import weight
from emo_jax.model.params import Leaf, within
from emo_jax.moe.experts import ExpertWeights, experts
from emo_jax.moe.pools import Pools
from emo_jax.moe.router import RouterStats, RouterTokens, Routing, choose, statistics


class PerLayer(NamedTuple):
    """What differs between layers besides their weights; None where not used."""

    pools: Pools | None = None  # stacked: sizes (L,B,G)
    keep_MR: jax.Array | None = None  # bool, experts kept for each domain; stacked: (L,M,R)
    step_load_R: jax.Array | None = None  # stacked: (L,R)
    there_R: Any = None  # bool, experts of the layer where layers differ; stacked: (L,R)


class Router(nnx.Module):
    """Weights of the router; the shared experts' columns are unused (SPEC 2.2)."""

    def __init__(self, model: ModelConfig, rngs: nnx.Rngs, leaves: Mapping[str, Leaf]):
        self.kernel = weight(rngs, model, leaves["kernel"])


class Experts(nnx.Module):
    """Weights of all experts, shared ones last."""

    def __init__(self, model: ModelConfig, rngs: nnx.Rngs, leaves: Mapping[str, Leaf]):
        self.gate = weight(rngs, model, leaves["gate"])
        self.up = weight(rngs, model, leaves["up"])
        self.down = weight(rngs, model, leaves["down"])

    def weights(self, dtype: Any = None) -> ExpertWeights:
        """The weights as stored, or cast to `dtype`."""
        return ExpertWeights(
            *(
                w[...] if dtype is None else w[...].astype(dtype)
                for w in (self.gate, self.up, self.down)
            )
        )


class MoeMlp(nnx.Module):
    """Mixture of experts: route, then compute the chosen experts and the shared ones."""

    def __init__(
        self,
        model: ModelConfig,
        moe: MoeConfig,
        rngs: nnx.Rngs,
        leaves: Mapping[str, Leaf],
        mesh: Mesh | None,
    ):
        self.router = Router(model, rngs, within(leaves, "router"))
        self.experts = Experts(model, rngs, within(leaves, "experts"))
        self.config = moe
        self.mesh = mesh

    def __call__(
        self, x_BSD: jax.Array, tokens: RouterTokens, per_layer: PerLayer
    ) -> tuple[jax.Array, RouterStats]:
        """Output (B,S,D) and the router's statistics for this layer."""
        routing, stats = self.route(x_BSD, tokens, per_layer)
        # These are the stored weights: `experts` casts and gathers them.
        out_BSD, rounds = experts(
            x_BSD, routing, self.experts.weights(), self.config, mesh=self.mesh
        )
        return out_BSD, stats._replace(dispatch_rounds=jax.lax.stop_gradient(rounds))

    def decode(
        self,
        x_B1D: jax.Array,
        tokens: RouterTokens,
        per_layer: PerLayer,
        stacked: ExpertWeights,
        number: jax.Array,
    ) -> jax.Array:
        """Output (B,1,D) for one token per row, given the experts of all layers (L,E,…).

        Generation touches only a few of them, and the scan would copy a layer's own.
        """
        with jax.named_scope("routing"):
            routing, _ = choose(
                x_B1D,
                self.router.kernel[...],
                self.config,
                tokens.pool_ids_BS,
                allowed_BSR=_allowed(tokens, per_layer),
            )
        return few_token_experts(x_B1D, routing, stacked, number, config=self.config)

    def route(
        self, x_BSD: jax.Array, tokens: RouterTokens, per_layer: PerLayer
    ) -> tuple[Routing, RouterStats]:
        """Which experts each token uses, and the router's statistics for this layer."""
        allowed_BSR = _allowed(tokens, per_layer)
        with jax.named_scope("routing"):
            routing, probs = choose(
                x_BSD,
                self.router.kernel[...],
                self.config,
                tokens.pool_ids_BS,
                pools=per_layer.pools,
                allowed_BSR=allowed_BSR,
            )
            stats = statistics(
                routing,
                probs,
                self.config,
                tokens,
                allowed_BSR=allowed_BSR,
                step_load_R=per_layer.step_load_R,
            )
        return routing, stats


def _allowed(tokens: RouterTokens, per_layer: PerLayer) -> jax.Array | None:
    """The routed experts available to each token; None: all."""
    if per_layer.keep_MR is None:
        return per_layer.there_R
    assert tokens.domain_ids_BS is not None
    keep_BSR = per_layer.keep_MR[jnp.maximum(tokens.domain_ids_BS, 0)]
    return keep_BSR if per_layer.there_R is None else per_layer.there_R & keep_BSR

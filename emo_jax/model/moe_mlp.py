"""A layer's mixture of experts: router, experts, and what differs between layers.

Legend: B windows, S tokens, G documents, M domains (or labels), L layers, D width, E experts, R
routed experts.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from emo_jax.config import ModelConfig, MoeConfig, capacity_rows
from emo_jax.model.few_tokens import few_token_experts
from emo_jax.model.layers import weight
from emo_jax.model.params import Leaf, within
from emo_jax.moe import extension
from emo_jax.moe.experts import ExpertWeights, experts
from emo_jax.moe.ghosts import Ghosts, add_ghosts
from emo_jax.moe.labels import first_favour, label_logits
from emo_jax.moe.pools import Pools
from emo_jax.moe.router import RouterStats, RouterTokens, Routing, choose, statistics
from emo_jax.moe.shared_pools import choose_shared, with_shared, with_shared_losses
from emo_jax.moe.switch import jittered, within_capacity


class PerLayer(NamedTuple):
    """What differs between layers besides their weights; None where not used."""

    pools: Pools | None = None  # stacked: sizes (L,B,G)
    keep_MR: jax.Array | None = None  # bool, experts kept for each domain; stacked: (L,M,R)
    step_load_E: jax.Array | None = None  # stacked: (L,E)
    there_R: Any = None  # bool, experts of the layer where layers differ; stacked: (L,R)
    # uint32, seeds of `moe.input_jitter` and of ghosts that are drawn; stacked: (L,B)
    jitter_B: jax.Array | None = None


class Router(nnx.Module):
    """Weights of the router; the shared experts' columns are unused (SPEC 2.2), or theirs.

    `bias` and `favour` are there where the config has a score bias, or a learned table of labels;
    the step sets them, not the optimizer.
    """

    def __init__(
        self, model: ModelConfig, moe: MoeConfig, rngs: nnx.Rngs, leaves: Mapping[str, Leaf]
    ):
        self.config = moe
        self.kernel = weight(rngs, model, leaves["kernel"])
        if (leaf := leaves.get("bias")) is not None:
            self.bias = nnx.Param(jnp.zeros(leaf.shape, jnp.float32), logical_axes=leaf.axes)
        if (leaf := leaves.get("favour")) is not None:
            favour = jnp.broadcast_to(first_favour(moe), leaf.shape)
            self.favour = nnx.Param(favour, logical_axes=leaf.axes)

    def bias_R(self) -> jax.Array | None:
        """The score bias of a layer's routed experts."""
        if self.config.score_bias == "none":
            return None
        return self.bias[...][: self.config.num_routed_experts].astype(jnp.float32)

    def label_BSR(self, tokens: RouterTokens) -> jax.Array | None:
        """What the labels add to the logits; None: nothing, as where nothing is trained."""
        if not (tokens.training and self.config.pool.labelled):
            return None
        learned = self.config.pool.kind == "label_learned"
        ids_BS = tokens.label_ids_BS
        assert ids_BS is not None
        table_MR = label_logits(self.config, self.favour[...] if learned else None)
        return jax.lax.stop_gradient(table_MR)[jnp.maximum(ids_BS, 0)]


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
        self.router = Router(model, moe, rngs, within(leaves, "router"))
        self.experts = Experts(model, rngs, within(leaves, "experts"))
        self.config = moe
        self.mesh = mesh

    def __call__(
        self, x_BSD: jax.Array, tokens: RouterTokens, per_layer: PerLayer
    ) -> tuple[jax.Array, RouterStats]:
        """Output (B,S,D) and the router's statistics for this layer."""
        routing, stats, trained_BSR, ghosts = self._route(x_BSD, tokens, per_layer)
        # These are the stored weights: `experts` casts and gathers them.
        weights, moe, mesh = self.experts.weights(), self.config, self.mesh
        if trained_BSR is None:
            out_BSD, rounds = experts(x_BSD, routing, weights, moe, mesh=mesh, ghosts=ghosts)
        else:
            trained, others = extension.split(routing, trained_BSR)
            out_BSD, rounds = experts(x_BSD, trained, weights, moe, mesh=mesh, with_shared=False)
            fixed = jax.lax.stop_gradient((x_BSD, weights))
            more_BSD, more = experts(fixed[0], others, fixed[1], moe, mesh=mesh)
            out_BSD, rounds = out_BSD + more_BSD, rounds + more
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
            kernel_DE, ids_B1 = self.router.kernel[...], tokens.pool_ids_BS
            routing, _ = choose(
                x_B1D,
                kernel_DE,
                self.config,
                ids_B1,
                allowed_BSR=_allowed(tokens, per_layer),
                bias_R=self.router.bias_R(),
            )
            if self.config.shared_picks:
                shared = choose_shared(x_B1D, kernel_DE, self.config, ids_B1, by_document=False)
                routing = with_shared(routing, shared, self.config)
        return few_token_experts(x_B1D, routing, stacked, number, config=self.config)

    def route(
        self, x_BSD: jax.Array, tokens: RouterTokens, per_layer: PerLayer
    ) -> tuple[Routing, RouterStats]:
        """Which experts each token uses, and the router's statistics for this layer."""
        routing, stats, _, _ = self._route(x_BSD, tokens, per_layer)
        return routing, stats

    def _route(
        self, x_BSD: jax.Array, tokens: RouterTokens, per_layer: PerLayer
    ) -> tuple[Routing, RouterStats, jax.Array | None, Ghosts | None]:
        """What `route` returns; which experts' outputs are trained, None: all; and any ghosts."""
        trained_BSR = ghosts = None
        moe, allowed_BSR, bias_R = self.config, _allowed(tokens, per_layer), self.router.bias_R()
        with jax.named_scope("routing"):
            if per_layer.jitter_B is not None and moe.input_jitter:
                x_BSD = jittered(x_BSD, per_layer.jitter_B, moe.input_jitter)
            routing, probs = choose(
                x_BSD,
                self.router.kernel[...],
                moe,
                tokens.pool_ids_BS,
                pools=per_layer.pools,
                allowed_BSR=allowed_BSR,
                label_BSR=self.router.label_BSR(tokens),
                bias_R=bias_R,
            )
            if tokens.training and moe.ghosts != "none" and per_layer.pools is not None:
                routing, ghosts = add_ghosts(
                    routing, probs, moe, tokens.pool_ids_BS, per_layer.jitter_B
                )
            if tokens.training and moe.capacity_factor:
                rows = capacity_rows(moe, x_BSD.shape[1])
                routing = within_capacity(routing, moe.num_routed_experts, rows)
            if tokens.training and moe.extension_experts:
                trained_BSR = extension.likeliest(
                    probs.all_probs_BSR, tokens.pool_ids_BS, moe.extension_experts
                )
                if moe.extension_detach_router:
                    routing, probs = extension.detach_router(routing, probs, trained_BSR)
            stats = statistics(
                routing,
                probs,
                moe,
                tokens,
                allowed_BSR=allowed_BSR,
                step_load_E=per_layer.step_load_E,
                bias_R=bias_R,
            )
            if moe.shared_picks:
                shared = choose_shared(
                    x_BSD,
                    self.router.kernel[...],
                    moe,
                    tokens.pool_ids_BS,
                    by_document=per_layer.pools is not None,
                )
                routing = with_shared(routing, shared, moe)
                stats = with_shared_losses(stats, shared, moe, tokens, per_layer.step_load_E)
        return routing, stats, trained_BSR, ghosts


def _allowed(tokens: RouterTokens, per_layer: PerLayer) -> jax.Array | None:
    """The routed experts available to each token; None: all."""
    if per_layer.keep_MR is None:
        return per_layer.there_R
    assert tokens.domain_ids_BS is not None
    keep_BSR = per_layer.keep_MR[jnp.maximum(tokens.domain_ids_BS, 0)]
    return keep_BSR if per_layer.there_R is None else per_layer.there_R & keep_BSR

"""The decoder-only transformer: EMO, standard mixture of experts, or dense, by config.

Layers are stacked along a leading axis L and scanned, so that compile time does not grow with
depth. `apply` is the pure function everything else calls.

Legend: B windows, S tokens, G documents, M domains, L layers, D width, E experts, R routed
experts, F expert hidden, V rows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from emo_jax.batch import Batch
from emo_jax.config import Config, ModelConfig, MoeConfig
from emo_jax.model.attention import Attention
from emo_jax.model.layers import DenseMlp, RMSNorm, weight
from emo_jax.moe.experts import ExpertWeights, experts
from emo_jax.moe.router import RouterStats, route
from emo_jax.parallel import mesh as mesh_lib

Params = dict[str, Any]  # nested dict of float32 arrays


class ForwardInputs(NamedTuple):
    """What a layer needs of the batch beside its input."""

    segment_ids_BS: jax.Array
    pool_ids_BS: jax.Array
    positions_BS: jax.Array
    domain_ids_BS: jax.Array
    loss_tokens: jax.Array | float


class PerLayer(NamedTuple):
    """What differs between layers beside their weights; None where not used."""

    pool_size_BG: jax.Array | None  # stacked: (L,B,G)
    keep_MR: jax.Array | None  # bool, stacked: (L,M,R)


class Options(NamedTuple):
    """Settings of a forward pass, known when it is compiled."""

    top_p: float
    num_domains: int


class Router(nnx.Module):
    """Weights of the router; the shared experts' columns are dead (SPEC 2.2)."""

    def __init__(self, model: ModelConfig, moe: MoeConfig, rngs: nnx.Rngs, stack=()):
        axes = ("layers",) * len(stack) + ("embed", None)
        self.kernel = weight(rngs, model, (*stack, model.embed_dim, moe.num_experts), axes)


class Experts(nnx.Module):
    """Weights of all experts, the shared ones last."""

    def __init__(self, model: ModelConfig, moe: MoeConfig, rngs: nnx.Rngs, stack=()):
        lead, E, D, F = ("layers",) * len(stack), moe.num_experts, model.embed_dim, moe.expert_dim
        shape, axes = (*stack, E, D, F), (*lead, "expert", "embed", "mlp")
        self.gate = weight(rngs, model, shape, axes)
        self.up = weight(rngs, model, shape, axes)
        self.down = weight(rngs, model, (*stack, E, F, D), (*lead, "expert", "mlp", "embed"))


class MoeMlp(nnx.Module):
    """Mixture of experts: route, then compute the chosen experts and the shared ones."""

    def __init__(self, model: ModelConfig, moe: MoeConfig, rngs: nnx.Rngs, stack, mesh):
        self.router = Router(model, moe, rngs, stack)
        self.experts = Experts(model, moe, rngs, stack)
        self.config = moe
        self.mesh = mesh

    def __call__(
        self, x_BSD: jax.Array, inputs: ForwardInputs, per_layer: PerLayer, options: Options
    ) -> tuple[jax.Array, RouterStats]:
        """Output (B,S,D) and the router's statistics of this layer."""
        keep_MR, domain_ids_BS = per_layer.keep_MR, inputs.domain_ids_BS
        allowed_BSR = None if keep_MR is None else keep_MR[jnp.maximum(domain_ids_BS, 0)]
        routing, stats = route(
            x_BSD,
            self.router.kernel[...],
            self.config,
            pool_ids_BS=inputs.pool_ids_BS,
            pool_size_BG=per_layer.pool_size_BG,
            loss_tokens=inputs.loss_tokens,
            allowed_BSR=allowed_BSR,
            domain_ids_BS=domain_ids_BS,
            top_p=options.top_p,
            num_domains=options.num_domains,
        )
        weights = ExpertWeights(
            self.experts.gate[...].astype(x_BSD.dtype),
            self.experts.up[...].astype(x_BSD.dtype),
            self.experts.down[...].astype(x_BSD.dtype),
        )
        out_BSD = experts(
            x_BSD,
            routing,
            weights,
            num_shared_experts=self.config.num_shared_experts,
            backend=self.config.backend,
            mesh=self.mesh,
        )
        return out_BSD, stats


class DecoderLayer(nnx.Module):
    """h = x + attention(norm(x)); y = h + mlp(norm(h))."""

    def __init__(self, model: ModelConfig, moe: MoeConfig | None, rngs: nnx.Rngs, stack, mesh):
        self.attention_norm = RMSNorm(model, stack)
        self.attention = Attention(model, rngs, stack, mesh)
        self.mlp_norm = RMSNorm(model, stack)
        self.mlp = (
            DenseMlp(model, rngs, stack) if moe is None else MoeMlp(model, moe, rngs, stack, mesh)
        )

    def __call__(
        self, x_BSD: jax.Array, inputs: ForwardInputs, per_layer: PerLayer, options: Options
    ) -> tuple[jax.Array, RouterStats | None]:
        """The residual stream (B,S,D) after this layer; statistics are None in a dense one."""
        x_BSD = x_BSD + self.attention(
            self.attention_norm(x_BSD),
            segment_ids_BS=inputs.segment_ids_BS,
            positions_BS=inputs.positions_BS,
        )
        normed_BSD = self.mlp_norm(x_BSD)
        if isinstance(self.mlp, DenseMlp):
            return x_BSD + self.mlp(normed_BSD), None
        out_BSD, stats = self.mlp(normed_BSD, inputs, per_layer, options)
        return x_BSD + out_BSD, stats


class Embedding(nnx.Module):
    """The input table (V,D)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        shape = (config.padded_vocab_size, config.embed_dim)
        self.embedding = weight(rngs, config, shape, ("vocab", "embed"))


class Head(nnx.Module):
    """The output matrix (D,V), untied."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        shape = (config.embed_dim, config.padded_vocab_size)
        self.kernel = weight(rngs, config, shape, ("embed", "vocab"))


class Transformer(nnx.Module):
    """Embedding, L scanned layers, final norm, and the head's weights."""

    def __init__(self, config: Config, rngs: nnx.Rngs, mesh: Mesh | None = None):
        model = config.model
        self.embed = Embedding(model, rngs)
        self.layers = DecoderLayer(model, config.moe, rngs, (model.num_layers,), mesh)
        self.final_norm = RMSNorm(model)
        self.lm_head = Head(model, rngs)
        self.dtype = jnp.dtype(model.compute_dtype)
        self.remat = model.remat

    def __call__(
        self,
        batch: Batch,
        *,
        pool_size_LBG: jax.Array | None = None,
        top_p: float = 0.0,
        keep_LMR: jax.Array | None = None,
        num_domains: int = 0,
        loss_tokens: jax.Array | float = 1.0,
    ) -> tuple[jax.Array, RouterStats | None]:
        """Hidden states before the head (B,S,D) and the router's statistics, stacked over L.

        Args:
          batch: B windows; labels are not used.
          pool_size_LBG: pool sizes, or None: no pool.
          top_p: above 0, pools hold this share of the probability and the sizes bound them.
          keep_LMR: bool, the routed experts that exist for the tokens of each domain; None: all.
          num_domains: M, to sum router probabilities by domain; 0: they are not.
          loss_tokens: label tokens of the whole step, for the router's losses.
        """
        inputs = ForwardInputs(
            batch.segment_ids, batch.pool_ids, batch.positions, batch.domain_ids, loss_tokens
        )
        # Gathered before the cast: the gradient adds up a frequent token's rows in float32.
        x_BSD = self.embed.embedding[...][batch.tokens].astype(self.dtype)
        graphdef, stacked = nnx.split(self.layers)
        options = Options(top_p, num_domains)

        def one_layer(x_BSD, scanned):
            weights, per_layer = scanned
            return nnx.merge(graphdef, weights)(x_BSD, inputs, per_layer, options)

        if self.remat == "full":
            one_layer = jax.checkpoint(one_layer)
        per_layer = PerLayer(pool_size_LBG, keep_LMR)
        x_BSD, stats_L = jax.lax.scan(one_layer, x_BSD, (stacked, per_layer))
        return self.final_norm(x_BSD), stats_L


def mask_padded_vocab(logits: jax.Array, vocab_size: int) -> jax.Array:
    """Logits (…,V) in which ids that no tokenizer produces have no probability."""
    if logits.shape[-1] == vocab_size:
        return logits
    return jnp.where(jnp.arange(logits.shape[-1]) < vocab_size, logits, -jnp.inf)


class ModelFunctions:
    """The model of a config as pure functions of its parameters, a nested dict."""

    def __init__(self, config: Config, mesh: Mesh | None = None):
        self.config = config
        self.mesh = mesh
        abstract = nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(params=0), mesh))
        self._graphdef, abstract_state = nnx.split(abstract)
        self.abstract_params: Params = nnx.to_pure_dict(abstract_state)
        self.logical_axes: Params = jax.tree.map(
            lambda v: v.get_metadata("logical_axes"),
            abstract_state,
            is_leaf=lambda v: isinstance(v, nnx.Variable),
        )
        self.logical_axes = nnx.to_pure_dict(self.logical_axes)
        self._abstract_state = abstract_state

    def num_params(self) -> int:
        """Parameters, padded vocabulary rows included."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_params))

    def init(self, seed: int) -> Params:
        """Fresh float32 parameters (SPEC 1.3), a pure function of the seed."""
        model = Transformer(self.config, nnx.Rngs(params=seed), self.mesh)
        return nnx.to_pure_dict(nnx.state(model))

    def bind(self, params: Params) -> Transformer:
        """The module with these parameters."""
        return nnx.merge(self._graphdef, params)

    def hidden(self, params: Params, batch: Batch, **kwargs) -> tuple[jax.Array, Any]:
        """See `Transformer.__call__`."""
        return self.bind(params)(batch, **kwargs)

    def logits(self, params: Params, batch: Batch, **kwargs) -> jax.Array:
        """Vocabulary logits (B,S,V) in float32, padded ids at -inf. For tests and generation."""
        hidden_BSD, _ = self.hidden(params, batch, **kwargs)
        kernel = params["lm_head"]["kernel"].astype(hidden_BSD.dtype)
        logits = jnp.einsum("bsd,dv->bsv", hidden_BSD, kernel, preferred_element_type=jnp.float32)
        return mask_padded_vocab(logits, self.config.model.vocab_size)

    def param_shardings(self) -> Params:
        """A `NamedSharding` for every parameter."""
        mesh = self.mesh
        assert mesh is not None
        return jax.tree.map(
            lambda leaf, axes: mesh_lib.sharding(mesh, axes, leaf.shape),
            self.abstract_params,
            self.logical_axes,
        )

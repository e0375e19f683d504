"""The decoder-only transformer: EMO, standard mixture of experts, or dense, by config.

Layers are stacked along a leading axis L and scanned, so that compile time does not grow with
depth. `apply` is the pure function everything else calls.

Legend: B windows, S tokens, G documents, M domains, L layers, D width, E experts, R routed
experts, F expert hidden, V rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from emo_jax.batch import PADDING_ID, Batch
from emo_jax.config import Config, ModelConfig, MoeConfig, seeds
from emo_jax.model.attention import Attention, KeysValues
from emo_jax.model.attention import pick_backend as pick_attention
from emo_jax.model.few_tokens import few_token_experts
from emo_jax.model.layers import DenseMlp, RMSNorm, weight
from emo_jax.model.vocab_loss import HEAD_AXES
from emo_jax.moe.experts import ExpertWeights, experts, pick_backend, pick_dispatch
from emo_jax.moe.router import RouterStats, Routing, route
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.parallel.island import Island

Params = dict[str, Any]  # nested dict of float32 arrays


TABLE_AXES = ("vocab", "embed")

# What is kept for the backward pass, by name; the rest is computed again.
REMAT_KEEPS = {
    "full": (),
    "save_attention": ("projections", "attention"),
    "save_matmuls": (
        "projections",
        "attention",
        "attention_out",
        "expert_hidden",
        "router_logits",
    ),
}


class ForwardInputs(NamedTuple):
    """What a layer needs of the batch beside its input."""

    segment_ids_BS: jax.Array
    pool_ids_BS: jax.Array
    positions_BS: jax.Array
    domain_ids_BS: jax.Array
    loss_tokens: jax.Array | float
    balance_BS: jax.Array | None = None  # bool, tokens that the load balance is of; None: all


class PerLayer(NamedTuple):
    """What differs between layers beside their weights; None where not used."""

    pool_size_BG: jax.Array | None = None  # stacked: (L,B,G)
    keep_MR: jax.Array | None = None  # bool, stacked: (L,M,R)
    step_load_R: jax.Array | None = None  # stacked: (L,R)
    there_R: Any = None  # bool, experts of the layer where layers differ: (L,R)


class Options(NamedTuple):
    """Settings of a forward pass, known when it is compiled."""

    top_p: float = 0.0
    num_domains: int = 0
    token_probs: bool = False


class AtLayer(NamedTuple):
    """The experts of all layers and which layer is meant: generation touches a few of them."""

    stacked: ExpertWeights  # (L,E,…)
    layer: jax.Array
    there_R: Any  # see `PerLayer`


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

    def weights(self, dtype: Any = None) -> ExpertWeights:
        """As they are stored, or cast."""
        return ExpertWeights(
            *(
                w[...] if dtype is None else w[...].astype(dtype)
                for w in (self.gate, self.up, self.down)
            )
        )


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
        routing, stats = self.route(x_BSD, inputs, per_layer, options)
        # Stored weights: what computes with them casts and gathers them.
        out_BSD, dropped = experts(
            x_BSD, routing, self.experts.weights(), self.config, mesh=self.mesh
        )
        return out_BSD, stats._replace(dropped=jax.lax.stop_gradient(dropped))

    def decode(self, x_B1D: jax.Array, inputs: ForwardInputs, at: AtLayer) -> jax.Array:
        """Output (B,1,D) for one token of each row."""
        routing, _ = self.route(x_B1D, inputs, PerLayer(there_R=at.there_R), Options())
        return few_token_experts(
            x_B1D,
            routing,
            at.stacked,
            at.layer,
            config=self.config,
        )

    def route(
        self, x_BSD: jax.Array, inputs: ForwardInputs, per_layer: PerLayer, options: Options
    ) -> tuple[Routing, RouterStats]:
        """Which experts each token uses, and the router's statistics of this layer."""
        keep_MR, domain_ids_BS = per_layer.keep_MR, inputs.domain_ids_BS
        allowed_BSR = None if keep_MR is None else keep_MR[jnp.maximum(domain_ids_BS, 0)]
        if per_layer.there_R is not None:
            there_R = per_layer.there_R
            allowed_BSR = there_R if allowed_BSR is None else allowed_BSR & there_R
        with jax.named_scope("routing"):
            return route(
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
                step_load_R=per_layer.step_load_R,
                balance_BS=inputs.balance_BS,
                token_probs=options.token_probs,
            )


class DecoderLayer(nnx.Module):
    """h = x + attention(norm(x)); y = h + mlp(norm(h))."""

    def __init__(self, model: ModelConfig, moe: MoeConfig | None, rngs: nnx.Rngs, stack, mesh):
        self.attention_norm = RMSNorm(model, stack)
        self.attention = Attention(model, rngs, stack, mesh)
        self.mlp_norm = RMSNorm(model, stack)
        self.mlp = (
            DenseMlp(model, rngs, stack, mesh)
            if moe is None
            else MoeMlp(model, moe, rngs, stack, mesh)
        )

    def __call__(
        self, x_BSD: jax.Array, inputs: ForwardInputs, per_layer: PerLayer, options: Options
    ) -> tuple[jax.Array, RouterStats | None]:
        """The residual stream (B,S,D) after this layer; statistics are None in a dense one."""
        x_BSD, stats, _ = self.with_keys(x_BSD, inputs, per_layer, options)
        return x_BSD, stats

    def with_keys(
        self, x_BSD: jax.Array, inputs: ForwardInputs, per_layer: PerLayer, options: Options
    ) -> tuple[jax.Array, RouterStats | None, KeysValues]:
        """The same, with the keys and values of the tokens."""
        x_BSD, keys_values = self.attend(x_BSD, inputs)
        normed_BSD = self.mlp_norm(x_BSD)
        if isinstance(self.mlp, DenseMlp):
            return x_BSD + self.mlp(normed_BSD), None, keys_values
        out_BSD, stats = self.mlp(normed_BSD, inputs, per_layer, options)
        return x_BSD + out_BSD, stats, keys_values

    def attend(self, x_BSD: jax.Array, inputs: ForwardInputs) -> tuple[jax.Array, KeysValues]:
        """The residual stream after attention, and the keys and values of the tokens."""
        with jax.named_scope("attention"):
            attended_BSD, keys_values = self.attention(
                self.attention_norm(x_BSD),
                segment_ids_BS=inputs.segment_ids_BS,
                positions_BS=inputs.positions_BS,
            )
        return x_BSD + attended_BSD, keys_values

    def decode(
        self,
        x_B1D: jax.Array,
        inputs: ForwardInputs,
        cached: KeysValues,
        seen_BT: jax.Array,
        at: AtLayer | None,
    ) -> tuple[jax.Array, KeysValues]:
        """One more token of each row, and its key and value; see `Attention.decode`."""
        attended_B1D, keys_values = self.attention.decode(
            self.attention_norm(x_B1D), cached, seen_BT, inputs.positions_BS
        )
        x_B1D = x_B1D + attended_B1D
        normed_B1D = self.mlp_norm(x_B1D)
        if isinstance(self.mlp, DenseMlp):
            return x_B1D + self.mlp(normed_B1D), keys_values
        assert at is not None
        return x_B1D + self.mlp.decode(normed_B1D, inputs, at), keys_values


class Embedding(nnx.Module):
    """The input table (V,D)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, mesh: Mesh | None):
        shape = (config.padded_vocab_size, config.embed_dim)
        self.embedding = weight(rngs, config, shape, TABLE_AXES)
        self.island = Island(mesh)

    def __call__(self, tokens_BS: jax.Array, dtype: Any) -> jax.Array:
        """Rows of the tokens, (B,S,D).

        On a mesh the table is not gathered: each device looks up its columns for the tokens of all
        that share the table, and sends every device those of its own tokens.
        """
        return self.island.run(
            partial(self._local, dtype=dtype),
            (mesh_lib.windows_spec(), mesh_lib.spec(TABLE_AXES)),
            mesh_lib.windows_spec(1),
        )(tokens_BS, self.embedding[...])

    def _local(self, tokens_BS: jax.Array, table_VD: jax.Array, *, dtype: Any) -> jax.Array:
        axes = mesh_lib.stored_over(TABLE_AXES)[1]
        with jax.named_scope("embedding"):
            ids_PBS = self.island.gather(tokens_BS[None], axes, 0)
            # Cast after the lookup: the gradient adds up a frequent token's rows in float32.
            columns_PBSd = table_VD[ids_PBS].astype(dtype)
            return self.island.all_to_all(columns_PBSd, axes, 0, 3)[0]


class Head(nnx.Module):
    """The output matrix (D,V), untied."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        shape = (config.embed_dim, config.padded_vocab_size)
        self.kernel = weight(rngs, config, shape, HEAD_AXES)


class Transformer(nnx.Module):
    """Embedding, L scanned layers, final norm, and the head's weights."""

    def __init__(self, config: Config, rngs: nnx.Rngs, mesh: Mesh | None = None):
        model = config.model
        self.embed = Embedding(model, rngs, mesh)
        self.layers = DecoderLayer(model, config.moe, rngs, (model.num_layers,), mesh)
        self.final_norm = RMSNorm(model)
        self.lm_head = Head(model, rngs)
        self.dtype = jnp.dtype(model.compute_dtype)
        self.remat = model.remat
        self.mesh = mesh
        self.config = config

    def there_LR(self) -> np.ndarray | None:
        """Which routed experts each layer has; None where all have the same number."""
        moe = self.config.moe
        if moe is None or not moe.experts_per_layer:
            return None
        routed_L = np.asarray(moe.experts_per_layer) - moe.num_shared_experts
        return np.arange(moe.num_routed_experts) < routed_L[:, None]

    def __call__(
        self,
        batch: Batch,
        *,
        pool_size_LBG: jax.Array | None = None,
        top_p: float = 0.0,
        keep_LMR: jax.Array | None = None,
        num_domains: int = 0,
        loss_tokens: jax.Array | float = 1.0,
        step_load_LR: jax.Array | None = None,
        token_probs: bool = False,
    ) -> tuple[jax.Array, RouterStats | None]:
        """Hidden states before the head (B,S,D) and the router's statistics, stacked over L.

        Args:
          batch: B windows; labels are not used.
          pool_size_LBG: pool sizes, or None: no pool.
          top_p: above 0, pools hold this share of the probability and the sizes bound them.
          keep_LMR: bool, the routed experts that exist for the tokens of each domain; None: all.
          num_domains: M, to sum router probabilities by domain; 0: they are not.
          loss_tokens: label tokens of the whole step, for the router's losses.
          step_load_LR: picks a token of each expert in the whole step, where these windows are a
            part of it and the load balance is to be the step's.
          token_probs: keep the router's probabilities of every token, (L,B,S,R).
        """
        moe, balance_BS = self.config.moe, None
        if moe is not None and moe.balance_tokens == "labels":  # a token is the label of the last
            balance_BS = jnp.pad(batch.loss_mask[:, :-1], ((0, 0), (1, 0))) > 0
        inputs = ForwardInputs(
            *(batch.segment_ids, batch.pool_ids, batch.positions, batch.domain_ids),
            loss_tokens,
            balance_BS,
        )
        options = Options(top_p, num_domains, token_probs)

        def one_layer(layer, x_BSD, per_layer):
            return layer(x_BSD, inputs, per_layer, options)

        per_layer = PerLayer(pool_size_LBG, keep_LMR, step_load_LR, self.there_LR())
        return self._scan(one_layer, batch.tokens, per_layer, remat=self.remat)

    def embedded(self, tokens_BS: jax.Array) -> jax.Array:
        """The residual stream before the first layer, (B,S,D)."""
        return self.embed(tokens_BS, self.dtype)

    def layer(self, number: jax.Array | int) -> DecoderLayer:
        """One of the layers by itself."""
        graphdef, stacked = nnx.split(self.layers)
        return nnx.merge(graphdef, jax.tree.map(lambda a: a[number], stacked))

    def prefill(self, batch: Batch) -> tuple[jax.Array, KeysValues]:
        """Hidden states (B,S,D) without a pool, and keys and values (L,B,H,S,h)."""
        inputs = ForwardInputs(
            batch.segment_ids, batch.pool_ids, batch.positions, batch.domain_ids, 1.0
        )

        def one_layer(layer, x_BSD, per_layer):
            x_BSD, _, keys_values = layer.with_keys(x_BSD, inputs, per_layer, Options())
            return x_BSD, keys_values

        return self._scan(one_layer, batch.tokens, PerLayer(there_R=self.there_LR()))

    def decode(
        self, tokens_B: jax.Array, positions_B: jax.Array, cached: KeysValues, seen_BT: jax.Array
    ) -> tuple[jax.Array, KeysValues]:
        """One more token of each row, without a pool: hidden states (B,D), keys and values.

        Args:
          tokens_B: int32; below 0: no token, which no routed expert computes.
          positions_B: of the tokens.
          cached: keys and values (L,B,H,T,h) of earlier tokens.
          seen_BT: bool, which of them a row's token sees.
        """
        ids_B1 = jnp.where(tokens_B < 0, PADDING_ID, 0)[:, None]
        inputs = ForwardInputs(ids_B1, ids_B1, positions_B[:, None], ids_B1, 1.0)

        # The scan's own slices of them are not used, so they are not made.
        mlp = self.layers.mlp
        stacked = mlp.experts.weights(self.dtype) if isinstance(mlp, MoeMlp) else None

        def one_layer(layer, x_B1D, scanned):
            cached, number, there_R = scanned
            at = None if stacked is None else AtLayer(stacked, number, there_R)
            return layer.decode(x_B1D, inputs, cached, seen_BT, at)

        per_layer = (cached, jnp.arange(cached.keys.shape[0]), self.there_LR())
        hidden_B1D, new = self._scan(one_layer, jnp.maximum(tokens_B, 0)[:, None], per_layer)
        return hidden_B1D[:, 0], new

    def _scan(
        self,
        one_layer: Callable[[DecoderLayer, jax.Array, Any], tuple[jax.Array, Any]],
        tokens_BS: jax.Array,
        per_layer: Any,
        *,
        remat: str = "none",
    ) -> tuple[jax.Array, Any]:
        """Hidden states before the head, and what `one_layer` gives, stacked over L."""
        x_BSD = self.embedded(tokens_BS)
        graphdef, stacked = nnx.split(self.layers)

        def body(x_BSD, scanned):
            weights, per_layer = scanned
            x_BSD = mesh_lib.constrain(self.mesh, x_BSD, mesh_lib.windows_spec(1))
            return one_layer(nnx.merge(graphdef, weights), x_BSD, per_layer)

        if remat != "none":
            keep = jax.checkpoint_policies.save_only_these_names(*REMAT_KEEPS[remat])
            body = jax.checkpoint(body, policy=keep, prevent_cse=False)
        x_BSD, outputs_L = jax.lax.scan(body, x_BSD, (stacked, per_layer))
        return self.final_norm(x_BSD), outputs_L


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

    def choices(self) -> dict[str, str]:
        """What `auto` in the config became on this mesh, and the mesh, for the log."""
        config, mesh = self.config, self.mesh
        sizes = {} if mesh is None else {a: n for a, n in mesh.shape.items() if n > 1}
        found = {
            "mesh": " × ".join(f"{axis} {n}" for axis, n in sizes.items()) or "one device",
            "attention": pick_attention(config.model.attention_backend, mesh),
        }
        if config.moe is not None:
            found["experts"] = pick_backend(config.moe.backend, mesh)
            if "expert" in sizes:
                found["tokens to experts"] = pick_dispatch(config.moe.dispatch, mesh)
        return found

    def init(self, seed: int) -> Params:
        """Fresh float32 parameters (SPEC 1.3), a pure function of the seed."""
        model = Transformer(self.config, nnx.Rngs(params=seeds.key(seed)), self.mesh)
        return nnx.to_pure_dict(nnx.state(model))

    def bind(self, params: Params) -> Transformer:
        """The module with these parameters."""
        return nnx.merge(self._graphdef, params)

    def hidden(self, params: Params, batch: Batch, **kwargs) -> tuple[jax.Array, Any]:
        """See `Transformer.__call__`."""
        return self.bind(params)(batch, **kwargs)

    def logits(self, params: Params, batch: Batch, **kwargs) -> jax.Array:
        """Vocabulary logits (B,S,V) in float32, padded ids at -inf. For tests."""
        hidden_BSD, _ = self.hidden(params, batch, **kwargs)
        return self.head(params, hidden_BSD)

    def head(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Hidden states (…,D) to vocabulary logits (…,V) in float32, padded ids at -inf."""
        kernel = params["lm_head"]["kernel"].astype(hidden.dtype)
        logits = jnp.einsum("...d,dv->...v", hidden, kernel, preferred_element_type=jnp.float32)
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

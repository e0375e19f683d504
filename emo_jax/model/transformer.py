"""The decoder-only transformer: EMO, standard mixture of experts or dense, depending on the config.

Layers are stacked along a leading axis L and scanned, so that compile time does not grow with
depth; those of `model.dense_layers`, which have other leaves, come first as a stack of their own.
L counts the layers after them, except where a docstring says otherwise. `emo_jax.model.functions`
exposes the model as pure functions of its parameters.

Legend: B windows, S tokens, G documents, M domains, L layers, D width, T cached tokens, N tokens
after them, K heads of keys and values, h head size, E experts, R routed experts.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from emo_jax.batch import PADDING_ID, Batch
from emo_jax.config import Config, ModelConfig, MoeConfig, routed_by_layer
from emo_jax.model.attention import Attention, Further, KeysValues
from emo_jax.model.embedding import Embedding, Head
from emo_jax.model.few_tokens import from_bits
from emo_jax.model.layers import DenseMlp, RMSNorm
from emo_jax.model.moe_mlp import MoeMlp, PerLayer
from emo_jax.model.params import DENSE_LAYERS, LAYERS, Leaf, model_leaves, within
from emo_jax.moe.experts import ExpertWeights
from emo_jax.moe.pools import Pools, shared_by
from emo_jax.moe.router import RouterStats, RouterTokens
from emo_jax.parallel import mesh as mesh_lib

# What is kept for the backward pass, by name; the rest is recomputed.
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


def _rows(label_rows_M: np.ndarray, domain_ids_BS: jax.Array) -> jax.Array:
    return jnp.where(domain_ids_BS < 0, -1, jnp.asarray(label_rows_M)[domain_ids_BS])


class ForwardInputs(NamedTuple):
    """What all layers need from the batch besides their input."""

    segment_ids_BS: jax.Array
    positions_BS: jax.Array
    router: RouterTokens


class DecodeExperts(NamedTuple):
    """What `MoeMlp.decode` needs besides a layer's router."""

    per_layer: PerLayer
    stacked: ExpertWeights  # of all layers
    number: jax.Array  # which layer this is


class DecoderLayer(nnx.Module):
    """h = x + attention(norm(x)); y = h + mlp(norm(h))."""

    def __init__(
        self,
        model: ModelConfig,
        moe: MoeConfig | None,
        rngs: nnx.Rngs,
        leaves: Mapping[str, Leaf],
        mesh: Mesh | None,
    ):
        self.attention_norm = RMSNorm(model, within(leaves, "attention_norm"))
        self.attention = Attention(model, rngs, within(leaves, "attention"), mesh)
        self.mlp_norm = RMSNorm(model, within(leaves, "mlp_norm"))
        mlp = within(leaves, "mlp")
        self.mlp = (
            DenseMlp(model, rngs, mlp, mesh) if moe is None else MoeMlp(model, moe, rngs, mlp, mesh)
        )

    def __call__(
        self, x_BSD: jax.Array, inputs: ForwardInputs, per_layer: PerLayer | None
    ) -> tuple[jax.Array, RouterStats | None]:
        """The residual stream (B,S,D) after this layer, and statistics (None in a dense model)."""
        x_BSD, stats, _ = self.with_keys(x_BSD, inputs, per_layer)
        return x_BSD, stats

    def with_keys(
        self, x_BSD: jax.Array, inputs: ForwardInputs, per_layer: PerLayer | None
    ) -> tuple[jax.Array, RouterStats | None, KeysValues]:
        """The same as `__call__`, plus the keys and values of the tokens."""
        x_BSD, keys_values = self.attend(x_BSD, inputs)
        return *self._after_attention(x_BSD, inputs, per_layer), keys_values

    def extend(
        self,
        x_BND: jax.Array,
        inputs: ForwardInputs,
        cached: KeysValues,
        further: Further,
        per_layer: PerLayer | None,
    ) -> jax.Array:
        """The residual stream (B,N,D) of tokens that follow cached ones."""
        with jax.named_scope("attention"):
            attended_BND = self.attention.extend(self.attention_norm(x_BND), cached, further)
        return self._after_attention(x_BND + attended_BND, inputs, per_layer)[0]

    def _after_attention(
        self, x_BSD: jax.Array, inputs: ForwardInputs, per_layer: PerLayer | None
    ) -> tuple[jax.Array, RouterStats | None]:
        normed_BSD = self.mlp_norm(x_BSD)
        if isinstance(self.mlp, DenseMlp):
            return x_BSD + self.mlp(normed_BSD), None
        assert per_layer is not None
        out_BSD, stats = self.mlp(normed_BSD, inputs.router, per_layer)
        return x_BSD + out_BSD, stats

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
        of_experts: DecodeExperts | None,
    ) -> tuple[jax.Array, KeysValues]:
        """One more token per row, and its key and value; see `Attention.decode`."""
        attended_B1D, keys_values = self.attention.decode(
            self.attention_norm(x_B1D), cached, seen_BT, inputs.positions_BS
        )
        x_B1D = x_B1D + attended_B1D
        normed_B1D = self.mlp_norm(x_B1D)
        if isinstance(self.mlp, DenseMlp):
            return x_B1D + self.mlp(normed_B1D), keys_values
        assert of_experts is not None
        out_B1D = self.mlp.decode(normed_B1D, inputs.router, *of_experts)
        return x_B1D + out_B1D, keys_values


# Layer, input, and what else it is given of all layers and of those after `model.dense_layers`.
OneLayer = Callable[[DecoderLayer, jax.Array, Any, Any], tuple[jax.Array, Any]]


class Transformer(nnx.Module):
    """Embedding, L scanned layers, final norm, and the head's weights."""

    def __init__(self, config: Config, rngs: nnx.Rngs, mesh: Mesh | None = None):
        model = config.model
        leaves = model_leaves(config)
        self.embed = Embedding(model, rngs, within(leaves, "embed"), mesh)
        self.layers = DecoderLayer(model, config.moe, rngs, within(leaves, LAYERS), mesh)
        self.final_norm = RMSNorm(model, within(leaves, "final_norm"))
        self.lm_head = Head(model, rngs, within(leaves, "lm_head"))
        if model.dense_layers:
            dense = within(leaves, DENSE_LAYERS)
            self.dense_layers = DecoderLayer(model, None, rngs, dense, mesh)
        self.dtype = jnp.dtype(model.compute_dtype)
        self.remat = model.remat
        self.mesh = mesh
        self.config = config

    def there_LR(self) -> np.ndarray | None:
        """Which routed experts each layer has; None if all have the same number."""
        moe = self.config.moe
        if moe is None or not moe.experts_per_layer:
            return None
        routed_L = np.array(routed_by_layer(self.config))
        return np.arange(moe.num_routed_experts) < routed_L[:, None]

    def __call__(
        self,
        batch: Batch,
        *,
        pools: Pools | None = None,
        keep_LMR: jax.Array | None = None,
        num_domains: int = 0,
        loss_tokens: jax.Array | float = 1.0,
        step_load_LE: jax.Array | None = None,
        token_probs: bool = False,
        training: bool = False,
        jitter_LB: jax.Array | None = None,
        label_rows_M: np.ndarray | None = None,
    ) -> tuple[jax.Array, RouterStats | None]:
        """Hidden states before the head (B,S,D) and the router's statistics, stacked over L.

        Args:
          batch: B windows; labels are not used.
          pools: pools of all layers, sizes (L,B,G); None: no pool.
          keep_LMR: bool, the routed experts available to the tokens of each domain; None: all.
          num_domains: M, to sum router probabilities by domain; 0: no sums.
          loss_tokens: label tokens of the whole step, for the router's losses.
          step_load_LE: mean picks of each expert per token over the whole step, if these windows
            are only part of it and the load-balancing loss is to use the step's counts.
          token_probs: keep the router's probabilities of every token, (L,B,S,R).
          training: apply what only training does: capacity, labels.
          jitter_LB: seeds of `moe.input_jitter` and of random ghosts; None: there are none.
          label_rows_M: int32, row of `moe.pool.labels` for each domain; None: that of its number.
        """
        moe, balance_BS = self.config.moe, None
        if moe is not None and moe.balance_tokens == "labels":  # a token labels the one before it
            balance_BS = jnp.pad(batch.loss_mask[:, :-1], ((0, 0), (1, 0))) > 0
        pool_ids_BS = batch.pool_ids
        if moe is not None and pools is not None:
            pool_ids_BS = shared_by(moe.pool, batch.pool_ids, batch.domain_ids)
        router = RouterTokens(
            pool_ids_BS,
            loss_tokens,
            balance_BS,
            batch.domain_ids,
            num_domains,
            token_probs,
            training,
            batch.domain_ids if label_rows_M is None else _rows(label_rows_M, batch.domain_ids),
        )
        inputs = ForwardInputs(batch.segment_ids, batch.positions, router)

        def one_layer(layer, x_BSD, _, per_layer):
            return layer(x_BSD, inputs, per_layer)

        per_layer = PerLayer(pools, keep_LMR, step_load_LE, self.there_LR(), jitter_LB)
        return self._scan(one_layer, batch.tokens, None, per_layer, remat=self.remat)

    def embedded(self, batch: Batch) -> jax.Array:
        """The residual stream before `layer(0)`, (B,S,D): after `model.dense_layers`."""
        inputs = ForwardInputs(batch.segment_ids, batch.positions, RouterTokens(batch.pool_ids))

        def one_layer(layer, x_BSD, _, per_layer):
            return layer(x_BSD, inputs, per_layer)

        x_BSD = self.embed(batch.tokens, self.dtype)
        return self._scan_dense(one_layer, x_BSD, None, remat="none")[0]

    def layer(self, number: jax.Array | int) -> DecoderLayer:
        """A single layer, numbered from 0 after `model.dense_layers`."""
        graphdef, stacked = nnx.split(self.layers)
        return nnx.merge(graphdef, jax.tree.map(lambda a: from_bits(a[number]), stacked))

    def prefill(
        self, batch: Batch, *, keep_LMR: jax.Array | None = None, cached: bool = True
    ) -> tuple[jax.Array, KeysValues | None]:
        """Hidden states (B,S,D), computed without a pool, and keys and values (L,B,K,S,h).

        `keep_LMR` is that of `__call__`, here and in `extend` and `decode`. If not `cached`, there
        are no keys and values. These are of all layers, dense ones too, as L counts them here.
        """
        router = RouterTokens(batch.pool_ids, domain_ids_BS=batch.domain_ids)
        inputs = ForwardInputs(batch.segment_ids, batch.positions, router)

        def one_layer(layer, x_BSD, _, per_layer):
            x_BSD, _, keys_values = layer.with_keys(x_BSD, inputs, per_layer)
            return x_BSD, keys_values if cached else None

        per_layer = PerLayer(keep_MR=keep_LMR, there_R=self.there_LR())
        return self._scan(one_layer, batch.tokens, None, per_layer)

    def extend(
        self,
        tokens_BN: jax.Array,
        domain_ids_BN: jax.Array,
        further: Further,
        cached: KeysValues,
        *,
        keep_LMR: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states (B,N,D) of tokens that follow cached ones, computed without a pool.

        Args:
          tokens_BN: int32; arbitrary where there is no branch.
          domain_ids_BN: int32, for `keep_LMR`.
          further: what each token follows.
          cached: keys and values (L,B,K,T,h), from `prefill`.
        """
        router = RouterTokens(further.branch_BN, domain_ids_BS=domain_ids_BN)
        inputs = ForwardInputs(further.branch_BN, further.positions_BN, router)

        def one_layer(layer, x_BND, cached, per_layer):
            return layer.extend(x_BND, inputs, cached, further, per_layer), None

        per_layer = PerLayer(keep_MR=keep_LMR, there_R=self.there_LR())
        return self._scan(one_layer, tokens_BN, cached, per_layer)[0]

    def decode(
        self,
        tokens_B: jax.Array,
        positions_B: jax.Array,
        cached: KeysValues,
        seen_BT: jax.Array,
        *,
        domain_ids_B: jax.Array | None = None,
        keep_LMR: jax.Array | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """One more token per row, without a pool: hidden states (B,D), keys and values.

        Args:
          tokens_B: int32; below 0 means no token, which no routed expert computes.
          positions_B: positions of the tokens.
          cached: keys and values (L,B,K,T,h) of earlier tokens.
          seen_BT: bool, which of them a row's token sees.
        """
        ids_B1 = jnp.where(tokens_B < 0, PADDING_ID, 0)[:, None]
        domains_B1 = None if domain_ids_B is None else domain_ids_B[:, None]
        router = RouterTokens(ids_B1, domain_ids_BS=domains_B1)
        inputs = ForwardInputs(ids_B1, positions_B[:, None], router)

        # The scan's own slices of the experts are unused, so they are not computed.
        mlp = self.layers.mlp
        stacked = mlp.experts.weights() if isinstance(mlp, MoeMlp) else None

        def one_layer(layer, x_B1D, cached, scanned):
            of_experts = None
            if stacked is not None and scanned is not None:
                per_layer, number = scanned
                of_experts = DecodeExperts(per_layer, stacked, number)
            return layer.decode(x_B1D, inputs, cached, seen_BT, of_experts)

        numbers_L = jnp.arange(self.config.model.stacked_layers)
        per_layer = PerLayer(keep_MR=keep_LMR, there_R=self.there_LR())
        tokens_B1 = jnp.maximum(tokens_B, 0)[:, None]
        hidden_B1D, new = self._scan(one_layer, tokens_B1, cached, (per_layer, numbers_L))
        return hidden_B1D[:, 0], new

    def _scan(
        self,
        one_layer: OneLayer,
        tokens_BS: jax.Array,
        every_layer: Any,
        per_layer: Any,
        *,
        remat: str = "none",
    ) -> tuple[jax.Array, Any]:
        """Hidden states before the head, and the outputs of `one_layer` stacked over layers.

        Args:
          one_layer: called with a layer, its input, and its part of the next two.
          every_layer: arrays with a leading axis of all layers, dense ones too.
          per_layer: arrays with one of the layers after `model.dense_layers`, which get None.
        """
        x_BSD, first = self.embed(tokens_BS, self.dtype), self.config.model.dense_layers
        of_dense, every_layer = (
            jax.tree.map(lambda a, part=part: a[part], every_layer)
            for part in (slice(first), slice(first, None))
        )
        x_BSD, outputs_of_dense = self._scan_dense(one_layer, x_BSD, of_dense, remat=remat)
        x_BSD, outputs_L = self._scan_stack(
            self.layers, one_layer, x_BSD, (every_layer, per_layer), remat
        )
        if outputs_of_dense is not None:
            outputs_L = jax.tree.map(
                lambda *parts: jnp.concatenate(parts), outputs_of_dense, outputs_L
            )
        return self.final_norm(x_BSD), outputs_L

    def _scan_dense(
        self, one_layer: OneLayer, x_BSD: jax.Array, of_dense: Any, *, remat: str
    ) -> tuple[jax.Array, Any]:
        """The residual stream after `model.dense_layers`, and their outputs; None without any."""
        if not self.config.model.dense_layers:
            return x_BSD, None
        return self._scan_stack(self.dense_layers, one_layer, x_BSD, (of_dense, None), remat)

    def _scan_stack(
        self,
        layers: DecoderLayer,
        one_layer: OneLayer,
        x_BSD: jax.Array,
        scanned: tuple[Any, Any],
        remat: str,
    ) -> tuple[jax.Array, Any]:
        graphdef, stacked = nnx.split(layers)

        def body(x_BSD, scanned):
            weights, of_layer = scanned
            weights = jax.tree.map(from_bits, weights)
            x_BSD = mesh_lib.constrain(self.mesh, x_BSD, mesh_lib.windows_spec(1))
            return one_layer(nnx.merge(graphdef, weights), x_BSD, *of_layer)

        if remat != "none":
            keep = jax.checkpoint_policies.save_only_these_names(*REMAT_KEEPS[remat])
            body = jax.checkpoint(body, policy=keep, prevent_cse=False)
        return jax.lax.scan(body, x_BSD, (stacked, scanned))

"""How much every routed expert is worth to a domain: SPEC 7.2's methods as one sweep over layers.

The hidden states of all calibration tokens are kept, and every layer runs once: first attention and
the scores, then, if the method prunes as it goes, the choice, then the experts. The reference runs
the model from the start for every layer.

Legend: B windows, S tokens, L layers, D width, M domains, E experts, R routed experts, K routed
picks, P sums.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emo_jax.batch import BATCH_TOKENS, Batch
from emo_jax.config.names import METHODS, METHODS_WITHOUT_DATA
from emo_jax.errors import UsageError
from emo_jax.model.few_tokens import from_bits
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.moe_mlp import MoeMlp, PerLayer
from emo_jax.model.params import Params
from emo_jax.model.transformer import DecoderLayer, ForwardInputs
from emo_jax.moe.experts import experts
from emo_jax.moe.router import RouterTokens, Routing
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.selection.budgets import choose_best, experts_there
from emo_jax.selection.examples import Examples, pack


class Choice(NamedTuple):
    """What was chosen, and the scores it was chosen by."""

    kept_LMR: np.ndarray  # bool
    scores_LMR: np.ndarray  # float64; larger is better


def choose_experts(
    method: str,
    model: ModelFunctions,
    params: Params,
    batches: Sequence[Batch],
    routed_LM: np.ndarray | Sequence[int],
    *,
    num_domains: int = 1,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Choice:
    """Chooses the routed experts to keep in each layer for each domain.

    - `layerwise`: router probabilities summed over a domain's tokens, in a model whose earlier
      layers are already pruned.
    - `global`: the same, in the whole model.
    - `easy_ep` (arXiv 2504.06792): Σ over tokens of routing weight · ‖expert(h)‖₂ · max(0, 1 −
      cos(h, h + o)), with h the input and o the output of the mixture of experts.
    - `reap` (arXiv 2510.13999): the mean of routing weight · ‖expert(h)‖₂ over the tokens that use
      the expert; 0 without any.
    - `aimer` (arXiv 2603.18492): −(mean of |w|) / √(mean of w²) over all weights of the expert, the
      same for every domain; does not use the tokens.
    - `random`: by the seed, likewise.

    Scores are float32 whatever the model's compute dtype; sums over batches are float64.

    Args:
      method: one of the above.
      model: the model.
      params: its parameters.
      batches: calibration windows with `domain_ids`, on the host or the devices; all are kept on
        the devices at once, with their hidden states.
      routed_LM: how many routed experts to keep in each layer, (L,) or (L,M).
      num_domains: M.
      seed: for `random`.
      progress: called with lines about the progress.

    Raises:
      UsageError: no such method.
    """
    config = model.config
    assert config.moe is not None
    if method not in METHODS:
        raise UsageError(f"--method {method}: must be one of {', '.join(METHODS)}")
    there_LR = experts_there(config)
    routed_LM = np.asarray(routed_LM).reshape(len(there_LR), -1)
    if method in METHODS_WITHOUT_DATA:
        if method == "aimer":
            scores_LR = np.asarray(jax.jit(_aimer)(params), np.float64)[:, : there_LR.shape[1]]
        else:
            scores_LR = np.stack([_random(seed, n, len(row)) for n, row in enumerate(there_LR)])
        scores_LMR = np.repeat(scores_LR[:, None], num_domains, axis=1)
        return Choice(choose_best(scores_LMR, there_LR, routed_LM), scores_LMR)
    sweep = sweep_of(model, num_domains, method)
    states = [sweep.embed(params, batch) for batch in batches]
    kept, scores = [], []
    for layer in range(len(there_LR)):
        progress(f"layer {layer + 1} of {len(there_LR)}")
        number, found = jnp.int32(layer), []
        for i, batch in enumerate(batches):
            states[i], sums_PMR = sweep.scores(params, number, states[i], batch)
            found.append(sums_PMR)
        sums_PMR = np.sum(np.stack(jax.device_get(found)), axis=0, dtype=np.float64)
        scores_MR = sums_PMR[0]
        if method == "reap":  # a mean
            scores_MR = scores_MR / np.maximum(sums_PMR[1], 1)
        kept_MR = choose_best(
            scores_MR[None], there_LR[layer : layer + 1], routed_LM[layer : layer + 1]
        )[0]
        kept.append(kept_MR)
        scores.append(scores_MR)
        keep_MR = kept_MR if method == "layerwise" else np.ones_like(kept_MR)
        for i, batch in enumerate(batches):
            states[i] = sweep.experts(params, number, states[i], batch, keep_MR)
    return Choice(np.stack(kept), np.stack(scores))


def _aimer(params: Params) -> jax.Array:
    """Scores of all experts, (L,E) float32."""
    weights = [
        from_bits(w.reshape(*w.shape[:2], -1)).astype(jnp.float32)
        for w in params["layers"]["mlp"]["experts"].values()
    ]
    size = sum(w.shape[-1] for w in weights)
    mean_LE = sum(jnp.abs(w).sum(axis=-1) for w in weights) / size
    square_LE = sum(jnp.square(w).sum(axis=-1) for w in weights) / size
    # Experts that a layer lacks are all zeros.
    return -mean_LE / jnp.sqrt(jnp.maximum(square_LE, jnp.finfo(jnp.float32).tiny))


def _random(seed: int, layer: int, num_routed: int) -> np.ndarray:
    """A random order as scores (R,)."""
    order = np.random.default_rng([seed, layer]).permutation(num_routed)
    return np.argsort(order).astype(np.float64)


class Sweep:
    """Runs one layer at a time, compiled once for all layers."""

    def __init__(self, model: ModelFunctions, num_domains: int, method: str):
        self._model, self._num_domains, self._method = model, num_domains, method
        self.embed = jax.jit(lambda params, batch: model.bind(params).embedded(batch))
        self.scores = jax.jit(self._scores, donate_argnums=2)
        self.experts = jax.jit(self._experts, donate_argnums=2)

    def _at(
        self, params: Params, number: jax.Array, batch: Batch, keep_MR: jax.Array | None = None
    ) -> tuple[DecoderLayer, ForwardInputs, PerLayer]:
        """A layer and its inputs; `params` may be of this layer alone, see `by_layer`."""
        whole = self._model.bind(params)
        there_LR = whole.there_LR()
        there_R = None if there_LR is None else jnp.asarray(there_LR)[number]
        router = RouterTokens(
            batch.pool_ids, domain_ids_BS=batch.domain_ids, num_domains=self._num_domains
        )
        inputs = ForwardInputs(batch.segment_ids, batch.positions, router)
        held = params["layers"]["attention_norm"]["scale"].shape[0]
        layer = whole.layer(0 if held == 1 else number)
        return layer, inputs, PerLayer(keep_MR=keep_MR, there_R=there_R)

    def _scores(
        self, params: Params, number: jax.Array, x_BSD: jax.Array, batch: Batch
    ) -> tuple[jax.Array, jax.Array]:
        """The residual stream after attention, and sums over tokens for each expert, (P,M,R).

        The first of P is that of the scores; for `reap` there is the number of tokens too.
        """
        layer, inputs, per_layer = self._at(params, number, batch)
        assert isinstance(layer.mlp, MoeMlp)
        x_BSD, _ = layer.attend(x_BSD, inputs)
        normed_BSD = layer.mlp_norm(x_BSD)
        routing, stats = layer.mlp.route(normed_BSD, inputs.router, per_layer)
        if self._method not in ("easy_ep", "reap"):
            return x_BSD, stats.domain_probs_MR[None]
        return x_BSD, self._sums_of_picks(layer.mlp, normed_BSD, routing, batch)

    def _sums_of_picks(
        self, mlp: MoeMlp, h_BSD: jax.Array, routing: Routing, batch: Batch
    ) -> jax.Array:
        M, reap = self._num_domains, self._method == "reap"
        run = partial(experts, weights=mlp.experts.weights(), config=mlp.config, mesh=mlp.mesh)
        moved_BS = jnp.float32(1.0)
        if not reap:
            h32_BSD = h_BSD.astype(jnp.float32)
            out_BSD = run(h_BSD, routing)[0].astype(jnp.float32)
            moved_BS = jnp.maximum(0.0, 1.0 - _cosine(h32_BSD, h32_BSD + out_BSD))
        ids_BS = jnp.where((batch.pool_ids >= 0) & (batch.domain_ids >= 0), batch.domain_ids, M)
        sums_PMR = jnp.zeros((1 + reap, M + 1, mlp.config.num_routed_experts), jnp.float32)
        for k in range(routing.indices_BSK.shape[-1]):
            # One pick at a time, to get the output of each chosen expert by itself.
            one_BS1 = routing.indices_BSK[..., k : k + 1]
            alone = Routing(jnp.ones_like(routing.weights_BSK[..., :1]), one_BS1)
            by_one_BSD = run(h_BSD, alone, with_shared=False)[0].astype(jnp.float32)
            worth_BS = routing.weights_BSK[..., k] * jnp.linalg.norm(by_one_BSD, axis=-1) * moved_BS
            for part, value_BS in enumerate([worth_BS, jnp.ones_like(worth_BS)][: 1 + reap]):
                at = sums_PMR.at[part, ids_BS, one_BS1[..., 0]]
                sums_PMR = at.add(value_BS, mode="drop")
        return sums_PMR[:, :M]

    def _experts(
        self,
        params: Params,
        number: jax.Array,
        x_BSD: jax.Array,
        batch: Batch,
        keep_MR: jax.Array,
    ) -> jax.Array:
        """The residual stream after the experts kept for each domain."""
        layer, inputs, per_layer = self._at(params, number, batch, keep_MR)
        assert isinstance(layer.mlp, MoeMlp)
        return x_BSD + layer.mlp(layer.mlp_norm(x_BSD), inputs.router, per_layer)[0]


# Keyed by model identity, so that the next choice with the same model reuses its programs.
sweep_of = lru_cache(maxsize=4)(Sweep)


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine similarity over the last axis; 0 for a zero vector."""
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.sum(a * b, axis=-1) / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny)


def choose_by_examples(
    model: ModelFunctions,
    params: Params,
    examples: Examples,
    routed_LM: np.ndarray | Sequence[int],
    *,
    method: str,
    pad_id: int,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Choice:
    """`choose_experts` for documents.

    Args:
      model: a model on a mesh, with a `within_documents` config, so that each document sees only
        itself.
      params: parameters on the devices, sharded by `ModelFunctions.param_shardings`.
      examples: the documents.
      routed_LM, method, seed, progress: see `choose_experts`.
      pad_id: id of padding tokens.
    """
    mesh, S = model.mesh, model.config.data.seq_len
    assert mesh is not None
    windows = max(1, min(BATCH_TOKENS, examples.tokens // mesh.size) // S)
    rows = 2 ** (windows.bit_length() - 1)  # per device; few sizes, as each is compiled
    where = mesh_lib.windows_sharding(mesh)
    batches = [
        jax.tree.map(lambda a: jax.device_put(a, where), batch)
        for batch in pack(examples.documents, S, rows * mesh.size, pad_id)
    ]
    return choose_experts(
        method, model, params, batches, routed_LM, num_domains=1, seed=seed, progress=progress
    )

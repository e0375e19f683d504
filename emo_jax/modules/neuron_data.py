"""What the hidden neurons of a dense model do on texts: when they are active, who needs them.

Legend: B windows, S tokens, L layers, D width, F neurons, C clusters of texts, T tokens that count.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emo_jax.analysis.cluster import spherical_kmeans
from emo_jax.batch import Batch
from emo_jax.config import Config
from emo_jax.errors import UsageError
from emo_jax.evals.by_domain import eval_mesh
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.layers import DenseMlp
from emo_jax.model.params import Params
from emo_jax.model.transformer import ForwardInputs
from emo_jax.model.vocab_loss import vocab_loss
from emo_jax.moe.grouped import swiglu
from emo_jax.moe.router import RouterTokens
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.selection.examples import Examples, pack
from emo_jax.selection.variants import within_documents

ACTIVE = 0.1  # the share of a layer's neurons that count as active for a token


class NeuronData:
    """A dense model, computing in float32, and windows of documents.

    Args:
      config: config of the model.
      params: its parameters.
      examples: the documents; each attends to itself only.
      pad_id: id of padding tokens.
      progress: called with lines about the progress.
    """

    def __init__(
        self,
        config: Config,
        params: Params,
        examples: Examples,
        *,
        pad_id: int,
        progress: Callable[[str], None] = lambda _: None,
    ):
        config = within_documents(config)
        float32 = dataclasses.replace(config.model, compute_dtype="float32")
        self.config = dataclasses.replace(config, model=float32)
        self._model = ModelFunctions(self.config, eval_mesh(self.config))
        self._params = jax.device_put(params, self._model.param_shardings())
        self._examples, self._pad_id, self._say = examples, pad_id, progress

    def active_LFT(self) -> np.ndarray:
        """bool, whether |neuron| is among the largest `ACTIVE` of its layer, for each token."""

        @jax.jit
        def run(params: Params, batch: Batch) -> jax.Array:
            _, hidden_LBSF = self._forward(params, batch, None)
            size_LBSF = jnp.abs(hidden_LBSF)
            count = max(1, round(ACTIVE * size_LBSF.shape[-1]))
            least_LBS1 = jax.lax.top_k(size_LBSF, count)[0][..., -1:]
            return size_LBSF >= least_LBS1

        found = []
        for batch in self._batches("neurons that are active"):
            active_LBSF = np.asarray(run(self._params, batch))
            active_LTF = active_LBSF[:, np.asarray(batch.segment_ids) >= 0]
            found.append(active_LTF.swapaxes(1, 2))
        return np.concatenate(found, axis=2)

    def importance_LCF(self, clusters: int, seed: int) -> np.ndarray:
        """float64, mean over a cluster's tokens of |h · ∂loss/∂h|, the loss's change without h.

        h is what the down-projection is given (LLaMA-MoE, arXiv 2406.16554, section 3). Clusters
        are of texts, by the mean of their last hidden states.

        Raises:
          UsageError: fewer texts than clusters.
        """
        run = jax.jit(partial(self._importance, clusters=clusters))
        states, rows = [], []  # of each piece of a document, and which piece a token is of
        first = 0
        hidden = jax.jit(lambda params, batch: self._forward(params, batch, None)[0])
        for batch in self._batches("what texts are about"):
            hidden_BSD = np.asarray(hidden(self._params, batch))
            pieces_BS, count = _pieces(np.asarray(batch.segment_ids))
            sums = np.zeros((count, hidden_BSD.shape[-1]))
            there_BS = pieces_BS >= 0
            np.add.at(sums, pieces_BS[there_BS], hidden_BSD[there_BS])
            states.append(sums)
            rows.append(np.where(there_BS, pieces_BS + first, -1))
            first += count
        if first < clusters:
            raise UsageError(
                f"{self._examples.source}: {first} texts, and split-importance needs one for each"
                f" of {clusters} routed experts; raise --max-tokens, or ask for fewer experts"
            )
        units = np.concatenate(states)
        units = units - units.mean(axis=0)
        units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-12)
        ids = spherical_kmeans(units.astype(np.float32), clusters, seed).ids_N
        total: Any = 0.0  # (L,C,F)
        tokens_C = np.zeros(clusters)
        for batch, rows_BS in zip(self._batches("who needs a neuron"), rows, strict=True):
            cluster_BS = np.where(rows_BS >= 0, ids[rows_BS], -1).astype(np.int32)
            total += np.asarray(run(self._params, batch, cluster_BS), np.float64)
            tokens_C += np.bincount(cluster_BS[cluster_BS >= 0], minlength=clusters)
        return total / np.maximum(tokens_C, 1)[:, None]

    def _importance(
        self, params: Params, batch: Batch, cluster_BS: jax.Array, *, clusters: int
    ) -> jax.Array:
        """(L,C,F): sums over the tokens of each cluster."""
        model = self.config.model
        shape = (model.num_layers, *batch.tokens.shape, model.mlp_dim)
        # The derivative by a factor of h is h · ∂loss/∂h.
        loss = partial(self._loss, params, batch)
        change_LBSF = jnp.abs(jax.grad(loss)(jnp.ones(shape, jnp.float32)))
        of_BSC = jax.nn.one_hot(cluster_BS, clusters, dtype=jnp.float32)
        return jnp.einsum("lbsf,bsc->lcf", change_LBSF, of_BSC, precision="highest")

    def _loss(self, params: Params, batch: Batch, factor_LBSF: jax.Array) -> jax.Array:
        """The cross-entropy of all labels, nats, given the factors of `_forward`."""
        hidden_BSD, _ = self._forward(params, batch, factor_LBSF)
        return vocab_loss(
            hidden_BSD,
            params["lm_head"]["kernel"],
            batch.labels,
            batch.loss_mask,
            self.config.model.vocab_size,
            0.0,
            self.config.train.loss_chunk,
            self._model.mesh,
        )[0]

    def _forward(
        self, params: Params, batch: Batch, factor_LBSF: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Hidden states before the head (B,S,D), and those inside the feed-forwards (L,B,S,F).

        The latter are multiplied by `factor_LBSF` before the down-projection.
        """
        whole = self._model.bind(params)
        router = RouterTokens(batch.pool_ids)
        inputs = ForwardInputs(batch.segment_ids, batch.positions, router)

        def one_layer(x_BSD: jax.Array, scanned: Any) -> tuple[jax.Array, jax.Array]:
            number, factor_BSF = scanned
            layer = whole.layer(number)
            mlp = layer.mlp
            assert isinstance(mlp, DenseMlp)
            x_BSD, _ = layer.attend(x_BSD, inputs)
            normed_BSD = layer.mlp_norm(x_BSD)
            hidden_BSF = swiglu(normed_BSD @ mlp.gate[...], normed_BSD @ mlp.up[...])
            used_BSF = hidden_BSF if factor_BSF is None else hidden_BSF * factor_BSF
            return x_BSD + used_BSF @ mlp.down[...], hidden_BSF

        numbers_L = jnp.arange(self.config.model.num_layers)
        x_BSD, hidden_LBSF = jax.lax.scan(
            one_layer, whole.embedded(batch), (numbers_L, factor_LBSF)
        )
        return whole.final_norm(x_BSD), hidden_LBSF

    def _batches(self, what: str) -> Iterator[Batch]:
        mesh = self._model.mesh
        assert mesh is not None
        S, where = self.config.data.seq_len, mesh_lib.windows_sharding(mesh)
        packed = pack(self._examples.documents, S, mesh.size, self._pad_id)
        for n, batch in enumerate(packed):
            self._say(f"{what}: {n * 100 // len(packed)} % of {self._examples.tokens:,} tokens")
            yield jax.tree.map(lambda a: jax.device_put(a, where), batch)


def _pieces(segments_BS: np.ndarray) -> tuple[np.ndarray, int]:
    """A number for each document of each window, -1 for padding, and how many there are."""
    keys_BS = np.arange(len(segments_BS))[:, None] * segments_BS.shape[1] + segments_BS
    there_BS = segments_BS >= 0
    found, numbers = np.unique(keys_BS[there_BS], return_inverse=True)
    out_BS = np.full(segments_BS.shape, -1)
    out_BS[there_BS] = numbers
    return out_BS, len(found)

"""Columns of a router made from the documents of a domain (FlexOlmo, arXiv 2507.07024, 3.3.2).

The paper's is the mean embedding of a domain's documents by GritLM-7B, the same in all layers. Here
the embedder is the model itself (its table 3 compares both), and each layer has its own: the mean
over a document's tokens of what the layer's router would read, scaled to length 1.

Legend: B windows, S tokens, L layers, D width, N documents.
"""

import jax
import jax.numpy as jnp
import numpy as np

from emo_jax.batch import BATCH_TOKENS, Batch
from emo_jax.data.store import TokenStore
from emo_jax.data.stream import TRAIN
from emo_jax.evals.by_domain import eval_mesh
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.layers import DenseMlp
from emo_jax.model.params import Params
from emo_jax.model.transformer import ForwardInputs
from emo_jax.moe.router import RouterTokens
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.saved.load import load_model
from emo_jax.selection.examples import pack, store_examples
from emo_jax.selection.variants import within_documents


class Embedder:
    """Embeds documents by a dense model.

    Args:
      path: of the model.
      examples: documents of a store that are embedded, at most.
    """

    def __init__(self, path: str, examples: int):
        loaded = load_model(path)
        self._config = within_documents(loaded.config)
        self._model = ModelFunctions(self._config, eval_mesh(self._config))
        self._params: Params = jax.device_put(loaded.params, self._model.param_shardings())
        self._examples = examples
        self._embed = jax.jit(lambda params, batch: self._model.bind(params).embedded(batch))
        self._layer = jax.jit(self._one_layer, donate_argnums=2)

    def of_store(self, store: TokenStore) -> np.ndarray:
        """The mean embedding of a store's training documents in each layer, (L,D) float32.

        Of a document, the first window is embedded.
        """
        S, mesh = self._config.data.seq_len, self._model.mesh
        assert mesh is not None
        number = min(self._examples, store.count(TRAIN, "documents"))
        found = store_examples(
            store, TRAIN, number=number, max_tokens=number * S, max_length=S
        ).documents
        rows = -(-max(1, BATCH_TOKENS // S) // mesh.size) * mesh.size
        where = mesh_lib.windows_sharding(mesh)
        layers = range(self._config.model.num_layers)
        total_LD = np.zeros((len(layers), self._config.model.embed_dim))
        for batch in pack(found, S, rows, store.pad_id):
            batch = jax.tree.map(lambda a: jax.device_put(a, where), batch)
            x_BSD, sums = self._embed(self._params, batch), []
            for layer in layers:
                x_BSD, sum_D = self._layer(self._params, jnp.int32(layer), x_BSD, batch)
                sums.append(np.asarray(sum_D, np.float64))
            total_LD = total_LD + np.stack(sums)
        return np.asarray(total_LD / len(found), np.float32)

    def _one_layer(
        self, params: Params, number: jax.Array, x_BSD: jax.Array, batch: Batch
    ) -> tuple[jax.Array, jax.Array]:
        """The residual stream after a layer, and the sum of the documents' embeddings (D,)."""
        inputs = ForwardInputs(batch.segment_ids, batch.positions, RouterTokens(batch.pool_ids))
        layer = self._model.bind(params).layer(number)
        assert isinstance(layer.mlp, DenseMlp)
        x_BSD, _ = layer.attend(x_BSD, inputs)
        read_BSD = layer.mlp_norm(x_BSD)
        return x_BSD + layer.mlp(read_BSD), _sum_of_documents(read_BSD, batch.segment_ids)


def _sum_of_documents(x_BSD: jax.Array, segment_ids_BS: jax.Array) -> jax.Array:
    """The sum over documents of the mean over their tokens, scaled to length 1: (D,) float32."""
    B, S, D = x_BSD.shape
    # A window has at most S documents; padding goes to one more, which is left out.
    ids_BS = jnp.where(segment_ids_BS >= 0, segment_ids_BS, S) + jnp.arange(B)[:, None] * (S + 1)
    sums_ND = jax.ops.segment_sum(
        x_BSD.astype(jnp.float32).reshape(-1, D), ids_BS.reshape(-1), B * (S + 1)
    )
    sums_BND = sums_ND.reshape(B, S + 1, D)[:, :S]
    length_BN1 = jnp.linalg.norm(sums_BND, axis=-1, keepdims=True)  # of the mean, but for a factor
    return jnp.sum(sums_BND / jnp.maximum(length_BN1, jnp.finfo(jnp.float32).tiny), axis=(0, 1))

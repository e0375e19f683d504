"""The input table and the output matrix, untied.

Legend: B windows, S tokens, D width, V rows, P devices that share the table.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from emo_jax.config import ModelConfig
from emo_jax.model.layers import weight
from emo_jax.model.params import TABLE_AXES, Leaf
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.parallel.island import Island


class Embedding(nnx.Module):
    """The input table (V,D)."""

    def __init__(
        self,
        config: ModelConfig,
        rngs: nnx.Rngs,
        leaves: Mapping[str, Leaf],
        mesh: Mesh | None,
    ):
        self.embedding = weight(rngs, config, leaves["embedding"])
        self.island = Island(mesh)

    def __call__(self, tokens_BS: jax.Array, dtype: Any) -> jax.Array:
        """The table rows of the tokens, (B,S,D).

        On a mesh the table is not gathered: each device looks up its columns for the tokens of all
        devices that share the table, and sends each device the columns for its own tokens.
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
            # Cast after the lookup, so that the gradient sums a frequent token's rows in float32.
            columns_PBSd = table_VD[ids_PBS].astype(dtype)
            return self.island.all_to_all(columns_PBSd, axes, 0, 3)[0]


class Head(nnx.Module):
    """The output matrix (D,V)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, leaves: Mapping[str, Leaf]):
        self.kernel = weight(rngs, config, leaves["kernel"])


def mask_padded_vocab(logits: jax.Array, vocab_size: int) -> jax.Array:
    """Logits (…,V) with -inf for the ids from `vocab_size` on, which no tokenizer produces."""
    if logits.shape[-1] == vocab_size:
        return logits
    return jnp.where(jnp.arange(logits.shape[-1]) < vocab_size, logits, -jnp.inf)

"""Multi-head causal attention, within a document or across the window.

Legend: B windows, S tokens (T keys), D width, H heads, h head size.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from emo_jax.config import ModelConfig
from emo_jax.model.blocked_attention import blocked_attention
from emo_jax.model.layers import rotary, weight
from emo_jax.parallel.mesh import over_windows


def attention_mask(segment_ids_BS: jax.Array, *, within_document: bool) -> jax.Array:
    """(B,S,T) bool: which keys a query sees. Never later ones, never padding.

    Args:
      segment_ids_BS: document of each token, -1 for padding.
      within_document: only keys of the query's own document.
    """
    S = segment_ids_BS.shape[1]
    causal_ST = jnp.tril(jnp.ones((S, S), bool))
    query_BS1, key_B1T = segment_ids_BS[:, :, None], segment_ids_BS[:, None, :]
    seen_BST = (key_B1T >= 0) & (query_BS1 >= 0)
    if within_document:
        seen_BST &= key_B1T == query_BS1
    return causal_ST & seen_BST


class Attention(nnx.Module):
    """Full multi-head attention with rotary embedding; scale 1/√h, softmax in float32."""

    def __init__(
        self,
        config: ModelConfig,
        rngs: nnx.Rngs,
        stack: tuple[int, ...] = (),
        mesh: Mesh | None = None,
    ):
        D, H, h, lead = (
            config.embed_dim,
            config.num_heads,
            config.head_dim,
            ("layers",) * len(stack),
        )
        shape, axes = (*stack, D, H, h), (*lead, "embed", "heads", None)
        self.query = weight(rngs, config, shape, axes)
        self.key = weight(rngs, config, shape, axes)
        self.value = weight(rngs, config, shape, axes)
        self.out = weight(rngs, config, (*stack, H, h, D), (*lead, "heads", None, "embed"))
        self.theta = config.rope_theta
        self.mesh = mesh
        self.within_document = config.attention == "document"

    def __call__(
        self, x_BSD: jax.Array, *, segment_ids_BS: jax.Array, positions_BS: jax.Array
    ) -> jax.Array:
        """(B,S,D) in the dtype of the input; padding (id -1) is never attended to."""
        project = lambda kernel: jnp.einsum(  # noqa: E731
            "bsd,dhk->bshk", x_BSD, kernel[...].astype(x_BSD.dtype)
        )
        q_BSHh = rotary(project(self.query), positions_BS, self.theta)
        k_BTHh = rotary(project(self.key), positions_BS, self.theta)
        v_BTHh = project(self.value)
        mixed_BSHh = over_windows(self.mesh, self._attend)(q_BSHh, k_BTHh, v_BTHh, segment_ids_BS)
        return jnp.einsum("bshk,hkd->bsd", mixed_BSHh, self.out[...].astype(x_BSD.dtype))

    def _attend(self, q_BSHh, k_BTHh, v_BTHh, segment_ids_BS) -> jax.Array:
        if jax.default_backend() == "cpu":
            return blocked_attention(
                q_BSHh, k_BTHh, v_BTHh, segment_ids_BS, within_document=self.within_document
            )
        mask_BST = attention_mask(segment_ids_BS, within_document=self.within_document)
        return jax.nn.dot_product_attention(q_BSHh, k_BTHh, v_BTHh, mask=mask_BST[:, None])

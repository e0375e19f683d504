"""Multi-head causal attention, within a document or across the window.

Legend: B windows, S tokens (T keys), D width, H heads, h head size.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from emo_jax.config import ModelConfig
from emo_jax.model.layers import rotary, weight

# Finite, so that a padded token, which may attend to nothing, gives a number and no NaN.
MASKED = -1e30


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

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        D, H, h, lead = config.embed_dim, config.num_heads, config.head_dim, ("layers",) * len(stack)
        to_heads = dict(shape=(*stack, D, H, h), axes=(*lead, "embed", "heads", None))
        self.query = weight(rngs, config, **to_heads)
        self.key = weight(rngs, config, **to_heads)
        self.value = weight(rngs, config, **to_heads)
        self.out = weight(rngs, config, (*stack, H, h, D), (*lead, "heads", None, "embed"))
        self.theta = config.rope_theta
        self.within_document = config.attention == "document"

    def __call__(
        self, x_BSD: jax.Array, *, segment_ids_BS: jax.Array, positions_BS: jax.Array
    ) -> jax.Array:
        project = lambda kernel: jnp.einsum(  # noqa: E731
            "bsd,dhk->bshk", x_BSD, kernel[...].astype(x_BSD.dtype)
        )
        q_BSHh = rotary(project(self.query), positions_BS, self.theta)
        k_BTHh = rotary(project(self.key), positions_BS, self.theta)
        v_BTHh = project(self.value)
        scores_BHST = jnp.einsum(
            "bshk,bthk->bhst", q_BSHh, k_BTHh, preferred_element_type=jnp.float32
        )
        scores_BHST *= q_BSHh.shape[-1] ** -0.5
        mask_BST = attention_mask(segment_ids_BS, within_document=self.within_document)
        scores_BHST = jnp.where(mask_BST[:, None], scores_BHST, MASKED)
        probs_BHST = jax.nn.softmax(scores_BHST, axis=-1).astype(x_BSD.dtype)
        mixed_BSHh = jnp.einsum("bhst,bthk->bshk", probs_BHST, v_BTHh)
        return jnp.einsum("bshk,hkd->bsd", mixed_BSHh, self.out[...].astype(x_BSD.dtype))

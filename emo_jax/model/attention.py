"""Multi-head causal attention, within a document or across the window.

Legend: B windows, S tokens (T keys), D width, H heads, h head size.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from emo_jax.config import ModelConfig
from emo_jax.model.blocked_attention import blocked_attention
from emo_jax.model.layers import rotary, weight
from emo_jax.parallel.mesh import over_windows

_dot = partial(jnp.einsum, preferred_element_type=jnp.float32)


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


class KeysValues(NamedTuple):
    """Keys, rotated, and values of some tokens, each (B,H,T,h); stacked: (L,B,H,T,h).

    Heads come first: with tokens first, one query over a long cache took 2 to 5 times as long on
    the CPU.
    """

    keys: jax.Array
    values: jax.Array


def attend_one(
    q_BHh: jax.Array, k_BHh: jax.Array, v_BHh: jax.Array, cached: KeysValues, seen_BT: jax.Array
) -> jax.Array:
    """(B,H,h): one query of each row over the keys that it sees and its own.

    Scores and softmax in float32; probabilities meet the values in the dtype of these, and the
    division by their sum comes last, as in `blocked_attention`.
    """
    scale, dtype = q_BHh.shape[-1] ** -0.5, v_BHh.dtype
    scores_BHT = _dot("bhtk,bhk->bht", cached.keys, q_BHh) * scale
    scores_BHT = jnp.where(seen_BT[:, None], scores_BHT, -jnp.inf)
    own_BH1 = _dot("bhk,bhk->bh", q_BHh, k_BHh)[..., None] * scale
    top_BH1 = jnp.maximum(scores_BHT.max(axis=-1, keepdims=True), own_BH1)
    probs_BHT, prob_BH1 = jnp.exp(scores_BHT - top_BH1), jnp.exp(own_BH1 - top_BH1)
    sum_BH1 = probs_BHT.sum(axis=-1, keepdims=True) + prob_BH1
    mixed_BHh = _dot("bht,bhtk->bhk", probs_BHT.astype(dtype), cached.values)
    mixed_BHh += prob_BH1.astype(dtype).astype(jnp.float32) * v_BHh.astype(jnp.float32)
    return (mixed_BHh / sum_BH1).astype(dtype)


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
    ) -> tuple[jax.Array, KeysValues]:
        """(B,S,D) in the dtype of the input, with keys and values, which only generation keeps.

        Padding (id -1) is never attended to.
        """
        q_BSHh, k_BTHh, v_BTHh = self._project(x_BSD, positions_BS)
        mixed_BSHh = over_windows(self.mesh, self._attend)(q_BSHh, k_BTHh, v_BTHh, segment_ids_BS)
        heads_first = (jnp.moveaxis(a, 1, 2) for a in (k_BTHh, v_BTHh))
        return self._mix(mixed_BSHh), KeysValues(*heads_first)

    def decode(
        self, x_B1D: jax.Array, cached: KeysValues, seen_BT: jax.Array, positions_B1: jax.Array
    ) -> tuple[jax.Array, KeysValues]:
        """One more token of each row: (B,1,D), and its own key and value, (B,H,1,h).

        Args:
          x_B1D: the new tokens.
          cached: of earlier ones.
          seen_BT: bool, which of them it sees; it always sees itself.
          positions_B1: of the new tokens.
        """
        q_B1Hh, k_B1Hh, v_B1Hh = self._project(x_B1D, positions_B1)
        q_BHh, k_BHh, v_BHh = (a_B1Hh[:, 0] for a_B1Hh in (q_B1Hh, k_B1Hh, v_B1Hh))
        mixed_BHh = attend_one(q_BHh, k_BHh, v_BHh, cached, seen_BT)
        return self._mix(mixed_BHh[:, None]), KeysValues(k_BHh[:, :, None], v_BHh[:, :, None])

    def _project(self, x_BSD, positions_BS) -> tuple[jax.Array, jax.Array, jax.Array]:
        project = lambda kernel: jnp.einsum(  # noqa: E731
            "bsd,dhk->bshk", x_BSD, kernel[...].astype(x_BSD.dtype)
        )
        q_BSHh = rotary(project(self.query), positions_BS, self.theta)
        k_BTHh = rotary(project(self.key), positions_BS, self.theta)
        return q_BSHh, k_BTHh, project(self.value)

    def _mix(self, mixed_BSHh: jax.Array) -> jax.Array:
        return jnp.einsum("bshk,hkd->bsd", mixed_BSHh, self.out[...].astype(mixed_BSHh.dtype))

    def _attend(self, q_BSHh, k_BTHh, v_BTHh, segment_ids_BS) -> jax.Array:
        if jax.default_backend() == "cpu":
            return blocked_attention(
                q_BSHh, k_BTHh, v_BTHh, segment_ids_BS, within_document=self.within_document
            )
        mask_BST = attention_mask(segment_ids_BS, within_document=self.within_document)
        return jax.nn.dot_product_attention(q_BSHh, k_BTHh, v_BTHh, mask=mask_BST[:, None])

"""Multi-head causal attention, within a document or across the window.

Legend: B windows, S tokens (T keys), N further tokens, D width, H heads, K heads of keys and
values (see `grouped_heads`), h head size.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from emo_jax.config import ModelConfig
from emo_jax.errors import ConfigError
from emo_jax.model.attention_kernels import attend, default_backend
from emo_jax.model.grouped_heads import mixed, rows_by_keys
from emo_jax.model.layers import rotary, weight
from emo_jax.model.params import KV_AXES, OUT_AXES, PROJECT_AXES, Leaf
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.parallel.island import Island

_AXES = (PROJECT_AXES, KV_AXES, KV_AXES, OUT_AXES)  # of the projections


class KeysValues(NamedTuple):
    """Rotated keys, and values, of some tokens, each (B,K,T,h); stacked: (L,B,K,T,h).

    Heads come first: with tokens first, one query over a long cache took 2 to 5 times as long on
    the CPU.
    """

    keys: jax.Array
    values: jax.Array


def attend_one(
    q_BHh: jax.Array, k_BKh: jax.Array, v_BKh: jax.Array, cached: KeysValues, seen_BT: jax.Array
) -> jax.Array:
    """(B,H,h): one query per row over the keys that it sees and its own.

    Scores and softmax are in float32; probabilities are cast to the dtype of the values before the
    product, and divided by their sum last, as in `blocked_attention`.
    """
    scale, dtype = q_BHh.shape[-1] ** -0.5, v_BKh.dtype
    q_BH1h, k_BK1h, v_BK1h = (a[:, :, None] for a in (q_BHh, k_BKh, v_BKh))
    scores_BH1T = rows_by_keys(q_BH1h, cached.keys) * scale
    scores_BH1T = jnp.where(seen_BT[:, None, None], scores_BH1T, -jnp.inf)
    own_BH11 = rows_by_keys(q_BH1h, k_BK1h) * scale
    top_BH11 = jnp.maximum(scores_BH1T.max(axis=-1, keepdims=True), own_BH11)
    probs_BH1T, prob_BH11 = jnp.exp(scores_BH1T - top_BH11), jnp.exp(own_BH11 - top_BH11)
    sum_BH11 = probs_BH1T.sum(axis=-1, keepdims=True) + prob_BH11
    mixed_BH1h = mixed(probs_BH1T.astype(dtype), cached.values)
    mixed_BH1h += mixed(prob_BH11.astype(dtype), v_BK1h)
    return (mixed_BH1h / sum_BH11).astype(dtype)[:, :, 0]


class Further(NamedTuple):
    """Tokens that follow cached ones of the same row: any number of branches of each document.

    A branch sees all of its document's cached tokens, and its own tokens up to each; no other
    branch.
    """

    branch_BN: jax.Array  # int32; -1: padding
    document_BN: jax.Array  # int32, document of the cached tokens that a token follows
    positions_BN: jax.Array  # int32
    cached_ids_BT: jax.Array  # int32, documents of the cached tokens; -1: padding


def attend_further(
    q_BNHh: jax.Array,
    own: KeysValues,
    cached: KeysValues,
    further: Further,
    first: jax.Array | int,
) -> jax.Array:
    """(B,N,H,h): queries of branches over the cached tokens of their documents and their own.

    All scores of a row exist at once, in float32; see `attend_one` for dtypes.

    Args:
      own: keys and values of all further tokens, of which the queries are a part.
      first: index of the token that is the first query.
    """
    N, T = q_BNHh.shape[1], cached.keys.shape[2]
    q_BHNh = jnp.moveaxis(q_BNHh, 1, 2)
    scale, dtype = q_BNHh.shape[-1] ** -0.5, own.values.dtype
    queries_N = jnp.arange(N) + first
    branch_BN = lax.dynamic_slice_in_dim(further.branch_BN, first, N, 1)
    document_BN = lax.dynamic_slice_in_dim(further.document_BN, first, N, 1)
    cached_BNT = further.cached_ids_BT[:, None] == document_BN[:, :, None]
    own_BNM = further.branch_BN[:, None] == branch_BN[:, :, None]
    own_BNM &= jnp.arange(own.keys.shape[2]) <= queries_N[:, None]
    seen_BNU = jnp.concatenate([cached_BNT, own_BNM], axis=-1)
    scores_BHNU = jnp.concatenate(
        [rows_by_keys(q_BHNh, keys) for keys in (cached.keys, own.keys)], axis=-1
    )
    scores_BHNU = jnp.where(seen_BNU[:, None], scores_BHNU * scale, -jnp.inf)
    # A token sees itself at least, so no row is empty.
    probs_BHNU = jnp.exp(scores_BHNU - scores_BHNU.max(axis=-1, keepdims=True))
    sum_BHN = probs_BHNU.sum(axis=-1)
    probs_BHNU = probs_BHNU.astype(dtype)
    mixed_BHNh = mixed(probs_BHNU[..., :T], cached.values)
    mixed_BHNh += mixed(probs_BHNU[..., T:], own.values)
    return jnp.moveaxis((mixed_BHNh / sum_BHN[..., None]).astype(dtype), 1, 2)


class Weights(NamedTuple):
    """A layer's projections."""

    query_DHh: jax.Array
    key_DKh: jax.Array
    value_DKh: jax.Array
    out_HhD: jax.Array


class Attention(nnx.Module):
    """Full attention with rotary embedding, several heads; scale 1/√h, softmax in float32.

    On a mesh it is an island: axis `tensor` splits the heads and axis `context` the queries, for
    which the keys and values of the whole window are gathered.
    """

    def __init__(
        self,
        config: ModelConfig,
        rngs: nnx.Rngs,
        leaves: Mapping[str, Leaf],
        mesh: Mesh | None = None,
    ):
        self.query = weight(rngs, config, leaves["query"])
        self.key = weight(rngs, config, leaves["key"])
        self.value = weight(rngs, config, leaves["value"])
        self.out = weight(rngs, config, leaves["out"])
        self.theta = config.rope_theta
        self.island = Island(mesh)
        self.within_document = config.attention == "document"
        self.backend = pick_backend(config.attention_backend, mesh)

    def __call__(
        self, x_BSD: jax.Array, *, segment_ids_BS: jax.Array, positions_BS: jax.Array
    ) -> tuple[jax.Array, KeysValues]:
        """(B,S,D) in the dtype of the input, plus keys and values, which only generation keeps.

        Padding (id -1) is never attended to.
        """
        tokens, ids = mesh_lib.windows_spec(1), mesh_lib.windows_spec()
        weights, keys = _specs()
        return self.island.run(self._local, (tokens, ids, ids, weights), (tokens, keys))(
            x_BSD, segment_ids_BS, positions_BS, self._weights()
        )

    def extend(self, x_BND: jax.Array, cached: KeysValues, further: Further) -> jax.Array:
        """(B,N,D): attention of further tokens, given keys and values of the cached ones."""
        tokens = mesh_lib.windows_spec(1)
        ids: Any = mesh_lib.windows_spec()
        weights, keys = _specs()
        arguments = (tokens, keys, Further(ids, ids, ids, ids), weights)
        return self.island.run(self._local_extend, arguments, tokens)(
            x_BND, cached, further, self._weights()
        )

    def _weights(self) -> Weights:
        return Weights(self.query[...], self.key[...], self.value[...], self.out[...])

    def _local(
        self, x_BSD: jax.Array, ids_BS: jax.Array, positions_BS: jax.Array, stored: Weights
    ) -> tuple[jax.Array, KeysValues]:
        """One device's heads and queries."""
        island, dtype = self.island, x_BSD.dtype
        x_BSD, ids_BS, positions_BS = (
            island.gather(a, ("tensor",), 1) for a in (x_BSD, ids_BS, positions_BS)
        )
        weights = self._whole(stored, dtype)
        q_BSHh, k_BSKh, v_BSKh = self._project(x_BSD, positions_BS, weights)
        k_BTKh, v_BTKh, ids_BT = (
            island.gather(a, ("context",), 1) for a in (k_BSKh, v_BSKh, ids_BS)
        )
        first = None
        if island.size("context") > 1:
            first = jnp.asarray(island.index("context") * x_BSD.shape[1])
        mixed_BSHh = attend(
            *(q_BSHh, k_BTKh, v_BTKh, ids_BS, ids_BT),
            within_document=self.within_document,
            first_query=first,
            backend=self.backend,
        )
        out_BSD = island.sum_scatter(_mix(mixed_BSHh, weights), ("tensor",), 1)
        out_BSD = checkpoint_name(out_BSD, "attention_out")
        heads_first = (jnp.moveaxis(a, 1, 2) for a in (k_BSKh, v_BSKh))
        return out_BSD, KeysValues(*heads_first)

    def _local_extend(
        self, x_BND: jax.Array, cached: KeysValues, further: Further, stored: Weights
    ) -> jax.Array:
        """One device's heads and queries."""
        island = self.island
        x_BND, positions_BN = (
            island.gather(a, ("tensor",), 1) for a in (x_BND, further.positions_BN)
        )
        further = Further(*(island.gather(a, mesh_lib.TOKEN_AXES, 1) for a in further))
        cached = KeysValues(*(island.gather(a, ("context",), 2) for a in cached))
        weights = self._whole(stored, x_BND.dtype)
        q_BNHh, k_BNKh, v_BNKh = self._project(x_BND, positions_BN, weights)
        own = KeysValues(
            *(jnp.moveaxis(island.gather(a, ("context",), 1), 1, 2) for a in (k_BNKh, v_BNKh))
        )
        first = island.index("context") * x_BND.shape[1]
        mixed_BNHh = attend_further(q_BNHh, own, cached, further, first)
        return island.sum_scatter(_mix(mixed_BNHh, weights), ("tensor",), 1)

    def _whole(self, stored: Weights, dtype: Any) -> Weights:
        """One device's heads of the stored projections, ready for use."""
        whole = self.island.whole
        return Weights(*(whole(w, a, dtype) for w, a in zip(stored, _AXES, strict=True)))

    def decode(
        self, x_B1D: jax.Array, cached: KeysValues, seen_BT: jax.Array, positions_B1: jax.Array
    ) -> tuple[jax.Array, KeysValues]:
        """One more token per row: output (B,1,D), and its own key and value, (B,K,1,h).

        Args:
          x_B1D: the new tokens.
          cached: keys and values of earlier tokens.
          seen_BT: bool, which of them the new token sees; it always sees itself.
          positions_B1: positions of the new tokens.
        """
        weights = Weights(*(w.astype(x_B1D.dtype) for w in self._weights()))
        q_BHh, k_BKh, v_BKh = (a[:, 0] for a in self._project(x_B1D, positions_B1, weights))
        mixed_BHh = attend_one(q_BHh, k_BKh, v_BKh, cached, seen_BT)
        return _mix(mixed_BHh[:, None], weights), KeysValues(k_BKh[:, :, None], v_BKh[:, :, None])

    def _project(
        self, x_BSD: jax.Array, positions_BS: jax.Array, weights: Weights
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        project = lambda kernel_DHh: checkpoint_name(  # noqa: E731
            jnp.einsum("bsd,dhk->bshk", x_BSD, kernel_DHh), "projections"
        )
        q_BSHh = rotary(project(weights.query_DHh), positions_BS, self.theta)
        k_BSKh = rotary(project(weights.key_DKh), positions_BS, self.theta)
        return q_BSHh, k_BSKh, project(weights.value_DKh)


def _specs() -> tuple[Any, Any]:
    """Specs of the stored projections, and of keys and values, in the places of the arrays."""
    specs: Any = map(mesh_lib.spec, _AXES)
    weights: Any = Weights(*specs)
    keys: Any = PartitionSpec(mesh_lib.WINDOW_AXES, "tensor", "context", None)
    return weights, KeysValues(keys, keys)


def _mix(mixed_BSHh: jax.Array, weights: Weights) -> jax.Array:
    return jnp.einsum("bshk,hkd->bsd", mixed_BSHh, weights.out_HhD)


def pick_backend(name: str, mesh: Mesh | None) -> str:
    """Resolves `auto` for the mesh's devices.

    Raises:
      ConfigError: the requested kernel does not run on these devices.
    """
    platform = mesh_lib.platform(mesh)
    if name == "auto":
        by_context = mesh is not None and mesh.shape["context"] > 1
        return default_backend(platform, not by_context)
    of = {"splash": "tpu", "cudnn": "gpu", "tokamax": "gpu"}.get(name, platform)
    if of != platform:
        raise ConfigError(
            f"config.model.attention_backend = {name!r}: is a kernel of {of.upper()}s, and the"
            f" devices are {platform.upper()}s; must be auto, or one that suits them"
        )
    return name

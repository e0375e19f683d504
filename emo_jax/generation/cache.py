"""The cache of keys and values of earlier tokens, and the two passes that fill and use it.

Generation has no pool (SPEC 2.5). With attention within documents, a token sees only its own
document, which begins after the last end-of-document token of the row; that token ends the document
before it, as in training.

Legend: L layers, B rows, S tokens of the padded prompts, T places in the cache, K heads of keys
and values, h head size, D width, R routed experts, V vocabulary rows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emo_jax.batch import PADDING_ID, Batch
from emo_jax.config import Config
from emo_jax.model.attention import KeysValues
from emo_jax.model.few_tokens import as_bits
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params, is_stacked


class Cache(NamedTuple):
    """What is kept for each row's tokens."""

    entries: KeysValues  # (L,B,K,T,h) in the compute dtype; arbitrary beyond the length
    start_B: jax.Array  # int32, the first place that the next token sees
    length_B: jax.Array  # int32, number of tokens; also the place and position of the next one


def inference_params(config: Config, params: Params) -> Params:
    """Weights in the dtype they are used in: cast once, not for every token.

    See `inference_dtype`; those of layers are stored as `model.few_tokens.as_bits` does.
    A host array that needs no cast may be used where it lies, so it must not be changed later.
    """

    def used(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        name = "/".join(key.key for key in path)
        cast = leaf
        if leaf.dtype != (dtype := inference_dtype(config, name)):
            cast = jnp.asarray(leaf, dtype)
        return jax.device_put(as_bits(cast) if is_stacked(name) else cast)

    return jax.tree_util.tree_map_with_path(used, params)


def inference_dtype(config: Config, path: str) -> jnp.dtype:
    """The dtype in which a leaf is used; that of the router and the norms is always float32."""
    in_float32 = {"router", "scale"} & set(path.split("/"))
    return jnp.dtype("float32" if in_float32 else config.model.compute_dtype)


def prefill(
    model: ModelFunctions,
    params: Params,
    tokens_BS: jax.Array,
    length_B: jax.Array,
    *,
    eos_id: int,
    places: int,
    keep_LR: jax.Array | None = None,
) -> tuple[Cache, jax.Array]:
    """Processes all prompts in one pass: the cache, and the logits (B,V) of each next token.

    Args:
      model: the model.
      params: its parameters.
      tokens_BS: prompts, int32; arbitrary beyond their lengths.
      length_B: lengths of the prompts, at least 1.
      eos_id: id that ends a document.
      places: T of the cache, at least S.
      keep_LR: bool, the routed experts that are used in each layer; None: all.
    """
    B, S = tokens_BS.shape
    place_BS = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
    there_BS = place_BS < length_B[:, None]
    ends_BS = (tokens_BS == eos_id) & there_BS
    ids_BS = jnp.cumsum(ends_BS, axis=1, dtype=jnp.int32) - ends_BS
    ids_BS = jnp.where(there_BS, ids_BS, PADDING_ID)
    nothing_BS = jnp.zeros_like(tokens_BS)
    batch = Batch(
        tokens=jnp.where(there_BS, tokens_BS, 0),
        labels=nothing_BS,
        loss_mask=nothing_BS,
        segment_ids=ids_BS,
        pool_ids=ids_BS,
        positions=place_BS,
        domain_ids=nothing_BS,
    )
    hidden_BSD, made = model.bind(params).prefill(batch, keep_LMR=_one_domain(keep_LR))
    assert made is not None
    more = ((0, 0), (0, 0), (0, 0), (0, places - S), (0, 0))
    entries = KeysValues(*(jnp.pad(a, more) for a in made))
    start_B = jnp.max(jnp.where(ends_BS, place_BS + 1, 0), axis=1)
    if model.config.model.attention == "window":
        start_B = jnp.zeros_like(start_B)
    last_BD = hidden_BSD[jnp.arange(B), length_B - 1]
    return Cache(entries, start_B, length_B), model.head(params, last_BD)


def _one_domain(keep_LR: jax.Array | None) -> jax.Array | None:
    return None if keep_LR is None else keep_LR[:, None]


def append(
    model: ModelFunctions,
    params: Params,
    tokens_B: jax.Array,
    cache: Cache,
    *,
    keep_LR: jax.Array | None = None,
) -> tuple[Cache, jax.Array]:
    """Appends one token per row: the new cache, and the logits (B,V) of each next token.

    Args:
      model: the model.
      params: its parameters.
      tokens_B: int32; below 0 means none: the row is unchanged and its logits are meaningless.
      cache: the cache so far.
      keep_LR: see `prefill`.
    """
    entries, start_B, length_B = cache
    B, T = entries.keys.shape[1], entries.keys.shape[3]
    place_1T = jnp.arange(T)[None]
    seen_BT = (place_1T >= start_B[:, None]) & (place_1T < length_B[:, None])
    hidden_BD, new = model.bind(params).decode(
        *(tokens_B, length_B, entries, seen_BT),
        domain_ids_B=jnp.zeros_like(tokens_B),
        keep_LMR=_one_domain(keep_LR),
    )
    # The layers only read the cache: it is written once, in place.
    entries = KeysValues(
        *(
            old.at[:, jnp.arange(B), :, length_B].set(jnp.moveaxis(one[:, :, :, 0], 1, 0))
            for old, one in zip(entries, new, strict=True)
        )
    )
    length_B = length_B + (tokens_B >= 0)
    return Cache(entries, start_B, length_B), model.head(params, hidden_BD)

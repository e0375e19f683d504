"""Ghost experts: in training, each document has one more expert, a mean of those of its pool.

As in the reference's open branch `emo_extend`: router row and weights of a document's ghost are the
same mean of the rows and weights of its pool's experts. All its tokens use the ghost, with its part
of a softmax over pool and ghost, and what it learns goes to the experts it is a mean of. It has no
parameters, and evaluation has no ghosts: they prepare a model for experts that are added later.

There is no array of documents: coefficients are kept by token, and the ghosts of a few documents
exist at a time, in a loop that ends with the last document of the windows.

Legend: B windows, S tokens, N = B·S, D width, R routed experts, F hidden size of an expert, q
documents of each window at a time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from emo_jax.config import MoeConfig
from emo_jax.moe.pools import DOCUMENT_BLOCK, Pools, pool_mask
from emo_jax.moe.router import RouterProbs, Routing

DOCUMENTS = 4  # q
LEAST_SUM = 1e-9  # of a document's probabilities, as in the reference
_HIGHEST = jax.lax.Precision.HIGHEST


class Ghosts(NamedTuple):
    """The ghost of each token's document. Floats are float32."""

    coefficients_BSR: jax.Array  # of the mean, the same for all tokens of a document; sum to 1
    gates_BS: jax.Array  # weight of the ghost for a token; 0 for padding
    ids_BS: jax.Array  # int32 document of each token, -1 for padding


def add_ghosts(
    routing: Routing,
    probs: RouterProbs,
    config: MoeConfig,
    document_ids_BS: jax.Array,
    seeds_B: jax.Array | None = None,
) -> tuple[Routing, Ghosts]:
    """The ghosts, and the routing with the weights that they leave to the experts.

    Args:
      routing, probs: from `choose`, with pools.
      document_ids_BS: int32, -1 for padding.
      seeds_B: uint32, one for each window, for `moe.ghosts` = "random".
    """
    logits_BSR, in_pool_BSR = probs.logits_BSR, probs.logits_BSR > -jnp.inf
    if config.ghosts == "usage":
        all_probs_BSR = probs.all_probs_BSR
        if config.ghost_detach:
            all_probs_BSR = lax.stop_gradient(all_probs_BSR)
        sums_BSR = document_sums(jnp.where(in_pool_BSR, all_probs_BSR, 0.0), document_ids_BS)
    elif config.ghosts == "uniform":
        sums_BSR = in_pool_BSR.astype(jnp.float32)
    else:
        assert seeds_B is not None
        S, R = logits_BSR.shape[1:]

        def noise(seed: jax.Array) -> jax.Array:
            return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), 1), (S, R))

        # Of sums of noise over the document, any set of a pool's experts is as likely.
        noise_BSR = jnp.where(in_pool_BSR, jax.vmap(noise)(seeds_B), 0.0)
        few = Pools(jnp.full(document_ids_BS.shape, config.ghost_sample, jnp.int32))
        drawn_BSR = pool_mask(noise_BSR, document_ids_BS, few) & in_pool_BSR
        sums_BSR = drawn_BSR.astype(jnp.float32)
    coefficients_BSR = sums_BSR / (sums_BSR.sum(-1, keepdims=True) + LEAST_SUM)
    ghost_BS = jnp.sum(coefficients_BSR * jnp.where(in_pool_BSR, logits_BSR, 0.0), axis=-1)
    pool_BS = jax.nn.logsumexp(logits_BSR, axis=-1)
    all_BS = jnp.logaddexp(pool_BS, ghost_BS)
    gates_BS = jnp.where(document_ids_BS >= 0, jnp.exp(ghost_BS - all_BS), 0.0)
    left_BS1 = jnp.exp(pool_BS - all_BS)[..., None]
    routing = routing._replace(weights_BSK=routing.weights_BSK * left_BS1)
    return routing, Ghosts(coefficients_BSR, gates_BS, document_ids_BS)


def ghost_outputs(
    x_BSD: jax.Array,
    ghosts: Ghosts,
    weights: Any,
    few_experts: Callable[[jax.Array, jax.Array, jax.Array, Any], jax.Array],
) -> jax.Array:
    """(B,S,D): gate · ghost(x), in the dtype of `x_BSD`.

    Args:
      weights: a pytree of weights of the experts, (E,…), E at least R; all in the compute dtype.
      few_experts: from x (N,D), weights (N,1), expert of each token (N,1) with one beyond the last
        for none, and some experts (n,…), makes the sums (N,D).
    """
    coefficients_BSR, gates_BS, ids_BS = ghosts
    B, S, D = x_BSD.shape
    R, q = coefficients_BSR.shape[-1], DOCUMENTS

    def block(i: jax.Array, ids_BS: jax.Array, arrays: Any) -> jax.Array:
        x_BSD, coefficients_BSR, gates_BS, weights = arrays
        member_BSq = ids_BS[..., None] == i * q + jnp.arange(q)
        one_hot_BSq = member_BSq.astype(jnp.float32)
        of_document_BqR = (
            jnp.einsum("bsq,bsr->bqr", one_hot_BSq, coefficients_BSR, precision=_HIGHEST)
            / jnp.maximum(one_hot_BSq.sum(1), 1.0)[..., None]
        )
        flat_nR = of_document_BqR.reshape(B * q, R)

        def mean(weight: jax.Array) -> jax.Array:
            flat = weight[:R].reshape(R, -1)
            made = jnp.dot(flat_nR.astype(flat.dtype), flat, preferred_element_type=jnp.float32)
            return made.astype(flat.dtype).reshape(B * q, *weight.shape[1:])

        number_BS = jnp.arange(B)[:, None] * q + ids_BS - i * q
        number_BS = jnp.where(member_BSq.any(-1), number_BS, B * q)
        return few_experts(
            x_BSD.reshape(B * S, D),
            gates_BS.reshape(B * S, 1),
            number_BS.reshape(B * S, 1),
            jax.tree.map(mean, weights),
        ).reshape(B, S, D)

    count = (ids_BS.max() + q) // q
    return _sum_of_blocks(block, count, ids_BS, (x_BSD, coefficients_BSR, gates_BS, weights))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_of_blocks(block, count, ids_BS, arrays):
    """Σ block(i, ids, arrays) for i below `count`, a value on the device; sums are in float32."""
    shape = jax.eval_shape(block, jnp.int32(0), ids_BS, arrays)

    def body(i, total):
        return total + block(i, ids_BS, arrays).astype(jnp.float32)

    total = lax.fori_loop(0, count, body, jnp.zeros(shape.shape, jnp.float32))
    return total.astype(shape.dtype)


def _forward(block, count, ids_BS, arrays):
    return _sum_of_blocks(block, count, ids_BS, arrays), (count, ids_BS, arrays)


def _backward(block, kept, grad):
    count, ids_BS, arrays = kept

    def body(i, total):
        grads = jax.vjp(lambda arrays: block(i, ids_BS, arrays), arrays)[1](grad)[0]
        return jax.tree.map(lambda t, g: t + g.astype(jnp.float32), total, grads)

    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), arrays)
    grads = lax.fori_loop(0, count, body, zeros)
    return None, None, jax.tree.map(lambda a, g: g.astype(a.dtype), arrays, grads)


_sum_of_blocks.defvjp(_forward, _backward)


@jax.custom_vjp
def document_sums(values_BSR: jax.Array, document_ids_BS: jax.Array) -> jax.Array:
    """(B,S,R) float32: for each token the sum over its document; zeros for padding."""
    block = DOCUMENT_BLOCK

    def body(i: jax.Array, total_BSR: jax.Array) -> jax.Array:
        member_BSg = document_ids_BS[..., None] == i * block + jnp.arange(block)
        one_hot_BSg = member_BSg.astype(jnp.float32)
        sums_BgR = jnp.einsum("bsg,bsr->bgr", one_hot_BSg, values_BSR, precision=_HIGHEST)
        return total_BSR + jnp.einsum("bsg,bgr->bsr", one_hot_BSg, sums_BgR, precision=_HIGHEST)

    count = (document_ids_BS.max() + block) // block
    return lax.fori_loop(0, count, body, jnp.zeros(values_BSR.shape, jnp.float32))


# The sum over one's own document is its own transpose.
document_sums.defvjp(
    lambda values_BSR, ids_BS: (document_sums(values_BSR, ids_BS), ids_BS),
    lambda ids_BS, grad_BSR: (document_sums(grad_BSR, ids_BS), None),
)

"""Training only what a document's likeliest experts compute (SPEC 10, extension_finetune_mode).

The forward pass is that of any other step. Picks outside of a document's likeliest experts, and all
shared experts, get no gradient for what they compute; with `detach_router` their probabilities get
none either.

Legend: B windows, S tokens, R routed experts, K picks.
"""

import jax
import jax.numpy as jnp

from emo_jax.moe.pools import Pools, pool_mask
from emo_jax.moe.router import RouterProbs, Routing


def likeliest(all_probs_BSR: jax.Array, document_ids_BS: jax.Array, number: int) -> jax.Array:
    """(B,S,R) bool: the `number` experts with the largest sums over each token's document.

    They are of all routed experts, whatever the document's pool.
    """
    return pool_mask(
        all_probs_BSR, document_ids_BS, Pools(jnp.full(document_ids_BS.shape, number, jnp.int32))
    )


def detach_router(
    routing: Routing, probs: RouterProbs, trained_BSR: jax.Array
) -> tuple[Routing, RouterProbs]:
    """The same numbers, without gradients of weights, probabilities and logits of other experts.

    What reaches them through the sum of a softmax is left, as in the reference.
    """

    def only(a: jax.Array, trained: jax.Array) -> jax.Array:
        return jnp.where(trained, a, jax.lax.stop_gradient(a))

    weights_BSK = only(routing.weights_BSK, _of_picks(routing, trained_BSR))
    return routing._replace(weights_BSK=weights_BSK), probs._replace(
        logits_BSR=only(probs.logits_BSR, trained_BSR),
        probs_BSR=only(probs.probs_BSR, trained_BSR),
    )


def split(routing: Routing, trained_BSR: jax.Array) -> tuple[Routing, Routing]:
    """The picks of experts that are trained, and the others; no expert computes what is not in."""
    R, trained_BSK = trained_BSR.shape[-1], _of_picks(routing, trained_BSR)

    def part(keep_BSK: jax.Array) -> Routing:
        weights_BSK = jnp.where(keep_BSK, routing.weights_BSK, 0.0)
        return Routing(weights_BSK, jnp.where(keep_BSK, routing.indices_BSK, R))

    return part(trained_BSK), part(~trained_BSK)


def _of_picks(routing: Routing, trained_BSR: jax.Array) -> jax.Array:
    R = trained_BSR.shape[-1]
    return jnp.take_along_axis(trained_BSR, jnp.minimum(routing.indices_BSK, R - 1), axis=-1)

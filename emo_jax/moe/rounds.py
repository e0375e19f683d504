"""Experts on other devices: tokens travel to them and back in rounds of a bounded size.

Each device of the `expert` axis sends every other one the rows of that device's experts. How many
they are depends on the routing, and in the worst case one device gets the rows of all. A round
moves a bounded number of them; rounds follow until all rows are through, and near balance there is
one. All devices know how many rows everybody has for every expert (one all-gather of the counts),
and agree on the number of rounds. Nothing is dropped, and no buffer has room for the worst case.

The backward pass repeats the rounds. It keeps nothing of a round, so that memory does not depend on
their number either: rows are sent again, and the experts' hidden values computed again.

Legend: N tokens of a device, K picks, M = N·K rows sorted by expert, D width, P devices on the
`expert` axis, Q experts on each of them, E = P·Q, r a round, c rows of a round that one device
sends another one, C rows of a round on a device, S rows that it sends in one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from emo_jax.moe import dispatch
from emo_jax.moe.dispatch import Permutation
from emo_jax.moe.exchange import Part, Way, parts_of
from emo_jax.parallel.island import Held


class Compute(NamedTuple):
    """What a device does with the rows of a round; hashable.

    Args:
      way: how rows travel.
      routed: the sum over picks of weight · expert(token), from tokens (C,D), weights (C,1), the
        `Permutation` of the rows and the held weights.
      num_experts: Q.
      parts: in which a round is computed: while one is, others travel. Divides `way.rows`.
    """

    way: Way
    routed: Callable[..., jax.Array]
    num_experts: int
    parts: int = 1

    def order(self, plan: Any, part: Part) -> Permutation:
        """The order of a part's rows by expert; each is a token with one pick."""
        return dispatch.sort_by_expert(self.way.experts(plan, part)[:, None], self.num_experts)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def in_rounds(
    compute: Compute, x_ND: jax.Array, weights_NK: jax.Array, held: tuple[Held, ...], plan: Any
) -> jax.Array:
    """(N,D): Σ_k weight · expert(x) over the routed picks of this device's tokens.

    Args:
      x_ND: tokens, in the compute dtype.
      weights_NK: float32 routing weights.
      held: this device's experts. The gradient of a weight is that of its anchor, in float32 and
        not summed over devices: `Island.hold(in_loop=True)`.
      plan: of `compute.way`.
    """
    return _forward(compute, x_ND, weights_NK, held, plan)[0]


def _forward(compute, x_ND, weights_NK, held, plan):
    way = compute.way
    ready_ND, ready_M1 = way.ready(x_ND, plan), way.ready_picks(weights_NK, plan)

    def body(carry):
        r, sums = carry
        parts, backs = parts_of(r, way.rows, compute.parts), []
        for part in parts:
            with jax.named_scope("dispatch"):
                rows_CD = way.fetch(ready_ND, plan, part)
                weights_C1 = way.fetch_picks(ready_M1, plan, part)
                order = compute.order(plan, part)
            y_CD = compute.routed(rows_CD, weights_C1, order, held)
            with jax.named_scope("dispatch"):
                backs.append(way.back(y_CD, part))
        with jax.named_scope("dispatch"):
            return r + 1, way.add(sums, backs, plan, parts)

    _, sums = lax.while_loop(
        lambda carry: carry[0] < plan.rounds, body, (jnp.int32(0), way.nothing(x_ND, plan))
    )
    out_ND = way.sums(sums, plan).astype(x_ND.dtype)
    return out_ND, (x_ND, weights_NK, held, plan)


def _backward(compute, kept, grad_ND):
    x_ND, weights_NK, held, plan = kept
    way = compute.way
    weights, anchors = zip(*held, strict=True)
    ready_ND, ready_M1 = way.ready(x_ND, plan), way.ready_picks(weights_NK, plan)
    ready_grad_ND = way.ready(grad_ND, plan)

    def body(carry):
        r, dx, dweights, danchors = carry
        # In one part, since each adds up the gradients of all experts. What is left to compute
        # while rows travel: hidden values while gradients come, and the weights' gradients while
        # those of tokens go.
        (part,) = parts = parts_of(r, way.rows, 1)
        with jax.named_scope("dispatch"):
            rows_CD = way.fetch(ready_ND, plan, part)
            weights_C1 = way.fetch_picks(ready_M1, plan, part)
            grad_CD = way.fetch(ready_grad_ND, plan, part)
            order = compute.order(plan, part)

        def again(rows_CD, weights_C1, anchors):
            of = tuple(Held(w, a) for w, a in zip(weights, anchors, strict=True))
            return compute.routed(rows_CD, weights_C1, order, of)

        _, pull = jax.vjp(again, rows_CD, weights_C1, anchors)
        drows_CD, dweights_C1, more = pull(grad_CD)
        with jax.named_scope("dispatch"):
            return (
                r + 1,
                way.add(dx, [way.back(drows_CD, part)], plan, parts),
                way.add_picks(dweights, [way.back(dweights_C1, part)], plan, parts),
                jax.tree.map(jnp.add, danchors, more),
            )

    start = (
        jnp.int32(0),
        way.nothing(x_ND, plan),
        way.no_picks(plan),
        jax.tree.map(jnp.zeros_like, anchors),
    )
    _, dx, dweights, danchors = lax.while_loop(lambda carry: carry[0] < plan.rounds, body, start)
    dheld = tuple(Held(jnp.zeros_like(w), da) for w, da in zip(weights, danchors, strict=True))
    return (
        way.sums(dx, plan).astype(x_ND.dtype),
        way.picks(dweights, plan).astype(weights_NK.dtype),
        dheld,
        None,
    )


in_rounds.defvjp(_forward, _backward)

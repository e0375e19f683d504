"""The expert computation: `experts(x, routing, weights)`, dropless.

Legend: B windows, S tokens, D width, E experts (shared ones last), R routed, s shared, K picks,
F hidden size of an expert.
"""

from typing import NamedTuple

import jax
from jax.sharding import Mesh

from emo_jax.moe import blocked, dispatch, grouped
from emo_jax.moe.router import Routing
from emo_jax.parallel.mesh import over_windows


class ExpertWeights(NamedTuple):
    """Weights of all experts of a layer, in the compute dtype."""

    gate_EDF: jax.Array
    up_EDF: jax.Array
    down_EFD: jax.Array


def pick_backend(name: str) -> str:
    """`auto` is `blocked` on the CPU, where XLA's ragged_dot is dense, else `ragged_dot`."""
    if name != "auto":
        return name
    return "blocked" if jax.default_backend() == "cpu" else "ragged_dot"


def experts(
    x_BSD: jax.Array,
    routing: Routing,
    weights: ExpertWeights,
    *,
    num_shared_experts: int,
    backend: str = "auto",
    mesh: Mesh | None = None,
) -> jax.Array:
    """(B,S,D): Σ over the routed picks of weight · expert(x), plus every shared expert of x.

    Every token reaches every expert it chose: there is no capacity. On a mesh each device computes
    its own windows with all experts' weights.
    """
    backend = pick_backend(backend)

    def local(x_BSD, routing, weights):
        return _local_experts(x_BSD, routing, weights, num_shared_experts, backend)

    return over_windows(mesh, local, num_replicated=1)(x_BSD, routing, weights)


def _local_experts(
    x_BSD: jax.Array,
    routing: Routing,
    weights: ExpertWeights,
    num_shared_experts: int,
    backend: str,
) -> jax.Array:
    B, S, D = x_BSD.shape
    E, K = weights.gate_EDF.shape[0], routing.indices_BSK.shape[-1]
    R = E - num_shared_experts
    x_ND = x_BSD.reshape(B * S, D)
    perm = dispatch.sort_by_expert(routing.indices_BSK.reshape(-1, K), R)
    weights_NK = routing.weights_BSK.reshape(-1, K)
    if backend == "blocked":
        out_ND = blocked.routed_swiglu(x_ND, weights_NK, perm, *weights)
    else:
        rows_MD = dispatch.gather_rows(x_ND, perm)
        y_MD = grouped.grouped_swiglu(rows_MD, *weights, perm.group_sizes_R)
        out_ND = dispatch.combine_rows(y_MD, weights_NK, perm)
    # A shared expert sees every token with weight 1: plain matmuls, no routing.
    for e in range(R, E):
        hidden_NF = grouped.swiglu(x_ND @ weights.gate_EDF[e], x_ND @ weights.up_EDF[e])
        out_ND = out_ND + hidden_NF @ weights.down_EFD[e]
    return out_ND.reshape(B, S, D)

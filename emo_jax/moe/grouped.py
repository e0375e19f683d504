"""SwiGLU of every expert on its own rows, as grouped matmuls: the form of an accelerator.

Legend: M rows sorted by expert, R routed experts, D width, F hidden size of an expert.
"""

import jax
from jax import lax


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) · up."""
    return jax.nn.silu(gate) * up


def grouped_swiglu(
    x_MD: jax.Array,
    gate_RDF: jax.Array,
    up_RDF: jax.Array,
    down_RFD: jax.Array,
    group_sizes_R: jax.Array,
) -> jax.Array:
    """(M,D): down( silu(gate(x)) · up(x) ) with the weights of each row's expert.

    Rows beyond the sum of the group sizes give zero. The weight arrays may hold more experts than
    there are groups (the shared ones, last): those get a zero gradient here.
    """
    R = group_sizes_R.shape[0]
    gate_MF = lax.ragged_dot(x_MD, gate_RDF[:R], group_sizes_R)
    up_MF = lax.ragged_dot(x_MD, up_RDF[:R], group_sizes_R)
    return lax.ragged_dot(swiglu(gate_MF, up_MF), down_RFD[:R], group_sizes_R)

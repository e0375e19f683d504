"""SwiGLU of every expert on its own rows: the grouped-matmul back ends.

`blocked` is the CPU form. XLA:CPU runs a large two-dimensional dot at several times the rate of
many small batched ones, and its `ragged_dot` is dense. So rows are taken in blocks that belong to
one expert, each block a few plain dots, in a loop whose length is the number of blocks there are.

Legend: M rows sorted by expert, m rows of a block, R routed experts, D width, F hidden size of an
expert, G = 2F.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

BLOCK_ROWS = 128


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) · up."""
    return jax.nn.silu(gate) * up


def grouped_swiglu(
    x_MD: jax.Array,
    gate_RDF: jax.Array,
    up_RDF: jax.Array,
    down_RFD: jax.Array,
    group_sizes_R: jax.Array,
    *,
    backend: str,
) -> jax.Array:
    """(M,D): down( silu(gate(x)) · up(x) ) with the weights of each row's expert.

    Rows beyond the sum of the group sizes give zero. The weight arrays may hold more experts than
    there are groups (the shared ones, last): those get a zero gradient here.

    Args:
      backend: `blocked` or `ragged_dot`.
    """
    if backend == "blocked":
        return _blocked(x_MD, gate_RDF, up_RDF, down_RFD, group_sizes_R)
    R = group_sizes_R.shape[0]
    gate_MF = lax.ragged_dot(x_MD, gate_RDF[:R], group_sizes_R)
    up_MF = lax.ragged_dot(x_MD, up_RDF[:R], group_sizes_R)
    return lax.ragged_dot(swiglu(gate_MF, up_MF), down_RFD[:R], group_sizes_R)


class _Blocks:
    """Block j covers rows start..start+BLOCK_ROWS of one expert; the last of an expert overruns.

    Overrunning rows belong to later experts (or are padding), whose blocks come later: what is
    written there is written again. Where sums are taken they are masked out.
    """

    def __init__(self, group_sizes_R: jax.Array, num_rows: int):
        self.rows = min(BLOCK_ROWS, num_rows)
        self.sizes_R = group_sizes_R
        self.starts_R = jnp.cumsum(group_sizes_R) - group_sizes_R
        blocks_R = (group_sizes_R + self.rows - 1) // self.rows
        self.ends_R = jnp.cumsum(blocks_R)  # blocks of experts 0..r
        self.first_R = self.ends_R - blocks_R
        self.count = self.ends_R[-1]

    def locate(self, j: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Expert, first row, and which rows (rows,1) are this expert's."""
        expert = jnp.searchsorted(self.ends_R, j, side="right", method="compare_all")
        offset = (j - self.first_R[expert]) * self.rows
        valid_m1 = (jnp.arange(self.rows) < self.sizes_R[expert] - offset)[:, None]
        return expert, self.starts_R[expert] + offset, valid_m1


def _pad_rows(x_MD: jax.Array, rows: int) -> jax.Array:
    return jnp.pad(x_MD, ((0, rows), (0, 0)))


def _slice(x_MD: jax.Array, start: jax.Array, rows: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x_MD, start, rows, 0)


def _expert(w_RDF: jax.Array, expert: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(w_RDF, expert, 0, keepdims=False)


_dot = partial(jnp.dot, preferred_element_type=jnp.float32)


def _blocked(x_MD, gate_RDF, up_RDF, down_RFD, group_sizes_R):
    # Side by side, gate and up are one dot of twice the width, forward and backward.
    gate_up_RDG = jnp.concatenate([gate_RDF, up_RDF], axis=-1)
    return _blocked_swiglu(x_MD, gate_up_RDG, down_RFD, group_sizes_R)


def _swiglu_halves(gate_up_mG: jax.Array) -> jax.Array:
    return swiglu(*jnp.split(gate_up_mG, 2, axis=-1))


@jax.custom_vjp
def _blocked_swiglu(x_MD, gate_up_RDG, down_RFD, group_sizes_R):
    return _blocked_fwd(x_MD, gate_up_RDG, down_RFD, group_sizes_R)[0]


def _blocked_fwd(x_MD, gate_up_RDG, down_RFD, group_sizes_R):
    (M, D), dtype = x_MD.shape, x_MD.dtype
    blocks = _Blocks(group_sizes_R, M)
    padded_MD = _pad_rows(x_MD, blocks.rows)
    rows = padded_MD.shape[0]

    def body(j, carry):
        y_MD, hidden_MG = carry
        expert, start, valid_m1 = blocks.locate(j)
        x_mD = _slice(padded_MD, start, blocks.rows)
        hidden_mG = _dot(x_mD, _expert(gate_up_RDG, expert)).astype(dtype)
        y_mD = _dot(_swiglu_halves(hidden_mG), _expert(down_RFD, expert)).astype(dtype)
        put = partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return put(y_MD, jnp.where(valid_m1, y_mD, 0)), put(hidden_MG, hidden_mG)

    zeros = (jnp.zeros((rows, D), dtype), jnp.zeros((rows, gate_up_RDG.shape[-1]), dtype))
    y_MD, hidden_MG = lax.fori_loop(0, blocks.count, body, zeros)
    return y_MD[:M], (x_MD, gate_up_RDG, down_RFD, group_sizes_R, hidden_MG)


def _blocked_bwd(residuals, grad_MD):
    x_MD, gate_up_RDG, down_RFD, group_sizes_R, hidden_MG = residuals
    M, dtype = x_MD.shape[0], x_MD.dtype
    blocks = _Blocks(group_sizes_R, M)
    padded_MD = _pad_rows(x_MD, blocks.rows)
    padded_grad_MD = _pad_rows(grad_MD, blocks.rows)

    def body(j, carry):
        dx_MD, dgate_up_RDG, ddown_RFD = carry
        expert, start, valid_m1 = blocks.locate(j)
        take = partial(_slice, start=start, rows=blocks.rows)
        x_mD = take(padded_MD)
        # Rows of other experts are zeroed once, here: every gradient below is then zero for them.
        grad_mD = jnp.where(valid_m1, take(padded_grad_MD), 0)
        act_mF, act_vjp = jax.vjp(_swiglu_halves, take(hidden_MG))
        (dhidden_mG,) = act_vjp(_dot(grad_mD, _expert(down_RFD, expert).T).astype(dtype))
        dx_mD = _dot(dhidden_mG, _expert(gate_up_RDG, expert).T).astype(dtype)

        def add(total_R, part):
            old = _expert(total_R, expert)
            return lax.dynamic_update_index_in_dim(total_R, old + part, expert, 0)

        return (
            lax.dynamic_update_slice_in_dim(dx_MD, dx_mD, start, 0),
            add(dgate_up_RDG, _dot(x_mD.T, dhidden_mG)),
            add(ddown_RFD, _dot(act_mF.T, grad_mD)),
        )

    # Weight gradients gather many blocks: summed in float32, then cast to the weights' dtype.
    zeros = (
        jnp.zeros(padded_MD.shape, dtype),
        jnp.zeros(gate_up_RDG.shape, jnp.float32),
        jnp.zeros(down_RFD.shape, jnp.float32),
    )
    dx_MD, dgate_up_RDG, ddown_RFD = lax.fori_loop(0, blocks.count, body, zeros)
    return dx_MD[:M], dgate_up_RDG.astype(dtype), ddown_RFD.astype(dtype), None


_blocked_swiglu.defvjp(_blocked_fwd, _blocked_bwd)

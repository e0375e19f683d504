"""Routed experts on a CPU: a loop over experts and, within it, over blocks of their tokens.

XLA:CPU runs a two-dimensional dot of a few hundred rows at nearly full speed but many small batched
dots at a fraction of it, and its `ragged_dot` is dense. So each block is a few plain dots, and both
loops run only as long as there is work: experts without tokens cost nothing. The routing weight is
applied to the hidden activations, where an expert is narrowest, so that no output row is kept or
reread for its gradient. The backward pass keeps the input and the hidden projections; the rest is
gathered again, which is cheaper than storing and loading it.

Legend: N tokens, K picks, M = N·K rows sorted by expert, m rows per block, R routed experts, D
width, F hidden size of an expert, G = 2F (gate and up side by side: one dot of twice the width).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from emo_jax.moe.dispatch import Permutation, rows_of, sum_rows

BLOCK_ROWS = 512  # 256 takes 1.05 times as long a step (experiments/bench_cpu.py)


def routed_swiglu(
    x_ND: jax.Array,
    weights_NK: jax.Array,
    perm: Permutation,
    gate_up_EDG: jax.Array,
    down_EFD: jax.Array,
) -> jax.Array:
    """(N,D): Σ_k weight · expert(x) over the routed picks, in the dtype of `x_ND`.

    Args:
      x_ND: tokens, in the compute dtype, like the expert weights.
      weights_NK: float32 routing weights; 0 where a pick has no expert.
      perm: `sort_by_expert` of the picks.
      gate_up_EDG, down_EFD: may contain more experts than there are groups (the shared ones,
        last): those get a zero gradient here.
    """
    return _routed(x_ND, weights_NK, gate_up_EDG, down_EFD, perm)


_dot = partial(jnp.dot, preferred_element_type=jnp.float32)


def _take(x_MD: jax.Array, start: jax.Array, rows: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x_MD, start, rows, 0)


def _put(x_MD: jax.Array, rows_mD: jax.Array, start: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(x_MD, rows_mD, start, 0)


def _put_expert(w_EDF: jax.Array, w_DF: jax.Array, expert: jax.Array) -> jax.Array:
    return lax.dynamic_update_index_in_dim(w_EDF, w_DF, expert, 0)


class _Experts:
    """Maps experts to their rows. An expert's last block overruns into the next expert's rows.

    What it writes there is overwritten by the next expert, which runs later; a spare block follows
    the last row. Sums mask out other experts' rows.
    """

    def __init__(self, perm: Permutation):
        (M,) = perm.token_M.shape
        self.sizes_R = perm.group_sizes_R
        self.rows = min(BLOCK_ROWS, M)
        # Experts with tokens sort first: the outer loop ends after the last of them.
        self._order_R = jnp.argsort(self.sizes_R == 0, stable=True)
        self._count = (self.sizes_R > 0).sum()
        self._starts_R = jnp.cumsum(self.sizes_R) - self.sizes_R
        spare = (0, self.rows)
        self.token_M = jnp.pad(perm.token_M, spare)  # padded with token 0: finite, never used
        self.num_rows = M + self.rows

    def loop(self, body, carry):
        """Runs carry = body(expert, carry) for every expert that has rows."""
        return lax.fori_loop(0, self._count, lambda i, c: body(self._order_R[i], c), carry)

    def blocks(self, expert, body, carry):
        """Runs carry = body(first row, mask (m,1) of this expert's rows, carry) for each block."""
        size, first = self.sizes_R[expert], self._starts_R[expert]

        def block(j, carry):
            own_m1 = (jnp.arange(self.rows) < size - j * self.rows)[:, None]
            return body(first + j * self.rows, own_m1, carry)

        return lax.fori_loop(0, (size + self.rows - 1) // self.rows, block, carry)


def _weight_rows(weights_NK: jax.Array, perm: Permutation, spare: int) -> jax.Array:
    """(M+spare,1): the weight of each sorted row."""
    return jnp.pad(weights_NK.reshape(-1)[perm.pick_M], (0, spare))[:, None]


@jax.custom_vjp
def _routed(x_ND, weights_NK, gate_up_EDG, down_EFD, perm):
    return _routed_fwd(x_ND, weights_NK, gate_up_EDG, down_EFD, perm)[0]


def _routed_fwd(x_ND, weights_NK, gate_up_EDG, down_EFD, perm):
    D, F, dtype = x_ND.shape[1], down_EFD.shape[1], x_ND.dtype
    of = _Experts(perm)
    x_MD = x_ND[of.token_M]
    weight_M1 = _weight_rows(weights_NK, perm, of.rows)

    def expert(e, carry):
        gate_up_DG, down_FD = gate_up_EDG[e], down_EFD[e]

        def block(start, _, carry):
            y_MD, hidden_MG = carry
            hidden_mG = _dot(_take(x_MD, start, of.rows), gate_up_DG).astype(dtype)
            gate_mF, up_mF = hidden_mG[:, :F], hidden_mG[:, F:]
            weighted_mF = jax.nn.silu(gate_mF) * up_mF * _take(weight_M1, start, of.rows)
            y_mD = _dot(weighted_mF.astype(dtype), down_FD).astype(dtype)
            return _put(y_MD, y_mD, start), _put(hidden_MG, hidden_mG, start)

        return of.blocks(e, block, carry)

    empty = jnp.zeros((of.num_rows, D), dtype), jnp.zeros((of.num_rows, 2 * F), dtype)
    y_MD, hidden_MG = of.loop(expert, empty)
    hidden_MG = checkpoint_name(hidden_MG, "expert_hidden")
    out_ND = sum_rows(y_MD, perm.row_NK).astype(dtype)
    return out_ND, (x_ND, weights_NK, gate_up_EDG, down_EFD, perm, hidden_MG)


def _routed_bwd(residuals, grad_ND):
    x_ND, weights_NK, gate_up_EDG, down_EFD, perm, hidden_MG = residuals
    D, F, dtype = x_ND.shape[1], down_EFD.shape[1], x_ND.dtype
    of = _Experts(perm)
    x_MD, grad_MD = x_ND[of.token_M], grad_ND[of.token_M]
    weight_M1 = _weight_rows(weights_NK, perm, of.rows)

    def expert(e, carry):
        dx_MD, dweight_M1, dgate_up_EDG, ddown_EFD = carry
        gate_up_GD, down_DF = gate_up_EDG[e].T, down_EFD[e].T

        def block(start, own_m1, carry):
            dx_MD, dweight_M1, dgate_up_DG, ddown_FD = carry
            # Other experts' rows are zeroed once, here, which zeroes every gradient below too.
            grad_mD = jnp.where(own_m1, _take(grad_MD, start, of.rows), 0)
            hidden_mG = _take(hidden_MG, start, of.rows).astype(jnp.float32)
            weight_m1 = _take(weight_M1, start, of.rows)
            gate_mF, up_mF = hidden_mG[:, :F], hidden_mG[:, F:]
            sigmoid_mF = jax.nn.sigmoid(gate_mF)
            silu_mF = gate_mF * sigmoid_mF
            act_mF = silu_mF * up_mF
            dweighted_mF = _dot(grad_mD, down_DF)
            dweight_m1 = (dweighted_mF * act_mF).sum(axis=-1, keepdims=True)
            dact_mF = dweighted_mF * weight_m1
            dsilu_mF = sigmoid_mF + silu_mF * (1.0 - sigmoid_mF)
            dhidden_mG = jnp.concatenate(
                [dact_mF * up_mF * dsilu_mF, dact_mF * silu_mF], axis=-1
            ).astype(dtype)
            weighted_mF = (act_mF * weight_m1).astype(dtype)
            return (
                _put(dx_MD, _dot(dhidden_mG, gate_up_GD).astype(dtype), start),
                _put(dweight_M1, dweight_m1, start),
                dgate_up_DG + _dot(_take(x_MD, start, of.rows).T, dhidden_mG),
                ddown_FD + _dot(weighted_mF.T, grad_mD),
            )

        # Weight gradients sum over many blocks: in float32, then cast to the weights' dtype.
        zeros = jnp.zeros((D, 2 * F), jnp.float32), jnp.zeros((F, D), jnp.float32)
        dx_MD, dweight_M1, dgate_up_DG, ddown_FD = of.blocks(e, block, (dx_MD, dweight_M1, *zeros))
        return (
            dx_MD,
            dweight_M1,
            _put_expert(dgate_up_EDG, dgate_up_DG.astype(dtype), e),
            _put_expert(ddown_EFD, ddown_FD.astype(dtype), e),
        )

    zeros = jnp.zeros((of.num_rows, D), dtype), jnp.zeros((of.num_rows, 1), jnp.float32)
    dx_MD, dweight_M1, *dweights = of.loop(
        expert, (*zeros, *(jnp.zeros_like(w) for w in (gate_up_EDG, down_EFD)))
    )
    dx_ND = sum_rows(dx_MD, perm.row_NK).astype(dtype)
    return dx_ND, rows_of(dweight_M1[:, 0], perm.row_NK), *dweights, None


_routed.defvjp(_routed_fwd, _routed_bwd)

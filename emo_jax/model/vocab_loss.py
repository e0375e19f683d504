"""Cross-entropy over the vocabulary in chunks: the logits of all tokens never exist at once.

Each chunk's gradient is computed while its logits exist, so the backward pass repeats no matmul:
three vocabulary matmuls in all.

Legend: B windows, S tokens, C tokens per chunk, D width, V vocabulary rows.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from emo_jax.model.params import HEAD_AXES
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.parallel.island import Island


class VocabLoss(NamedTuple):
    """Float32 sums over the tokens whose label counts. No gradient flows through them."""

    ce_sum: jax.Array  # cross-entropy, nats
    z_sum: jax.Array  # logsumexp²
    ce_BS: jax.Array  # cross-entropy of each token, 0 where masked


def _chunk_logits(x_BCD: jax.Array, kernel_DV: jax.Array, vocab_size: int) -> jax.Array:
    B, C, D = x_BCD.shape
    logits_NV = jnp.dot(x_BCD.reshape(B * C, D), kernel_DV, preferred_element_type=jnp.float32)
    if vocab_size < kernel_DV.shape[1]:
        logits_NV = jnp.where(jnp.arange(kernel_DV.shape[1]) < vocab_size, logits_NV, -jnp.inf)
    return logits_NV


def _chunks(x_BS: jax.Array, num_chunks: int) -> jax.Array:
    """(B,S,…) -> (chunks,B,C,…): each chunk has a part of every window, as devices do."""
    B, S, *rest = x_BS.shape
    return jnp.moveaxis(x_BS.reshape(B, num_chunks, S // num_chunks, *rest), 1, 0)


def _unchunk(x_nBC: jax.Array) -> jax.Array:
    n, B, C, *rest = x_nBC.shape
    return jnp.moveaxis(x_nBC, 0, 1).reshape(B, n * C, *rest)


def vocab_loss(
    hidden_BSD: jax.Array,
    kernel_DV: jax.Array,
    labels_BS: jax.Array,
    mask_BS: jax.Array,
    vocab_size: int,
    z_weight: float,
    chunk: int,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, VocabLoss]:
    """Σ mask · (cross-entropy + z_weight · logsumexp²) and its parts.

    On a mesh each device processes its own tokens with the whole output matrix; the gradient of the
    matrix is split into the stored pieces at once, so that no device keeps all of it during the
    backward pass.

    Args:
      hidden_BSD: hidden states after the final norm, in the compute dtype.
      kernel_DV: output matrix as stored; columns from `vocab_size` on get no probability.
      labels_BS: int32; arbitrary where `mask_BS` is 0.
      mask_BS: float32, 1 where the label counts.
      chunk: tokens of a window whose logits exist at once.
    """
    with jax.named_scope("vocab_loss"):
        setting = _Setting(vocab_size, z_weight, chunk, mesh)
        return _vocab_loss(hidden_BSD, kernel_DV, labels_BS, mask_BS, setting)


class _Setting(NamedTuple):
    vocab_size: int
    z_weight: float
    chunk: int
    mesh: Mesh | None


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _vocab_loss(hidden_BSD, kernel_DV, labels_BS, mask_BS, setting):
    return _on_mesh(hidden_BSD, kernel_DV, labels_BS, mask_BS, setting, with_grads=False)[0]


def _fwd(hidden_BSD, kernel_DV, labels_BS, mask_BS, setting):
    return _on_mesh(hidden_BSD, kernel_DV, labels_BS, mask_BS, setting, with_grads=True)


def _bwd(setting, grads, cotangents):
    scale = cotangents[0]
    return *((grad * scale).astype(grad.dtype) for grad in grads), None, None


_vocab_loss.defvjp(_fwd, _bwd)


def _on_mesh(hidden_BSD, kernel_DV, labels_BS, mask_BS, setting, *, with_grads):
    """(loss, parts), and the gradients of the hidden states and stored kernel, or None."""
    island = Island(setting.mesh)

    def local(hidden_BSD, stored_DV, labels_BS, mask_BS):
        kernel_DV = island.whole(stored_DV, HEAD_AXES, hidden_BSD.dtype)
        S = hidden_BSD.shape[1]
        num_chunks = -(-S // setting.chunk)
        pad = -S % num_chunks  # makes chunks equal; padding is masked
        hidden_BSD = jnp.pad(hidden_BSD, ((0, 0), (0, pad), (0, 0)))
        labels_BS, mask_BS = (jnp.pad(a, ((0, 0), (0, pad))) for a in (labels_BS, mask_BS))
        parts, grads = _forward(
            *(hidden_BSD, kernel_DV, labels_BS, mask_BS),
            *(setting.vocab_size, setting.z_weight, num_chunks, with_grads),
        )
        parts = VocabLoss(island.sum(parts.ce_sum), island.sum(parts.z_sum), parts.ce_BS[:, :S])
        if grads is None:
            return parts, None
        grad_x_BSD, grad_DV = grads
        axes = mesh_lib.stored_over(HEAD_AXES)[0]
        grad_DV = island.sum(island.sum_scatter(grad_DV, axes, 0), ("replica",))
        # Tied, so that no layer's backward pass begins while the whole gradient still exists.
        return parts, jax.lax.optimization_barrier(
            (grad_x_BSD[:, :S], grad_DV.astype(stored_DV.dtype))
        )

    tokens: Any = mesh_lib.windows_spec(1)
    ids: Any = mesh_lib.windows_spec()
    stored = mesh_lib.spec(HEAD_AXES)
    total: Any = PartitionSpec()
    parts, grads = island.run(
        local,
        (tokens, stored, ids, ids),
        (
            VocabLoss(total, total, ids),
            (tokens, stored) if with_grads else None,
        ),
    )(hidden_BSD, kernel_DV, labels_BS, mask_BS)
    return (parts.ce_sum + setting.z_weight * parts.z_sum, parts), grads


def _forward(hidden_BSD, kernel_DV, labels_BS, mask_BS, vocab_size, z_weight, n, with_grads):
    D, V = kernel_DV.shape

    def one_chunk(carry, parts):
        ce_sum, z_sum, grad_kernel_DV = carry
        x_BCD, labels_BC, mask_BC = parts
        labels_N, mask_N = labels_BC.reshape(-1), mask_BC.reshape(-1)
        labels_N = jnp.where(mask_N > 0, labels_N, 0)
        logits_NV = _chunk_logits(x_BCD, kernel_DV, vocab_size)
        lse_N = jax.nn.logsumexp(logits_NV, axis=-1)
        label_logit_N = jnp.take_along_axis(logits_NV, labels_N[:, None], axis=1)[:, 0]
        ce_N = (lse_N - label_logit_N) * mask_N
        ce_sum, z_sum = ce_sum + ce_N.sum(), z_sum + (lse_N**2 * mask_N).sum()
        grad_x_BCD = None
        if with_grads:
            # d/dlogits of CE + z·lse²: softmax · (1 + 2·z·lse) − one-hot.
            scale_N = (1.0 + 2.0 * z_weight * lse_N) * mask_N
            probs_NV = jnp.exp(logits_NV - lse_N[:, None]) * scale_N[:, None]
            is_label_NV = jnp.arange(V) == labels_N[:, None]
            dlogits_NV = probs_NV - jnp.where(is_label_NV, mask_N[:, None], 0.0)
            dlogits_NV = dlogits_NV.astype(kernel_DV.dtype)
            x_ND = x_BCD.reshape(-1, D)
            grad_x_ND = jnp.dot(dlogits_NV, kernel_DV.T, preferred_element_type=jnp.float32)
            grad_x_BCD = grad_x_ND.astype(x_BCD.dtype).reshape(x_BCD.shape)
            grad_kernel_DV = grad_kernel_DV + jnp.dot(
                x_ND.T, dlogits_NV, preferred_element_type=jnp.float32
            )
        return (ce_sum, z_sum, grad_kernel_DV), (ce_N.reshape(mask_BC.shape), grad_x_BCD)

    zero = jnp.zeros((), jnp.float32)
    start = (zero, zero, jnp.zeros((D, V), jnp.float32) if with_grads else None)
    xs = tuple(_chunks(a, n) for a in (hidden_BSD, labels_BS, mask_BS))
    (ce_sum, z_sum, grad_kernel_DV), (ce_nBC, grad_x_nBCD) = jax.lax.scan(one_chunk, start, xs)
    parts = VocabLoss(ce_sum, z_sum, _unchunk(ce_nBC))
    return parts, (_unchunk(grad_x_nBCD), grad_kernel_DV) if with_grads else None

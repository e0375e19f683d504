"""The core of attention: one adapter per back end.

All of them are causal, scale by 1/√h, and compute the softmax in float32. Padding (id -1) neither
attends nor is attended to: its output rows and gradients are 0. With a context axis, a device has
part of a window's queries and the keys of the whole window.

| back end | what it is | documents | with a context axis |
|---|---|---|---|
| blocked | `blocked_attention.py`, for CPUs | mask | all keys, none skipped |
| splash | JAX's kernel for TPUs | segment ids | blocks above the diagonal skipped |
| tokamax | Mosaic or Triton for GPUs | a range of keys for each query | the same |
| cudnn | through jax.nn; bfloat16 | a bias of S·T numbers per window | also a bias |
| xla | jax.nn, all scores in memory | mask | mask |

Legend: B windows, S queries, T keys, H heads, K heads of keys and values (query heads
kH/K.. read head k), h head size, n devices on the context axis, T = n·S.
"""

import logging
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from emo_jax.errors import UsageError
from emo_jax.model.blocked_attention import blocked_attention
from emo_jax.parallel import private
from emo_jax.parallel.kernels import load_tokamax, register_tpu_info

_LOG = logging.getLogger(__name__)

# Queries and keys per block of the splash kernel: MaxText's defaults, not measured here.
SPLASH_BLOCK = 512
LANES = 128  # a block's keys are a multiple of this


def attention_mask(
    q_ids_BS: jax.Array,
    k_ids_BT: jax.Array,
    *,
    within_document: bool,
    first_query: jax.Array | int | None = None,
) -> jax.Array:
    """(B,S,T) bool: which keys each query sees; never later ones or padding.

    Args:
      q_ids_BS: document of each query, -1 for padding.
      k_ids_BT: document of each key.
      within_document: a query sees only keys of its own document.
      first_query: index of the key that is the first query.
    """
    S, T = q_ids_BS.shape[1], k_ids_BT.shape[1]
    first = 0 if first_query is None else first_query
    causal_ST = jnp.arange(T)[None, :] <= (jnp.arange(S) + first)[:, None]
    query_BS1, key_B1T = q_ids_BS[:, :, None], k_ids_BT[:, None, :]
    seen_BST = (key_B1T >= 0) & (query_BS1 >= 0)
    if within_document:
        seen_BST &= key_B1T == query_BS1
    return causal_ST & seen_BST


@cache
def default_backend(platform: str, whole_window: bool) -> str:
    """Resolves `model.attention_backend = auto` for a `cpu`, `gpu` or `tpu`.

    Args:
      whole_window: there is no context axis. The choice is currently the same with one.
    """
    if platform != "gpu":
        return "blocked" if platform == "cpu" else "splash"
    try:
        _tokamax()
    except UsageError as error:
        _LOG.warning("attention uses cuDNN, with a bias for every window. %s", error)
        return "cudnn"
    return "tokamax"


def attend(
    q_BSHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    q_ids_BS: jax.Array,
    k_ids_BT: jax.Array,
    *,
    within_document: bool,
    first_query: jax.Array | None,
    backend: str,
    interpret: bool = False,
) -> jax.Array:
    """(B,S,H,h): causal attention on one device's arrays.

    Args:
      q_ids_BS: document of each query, -1 for padding.
      k_ids_BT: document of each key.
      within_document: a query sees only its own document.
      first_query: index of the key that is the first query, if the keys come from several devices:
        a multiple of S. None: queries and keys are the same tokens.
      backend: `blocked`, `splash`, `tokamax`, `cudnn` or `xla`. All but `splash` and `blocked`
        require padding to be at the ends of a window; `tokamax` requires contiguous documents.
      interpret: run the splash kernel in interpret mode; for tests on a CPU.
    """
    arrays = q_BSHh, k_BTKh, v_BTKh, q_ids_BS, k_ids_BT
    if backend == "blocked":
        return blocked_attention(*arrays, within_document=within_document, first_query=first_query)
    if backend not in _BACKENDS:
        raise UsageError(
            f"model.attention_backend = {backend!r} is unknown: use auto, blocked or one of "
            f"{', '.join(_BACKENDS)}"
        )
    options = {"interpret": True} if interpret and backend == "splash" else {}
    out_BSHh = _BACKENDS[backend](*arrays, within_document, first_query, **options)
    # Kernels give padding some mean of values; zeroing it here also stops its gradient.
    out_BSHh = jnp.where((q_ids_BS >= 0)[..., None, None], out_BSHh, 0)
    # Remat keeps arrays of this name; splash and blocked name what their own gradients read.
    return out_BSHh if backend == "splash" else checkpoint_name(out_BSHh, "attention")


# --- XLA and cuDNN -----------------------------------------------------------------------------


def _xla(q_BSHh, k_BTKh, v_BTKh, q_ids_BS, k_ids_BT, within_document, first_query):
    mask_BST = attention_mask(
        q_ids_BS, k_ids_BT, within_document=within_document, first_query=first_query
    )
    return jax.nn.dot_product_attention(q_BSHh, k_BTKh, v_BTKh, mask=mask_BST[:, None])


def _cudnn(q_BSHh, k_BTKh, v_BTKh, q_ids_BS, k_ids_BT, within_document, first_query):
    """Attention by cuDNN, which takes lengths from jax.nn; any other mask becomes a (B,1,S,T) bias.

    There are no segment ids, so whole windows are the fast case, and documents or a context axis
    need a bias.
    """
    if q_BSHh.dtype not in (jnp.bfloat16, jnp.float16):
        raise UsageError(
            f"model.attention_backend = cudnn computes in bfloat16, and the step in {q_BSHh.dtype}:"
            " set model.compute_dtype = bfloat16, or model.attention_backend = tokamax or xla"
        )
    attention = partial(jax.nn.dot_product_attention, implementation="cudnn")
    if within_document or first_query is not None:
        mask_BST = attention_mask(
            q_ids_BS, k_ids_BT, within_document=within_document, first_query=first_query
        )
        return attention(q_BSHh, k_BTKh, v_BTKh, mask=mask_BST[:, None])
    lengths_B = (q_ids_BS >= 0).sum(axis=1, dtype=jnp.int32)
    return attention(
        q_BSHh,
        k_BTKh,
        v_BTKh,
        is_causal=True,
        query_seq_lengths=lengths_B,
        key_value_seq_lengths=lengths_B,
    )


# --- splash ------------------------------------------------------------------------------------


def _splash(
    q_BSHh, k_BTKh, v_BTKh, q_ids_BS, k_ids_BT, within_document, first_query, interpret=False
):
    """JAX's kernel. On a context axis, a device's place determines which blocks it skips."""
    _, S, H, h = q_BSHh.shape
    n = k_BTKh.shape[1] // S
    block = min(SPLASH_BLOCK, LANES * math.ceil(S / LANES))
    pad = -S % block
    ids = [i if within_document else jnp.minimum(i, 0) for i in (q_ids_BS, k_ids_BT)]
    # Each device's tokens are padded to whole blocks, which leaves their order unchanged.
    q_BSHh, k_BTKh, v_BTKh = (
        _fill(a, n, pad, 0) for a, n in ((q_BSHh, 1), (k_BTKh, n), (v_BTKh, n))
    )
    q_ids_BS, k_ids_BT = _fill(ids[0], 1, pad, -1), _fill(ids[1], n, pad, -1)
    place = 0 if first_query is None else first_query // S
    kernel = _splash_kernel(S + pad, n, H, block, place, interpret)
    # The kernel has no scale, so the queries are scaled.
    heads_first = (jnp.moveaxis(a, 2, 1) for a in (q_BSHh * h**-0.5, k_BTKh, v_BTKh))
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    register_tpu_info()
    out_BHSh = jax.vmap(kernel)(*heads_first, SegmentIds(q_ids_BS, k_ids_BT))
    return jnp.moveaxis(out_BHSh, 1, 2)[:, :S]


def _fill(x_BT, n: int, pad: int, value) -> jax.Array:
    """Pads each of n equal parts of the tokens by `pad`."""
    if not pad:
        return x_BT
    B, T, *rest = x_BT.shape
    parts = x_BT.reshape(B, n, T // n, *rest)
    widths = [(0, 0), (0, 0), (0, pad), *((0, 0) for _ in rest)]
    return jnp.pad(parts, widths, constant_values=value).reshape(B, T + n * pad, *rest)


def _splash_kernel(S: int, n: int, H: int, block: int, place, interpret: bool):
    """The causal kernel of one of n devices: S queries, n·S keys; query 0 is key place·S."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.CausalMask((n * S, n * S))] * H),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=n,
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
    if n == 1:
        return kernel
    # The kernel lists the blocks that every device visits; this takes this device's part. Block
    # lists have query blocks in their second dimension; query positions have only one dimension.

    def own(a: jax.Array) -> jax.Array:
        axis = min(a.ndim - 1, 1)
        rows = a.shape[axis] // n
        return lax.dynamic_slice_in_dim(a, place * rows, rows, axis)

    return jax.tree.map(own, kernel)


# --- tokamax -----------------------------------------------------------------------------------


def _tokamax():
    return load_tokamax("gpu", "model.attention_backend = cudnn or xla")


def _tokamax_kernels() -> tuple[str, ...]:
    """tokamax implementations with a backward pass on this GPU: Mosaic from Hopper on."""
    capability = float(getattr(jax.devices()[0], "compute_capability", 0))
    return ("mosaic_gpu", "triton") if capability >= 9.0 else ("triton",)


def _tokamax_attention(q_BSHh, k_BTKh, v_BTKh, q_ids_BS, k_ids_BT, within_document, first_query):
    """Attention by tokamax: each query sees a range of keys, and blocks outside it are skipped.

    tokamax's public function takes only an S·T mask, not ranges; its underlying operations do.
    """
    _tokamax()
    implementations, mask_of = private.tokamax_attention()
    S = q_ids_BS.shape[1]
    start_BS = _document_starts(k_ids_BT if within_document else jnp.minimum(k_ids_BT, 0))
    if first_query is None:
        mask = mask_of(k_start=start_BS[:, None], is_causal=True)
    else:
        start_BS = lax.dynamic_slice_in_dim(start_BS, first_query, S, 1)
        end_S = first_query + 1 + jnp.arange(S)
        mask = mask_of(k_start=start_BS[:, None], k_end=end_S[None, None])
    errors = []
    for name in _tokamax_kernels():
        try:
            return implementations[name](q_BSHh, k_BTKh, v_BTKh, mask=mask)
        except NotImplementedError as error:
            errors.append(f"{name}: {error}")
    raise UsageError(
        f"tokamax has no attention for this GPU and these shapes ({'; '.join(errors)}): set "
        "model.attention_backend = cudnn or xla"
    )


def _document_starts(ids_BT: jax.Array) -> jax.Array:
    """(B,T): where each token's run of equal ids begins."""
    T = ids_BT.shape[1]
    begins_BT = jnp.diff(ids_BT, axis=1, prepend=ids_BT[:, :1] - 1) != 0
    return lax.cummax(jnp.where(begins_BT, jnp.arange(T), 0), axis=1)


_BACKENDS = {
    "splash": _splash,
    "tokamax": _tokamax_attention,
    "cudnn": _cudnn,
    "xla": _xla,
}

"""Routed experts on an accelerator: SwiGLU by library grouped matmuls, gradient included.

Rows are sorted by expert, and a kernel multiplies each expert's rows by its weights. As in
`blocked.py`, the routing weight is applied to the hidden activations, where an expert is narrowest,
so that no output row is kept for the gradient; only the hidden projections are.

Kernels leave unused rows uninitialised, so they may be NaN. No pick reads them, and they are zeroed
wherever they are read anyway: tokamax's Hopper kernel sums over an expert's rows by multiplying the
others by 0, so that one NaN would reach the last expert's gradient.

Legend: N tokens, K picks, M rows sorted by expert, R routed experts, E experts in the weights
(shared ones last), D width, F hidden size of an expert, G = 2F; I and O: widths in and out.
"""

import functools
import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from emo_jax.errors import UsageError
from emo_jax.moe.dispatch import Permutation, rows_of, sum_rows
from emo_jax.parallel import private
from emo_jax.parallel.island import Held, Reduce
from emo_jax.parallel.kernels import load_tokamax, register_tpu_info

_LOG = logging.getLogger(__name__)

KERNELS = ("tokamax", "megablox")
BACKENDS = ("ragged_dot", *KERNELS)


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) · up."""
    return jax.nn.silu(gate) * up


@functools.cache
def default_backend(platform: str, device_kind: str = "") -> str:
    """Resolves `moe.backend = auto`: never a dense form without a warning in the log.

    Args:
      platform: `cpu`, `gpu` or `tpu`: the devices that the step is compiled for.
      device_kind: their name according to the driver; for the message.
    """
    if platform == "cpu":
        return "blocked"
    if platform == "tpu":
        _tokamax(platform)
        return "tokamax"
    try:
        _tokamax(platform)
    except UsageError as error:
        _LOG.warning(
            "experts on %s use lax.ragged_dot, which XLA may make dense: as many times the work as "
            "there are experts. %s",
            device_kind or platform,
            error,
        )
        return "ragged_dot"
    return "tokamax"


class How(NamedTuple):
    """What multiplies, and for which devices it is compiled, which need not be of this machine."""

    backend: str  # `blocked`, or one of `BACKENDS`
    platform: str  # `cpu`, `gpu` or `tpu`; on `cpu`, TPU kernels are interpreted (tests)
    device_kind: str = ""  # the driver's name for them


def routed_swiglu(
    x_ND: jax.Array,
    weights_NK: jax.Array,
    perm: Permutation,
    held: Sequence[Held],
    reduce: Reduce,
    *,
    how: How,
    zeros: bool = True,
) -> jax.Array:
    """(N,D): Σ_k weight · expert(x) over the picks that have a row, in the dtype of `x_ND`.

    Computes the same as `blocked.routed_swiglu`. Sums over D, F and an expert's rows are in
    float32.

    Args:
      held: gate and up side by side, (E,D,G), and down, (E,D,F), from `Island.hold`.
      reduce: from the same.
      how: with one of `BACKENDS`.
      zeros: False: tokens have one pick each, and those without an expert get anything, gradients
        too, which saves two passes over all rows.
    """
    shared = held[0].weight.shape[0] - perm.group_sizes_R.shape[0]
    # Shared experts are passed as experts without rows: no slice of the weights is copied for the
    # kernels, which also write their zero gradients.
    sizes_E = jnp.pad(perm.group_sizes_R, (0, shared))
    (M,) = perm.token_M.shape
    tile = 1
    if how.backend in KERNELS:
        tile = row_tile(M, perm.group_sizes_R.shape[0], matrix_unit(how.device_kind))
    order = _order(perm, sizes_E, pad=-M % tile)
    matmuls = grouped_matmuls(how.backend, how.platform, tile)
    weights, anchors = zip(*held, strict=True)
    return _routed((matmuls, reduce, zeros), x_ND, weights_NK, weights, anchors, order)


class _Order(NamedTuple):
    """A `Permutation` whose unused rows read no pick, with M a multiple of the kernel's tile."""

    token_M: jax.Array  # some token that has a pick, where the row is unused
    pick_M: jax.Array  # beyond the last pick, where the row is unused
    row_NK: jax.Array
    sizes_E: jax.Array


def _order(perm: Permutation, sizes_E: jax.Array, pad: int) -> _Order:
    num_rows = sizes_E.sum()
    used_M = jnp.arange(perm.token_M.shape[0] + pad) < num_rows
    token_M = jnp.where(used_M, jnp.pad(perm.token_M, (0, pad)), perm.token_M[0])
    pick_M = jnp.where(used_M, jnp.pad(perm.pick_M, (0, pad)), perm.row_NK.size)
    # A row after the last expert's is no row, even where the padding above created it.
    row_NK = jnp.where(perm.row_NK < num_rows, perm.row_NK, used_M.shape[0])
    return _Order(token_M, pick_M, row_NK, sizes_E)


def _rows(x_ND: jax.Array, order: _Order) -> jax.Array:
    """(M,D): the token of every row; some token where it is unused, as zeros would cost a copy."""
    return x_ND[order.token_M]


def _weight_rows(weights_NK: jax.Array, order: _Order) -> jax.Array:
    """(M,1): the routing weight of every row, zero where it is unused."""
    return rows_of(weights_NK.reshape(-1, 1), order.pick_M)


def _clean(x_MF: jax.Array, order: _Order) -> jax.Array:
    """The rows in float32, zero where unused."""
    used_M = order.pick_M < order.row_NK.size
    return jnp.where(used_M[:, None], x_MF.astype(jnp.float32), 0)


def _halves(hidden_MG: jax.Array, order: _Order) -> tuple[jax.Array, jax.Array]:
    """Gate and up in float32, zero where unused; cut first, or both would be written to memory."""
    F = hidden_MG.shape[-1] // 2
    return _clean(hidden_MG[:, :F], order), _clean(hidden_MG[:, F:], order)


def _sum_picks(y_MD: jax.Array, order: _Order, zeros: bool) -> jax.Array:
    """(N,D): the rows of each token's picks, summed over the picks in float32."""
    if not zeros:
        return y_MD[jnp.minimum(order.row_NK[:, 0], y_MD.shape[0] - 1)]
    return sum_rows(y_MD, order.row_NK).astype(y_MD.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _routed(how, x_ND, weights_NK, weights, anchors, order):
    return _routed_fwd(how, x_ND, weights_NK, weights, anchors, order)[0]


def _routed_fwd(how, x_ND, weights_NK, weights, anchors, order):
    matmuls, _, zeros = how
    gate_up_EDG, down_EDF = weights
    hidden_MG = matmuls.rows(_rows(x_ND, order), gate_up_EDG, order.sizes_E)
    hidden_MG = checkpoint_name(hidden_MG, "expert_hidden")
    act_MF = swiglu(*_halves(hidden_MG, order))
    weighted_MF = (act_MF * _weight_rows(weights_NK, order)).astype(x_ND.dtype)
    y_MD = matmuls.rows_transposed(weighted_MF, down_EDF, order.sizes_E)
    return _sum_picks(y_MD, order, zeros), (x_ND, weights_NK, weights, order, hidden_MG)


def _routed_bwd(how, kept, grad_ND):
    matmuls, reduce, zeros = how
    x_ND, weights_NK, (gate_up_EDG, down_EDF), order, hidden_MG = kept
    dtype, sizes_E = x_ND.dtype, order.sizes_E
    x_MD, grad_MD = _rows(x_ND, order), _rows(grad_ND, order)
    weight_M1 = _weight_rows(weights_NK, order)
    dweighted_MF = _clean(matmuls.rows(grad_MD, down_EDF, sizes_E), order)
    gate_MF, up_MF = _halves(hidden_MG, order)
    sigmoid_MF = jax.nn.sigmoid(gate_MF)
    silu_MF = gate_MF * sigmoid_MF
    act_MF = silu_MF * up_MF
    dweight_M1 = (dweighted_MF * act_MF).sum(axis=-1, keepdims=True)
    dact_MF = dweighted_MF * weight_M1
    dgate_MF = (dact_MF * up_MF * (sigmoid_MF + silu_MF * (1.0 - sigmoid_MF))).astype(dtype)
    dup_MF = (dact_MF * silu_MF).astype(dtype)
    weighted_MF = (act_MF * weight_M1).astype(dtype)
    dhidden_MG = jnp.concatenate([dgate_MF, dup_MF], axis=-1)
    dx_MD = matmuls.rows_transposed(dhidden_MG, gate_up_EDG, sizes_E)
    dx_ND = _sum_picks(dx_MD, order, zeros)
    # A layer's expert gradients are as large as its experts: finish with these arrays first, and
    # then take one gradient after the other.
    tied = lax.optimization_barrier((dx_ND, x_MD, grad_MD, weighted_MF, dgate_MF, dup_MF))
    dx_ND, x_MD, grad_MD, weighted_MF, dgate_MF, dup_MF = tied
    return (
        dx_ND,
        rows_of(dweight_M1, order.row_NK)[..., 0].astype(weights_NK.dtype),
        tuple(jnp.zeros_like(w) for w in (gate_up_EDG, down_EDF)),  # the anchors get it all
        (
            (
                reduce(matmuls.weights(x_MD, dgate_MF, sizes_E)),
                reduce(matmuls.weights(x_MD, dup_MF, sizes_E)),
            ),
            reduce(matmuls.weights(grad_MD, weighted_MF, sizes_E)),
        ),
        None,
    )


_routed.defvjp(_routed_fwd, _routed_bwd)


# --- grouped matmuls of each library -----------------------------------------------------------


def grouped_matmuls(backend: str, platform: str, rows_a_step: int = 1) -> "Matmuls":
    """The three products of a back end; `rows_a_step` is the row tile of a TPU kernel."""
    if backend not in BACKENDS:
        raise UsageError(f"moe.backend = {backend!r} is no grouped matmul: use one of {BACKENDS}")
    if backend == "ragged_dot":
        return RaggedDot()
    if backend == "megablox" and platform == "gpu":
        raise UsageError(
            "moe.backend = megablox is a kernel for TPUs, and the devices are GPUs: use "
            "moe.backend = tokamax or ragged_dot"
        )
    if backend == "tokamax":
        _tokamax(platform)
        if platform == "gpu":
            return TokamaxGpu()
    return TpuKernel(backend, rows_a_step, interpret=platform == "cpu")


def _tokamax(platform: str):
    return load_tokamax("gpu" if platform == "gpu" else "tpu", "moe.backend = ragged_dot")


def _dims(
    lhs_contracts: int, rhs_contracts: int, groups: list[int]
) -> lax.RaggedDotDimensionNumbers:
    """Rows are the left side's first dimension; `groups` is the right side's expert dimension."""
    return lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(([lhs_contracts], [rhs_contracts]), ([], [])),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=groups,
    )


ROWS, ROWS_TRANSPOSED, WEIGHTS = _dims(1, 1, [0]), _dims(1, 2, [0]), _dims(0, 0, [])


class Matmuls:
    """Products of sorted rows with their experts' weights, and of rows with rows, per expert.

    Sums are in float32; results have the dtype of the first argument.
    """

    def rows(self, x_MI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array) -> jax.Array:
        """(M,O): each row times its expert's weights."""
        return self._dot(x_MI, w_EIO, sizes_E, ROWS)

    def rows_transposed(self, y_MO: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array) -> jax.Array:
        """(M,I): each row times its expert's transposed weights."""
        return self._dot(y_MO, w_EIO, sizes_E, ROWS_TRANSPOSED)

    def weights(self, x_MI: jax.Array, y_MO: jax.Array, sizes_E: jax.Array) -> jax.Array:
        """(E,I,O): the sum of the outer products of an expert's rows; 0 if it has none."""
        return self._dot(x_MI, y_MO, sizes_E, WEIGHTS)

    def _dot(self, x, y, sizes_E, dims) -> jax.Array:
        raise NotImplementedError


@dataclass(frozen=True)
class RaggedDot(Matmuls):
    """XLA's own: dense on CPUs, kernels on a v5e, gradients of weights apart.

    With libtpu 0.0.42.1 those are dense, so that forward and backward of 127 experts do 49 times
    the work. With 0.0.50.1 all are kernels
    (`python tests/moe/compile_kernels.py v5e:2x2 1 experts ragged_dot`).
    """

    def _dot(self, x, y, sizes_E, dims):
        out = lax.ragged_dot_general(x, y, sizes_E, dims, preferred_element_type=jnp.float32)
        return out.astype(x.dtype)


@dataclass(frozen=True)
class TokamaxGpu(Matmuls):
    """tokamax on a GPU: Mosaic kernels from Hopper on, Triton before. tokamax picks the tiles."""

    def weights(self, x_MI, y_MO, sizes_E):
        """As of all back ends, but tokamax 0.0.12 does not give zeros where an expert has no row.

        Its Triton kernel then multiplies the rows before the expert's, which are another's.
        """
        grad_EIO = super().weights(x_MI, y_MO, sizes_E)
        return jnp.where(sizes_E[:, None, None] > 0, grad_EIO, 0)

    def _dot(self, x, y, sizes_E, dims):
        try:
            return _tokamax("gpu").ragged_dot_general(
                x,
                y,
                sizes_E,
                dims,
                preferred_element_type=x.dtype,
                implementation=("mosaic", "triton"),  # never "xla", which may be dense
            )
        except (ExceptionGroup, ValueError) as error:  # 0.0.17 needs jax-triton for the second
            causes = getattr(error, "exceptions", [error])
            raise UsageError(
                f"tokamax has no grouped matmul for this GPU and {x.dtype} arrays {x.shape}, "
                f"{y.shape} ({'; '.join(str(cause) for cause in causes)}): run `pip install "
                "jax-triton triton`, or set moe.backend = ragged_dot"
            ) from error


def matrix_unit(device_kind: str) -> int:
    """Columns of a TPU's matrix unit: 256 from v6e on, 128 before (jax's `TpuInfo`)."""
    return 256 if any(name in device_kind for name in ("TPU v6", "TPU7")) else 128


def row_tile(num_rows: int, num_experts: int, matrix_unit: int = 128) -> int:
    """Rows per kernel step: a power of two from 128 to 512, at most half the mean per expert.

    A tile with rows of two experts is computed once for each, so this bounds the extra rows
    computed to half of the total; fewer, larger tiles load weights less often. But a tile that is
    smaller than the matrix unit leaves a part of it idle, so it is as large as the unit from a mean
    of half of it on. In tokamax's own measurements (its pull request 1221, one chip, bfloat16), 256
    rows instead of 128 were 1.06 to 1.59 times as fast on v6e and TPU7x at a mean of 512 or more
    rows, and 1.00 to 1.11 times at 128; on v5p 1.02 to 1.05 and 0.53 to 0.56 times. We have
    measured nothing on a TPU.
    """
    mean = num_rows // max(num_experts, 1)
    least = matrix_unit if 2 * mean >= matrix_unit else 128
    return max(least, next((tile for tile in (512, 256) if tile <= mean // 2), 128))


def side_tile(size: int, limit: int) -> int:
    """The largest multiple of 128 up to `limit` that divides `size`, or `size` itself.

    There is never a remainder: with one, megablox has given wrong results (MaxText issue 1183).
    """
    fitting = (tile for tile in range(limit, 0, -128) if size % tile == 0)
    return next(fitting, size) if size > limit else size


@dataclass(frozen=True)
class TpuKernel(Matmuls):
    """The TPU grouped matmuls of tokamax or JAX, with our choice of tiles.

    tokamax's own function accepts no tiles before 0.0.17, and without them uses 128 by 128 by 128
    on a v5 or v6. So its kernels are called directly, as in MaxText. The limits keep two buffers of
    every operand and the sum within 16 MiB, which a v5e and v5p give a kernel, in bfloat16 and,
    halved, in float32; MaxText's defaults are 512 rows by 1024 by 1024. Compiled for all of these
    chips, measured on none.
    """

    library: str
    rows_a_step: int
    interpret: bool

    INNER: ClassVar[int] = 2048
    OUTER: ClassVar[int] = 1024

    def _dot(self, x, y, sizes_E, dims):
        outer = self.OUTER * 2 // x.dtype.itemsize
        if dims == WEIGHTS:
            x = x.T
            sides = side_tile(x.shape[0], outer), side_tile(y.shape[1], outer)
            return self._call("tgmm", x, y, sizes_E, sides)
        transposed = dims == ROWS_TRANSPOSED
        inner_size, outer_size = y.shape[:0:-1] if transposed else y.shape[1:]
        inner = self.INNER * 2 // x.dtype.itemsize
        if self.rows_a_step > 256:  # the two buffers of rows then take 4 MiB
            outer //= 2
        sides = side_tile(inner_size, inner), side_tile(outer_size, outer)
        return self._call("gmm", x, y, sizes_E, sides, transpose_rhs=transposed)

    def _call(self, name, x, y, sizes_E, sides, **options):
        if self.library == "tokamax":
            function = private.tokamax_tpu_matmul(name)
            options.update(out_dtype=x.dtype, precision=(lax.Precision.DEFAULT,) * 2)
        else:
            module = importlib.import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")
            function = getattr(module, name)
            options.update(preferred_element_type=x.dtype)
        options.update(tiling=(self.rows_a_step, *sides), interpret=self.interpret)
        register_tpu_info()
        return function(x, y, group_sizes=sizes_E, **options)

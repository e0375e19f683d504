"""Grouped matmuls of every back end against a plain loop over experts, and compiled for TPUs.

On a CPU the TPU kernels are interpreted; memory that they leave as it was holds NaN then.
"""

import functools
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import few
from held import held
from jax.sharding import Mesh, PartitionSpec

from emo_jax.errors import UsageError
from emo_jax.moe import dispatch, grouped

# Several tiles of rows; widths of several tiles when these are cut to 128.
N, K, R, E, D, F = 130, 2, 6, 7, 256, 384
NAMES = ("x", "weights", "gate", "up", "down")
# One shape for all cases, so that each back end is compiled once: float32 dots in another order.
TOLERANCE = 1e-5


def loop(x_ND, weights_NK, indices_NK, gate_EDF, up_EDF, down_EFD):
    """Each expert on the tokens that chose it, one after the other, in float32."""
    out_ND = jnp.zeros_like(x_ND, jnp.float32)
    for e in range(R):
        weight_N1 = jnp.where(indices_NK == e, weights_NK, 0).sum(axis=1, keepdims=True)
        x32_ND = jnp.where((indices_NK == e).any(axis=1, keepdims=True), x_ND, 0)
        hidden_NF = jax.nn.silu(x32_ND @ gate_EDF[e]) * (x32_ND @ up_EDF[e])
        out_ND += weight_N1 * (hidden_NF @ down_EFD[e])
    return out_ND


@functools.cache
def gradients(function, max_rows=None):
    """Output and gradients of `function(x, weights, indices, gate, up, down)`, compiled once."""

    @jax.jit
    def run(indices_NK, x, weights, gate, up, down, cotangent):
        def scalar(x, weights, gate, up, down):
            out = function(x, weights, indices_NK, gate, up, down)
            return (out.astype(jnp.float32) * cotangent).sum(), out

        return jax.grad(scalar, argnums=range(5), has_aux=True)(x, weights, gate, up, down)

    return run


@functools.cache
def routed(backend, num_experts=R):
    def function(x, weights, indices_NK, gate, up, down):
        perm = dispatch.sort_by_expert(indices_NK, num_experts)
        return grouped.routed_swiglu(
            x, weights, perm, *held(gate, up, down), how=grouped.How(backend, "cpu")
        )

    return function


def arrays(seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    draw = lambda *shape, scale: jnp.asarray(rng.normal(size=shape) * scale, dtype)  # noqa: E731
    weights_NK = jnp.asarray(rng.uniform(0.1, 1, (N, K)), jnp.float32)
    return (
        draw(N, D, scale=1),
        weights_NK,
        draw(E, D, F, scale=D**-0.5),
        draw(E, D, F, scale=D**-0.5),
        draw(E, F, D, scale=F**-0.5),
        jnp.asarray(rng.normal(size=(N, D)), jnp.float32),
    )


def indices(case):
    rng = np.random.default_rng(1)
    picks_NK = np.argsort(rng.random((N, R)), axis=1)[:, :K]  # about N·K/R each: no multiple of 128
    if case == "some without tokens":
        picks_NK = np.stack([rng.integers(1, 3, N), np.full(N, 4)], axis=1)
    elif case == "all on one":
        picks_NK = np.stack([np.full(N, 3), np.full(N, R)], axis=1)
    elif case == "whole tiles":
        picks_NK = np.full((N, K), R)
        picks_NK[:128, 0], picks_NK[:128, 1] = 1, 4
    elif case == "nobody's rows":
        picks_NK[::2] = R
    elif case == "nobody at all":
        picks_NK = np.full((N, K), R)
    return jnp.asarray(picks_NK, jnp.int32)


def check(actual, expected, tolerance=TOLERANCE):
    (grads, out), (expected_grads, expected_out) = actual, expected
    for name, a, b in zip(
        ("out", *NAMES), (out, *grads), (expected_out, *expected_grads), strict=True
    ):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        scale = max(np.abs(b).max(), 1e-6)
        np.testing.assert_allclose(a / scale, b / scale, atol=tolerance, err_msg=name)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Widths are cut into several tiles, as the real ones are."""
    for limit in ("INNER", "OUTER"):
        monkeypatch.setattr(grouped.TpuKernel, limit, 256)  # 128 numbers in float32


CASES = (
    "balanced",
    "some without tokens",
    "all on one",
    "whole tiles",
    "nobody's rows",
    "nobody at all",
)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", grouped.BACKENDS)
def test_equals_the_loop(backend, case):
    picks = indices(case)
    actual = gradients(routed(backend))(picks, *arrays())
    check(actual, gradients(loop)(picks, *arrays()))
    for gradient in actual[0][2:]:
        assert not np.asarray(gradient)[R:].any()  # the shared expert's, which is not used here


@pytest.mark.parametrize("backend", grouped.BACKENDS)
def test_garbage_in_unused_rows_stays_there(backend):
    """NaN in tokens without a pick, and in rows that kernels never write, reaches nothing."""
    picks = indices("nobody's rows")
    x, *rest = arrays()
    bad = jnp.where((picks == R).all(axis=1, keepdims=True), jnp.nan, x)
    check(gradients(routed(backend))(picks, bad, *rest), gradients(loop)(picks, x, *rest))


@pytest.mark.parametrize("backend", grouped.KERNELS)
def test_kernels_leave_garbage_in_unused_rows(backend):
    """That the test above is one: what is multiplied here has rows of nobody, not written."""
    x, _, gate, *_ = arrays()
    sizes_E = jnp.array([5, 0, 30, 0, 0, 0, 0], jnp.int32)
    y = grouped.grouped_matmuls(backend, "cpu", 128).rows(
        jnp.pad(x, ((0, 126), (0, 0))), gate, sizes_E
    )
    assert np.isfinite(y[:35]).all()
    assert np.isnan(y[35:]).any()


def test_no_library_is_given_garbage(monkeypatch):
    """One that leaves NaN in unused rows, and takes 0 times them in sums over rows, does too.

    tokamax's kernel for Hopper is such a one.
    """

    class Careless(grouped.RaggedDot):
        def _dot(self, x, y, sizes_E, dims):
            used_M1 = (jnp.arange(x.shape[0]) < sizes_E.sum())[:, None]
            out = super()._dot(x, y, sizes_E, dims)
            if dims != grouped.WEIGHTS:
                return jnp.where(used_M1, out, jnp.nan)
            return out + 0 * (jnp.where(used_M1, 0, x).sum() + jnp.where(used_M1, 0, y).sum())

    monkeypatch.setattr(grouped, "RaggedDot", Careless)
    picks = indices("nobody's rows")
    x, *rest = arrays()
    bad = jnp.where((picks == R).all(axis=1, keepdims=True), jnp.nan, x)
    careless = routed.__wrapped__("ragged_dot")
    check(gradients(careless)(picks, bad, *rest), gradients(loop)(picks, x, *rest))


@pytest.mark.parametrize("backend", few(["ragged_dot", "tokamax"]))
def test_bfloat16(backend):
    """Rounded where a bfloat16 product always is; gradients have the weights' dtype."""
    picks = indices("balanced")
    low = arrays(dtype=jnp.bfloat16)
    actual = gradients(routed(backend))(picks, *low)
    assert {g.dtype for g in (actual[1], *actual[0][2:])} == {jnp.dtype(jnp.bfloat16)}
    check(actual, gradients(loop)(picks, *(a.astype(jnp.float32) for a in low)), tolerance=1.5e-2)


@pytest.mark.parametrize("backend", ["ragged_dot", "tokamax"])
def test_on_a_mesh(backend):
    """Within a shard_map, each device with its own tokens."""
    picks = indices("some without tokens")
    *inputs, cotangent = arrays()
    mesh, split, whole = Mesh(jax.devices()[:2], "d"), PartitionSpec("d"), PartitionSpec()
    function = jax.shard_map(
        routed(backend),
        mesh=mesh,
        in_specs=(split, split, split, whole, whole, whole),
        out_specs=split,
        check_vma=False,
    )
    check(
        gradients(function)(picks, *inputs, cotangent),
        gradients(loop)(picks, *inputs, cotangent),
    )


def test_the_hidden_rows_are_all_that_is_kept_of_them():
    """No output row, and with `save_matmuls` the hidden projections are not computed again."""
    from jax._src.ad_checkpoint import saved_residuals

    *inputs, _ = arrays()
    function = functools.partial(_with_indices, routed("ragged_dot"), indices("balanced"))
    shapes = [aval.shape for aval, _ in saved_residuals(function, *inputs)]
    rows = [shape for shape in shapes if shape[:1] == (N * K,) and len(shape) == 2]
    assert rows == [(N * K, 2 * F)]  # gate and up
    policy = jax.checkpoint_policies.save_only_these_names("expert_hidden")
    kept = saved_residuals(jax.checkpoint(function, policy=policy), *inputs)
    assert [a.shape for a, where in kept if "argument" not in where].count((N * K, 2 * F)) == 1


def _with_indices(function, picks, x, weights, gate, up, down):
    return function(x, weights, picks, gate, up, down).sum()


@pytest.mark.parametrize(
    ("rows", "experts", "tile"),
    [(28672, 127, 128), (114688, 127, 256), (28672, 8, 512), (9, 4, 128)],
)
def test_row_tiles(rows, experts, tile):
    assert grouped.row_tile(rows, experts) == tile
    visits = rows / tile + experts - 1
    assert tile == 128 or visits * tile <= 1.5 * rows


@pytest.mark.parametrize(
    ("kind", "rows", "tile"),
    [
        *(("TPU v5 lite", 512, 256), ("TPU v5", 128, 128), ("TPU v5", 1024, 512)),
        *(("TPU v6 lite", 512, 256), ("TPU v6 lite", 128, 256), ("TPU v6e", 64, 128)),
        *(("TPU7x", 128, 256), ("TPU7x", 1024, 512), ("cpu", 128, 128)),
    ],
)
def test_row_tiles_fill_the_matrix_unit(kind, rows, tile):
    assert grouped.row_tile(128 * rows, 128, grouped.matrix_unit(kind)) == tile


@pytest.mark.parametrize("sizes", [(32, 32, 0, 32), (32, 0, 64, 0)])
def test_an_expert_without_rows_has_no_gradient_on_a_gpu(monkeypatch, sizes):
    """tokamax's Triton kernel, interpreted: what GPUs before Hopper run."""
    triton = pytest.importorskip("tokamax._src.ops.ragged_dot.pallas_triton")
    base = triton.base
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(96, 64)), jnp.float32) for _ in range(2))
    sizes_E, ends = jnp.array(sizes, jnp.int32), np.cumsum(sizes)
    want = np.stack(
        [x[end - n : end].T @ y[end - n : end] for n, end in zip(sizes, ends, strict=True)]
    )
    call = triton.pl.pallas_call

    def interpreted(*args, compiler_params, **kwargs):
        return call(*args, **kwargs, interpret=True)

    def product(self, x, y, sizes_E, dims):
        assert dims == grouped.WEIGHTS
        return triton._ragged_contracting_dim_dot(
            *(x, y),
            group_sizes=sizes_E,
            ragged_dot_dimension_numbers=base.RAGGED_CONTRACTING_DOT_DIM_NUMS,
            precision=jax.lax.Precision.HIGHEST,
            out_dtype=jnp.float32,
            config=triton.Config(block_m=32, block_n=32, block_k=32, num_warps=4, num_stages=1),
        )

    monkeypatch.setattr(triton.pl, "pallas_call", interpreted)
    monkeypatch.setattr(grouped.TokamaxGpu, "_dot", product)
    np.testing.assert_allclose(
        grouped.grouped_matmuls("tokamax", "gpu").weights(x, y, sizes_E), want, atol=1e-4
    )


@pytest.mark.parametrize(
    ("size", "limit", "tile"),
    [
        (2048, 2048, 2048),
        (2048, 1024, 1024),
        (3072, 2048, 1536),
        (2880, 1024, 2880),
        (2944, 1024, 128),
        (100, 1024, 100),
    ],
)
def test_tiles_have_no_remainder(size, limit, tile):
    assert grouped.side_tile(size, limit) == tile
    assert size % tile == 0


# --- what `auto` is, and what cannot be ---------------------------------------------------------


def test_auto_says_when_it_may_be_dense(monkeypatch, caplog):
    grouped.default_backend.cache_clear()
    assert grouped.default_backend("cpu") == "blocked"
    assert grouped.default_backend("tpu", "TPU v5 lite") == "tokamax"
    assert grouped.default_backend("gpu", "NVIDIA H100") == "tokamax"
    assert not caplog.records
    grouped.default_backend.cache_clear()
    monkeypatch.setitem(sys.modules, "tokamax", None)
    with caplog.at_level(logging.WARNING):
        assert grouped.default_backend("gpu", "NVIDIA H100") == "ragged_dot"
    assert "NVIDIA H100" in caplog.text and "emo-jax[gpu]" in caplog.text
    with pytest.raises(UsageError, match=r"pip install emo-jax\[tpu\]"):
        grouped.default_backend("tpu", "TPU v5")
    grouped.default_backend.cache_clear()


def test_a_kernel_that_is_not_there_is_a_usage_error(monkeypatch):
    with pytest.raises(UsageError, match="megablox is a kernel for TPUs"):
        grouped.grouped_matmuls("megablox", "gpu")
    with pytest.raises(UsageError, match="'dense' is no grouped matmul"):
        grouped.grouped_matmuls("dense", "cpu")
    monkeypatch.setitem(sys.modules, "tokamax", None)
    with pytest.raises(UsageError, match=r"pip install emo-jax\[gpu\]"):
        grouped.grouped_matmuls("tokamax", "gpu")


def test_a_gpu_that_tokamax_has_no_kernel_for_is_a_usage_error():
    """Here there is none at all."""
    x, _, gate, *_ = arrays()
    products = grouped.grouped_matmuls("tokamax", "gpu")
    with pytest.raises(
        UsageError, match=r"no grouped matmul for this GPU and float32 .*ragged_dot"
    ):
        products.rows(x, gate, jnp.full(E, 9, jnp.int32))


# --- compiled for TPUs that are not here --------------------------------------------------------


def compiled(topology: str, chips: int, part: str, *backends: str) -> dict:
    """What `compile_kernels.py` reports; in a process of its own, where libtpu is loaded."""
    script = Path(__file__).parent / "compile_kernels.py"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    done = subprocess.run(
        [sys.executable, script, topology, str(chips), part, *backends],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("topology", "chips", "backends"),
    [
        pytest.param("v5e:2x2", 4, ["tokamax"], marks=pytest.mark.system),
        pytest.param("v5e:2x2", 1, grouped.KERNELS, marks=SLOW),
        pytest.param("v5p:2x2x1", 1, grouped.KERNELS, marks=SLOW),
        pytest.param("v5p:2x2x1", 4, grouped.KERNELS, marks=SLOW),
        pytest.param("v6e:2x2", 4, grouped.KERNELS, marks=SLOW),
    ],
)
def test_compiles_to_kernels_for_a_tpu(topology, chips, backends):
    """At the 1b14b shape a chip: kernels alone, and the work of K experts, not of all."""
    for name, found in compiled(topology, chips, "experts", *backends).items():
        assert found["kernels"] == 6, name
        assert found["other_dots"] == 0, name
        assert 0.98 <= found["flops"] / found["wanted_flops"] <= 1.02, name


@pytest.mark.parametrize(
    ("topology", "chips"),
    [
        pytest.param("v5e:2x2", 4, marks=pytest.mark.system),
        pytest.param("v5e:2x2", 1, marks=SLOW),
        pytest.param("v5p:2x2x1", 4, marks=SLOW),
        pytest.param("v6e:2x2", 4, marks=SLOW),
    ],
)
def test_attention_compiles_to_kernels_for_a_tpu(topology, chips):
    """Forward, and two of the backward pass; nothing of the size of a window's scores."""
    found = compiled(topology, chips, "attention")["splash"]
    assert found["kernels"] == 3
    assert found["other_dots"] == 0
    assert found["temporaries"] < 2**28  # the scores of 16 heads would be 2^30 bytes in float32

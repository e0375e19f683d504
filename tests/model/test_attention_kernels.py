"""Every back end of attention against the plain masked softmax: outputs and gradients.

On a CPU the splash kernel is interpreted. Of tokamax the mask is tested, the ranges of keys, with
its own reference: its kernels want a GPU. cuDNN too: what is handed to it is tested.
"""

import functools
import logging
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from emo_jax.errors import UsageError
from emo_jax.model import attention_kernels, blocked_attention
from emo_jax.model.attention_kernels import attend

B, T, H, HEAD = 2, 300, 2, 16  # no multiple of a block of any back end
BACKENDS = ("blocked", "splash", "tokamax", "xla")
TOLERANCE = 1e-5  # float32 sums in another order


def plain(q_BSHh, k_BTHh, v_BTHh, q_ids_BS, k_ids_BT, within, first):
    """Written out again: the mask of the package is under test too."""
    S, T = q_BSHh.shape[1], k_BTHh.shape[1]
    place_S = jnp.arange(S) + (0 if first is None else first)
    mask_BST = (place_S[:, None] >= jnp.arange(T)) & (k_ids_BT >= 0)[:, None, :]
    if within:
        mask_BST &= q_ids_BS[:, :, None] == k_ids_BT[:, None, :]
    group = q_BSHh.shape[2] // k_BTHh.shape[2]  # heads of queries that read one head of keys
    k_BTHh, v_BTHh = (jnp.repeat(a, group, axis=2) for a in (k_BTHh, v_BTHh))
    scores = jnp.einsum("bshk,bthk->bhst", q_BSHh, k_BTHh) / np.sqrt(HEAD)
    scores = jnp.where(mask_BST[:, None], scores, -1e30)
    mixed = jnp.einsum("bhst,bthk->bshk", jax.nn.softmax(scores, axis=-1), v_BTHh)
    return jnp.where((q_ids_BS >= 0)[:, :, None, None], mixed, 0)


@functools.cache
def gradients(backend, within, whole):
    """Output and gradients of q, k, v: a compiled function of ids and of the first query."""

    def core(q, k, v, q_ids, k_ids, first):
        first = None if whole else first
        if backend == "plain":
            return plain(q, k, v, q_ids, k_ids, within, first)
        return attend(
            *(q, k, v, q_ids, k_ids),
            within_document=within,
            first_query=first,
            backend=backend,
            interpret=True,
        )

    @jax.jit
    def run(q, k, v, q_ids, k_ids, first, cotangent):
        def scalar(q, k, v):
            out = core(q, k, v, q_ids, k_ids, first)
            return (out.astype(jnp.float32) * cotangent).sum(), out

        return jax.grad(scalar, argnums=range(3), has_aux=True)(q, k, v)

    return run


def arrays(S=T, dtype=jnp.float32, heads=H, kv_heads=H):
    rng = np.random.default_rng(0)

    def draw(length, n):
        return jnp.asarray(rng.normal(size=(B, length, n, HEAD)), dtype)

    q, k, v = draw(S, heads), draw(T, kv_heads), draw(T, kv_heads)
    return q, k, v, draw(S, heads).astype(jnp.float32)


def ids(case):
    ids_BT = np.zeros((B, T), np.int32)
    if case != "one document":
        ids_BT[0, 70:] += 1
        ids_BT[0, 71:] += 1  # a document of one token
        ids_BT[1, 128:] += 1  # ends with a block
    if case == "padding":
        ids_BT[0, 290:] = -1
        ids_BT[1, 100:] = -1  # whole blocks of it
    if case == "all padding":
        ids_BT[1] = -1
    return jnp.asarray(ids_BT)


def check(actual, expected, tolerance=TOLERANCE):
    (grads, out), (expected_grads, expected_out) = actual, expected
    for name, a, b in zip(
        ("out", "q", "k", "v"), (out, *grads), (expected_out, *expected_grads), strict=True
    ):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(
            a, b, atol=tolerance * max(np.abs(b).max(), 1e-6), rtol=0, err_msg=name
        )


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of each back end; of tokamax the implementation that any device has."""
    monkeypatch.setattr(attention_kernels, "SPLASH_BLOCK", 128)
    monkeypatch.setattr(attention_kernels, "_tokamax_kernels", lambda: ("xla",))
    monkeypatch.setattr(blocked_attention, "MIN_BLOCK", 64)


CASES = ("one document", "several", "padding", "all padding")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_plain_softmax(backend, within, case):
    q, k, v, cotangent = arrays()
    inputs = q, k, v, ids(case), ids(case), jnp.int32(0), cotangent
    actual = gradients(backend, within, True)(*inputs)
    check(actual, gradients("plain", within, True)(*inputs))
    padding = np.asarray(ids(case)) < 0
    for array in (actual[1], *actual[0]):
        assert not np.asarray(array)[padding].any()


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_part_of_the_queries(backend, within, place):
    """As on a device of a context axis of three: its queries, and the keys of the whole window."""
    S = T // 3
    q, k, v, cotangent = arrays(S)
    own = slice(place * S, (place + 1) * S)
    inputs = q, k, v, ids("padding")[:, own], ids("padding"), jnp.int32(place * S), cotangent
    actual = gradients(backend, within, False)(*inputs)
    check(actual, gradients("plain", within, False)(*inputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_on_a_context_axis(backend):
    """Queries split, keys gathered: the gradients of the keys are summed over the devices."""
    mesh, split = Mesh(jax.devices()[:3], "context"), PartitionSpec(None, "context")

    def local(q, k, v, q_ids, cotangent):
        gather = functools.partial(jax.lax.all_gather, axis_name="context", axis=1, tiled=True)

        def scalar(q, k, v):
            out = attend(
                *(q, gather(k), gather(v), q_ids, gather(q_ids)),
                within_document=True,
                first_query=jax.lax.axis_index("context") * q.shape[1],
                backend=backend,
                interpret=True,
            )
            return (out * cotangent).sum(), out

        return jax.grad(scalar, argnums=range(3), has_aux=True)(q, k, v)

    q, k, v, cotangent = arrays()
    spread = jax.shard_map(
        local, mesh=mesh, in_specs=(split,) * 5, out_specs=((split,) * 3, split), check_vma=False
    )
    actual = jax.jit(spread)(q, k, v, ids("padding"), cotangent)
    inputs = q, k, v, ids("padding"), ids("padding"), jnp.int32(0), cotangent
    check(actual, gradients("plain", True, True)(*inputs))


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_grouped_queries(backend, kv_heads):
    """Consecutive heads of queries read one head of keys, whose gradient is that of all of them."""
    q, k, v, cotangent = arrays(heads=4, kv_heads=kv_heads)
    inputs = q, k, v, ids("padding"), ids("padding"), jnp.int32(0), cotangent
    check(gradients(backend, True, True)(*inputs), gradients("plain", True, True)(*inputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16(backend):
    q, k, v, cotangent = arrays(dtype=jnp.bfloat16)
    rest = ids("several"), ids("several"), jnp.int32(0), cotangent
    actual = gradients(backend, True, True)(q, k, v, *rest)
    assert {a.dtype for a in (actual[1], *actual[0])} == {jnp.dtype(jnp.bfloat16)}
    exact = (a.astype(jnp.float32) for a in (q, k, v))
    check(actual, gradients("plain", True, True)(*exact, *rest), tolerance=2e-2)


# --- cuDNN ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_what_cudnn_is_given(monkeypatch, within, whole, heads=2 * H):
    """The same call to jax.nn, done by XLA; documents are a mask, a whole window lengths alone."""
    given = {}
    attention = jax.nn.dot_product_attention

    def by_xla(*arrays, implementation, **options):
        assert implementation == "cudnn"
        given.update(options)
        return attention(*arrays, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    S, first = (T, None) if whole else (T // 3, jnp.int32(T // 3))
    q, k, v, _ = arrays(S, jnp.bfloat16, heads)
    q_ids = ids("padding") if whole else ids("padding")[:, S : 2 * S]
    out = attend(
        *(q, k, v, q_ids, ids("padding")),
        within_document=within,
        first_query=first,
        backend="cudnn",
    )
    expected = plain(
        *(a.astype(jnp.float32) for a in (q, k, v)), q_ids, ids("padding"), within, first
    )
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=2e-2)
    assert ("mask" in given) == (within or not whole)


def test_cudnn_refuses_float32():
    q, k, v, _ = arrays()
    with pytest.raises(UsageError, match="cudnn computes in bfloat16, and the step in float32"):
        attend(
            *(q, k, v, ids("several"), ids("several")),
            within_document=True,
            first_query=None,
            backend="cudnn",
        )


# --- what `auto` is ------------------------------------------------------------------------------


def test_auto(monkeypatch, caplog):
    default = attention_kernels.default_backend
    default.cache_clear()
    assert [default(name, True) for name in ("cpu", "tpu", "gpu")] == [
        "blocked",
        "splash",
        "tokamax",
    ]
    assert not caplog.records
    default.cache_clear()
    monkeypatch.setitem(sys.modules, "tokamax", None)
    with caplog.at_level(logging.WARNING):
        assert default("gpu", True) == "cudnn"
    assert "emo-jax[gpu]" in caplog.text
    default.cache_clear()


def test_an_unknown_back_end_is_a_usage_error():
    q, k, v, _ = arrays()
    with pytest.raises(UsageError, match="attention_backend = 'flash' is unknown"):
        attend(
            *(q, k, v, ids("several"), ids("several")),
            within_document=True,
            first_query=None,
            backend="flash",
        )

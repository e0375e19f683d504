"""Rounds in which tokens travel: who sends what when, gradients, and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from ragged import emulated

from emo_jax.moe import exchange, rounds
from emo_jax.parallel.island import Held

P, Q, N, K, D = 4, 2, 24, 3, 5
E = P * Q
AXES = PartitionSpec("expert")
ROUTINGS = ("balanced", "all on one", "one device", "nobody", "one token", "last expert, half")


def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()[:P]), ("expert",))


def indices(case: str, rng) -> np.ndarray:
    """(P,N,K): experts of all devices' tokens; E: none."""
    distinct = np.stack([rng.permutation(E)[:K] for _ in range(P * N)]).reshape(P, N, K)
    if case == "balanced":
        return distinct
    if case == "all on one":
        return np.zeros((P, N, K), np.int64)
    if case == "one device":
        return rng.integers(2, 4, (P, N, K))
    if case == "nobody":
        return np.full((P, N, K), E)
    if case == "one token":
        found = np.full((P, N, K), E)
        found[2, 7] = distinct[0, 0]
        return found
    return np.where(rng.random((P, N, K)) < 0.5, E - 1, E)


def way_of(name: str, rows: int) -> exchange.Way:
    return exchange.AllToAll(rows) if name == "all_to_all" else exchange.Ragged(rows)


def toy(rows_CD, weights_C1, order, held):
    """An expert: tanh of the token times its expert's scale, weighted."""
    (of,) = held
    sizes, C = order.group_sizes_R, rows_CD.shape[0]
    expert_C = jnp.repeat(jnp.arange(Q), sizes, total_repeat_length=C)
    row_C = jnp.minimum(order.row_NK[:, 0], C - 1)
    there_C1 = (order.row_NK < C).astype(jnp.float32)
    scale_C1 = (of.weight + of.anchor)[expert_C[row_C]][:, None]
    return jnp.where(there_C1 > 0, weights_C1 * jnp.tanh(rows_CD * scale_C1), 0)


def on_devices(way, indices_PNK, x_PND, weights_PNK, scale_E, grad_PND, parts=1):
    """Output, gradients of tokens, weights and scales, and rounds; of all devices."""

    def one(indices, x, weights, scale, grad):
        me = lax.axis_index("expert")
        gather = lambda a: lax.all_gather(a, "expert", tiled=True)  # noqa: E731
        plan = way.plan(exchange.routed(indices[0], E, E, me, gather))
        compute = rounds.Compute(way, toy, Q, parts)

        def f(x, weights, anchor):
            held = (Held(scale, anchor),)
            return rounds.in_rounds(compute, x, weights, held, plan)

        out, pull = jax.vjp(f, x[0], weights[0], jnp.zeros_like(scale))
        dx, dweights, danchor = pull(grad[0])
        return out[None], dx[None], dweights[None], danchor, plan.rounds.reshape(1)

    run = jax.shard_map(
        one, mesh=mesh(), in_specs=(AXES,) * 5, out_specs=(AXES,) * 5, check_vma=False
    )
    return jax.jit(run)(indices_PNK, x_PND, weights_PNK, scale_E, grad_PND)


def here(indices_PNK, x_PND, weights_PNK, scale_E, grad_PND):
    def f(x, weights, scale):
        scale_PNK = jnp.append(scale, 0)[indices_PNK]
        each = jnp.tanh(x[:, :, None, :] * scale_PNK[..., None]) * weights[..., None]
        return jnp.where((indices_PNK < E)[..., None], each, 0).sum(axis=2)

    out, pull = jax.vjp(f, x_PND, weights_PNK, scale_E)
    return out, *pull(grad_PND)


@pytest.mark.parametrize("case", ROUTINGS)
@pytest.mark.parametrize(
    ("name", "rows", "parts"),
    [
        ("all_to_all", 4, 1),
        ("all_to_all", 6, 2),
        ("all_to_all", 100, 1),
        ("ragged", 7, 1),
        ("ragged", 20, 2),
    ],
)
def test_all_rows_are_through_and_so_are_their_gradients(monkeypatch, name, rows, parts, case):
    monkeypatch.setattr(exchange, "ragged_all_to_all", emulated)
    rng = np.random.default_rng(3)
    picks = indices(case, rng).astype(np.int32)
    arrays = [
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((P, N, D), (P, N, K), (E,), (P, N, D))
    ]
    *ours, used = on_devices(way_of(name, rows), picks, *arrays, parts)
    for found, right in zip(ours, here(picks, *arrays), strict=True):
        np.testing.assert_allclose(found, right, rtol=2e-5, atol=2e-6)
    counts_PP = np.stack([np.bincount(p[p < E] // Q, minlength=P) for p in picks])
    most = counts_PP.max() if name == "all_to_all" else counts_PP.sum(axis=0).max()
    np.testing.assert_array_equal(used, [max(1, -(-most // rows))] * P)


def test_memory_is_that_of_a_round_forward_and_back():
    """Four times the rows take four times the buffers of a round; nothing has room for all rows."""

    def temporaries(rows):
        shapes = ((P, N, K), (P, N, 512), (P, N, K), (E,), (P, N, 512))
        arrays = [
            jax.ShapeDtypeStruct(s, jnp.float32 if i else jnp.int32) for i, s in enumerate(shapes)
        ]
        way = exchange.AllToAll(rows)
        lowered = jax.jit(lambda *a: on_devices(way, *a)).lower(*arrays)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    small, middle, large = (temporaries(rows) for rows in (16, 64, 256))
    assert (large - middle) == pytest.approx(4 * (middle - small), rel=0.05)
    # Of each round: rows and their gradients that are sent, received and back; 512 floats a row.
    assert (large - middle) / (P * (256 - 64) * 512 * 4) < 8

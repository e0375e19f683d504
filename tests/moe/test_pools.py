"""Pools against an obvious loop over documents, and where their sizes come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.config import PoolConfig
from emo_jax.moe import pools

B, S, R = 3, 40, 11


def _inputs(seed=0, num_documents=7):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(R), (B, S)).astype(np.float32)
    ids = np.sort(rng.integers(0, num_documents, (B, S)), axis=1).astype(np.int32)
    ids[1, -4:] = -1
    return probs, ids, rng


def slow_pool(probs, ids, sizes, *, forced=0, top_p=0.0, min_size=0):
    """SPEC 2.2 for one document after the other, in float64."""
    keep = np.ones(probs.shape, bool)
    for b in range(B):
        for g in set(ids[b]) - {-1}:
            tokens = ids[b] == g
            sums = probs[b, tokens].astype(np.float64).sum(0)
            free = sums[: R - forced] if forced else sums
            order = np.argsort(-free, kind="stable")
            size = int(sizes[b, g])
            if top_p:  # the forced ones count first, then the others by their sums
                ranked = [*range(R - forced, R), *order]
                reached = np.cumsum(sums[ranked]) >= top_p * sums.sum() * (1 - 1e-7)
                size = int(np.clip(reached.argmax() + 1, min_size, size))
            kept = set(range(R - forced, R)) | set(order[: max(size - forced, 0)])
            keep[b, tokens] = [e in kept for e in range(R)]
    return keep


@pytest.mark.parametrize("forced", [0, 1, 3, R])
@pytest.mark.parametrize("seed", range(3))
def test_pool_is_the_experts_with_the_largest_sums(seed, forced):
    probs, ids, rng = _inputs(seed)
    sizes = rng.integers(1, R + 2, (B, S)).astype(np.int32)
    ours = pools.pool_mask(probs, ids, pools.Pools(jnp.asarray(sizes), forced_experts=forced))
    np.testing.assert_array_equal(ours, slow_pool(probs, ids, sizes, forced=forced))


@pytest.mark.parametrize("forced", [0, 5])
@pytest.mark.parametrize("top_p", [0.1, 0.3, 0.8, 1.0])
def test_top_p_is_the_smallest_set_with_that_mass(top_p, forced):
    probs, ids, _ = _inputs(4)
    probs = (probs**4 / (probs**4).sum(-1, keepdims=True)).astype(np.float32)
    sizes = np.full((B, S), 8, np.int32)
    options = {"top_p": top_p, "min_size": 3}
    ours = pools.pool_mask(
        probs, ids, pools.Pools(jnp.asarray(sizes), forced_experts=forced, **options)
    )
    np.testing.assert_array_equal(ours, slow_pool(probs, ids, sizes, forced=forced, **options))


def test_any_number_of_documents():
    """One document a token: more than one block of documents."""
    probs, _, rng = _inputs()
    ids = np.broadcast_to(np.arange(S, dtype=np.int32), (B, S))
    assert pools.DOCUMENT_BLOCK < S
    sizes = rng.integers(1, R + 1, (B, S)).astype(np.int32)
    ours = pools.pool_mask(probs, ids, pools.Pools(jnp.asarray(sizes)))
    np.testing.assert_array_equal(ours, slow_pool(probs, ids, sizes))


def test_ties_go_to_the_lower_index():
    probs = np.full((B, S, R), 1 / R, np.float32)
    keep = pools.pool_mask(probs, np.zeros((B, S), np.int32), pools.Pools(jnp.full((B, S), 4)))
    np.testing.assert_array_equal(keep[0, 0], np.arange(R) < 4)


def test_padding_is_restricted_by_nothing_and_adds_to_nothing():
    probs, ids, _ = _inputs()
    ids = np.zeros((B, S), np.int32)
    ids[:, S // 2 :] = -1
    sizes = pools.Pools(jnp.full((B, S), 3))
    keep = pools.pool_mask(probs, ids, sizes)
    assert np.asarray(keep[:, S // 2 :]).all()
    other = probs.copy()
    other[:, S // 2 :] = np.roll(other[:, S // 2 :], 1, axis=-1)
    np.testing.assert_array_equal(keep, pools.pool_mask(other, ids, sizes))


def _draw(config, rows, documents=S, layers=4, key=0):
    drawn = pools.draw_pools(
        jax.random.key(key),
        config,
        rows=jnp.asarray(rows),
        num_layers=layers,
        num_documents=documents,
    )
    return np.asarray(drawn.size_BG)


def test_uniform_draw_covers_the_range_with_both_ends():
    sizes = _draw(PoolConfig(kind="uniform", min_size=3, max_size=8), np.arange(200))
    values, counts = np.unique(sizes, return_counts=True)
    np.testing.assert_array_equal(values, np.arange(3, 9))
    expected = sizes.size / 6
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_draws_differ_by_layer_row_document_and_key():
    uniform = PoolConfig(kind="uniform", min_size=1, max_size=10_000)
    sizes = _draw(uniform, np.arange(8))
    assert len(np.unique(sizes)) > 0.9 * sizes.size
    assert (sizes != _draw(uniform, np.arange(8), key=1)).mean() > 0.99


def test_a_draw_depends_on_the_global_row_only():
    """Not on which rows are beside it, how many documents there may be, or how many layers."""
    uniform = PoolConfig(kind="uniform", min_size=1, max_size=10_000)
    whole = _draw(uniform, np.arange(8))
    np.testing.assert_array_equal(_draw(uniform, [5, 2]), whole[:, [5, 2]])
    np.testing.assert_array_equal(_draw(uniform, np.arange(8), documents=9), whole[:, :, :9])
    np.testing.assert_array_equal(_draw(uniform, np.arange(8), layers=2), whole[:2])


def test_fixed_sizes():
    assert (_draw(PoolConfig(kind="fixed", size=5), [0, 1]) == 5).all()

"""Sizes, schedule, scope and strength of pools, each against a slow transcription."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import UNIFORM, tiny_batch, tiny_config

from emo_jax.config import MoeConfig, PoolConfig
from emo_jax.errors import ConfigError
from emo_jax.moe import pools
from emo_jax.moe.router import choose
from emo_jax.training.step import draw_pools


def _pool(**changes) -> PoolConfig:
    return dataclasses.replace(UNIFORM, **changes)


def _sizes(config, *, step=0, rows=64, documents=16):
    drawn = pools.draw_pools(
        jax.random.key(3),
        config,
        rows=jnp.arange(rows),
        num_layers=2,
        num_documents=documents,
        num_routed=7,
        step=step,
    )
    return np.asarray(drawn.size_BG)


@pytest.mark.parametrize("power", [0.5, 2.0, 3.0])
def test_sizes_follow_the_power_of_a_uniform_number(power):
    config = _pool(min_size=3, max_size=8, size_power=power)
    sizes = _sizes(config, rows=256)
    for layer, row in ((0, 5), (1, 200)):  # transcribed draw by draw
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), layer), row)
        for g, u in enumerate(np.asarray(jax.random.uniform(key, (16,)), np.float64)):
            assert sizes[layer, row, g] == 3 + min(math.floor(6 * u**power), 5)
    for k in range(6):  # P(u^power · 6 in k..k+1)
        expected = ((k + 1) / 6) ** (1 / power) - (k / 6) ** (1 / power)
        spread = math.sqrt(expected * (1 - expected) / sizes.size)
        assert abs((sizes == 3 + k).mean() - expected) < 5 * spread


def test_defaults_draw_what_they_drew():
    """The numbers of `jax.random.randint`, which earlier runs used."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 1), 9)
    np.testing.assert_array_equal(
        _sizes(UNIFORM)[1, 9], jax.random.randint(key, (16,), 2, 8, jnp.int32)
    )


@pytest.mark.parametrize("kind", ["fixed", "uniform"])
def test_sizes_shrink_linearly_to_their_own(kind):
    sizes = {"size": 3} if kind == "fixed" else {"min_size": 2, "max_size": 7}
    plain = PoolConfig(kind=kind, **sizes)
    config = dataclasses.replace(plain, decay_steps=10)
    last = _sizes(plain)
    for step in (0, 1, 4, 9, 10, 11, 1000):
        left = max(10 - step, 0)
        expected = np.vectorize(lambda d: d + math.ceil((7 - d) * left / 10))(last)  # noqa: B023
        np.testing.assert_array_equal(_sizes(config, step=step), expected)
    assert (_sizes(config, step=0) == 7).all()


def test_a_schedule_does_not_compile_again():
    config = tiny_config(pool=_pool(decay_steps=5))
    traced = []

    @jax.jit
    def drawn(step):
        traced.append(step)
        return draw_pools(config, step, jnp.arange(4)).size_BG

    found = [np.asarray(drawn(jnp.int32(step))) for step in range(7)]
    assert len(traced) == 1
    assert (found[0] == 7).all() and found[4].mean() > UNIFORM.min_size
    later = draw_pools(tiny_config(), jnp.int32(6), jnp.arange(4)).size_BG
    np.testing.assert_array_equal(found[6], later)


def slow_shared(config, pool_ids, domain_ids):
    """Who shares a pool, token after token."""
    out = np.full(pool_ids.shape, -1)
    for b, row in enumerate(pool_ids):
        number, length, last = -1, 0, None
        for s, document in enumerate(row):
            if document < 0:
                continue
            if config.scope == "document":
                out[b, s] = document
                continue
            now = {"span": document, "domain": domain_ids[b, s], "window": 0}[config.scope]
            length = length + 1 if now == last else 1
            if now != last or (config.scope == "span" and (length - 1) % config.span == 0):
                number += 1
            out[b, s], last = number, now
    return out


SCOPES = [
    _pool(),
    _pool(scope="span", span=1),
    _pool(scope="span", span=3),
    _pool(scope="span", span=100),
    _pool(scope="domain"),
    _pool(scope="window"),
]


@pytest.mark.parametrize("config", SCOPES, ids=lambda c: f"{c.scope}{c.span or ''}")
def test_who_shares_a_pool(config):
    rng = np.random.default_rng(0)
    ids = np.sort(rng.integers(0, 9, (5, 40)), axis=1).astype(np.int32)
    ids = ids - ids[:, :1]
    domains = rng.integers(0, 3, (5, 20))[np.arange(5)[:, None], ids].astype(np.int32)
    ids[2, -7:] = domains[2, -7:] = -1
    ids[3] = domains[3] = -1
    ours = pools.shared_by(config, jnp.asarray(ids), jnp.asarray(domains))
    np.testing.assert_array_equal(ours, slow_shared(config, ids, domains))


D, R, K, B, S = 6, 9, 2, 2, 12


def _routed(x, kernel, ids, sizes, penalty):
    config = MoeConfig(num_experts=R, top_k=K, expert_dim=4, num_shared_experts=0)
    drawn = pools.Pools(jnp.asarray(sizes), penalty=penalty)
    run = jax.jit(lambda x, kernel: choose(x, kernel, config, jnp.asarray(ids), pools=drawn))
    return run(x, kernel)


@pytest.mark.parametrize("penalty", [0.7, 3.0])
def test_logits_outside_are_lowered(penalty):
    """Probabilities, picks, and gradients through the weights, in float64."""
    rng = np.random.default_rng(1)
    x, kernel = rng.normal(size=(B, S, D)), rng.normal(size=(D, R))
    ids = np.repeat(np.arange(3), 4)[None].repeat(B, 0).astype(np.int32)
    sizes = rng.integers(2, 6, (B, 3)).astype(np.int32)
    along = rng.normal(size=(B, S, K))

    def slow(kernel):
        logits = x @ kernel
        probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        for b in range(B):
            for g in range(3):
                order = np.argsort(-probs[b, ids[b] == g].sum(0), kind="stable")
                outside = order[sizes[b, g] :]
                logits[np.ix_([b], np.flatnonzero(ids[b] == g), outside)] -= penalty
        soft = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        picks = np.argsort(-soft, axis=-1, kind="stable")[..., :K]
        return soft, picks, (np.take_along_axis(soft, picks, -1) * along).sum()

    soft, picks, _ = slow(kernel)
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, kernel)]
    routing, probs = _routed(*arrays, ids, sizes, penalty)
    np.testing.assert_allclose(probs.probs_BSR, soft, rtol=2e-5)
    np.testing.assert_array_equal(routing.indices_BSK, picks)
    hard, _ = _routed(*arrays, ids, sizes, 0.0)
    assert not np.allclose(hard.weights_BSK, routing.weights_BSK)

    def loss(kernel):
        weights = _routed(arrays[0], kernel, ids, sizes, penalty)[0].weights_BSK
        return (weights * along).sum()

    ours = jax.jit(jax.grad(loss))(arrays[1])
    step = 1e-6
    for d, r in [(0, 0), (3, 5), (5, 8)]:
        moved = np.zeros((D, R))
        moved[d, r] = step
        numeric = (slow(kernel + moved)[2] - slow(kernel - moved)[2]) / (2 * step)
        assert ours[d, r] == pytest.approx(numeric, rel=1e-3, abs=1e-5)


def test_the_model_uses_its_scope():
    """A window of one document has, with spans of 4, the pools of a window of documents of 4."""
    from emo_jax.model.functions import ModelFunctions

    config = tiny_config(pool=_pool(scope="span", span=4))
    batch = tiny_batch(config, rows=2)
    params = jax.jit(ModelFunctions(config).init, static_argnums=0)(0)
    one = batch._replace(pool_ids=np.zeros_like(batch.pool_ids))
    short = batch._replace(pool_ids=np.repeat(np.arange(8), 4)[None].repeat(2, 0).astype(np.int32))
    drawn = draw_pools(config, jnp.int32(0), jnp.arange(2))
    ours = jax.jit(ModelFunctions(config).logits)(params, one, pools=drawn)
    plain = jax.jit(ModelFunctions(tiny_config()).logits)
    np.testing.assert_array_equal(ours, plain(params, short, pools=drawn))
    assert not np.allclose(ours, plain(params, one, pools=drawn))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size_power": 0.0}, "moe.pool.size_power = 0.0: must be above 0"),
        ({"decay_steps": -1}, "moe.pool.decay_steps = -1: must be 0..268435454"),
        ({"scope": "span"}, "moe.pool.span = 0: must be at least 1 with moe.pool.scope 'span'"),
        ({"span": 4}, "moe.pool.span = 4: must be"),
        ({"penalty": -1.0}, "moe.pool.penalty = -1.0: must be at least 0"),
        ({"scope": "page"}, "moe.pool.scope"),
        ({"kind": "none", "min_size": 0, "max_size": 0, "penalty": 1.0}, "moe.pool.penalty = 1.0"),
        ({"kind": "fixed", "size": 3, "min_size": 0, "max_size": 0, "size_power": 2.0}, "size_pow"),
    ],
)
def test_refusals(changes, said):
    from emo_jax.config import from_config_dict, to_dict

    config = to_dict(tiny_config())
    config["moe"]["pool"] |= changes
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        from_config_dict(config)

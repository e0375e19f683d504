"""The whole model: what may and what may not influence a logit, and its named shapes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from tiny import NO_POOL, dense_config, tiny_batch, tiny_config

from emo_jax.batch import from_documents
from emo_jax.config import PoolConfig, from_config_dict, presets
from emo_jax.model.attention_kernels import attention_mask
from emo_jax.model.blocked_attention import blocked_attention
from emo_jax.model.functions import ModelFunctions
from emo_jax.moe.pools import Pools, pools_of_size
from emo_jax.training.flops import flops_per_token

ALL = 10_000  # a pool of more experts than there are


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        (presets.emo_1b14b, 13_568_641_024),
        (presets.stdmoe_1b14b, 13_568_641_024),
        (presets.stdmoe_1b4b, 3_901_818_880),
        (presets.dense_1b, 1_484_851_200),
    ],
)
def test_parameter_counts(preset, count):
    assert ModelFunctions(from_config_dict(preset())).num_params() == count


def test_flops_per_token():
    """SPEC 1.5: what the reference's MFU is reported against."""
    assert flops_per_token(from_config_dict(presets.emo_1b14b())) == 9_311_367_168


def test_grouped_queries_cost_less():
    """Keys and values of two heads rather than of 16 in each layer of 1b14b."""
    config = from_config_dict(presets.emo_1b14b())
    grouped = dataclasses.replace(config.model, num_kv_heads=2)
    grouped = dataclasses.replace(config, model=grouped)
    fewer = 16 * 2 * 2048 * (16 - 2) * 128
    assert ModelFunctions(grouped).num_params() == 13_568_641_024 - fewer
    assert flops_per_token(grouped) == 9_311_367_168 - 6 * fewer


def test_initialisation():
    config = tiny_config(init_std=0.02, embed_dim=128, vocab_size=500)
    params = ModelFunctions(config).init(0)
    same = ModelFunctions(config).init(0)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert (params["layers"]["mlp_norm"]["scale"] == 1).all()
    for leaf in (params["embed"]["embedding"], params["layers"]["mlp"]["experts"]["gate"]):
        assert abs(float(leaf.std()) - 0.0197) < 2e-4  # SPEC 1.3
        assert float(jnp.abs(leaf).max()) <= 0.06
    query = params["layers"]["attention"]["query"]
    assert not np.array_equal(query[0], query[1])


def _logits(config, batch, *, sizes=None, keep_LMR=None, seed=0):
    model = ModelFunctions(config)
    params = model.init(seed)
    L, (B, S) = config.model.num_layers, batch.tokens.shape
    pools = None if sizes is None else Pools(jnp.broadcast_to(jnp.asarray(sizes), (L, B, S)))
    return np.asarray(model.logits(params, batch, pools=pools, keep_LMR=keep_LMR))


def _documents():
    """Two windows of three documents each."""
    rng = np.random.default_rng(0)
    ids = np.repeat([[0, 1, 2]], 2, axis=0).repeat([10, 12, 10], axis=1)
    return rng.integers(0, 50, ids.shape), ids


def test_a_token_changes_no_logit_of_another_document():
    """With pools and attention within the document, in training as in evaluation."""
    config = tiny_config()
    tokens, ids = _documents()
    before = _logits(config, from_documents(tokens, ids), sizes=3)
    changed = tokens.copy()
    changed[0, 15] = (changed[0, 15] + 1) % 50
    after = _logits(config, from_documents(changed, ids), sizes=3)
    other = (ids != ids[0, 15]) | (np.arange(2)[:, None] == 1)
    np.testing.assert_array_equal(before[other], after[other])
    # An earlier token of the same document may see it: the pool looks at the whole document.
    same = (ids == 1) & (np.arange(2)[:, None] == 0)
    assert (before[same] != after[same]).any()


@pytest.mark.parametrize("attention", ["document", "window"])
def test_with_pools_held_fixed_a_token_changes_no_earlier_logit(attention):
    config = tiny_config(attention=attention)
    tokens, ids = _documents()
    keep = np.zeros((2, 1, 7), bool)
    keep[:, :, [0, 2, 5]] = True  # the same three experts whatever the document says
    fixed = {"keep_LMR": jnp.asarray(keep)}
    before = _logits(config, from_documents(tokens, ids), **fixed)
    changed = tokens.copy()
    changed[0, 15] = (changed[0, 15] + 1) % 50
    after = _logits(config, from_documents(changed, ids), **fixed)
    np.testing.assert_array_equal(before[0, :15], after[0, :15])
    assert (before[0, 15:22] != after[0, 15:22]).any()
    # Across documents only where attention reaches across the window.
    assert (before[0, 22:] != after[0, 22:]).any() == (attention == "window")


def test_attention_across_the_window_sees_other_documents_and_never_padding():
    config = tiny_config(attention="window", pool=NO_POOL)
    tokens, ids = _documents()
    ids = ids.copy()
    ids[:, 28:] = -1
    before = _logits(config, from_documents(tokens, ids))
    changed = tokens.copy()
    changed[:, 30] = (changed[:, 30] + 1) % 50
    after = _logits(config, from_documents(changed, ids))
    np.testing.assert_array_equal(before[:, :28], after[:, :28])
    changed[:, 3] = (changed[:, 3] + 1) % 50
    after = _logits(config, from_documents(changed, ids))
    assert (before[:, 25] != after[:, 25]).any()
    assert np.isfinite(before[..., :50]).all()


def test_a_kept_set_equals_the_pruned_model():
    """A mask of experts is the model in which the others do not exist."""
    config = tiny_config(pool=NO_POOL)
    model, batch = ModelFunctions(config), tiny_batch(config)
    params = model.init(0)
    kept = [np.array([1, 3, 4]), np.array([0, 2, 6])]  # by layer
    keep = np.zeros((2, 1, 7), bool)
    for layer, experts in enumerate(kept):
        keep[layer, 0, experts] = True
    masked = model.logits(params, batch, keep_LMR=jnp.asarray(keep))

    small = tiny_config(pool=NO_POOL, num_experts=4)
    pruned = jax.tree.map(lambda a: a, params)
    mlp = pruned["layers"]["mlp"]
    take = [np.append(experts, 7) for experts in kept]  # and the shared one
    mlp["router"]["kernel"] = jnp.stack(
        [mlp["router"]["kernel"][i][:, t] for i, t in enumerate(take)]
    )
    for name in ("gate", "up", "down"):
        mlp["experts"][name] = jnp.stack([mlp["experts"][name][i][t] for i, t in enumerate(take)])
    np.testing.assert_allclose(masked, ModelFunctions(small).logits(pruned, batch), atol=2e-5)


def test_padded_vocabulary_has_no_probability():
    config = tiny_config()
    logits = _logits(config, tiny_batch(config))
    assert logits.shape[-1] == 64
    assert np.isneginf(logits[..., 50:]).all()


@pytest.mark.parametrize("within", [True, False])
def test_blocked_attention_equals_the_plain_one(within, monkeypatch):
    from emo_jax.model import blocked_attention as module

    monkeypatch.setattr(module, "MIN_BLOCK", 8)
    monkeypatch.setattr(module, "MAX_BLOCKS", 4)
    rng = np.random.default_rng(0)
    q, k, v, cotangent = (
        jnp.asarray(rng.normal(size=(2, 30, 3, 8)), jnp.float32) for _ in range(4)
    )
    ids = np.sort(rng.integers(0, 4, (2, 30)), axis=1)
    ids[1, -6:] = -1
    ids = jnp.asarray(ids)
    valid = (ids >= 0)[..., None, None]

    def plain(q, k, v):
        mask = attention_mask(ids, ids, within_document=within)[:, None]
        scores = jnp.einsum("bshk,bthk->bhst", q, k) / np.sqrt(8)
        probs = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
        return jnp.where(valid, jnp.einsum("bhst,bthk->bshk", probs, v), 0)

    def ours(q, k, v):
        return jnp.where(valid, blocked_attention(q, k, v, ids, within_document=within), 0)

    np.testing.assert_allclose(ours(q, k, v), plain(q, k, v), atol=1e-6)
    grads = [
        jax.grad(lambda *a, f=f: jnp.sum(f(*a) * cotangent), (0, 1, 2))(q, k, v)
        for f in (ours, plain)
    ]
    for a, b in zip(*grads, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_remat_changes_no_gradient():
    config = tiny_config()
    batch = tiny_batch(config)
    params = ModelFunctions(config).init(0)
    pools = Pools(jnp.full((2, *batch.tokens.shape), 3))
    cotangent = jax.random.normal(jax.random.key(1), (*batch.tokens.shape, 16))

    def grads(config):
        def loss(p):
            hidden, stats = ModelFunctions(config).hidden(p, batch, pools=pools)
            return jnp.sum(hidden * cotangent) + stats.load_balance_loss.sum()

        return jax.jit(jax.grad(loss))(params)

    remat = dataclasses.replace(config, model=dataclasses.replace(config.model, remat="full"))
    ours, ref = grads(remat), grads(config)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(ref), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


def _products(closed) -> int:
    """Matrix products in a program, those of its loops once."""
    inner = jaxprs_in_params
    count = 0
    for eqn in closed.eqns:
        count += eqn.primitive.name == "dot_general"
        count += sum(_products(jaxpr) for jaxpr in inner(eqn.params))
    return count


@pytest.mark.parametrize("make", [lambda: tiny_config(pool=NO_POOL), dense_config])
def test_a_remat_policy_keeps_what_its_name_says(make):
    """With `save_matmuls` no product is made twice, whatever makes it."""
    config = make()
    batch = tiny_batch(config)

    def products(remat):
        model = dataclasses.replace(config.model, remat=remat)
        functions = ModelFunctions(dataclasses.replace(config, model=model))
        loss = lambda p: functions.hidden(p, batch)[0].sum()  # noqa: E731
        return _products(jax.make_jaxpr(jax.grad(loss))(functions.abstract_params).jaxpr)

    counts = [products(remat) for remat in ("full", "save_attention", "save_matmuls", "none")]
    assert counts[0] > counts[1] > counts[2] == counts[3]


def test_dense_model():
    config = dense_config()
    logits = _logits(config, tiny_batch(config))
    assert np.isfinite(logits[..., :50]).all()


def test_bfloat16_keeps_the_router_in_float32():
    config = tiny_config(compute_dtype="bfloat16", pool=PoolConfig(kind="fixed", size=3))
    model, batch = ModelFunctions(config), tiny_batch(config)
    params = model.init(0)
    hidden, stats = model.hidden(params, batch, pools=Pools(jnp.full((2, 8, 32), 3)))
    assert hidden.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(stats))
    float32 = tiny_config()
    reference = ModelFunctions(float32).logits(params, batch)
    ours = model.logits(params, batch)
    assert ours.dtype == jnp.float32
    error = jnp.linalg.norm((ours - reference)[..., :50]) / jnp.linalg.norm(reference[..., :50])
    assert error < 0.1


def test_the_pool_of_an_evaluation_has_its_size_whatever_the_training_pools_are():
    pool = PoolConfig(kind="top_p", top_p=0.3, min_size=2, max_size=7, eval_size=6)
    config = tiny_config(pool=pool)
    model, batch = ModelFunctions(config), tiny_batch(config)
    params, shape = model.init(0), (2, *batch.tokens.shape)
    tokens = (batch.pool_ids >= 0).sum()
    _, stats = model.hidden(params, batch, pools=pools_of_size(pool, 6, shape))
    np.testing.assert_allclose(stats.pool_size_sum / tokens, 6)
    pools = Pools(jnp.full(shape, 6), top_p=0.3, min_size=2)
    _, stats = model.hidden(params, batch, pools=pools)
    assert (stats.pool_size_sum / tokens < 5).all()

"""The step: what must be equal, for whatever devices and micro-batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import few
from tiny import NO_POOL, UNIFORM, dense_config, tiny_batch, tiny_config

from emo_jax.batch import Batch, from_documents
from emo_jax.config import MeshConfig, PoolConfig
from emo_jax.errors import ConfigError
from emo_jax.model.functions import ModelFunctions
from emo_jax.moe.losses import load_balance_loss
from emo_jax.parallel.mesh import make_mesh, windows_sharding
from emo_jax.training.optimizer import decay_mask, learning_rate, make_optimizer
from emo_jax.training.state import abstract_state, init_state
from emo_jax.training.step import draw_pools, jit_train_step, loss_and_grads, loss_tokens


def _grads(config, batch, *, mesh=None, params=None):
    model = ModelFunctions(config, mesh)
    params = ModelFunctions(config).init(0) if params is None else params
    if mesh is not None:
        params = jax.device_put(params, model.param_shardings())
        batch = Batch(*(jax.device_put(a, windows_sharding(mesh)) for a in batch))

    def run(params, batch):
        pools = draw_pools(config, jnp.asarray(3), jnp.arange(batch.tokens.shape[0]))
        return loss_and_grads(params, batch, pools, config=config, model=model)

    return jax.device_get(jax.jit(run)(params, batch))


def worst(ours, ref) -> float:
    """Largest relative error of any gradient; where the reference is 0 ours must be."""

    def error(a, b):
        norm = np.linalg.norm(b)
        return np.linalg.norm(a - b) / norm if norm else (0.0 if not a.any() else np.inf)

    return max(jax.tree.leaves(jax.tree.map(error, ours, ref)))


def test_pool_of_all_experts_is_the_standard_moe():
    """In every gradient, up to the order in which the compiler adds."""
    standard = tiny_config(pool=NO_POOL)
    emo = tiny_config(pool=PoolConfig(kind="fixed", size=8))
    batch = tiny_batch(standard)
    grads, metrics = _grads(emo, batch)
    ref_grads, ref_metrics = _grads(standard, batch)
    assert worst(grads, ref_grads) < 1e-6
    np.testing.assert_array_equal(metrics["expert_counts"], ref_metrics["expert_counts"])
    np.testing.assert_allclose(metrics["loss"], ref_metrics["loss"], rtol=1e-6)
    # And a smaller pool is something else.
    smaller, _ = _grads(tiny_config(pool=PoolConfig(kind="fixed", size=3)), batch)
    assert worst(smaller, ref_grads) > 1e-2


def test_balanced_routing_has_load_balance_one():
    R, K, tokens = 6, 2, 90
    counts = jnp.full((R,), tokens * K / R)
    loss = load_balance_loss(
        counts,
        jnp.full((R,), 1 / R),
        num_experts=R,
        num_picks=K,
        loss_tokens=jnp.asarray(float(tokens)),
    )
    np.testing.assert_allclose(loss, 1.0, rtol=1e-6)
    one_expert = jnp.zeros((R,)).at[0].set(1.0)
    collapsed = load_balance_loss(
        one_expert * tokens,
        one_expert,
        num_experts=R,
        num_picks=K,
        loss_tokens=jnp.asarray(float(tokens)),
    )
    np.testing.assert_allclose(collapsed, R / K, rtol=1e-6)


@pytest.mark.parametrize("micro_batches", few([2, 1, 4]))
def test_whole_steps_of_balanced_routing_have_load_balance_one(micro_batches):
    """Through the whole model: a router of zeros is balanced over many tokens' ties only in its
    probabilities, so counts are the top-k of ties: experts 0..K-1, and LB = R/K · K/R = 1."""
    config = tiny_config(pool=NO_POOL, micro_batches=micro_batches)
    params = ModelFunctions(config).init(0)
    params["layers"]["mlp"]["router"]["kernel"] *= 0.0
    batch = tiny_batch(config)
    _, metrics = _grads(config, batch, params=params)
    routed = float((batch.pool_ids >= 0).sum() / batch.loss_mask.sum())
    np.testing.assert_allclose(metrics["load_balance_loss"], routed, rtol=1e-5)


@pytest.mark.parametrize("shared", few([2, 1]))
def test_shared_rows_of_the_router_get_no_gradient(shared):
    config = tiny_config(num_shared_experts=shared)
    grads, _ = _grads(config, tiny_batch(config))
    router = grads["layers"]["mlp"]["router"]["kernel"]
    assert not router[..., -shared:].any()
    assert all(router[..., e].any() for e in range(8 - shared))
    assert grads["layers"]["mlp"]["experts"]["gate"][:, -shared:].any()


@pytest.mark.parametrize("pool", [UNIFORM, NO_POOL], ids=["emo", "standard"])
@pytest.mark.parametrize(
    "sizes", few([dict(fsdp=4, expert=2), dict(fsdp=8), dict(replica=2, fsdp=4)])
)
def test_one_and_eight_devices_agree_on_gradients(pool, sizes):
    config = tiny_config(pool=pool)
    batch = tiny_batch(config)
    grads, metrics = _grads(config, batch, mesh=make_mesh(MeshConfig(**sizes)))
    ref_grads, ref_metrics = _grads(config, batch)
    assert worst(grads, ref_grads) < 1e-5
    np.testing.assert_array_equal(metrics["expert_counts"], ref_metrics["expert_counts"])
    np.testing.assert_allclose(metrics["pool_size"], ref_metrics["pool_size"], rtol=1e-6)
    for name in ("loss", "ce_loss", "lm_z_loss", "router_aux_loss"):
        np.testing.assert_allclose(metrics[name], ref_metrics[name], rtol=1e-5)


VARIANTS = {
    "dense": dense_config(),
    "window": tiny_config(attention="window"),
    "no shared": tiny_config(num_shared_experts=0),
    "two shared, remat": tiny_config(num_shared_experts=2, remat="full"),
    "top-p, forced": tiny_config(
        pool=PoolConfig(kind="top_p", top_p=0.5, min_size=2, max_size=6, forced_experts=2)
    ),
}


@pytest.mark.parametrize("name", few(VARIANTS, 1))
def test_every_variant_is_the_same_on_eight_devices(name):
    config = VARIANTS[name]
    batch = tiny_batch(config)
    grads, _ = _grads(config, batch, mesh=make_mesh(MeshConfig(fsdp=4, expert=2)))
    ref_grads, _ = _grads(config, batch)
    assert worst(grads, ref_grads) < 1e-5


def test_bfloat16_adds_up_a_frequent_token_in_float32():
    """The input embedding's gradient: thousands of rows of one id, on one device as on eight."""
    config = tiny_config(compute_dtype="bfloat16", pool=NO_POOL, batch_size=64)
    batch = tiny_batch(config)
    often = np.random.default_rng(1).random(batch.tokens.shape) < 0.5
    batch = from_documents(np.where(often, 7, batch.tokens), batch.segment_ids)
    embedding = lambda grads: grads["embed"]["embedding"]  # noqa: E731
    one, _ = _grads(config, batch)
    eight, _ = _grads(config, batch, mesh=make_mesh(MeshConfig()))
    exact, _ = _grads(tiny_config(pool=NO_POOL, batch_size=64), batch)
    assert worst(embedding(one), embedding(exact)) < 0.05
    assert worst(embedding(one), embedding(eight)) < 0.01


def test_a_mesh_that_does_not_divide_the_weights_is_refused():
    config = tiny_config(embed_dim=12)
    with pytest.raises(ConfigError, match=r"mesh\.fsdp = 8.*'embed'"):
        ModelFunctions(config, make_mesh(MeshConfig())).param_shardings()
    config = tiny_config(num_experts=10)
    with pytest.raises(ConfigError, match=r"mesh\.expert = 8.*'expert'"):
        mesh = make_mesh(MeshConfig(fsdp=1, expert=-1))
        ModelFunctions(config, mesh).param_shardings()


@pytest.mark.system
def test_eight_devices_with_micro_batches():
    config = tiny_config(micro_batches=2, batch_size=16)
    batch = tiny_batch(config)
    grads, _ = _grads(config, batch, mesh=make_mesh(MeshConfig()))
    ref_grads, _ = _grads(config, batch)
    assert worst(grads, ref_grads) < 1e-5


@pytest.mark.parametrize("micro_batches", few([2, 4]))
def test_micro_batches_see_the_same_pools_and_losses(micro_batches):
    """All but the load balance, whose counts are of a micro-batch (SPEC 3), is the same."""
    whole = tiny_config(load_balance_weight=0.0)
    config = tiny_config(load_balance_weight=0.0, micro_batches=micro_batches)
    batch = tiny_batch(config)
    grads, metrics = _grads(config, batch)
    ref_grads, ref_metrics = _grads(whole, batch)
    assert worst(grads, ref_grads) < 1e-5
    np.testing.assert_array_equal(metrics["expert_counts"], ref_metrics["expert_counts"])
    np.testing.assert_allclose(metrics["pool_size"], ref_metrics["pool_size"], rtol=1e-6)
    for name in ("ce_loss", "lm_z_loss", "router_aux_loss", "token_entropy"):
        np.testing.assert_allclose(metrics[name], ref_metrics[name], rtol=1e-5)


def test_pool_draws_are_of_the_step_and_seed():
    config = tiny_config(pool=PoolConfig(kind="uniform", min_size=2, max_size=8))
    rows = jnp.arange(8)
    draw = lambda c, step: np.asarray(draw_pools(c, jnp.asarray(step), rows).size_BG)  # noqa: E731
    np.testing.assert_array_equal(draw(config, 5), draw(config, 5))
    assert (draw(config, 5) != draw(config, 6)).any()
    assert (draw(config, 5) != draw(dataclasses.replace(config, seed=1), 5)).any()
    sharded = jax.jit(
        lambda rows: draw_pools(config, jnp.asarray(5), rows).size_BG,
        in_shardings=jax.NamedSharding(make_mesh(MeshConfig()), jax.P("fsdp")),
    )(rows)
    np.testing.assert_array_equal(sharded, draw(config, 5))


def test_filtered_windows_stay_in_the_denominator():
    """SPEC 3 and 5.5: all labels masked, still routed, S tokens more in T."""
    config = tiny_config()
    batch = tiny_batch(config)
    before = float(loss_tokens(jax.tree.map(jnp.asarray, batch)))
    mask = batch.loss_mask.copy()
    labels = mask[0].sum()
    mask[0] = 0
    after = float(loss_tokens(jax.tree.map(jnp.asarray, batch._replace(loss_mask=mask))))
    assert after == before - labels + batch.tokens.shape[1]
    _, metrics = _grads(config, batch._replace(loss_mask=mask))
    counts = metrics["expert_counts"]
    assert (counts[:, :-1].sum(axis=1) == 2 * (batch.pool_ids >= 0).sum()).all()


def test_padding_changes_nothing():
    """Tokens under padding are neither routed nor counted, and give no gradient."""
    config = tiny_config()
    batch = tiny_batch(config)
    changed = batch.tokens.copy()
    changed[-1, -5:] = (changed[-1, -5:] + 7) % 50
    grads, metrics = _grads(config, batch)
    other, other_metrics = _grads(config, batch._replace(tokens=changed))
    jax.tree.map(np.testing.assert_array_equal, grads, other)
    jax.tree.map(np.testing.assert_array_equal, metrics, other_metrics)
    assert (metrics["expert_counts"][:, -1] == (batch.pool_ids >= 0).sum()).all()


def test_learning_rate_of_the_spec():
    config = dataclasses.replace(tiny_config().optimizer, peak_lr=4e-3, warmup_steps=2000)
    schedule = learning_rate(config, 30_995)
    at = lambda n: float(schedule(n - 1))  # noqa: E731  step n of SPEC 4 counts from 1
    np.testing.assert_allclose([at(1), at(1000)], [2e-6, 2e-3], rtol=1e-6)
    np.testing.assert_allclose([at(2000), at(30_995)], [4e-3, 4e-4], rtol=1e-6)
    half = 4e-4 + (4e-3 - 4e-4) * 0.5 * (1 + np.cos(np.pi * (2001 - 2000) / (30_995 - 2000)))
    np.testing.assert_allclose(at(2001), half, rtol=1e-6)


def test_only_the_input_embedding_is_not_decayed():
    config = tiny_config()
    mask = decay_mask(ModelFunctions(config).abstract_params)
    undecayed = [p for p, m in jax.tree_util.tree_flatten_with_path(mask)[0] if not m]
    assert [jax.tree_util.keystr(p) for p in undecayed] == ["['embed']['embedding']"]
    params = jax.tree.map(jnp.ones_like, ModelFunctions(config).init(0))
    optimizer = make_optimizer(config)
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    lr = float(learning_rate(config.optimizer, config.train.steps)(0))
    np.testing.assert_allclose(updates["lm_head"]["kernel"], -lr * 0.1, rtol=1e-6)
    assert not np.asarray(updates["embed"]["embedding"]).any()


def test_gradients_are_clipped_to_the_global_norm():
    """The first moment after one step is (1-b1) of the clipped gradient, of norm 1."""
    config = tiny_config()
    optimizer, params = make_optimizer(config), ModelFunctions(config).init(0)
    for scale, norm in ((100.0, 1.0), (1e-4, None)):
        grads = jax.tree.map(lambda a, scale=scale: scale * jnp.ones_like(a), params)
        _, state = optimizer.update(grads, optimizer.init(params), params)
        expected = float(optax.tree.norm(grads)) if norm is None else norm
        np.testing.assert_allclose(optax.tree.norm(state[0][1].mu), 0.1 * expected, rtol=1e-5)


@pytest.mark.parametrize("make", [tiny_config, dense_config], ids=["emo", "dense"])
def test_steps_lower_the_loss_and_state_keeps_its_sharding(make):
    config, mesh = make(), make_mesh(MeshConfig())
    model, optimizer = ModelFunctions(config, mesh), make_optimizer(config)
    state = init_state(model, optimizer, seed=0)
    step = jit_train_step(config, model, optimizer)
    batch = tiny_batch(config)
    batch = Batch(*(jax.device_put(a, windows_sharding(mesh)) for a in batch))
    losses = []
    for _ in range(6):
        state, metrics = step(state, batch)
        losses.append(float(metrics["ce_loss"]))
    assert losses[-1] < losses[0] - 0.1
    assert int(state.step) == 6
    assert step._cache_size() == 1
    abstract = abstract_state(model, optimizer)
    jax.tree.map(
        lambda leaf, wanted: np.testing.assert_(
            leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
        ),
        state,
        abstract,
    )
    # Optimizer state lies where its parameter does: the embedding is spread over the devices.
    moments = state.opt_state[0][1].mu["embed"]["embedding"]
    assert moments.sharding.shard_shape(moments.shape)[1] * 8 == moments.shape[1]


# --- the load balance of a step in parts ---------------------------------------------------------


def _uneven(config) -> Batch:
    """Documents and padding that differ from micro-batch to micro-batch."""
    batch = tiny_batch(config)
    segment_ids = batch.segment_ids.copy()
    segment_ids[2, 10:] = -1
    segment_ids[5] = 0
    return from_documents(batch.tokens, segment_ids)


def _balanced_over(scope, *, pool=UNIFORM, micro_batches=1, **settings):
    config = tiny_config(
        pool=pool, load_balance_weight=1.0, micro_batches=micro_batches, **settings
    )
    return dataclasses.replace(config, moe=dataclasses.replace(config.moe, balance_scope=scope))


TOP_P = PoolConfig(kind="top_p", top_p=0.5, min_size=2, max_size=6)


@pytest.mark.parametrize(
    ("pool", "micro_batches"), few([(UNIFORM, 2), (UNIFORM, 4), (NO_POOL, 4), (TOP_P, 2)])
)
def test_a_step_in_parts_has_the_gradients_of_the_step_in_one(pool, micro_batches):
    whole = _balanced_over("step", pool=pool)
    batch = _uneven(whole)
    ref_grads, ref_metrics = _grads(whole, batch)
    config = _balanced_over("step", pool=pool, micro_batches=micro_batches)
    grads, metrics = _grads(config, batch)
    flat = jax.tree_util.tree_flatten_with_path(grads)[0]
    for (path, ours), ref in zip(flat, jax.tree.leaves(ref_grads), strict=True):
        assert worst(ours, ref) <= 1e-6, jax.tree_util.keystr(path)
    for name in ("load_balance_loss", "router_aux_loss", "loss", "router_z_loss"):
        np.testing.assert_allclose(metrics[name], ref_metrics[name], rtol=1e-6)
    np.testing.assert_array_equal(metrics["expert_counts"], ref_metrics["expert_counts"])
    # Counts of a micro-batch are another loss.
    micro, _ = _grads(_balanced_over("micro", pool=pool, micro_batches=micro_batches), batch)
    assert worst(micro, ref_grads) > 0.1


def test_balance_of_the_step_on_eight_devices_and_with_remat():
    config = _balanced_over("step", micro_batches=2, batch_size=16)
    batch = _uneven(config)
    ref_grads, _ = _grads(_balanced_over("step", batch_size=16), batch)
    sharded = _balanced_over("step", micro_batches=2, batch_size=16, remat="full")
    grads, _ = _grads(sharded, batch, mesh=make_mesh(MeshConfig(fsdp=4, expert=2)))
    assert worst(grads, ref_grads) < 1e-5


@pytest.mark.parametrize("scope", few(["micro", "step"]))
def test_a_step_in_one_part_takes_no_further_pass(scope):
    config = _balanced_over(scope)
    model = ModelFunctions(config)
    params, batch = model.init(0), tiny_batch(config)

    def cost(config):
        run = jax.jit(lambda p: loss_and_grads(p, batch, None, config=config, model=model))
        return run.lower(params).compile().cost_analysis()["flops"]

    assert cost(config) == cost(_balanced_over("micro"))
    parts = cost(_balanced_over(scope, micro_batches=2))
    in_micro = cost(_balanced_over("micro", micro_batches=2))
    assert parts == in_micro if scope == "micro" else parts > in_micro

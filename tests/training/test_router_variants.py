"""Router variants in the train step: what the step sets, on several meshes, and what it leaves."""

import dataclasses
from functools import cache

import jax
import numpy as np
import pytest
from tiny import tiny_batch
from variants import VARIANTS, variant_config

from emo_jax.batch import Batch
from emo_jax.config import MeshConfig
from emo_jax.model.functions import ModelFunctions
from emo_jax.moe.labels import label_experts
from emo_jax.parallel.mesh import make_mesh, windows_sharding
from emo_jax.training.optimizer import make_optimizer
from emo_jax.training.state import init_state
from emo_jax.training.step import jit_train_step

MESHES = {
    "expert": dict(fsdp=2, expert=4),
    "context": dict(fsdp=4, context=2),
    "tensor": dict(fsdp=4, tensor=2),
}
CASES = {(n, m) for n in VARIANTS for m in MESHES if m == ("tensor" if "ghosts" in n else "expert")}
CASES |= {(name, "context") for name in VARIANTS}


def _config(variant, *, mesh=None, micro_batches=1, **optimizer):
    config = variant_config(variant, micro_batches=micro_batches)
    return dataclasses.replace(
        config,
        mesh=MeshConfig(**(mesh or {})),
        optimizer=dataclasses.replace(config.optimizer, **optimizer),
    )


def _batch(config, step):
    """Each document of a window has a domain of its own."""
    batch = tiny_batch(config, seed=step)
    ids = np.where(batch.segment_ids < 0, -1, (batch.segment_ids + np.arange(8)[:, None]) % 3)
    return batch._replace(domain_ids=ids.astype(np.int32))


def _run(config, *, steps=3, sharded=False):
    """(state, metrics) after each step, as NumPy."""
    mesh = make_mesh(config.mesh) if sharded else None
    model = ModelFunctions(config, mesh)
    optimizer = make_optimizer(config, None if mesh is None else model.param_shardings())
    state, step = init_state(model, optimizer, 3), jit_train_step(config, model, optimizer)
    out = []
    for n in range(steps):
        batch = _batch(config, n)
        if mesh is not None:
            batch = Batch(*(jax.device_put(a, windows_sharding(mesh)) for a in batch))
        state, metrics = step(state, batch)
        out.append(jax.device_get((state, metrics)))
    return out


@cache
def _alone(name):
    return _run(_config(name))[-1]


def _same(ours, theirs):
    (state, metrics), (wanted, wanted_metrics) = ours, theirs
    for name in ("loss", "grad_norm", "expert_counts", "dropped", "shared_balance_loss"):
        if name in wanted_metrics:
            np.testing.assert_allclose(metrics[name], wanted_metrics[name], rtol=2e-5, err_msg=name)
    flat, right = jax.tree.leaves_with_path(state.params), jax.tree.leaves(wanted.params)
    for (path, a), b in zip(flat, right, strict=True):
        # Adam's first steps divide tiny gradients by their own size.
        np.testing.assert_allclose(a, b, atol=1e-3, err_msg=jax.tree_util.keystr(path))
    ours, theirs = state.params["layers"]["mlp"]["router"], wanted.params["layers"]["mlp"]["router"]
    for name in theirs.keys() - {"kernel"}:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("all", "context"),
        pytest.param("quantile", "expert", marks=pytest.mark.system),
        *(
            pytest.param(name, mesh, marks=pytest.mark.slow)
            for name, mesh in sorted(CASES - {("all", "context"), ("quantile", "expert")})
        ),
    ],
)
def test_steps_are_the_same_on_every_mesh(name, mesh):
    _same(_run(_config(name, mesh=MESHES[mesh]), sharded=True)[-1], _alone(name))


@pytest.mark.parametrize(
    "name", [n if n == "all" else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS]
)
def test_steps_are_the_same_in_micro_batches(name):
    config = _config(name, micro_batches=2)
    moe = dataclasses.replace(config.moe, balance_scope="step")
    _same(_run(dataclasses.replace(config, moe=moe))[-1], _alone(name))


def test_capacity_drops_and_only_in_training():
    _, metrics = _alone("all")
    assert (metrics["dropped"] > 0.1).all() and (metrics["dropped"] < 0.6).all()
    config = _config("switch")
    plain = dataclasses.replace(
        config, moe=dataclasses.replace(config.moe, capacity_factor=0.0, input_jitter=0.0)
    )
    batch, params = _batch(config, 0), ModelFunctions(config).init(3)
    ours, theirs = (ModelFunctions(c).hidden(params, batch)[0] for c in (config, plain))
    np.testing.assert_array_equal(ours, theirs)
    there, _ = ModelFunctions(config).hidden(params, batch, training=True)
    assert np.abs(there - theirs).max() > 0.01


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_only_the_step_moves_a_score_bias(optimizer):
    """Neither the optimizer nor its weight decay: a bias is a sum of its own moves."""
    (before, metrics), (state, _) = _run(_config("sign", weight_decay=0.5, name=optimizer), steps=2)
    bias_LE, was_LE = (s.params["layers"]["mlp"]["router"]["bias"] for s in (state, before))
    assert (bias_LE[:, -1] == 0).all()  # the shared expert's
    assert np.abs(was_LE).max() > 0
    counts_LR = metrics["expert_counts"][:, :7]
    wanted_LR = 0.01 * np.sign(counts_LR.mean(-1, keepdims=True) - counts_LR)
    np.testing.assert_allclose(was_LE[:, :7], wanted_LR, rtol=1e-6)
    moved_LR = np.abs(bias_LE - was_LE)[:, :7]
    assert np.isclose(moved_LR, 0.01).any()
    assert (np.isclose(moved_LR, 0.01) | (moved_LR == 0)).all()
    shapes = {leaf.shape for leaf in jax.tree.leaves(state.opt_state)}
    assert bias_LE.shape not in shapes, "the optimizer has moments for it"


def test_a_frozen_router_keeps_its_bias():
    (state, _) = _run(_config("sign", frozen=("router",)), steps=1)[0]
    assert not state.params["layers"]["mlp"]["router"]["bias"].any()


def test_a_skipped_step_moves_nothing():
    config = _config("sign", skip_window=6, skip_sigma=1e-6)
    states = [state for state, _ in _run(config, steps=4)[1:]]
    moved = [s.params["layers"]["mlp"]["router"]["bias"] for s in states]
    skips = [int(s.opt_state[0].skips) for s in states]
    assert skips[-1] > skips[0], "no step is skipped: the test shows nothing"
    for n in (1, 2):
        assert np.array_equal(moved[n], moved[n - 1]) == (skips[n] > skips[n - 1])


@pytest.mark.parametrize("name", ["table", "learned"])
def test_tokens_stay_in_the_pool_of_their_label(name):
    config = _config(name)
    model = ModelFunctions(config)
    params, batch = model.init(3), _batch(config, 0)
    one = batch._replace(domain_ids=np.where(batch.domain_ids < 0, -1, 1))
    _, stats = model.hidden(params, one, training=True)
    outside_R = ~label_experts(config.moe)[1]
    assert not np.asarray(stats.counts_E)[:, :-1][:, outside_R].any()
    _, free = model.hidden(params, one)  # without labels, as in evaluation
    assert np.asarray(free.counts_E)[:, :-1][:, outside_R].any()
    # Rows of another order of the domains.
    swapped, _ = model.hidden(
        params,
        one._replace(domain_ids=np.where(one.domain_ids < 0, -1, 0)),
        training=True,
        label_rows_M=np.array([1, 0], np.int32),
    )
    np.testing.assert_array_equal(swapped, model.hidden(params, one, training=True)[0])

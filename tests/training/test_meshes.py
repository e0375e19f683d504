"""Gradients, before Adam, are the same on every mesh and by every way through the experts."""

import dataclasses
from functools import cache

import jax
import numpy as np
import pytest
from cases import few
from gradients import MESHES
from ragged import emulated
from tiny import dense_config, tiny_batch, tiny_config

from emo_jax.batch import Batch
from emo_jax.config import MeshConfig, PoolConfig
from emo_jax.errors import ConfigError
from emo_jax.model.functions import ModelFunctions
from emo_jax.moe import exchange
from emo_jax.parallel import collectives
from emo_jax.parallel import stages as stages_lib
from emo_jax.parallel.mesh import make_mesh, windows_sharding
from emo_jax.training.step import draw_pools, loss_and_grads

MORE = {
    "replica 2, fsdp 4": dict(replica=2, fsdp=4),
    "expert 8": dict(fsdp=1, expert=8),
    "replica 2, expert 2, context 2": dict(replica=2, fsdp=1, expert=2, context=2),
    "context 2, tensor 2, fsdp 2": dict(fsdp=2, context=2, tensor=2),
}


@pytest.fixture
def emulated_exchange(monkeypatch):
    monkeypatch.setattr(exchange, "ragged_all_to_all", emulated)


def _config(*, mesh=None, imbalance=False, moe=None, **kwargs):
    config = tiny_config(**kwargs)
    config = dataclasses.replace(config, mesh=MeshConfig(**(mesh or {})))
    return dataclasses.replace(config, moe=dataclasses.replace(config.moe, **(moe or {})))


def _step(config, *, sharded, imbalance=False, texts=None):
    """Gradients and metrics of one step with drawn pools, as NumPy."""
    mesh = make_mesh(config.mesh) if sharded else None
    params = ModelFunctions(config, mesh).init(3)
    if imbalance:  # every token of every layer wants the same few experts
        params["layers"]["mlp"]["router"]["kernel"] *= 0.0
    return _gradients(config, params, mesh, texts)


def _gradients(config, params, mesh=None, texts=None):
    model, batch = ModelFunctions(config, mesh), tiny_batch(config)
    if mesh is not None:
        params = jax.device_put(params, model.param_shardings())
        batch = Batch(*(jax.device_put(a, windows_sharding(mesh)) for a in batch))

    @jax.jit
    def step(params, batch):
        pools = draw_pools(config, 5, jax.numpy.arange(batch.tokens.shape[0]))
        return loss_and_grads(params, batch, pools, config=config, model=model)

    compiled = step.lower(params, batch).compile()
    if texts is not None:
        texts.append(compiled.as_text())
    return jax.device_get(compiled(params, batch))


@cache
def _one_device(imbalance: bool):
    return _step(_config(), sharded=False, imbalance=imbalance)


def _assert_same(ours, theirs):
    (grads, metrics), (want, want_metrics) = ours, theirs
    flat, wanted = jax.tree.leaves_with_path(grads), jax.tree.leaves(want)
    for (path, grad), right in zip(flat, wanted, strict=True):
        scale = np.abs(right).max()
        error = np.abs(grad - right).max() / (scale or 1.0)
        assert error < 1e-5, f"{jax.tree_util.keystr(path)}: {error:.1e} of {scale:.1e}"
    for name in want_metrics.keys() - {"dispatch_rounds"}:
        value = want_metrics[name]
        np.testing.assert_allclose(metrics[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


system = pytest.mark.system


@pytest.mark.parametrize(
    "name", [*few(reversed(MESHES), 3), *(pytest.param(name, marks=system) for name in MORE)]
)
def test_gradients_are_the_same_on_every_mesh(name):
    imbalance = "expert" in name  # where it matters: every token wants the same experts
    step = _step(_config(mesh=(MESHES | MORE)[name]), sharded=True, imbalance=imbalance)
    _assert_same(step, _one_device(imbalance))


@system
def test_a_dense_model_is_the_same_on_a_mesh_of_all_kinds():
    config = dense_config()
    mesh = MeshConfig(replica=1, fsdp=2, context=2, tensor=2)
    ours = _step(dataclasses.replace(config, mesh=mesh), sharded=True)
    _assert_same(ours, _step(config, sharded=False))


@system
@pytest.mark.parametrize("mesh", [dict(fsdp=2, expert=2, tensor=2), dict(fsdp=2, context=4)])
def test_dense_layers_first_are_the_same_on_a_mesh(mesh):
    first = dict(num_layers=3, dense_layers=1, mlp_dim=24, remat="full")
    _assert_same(
        _step(_config(mesh=mesh, **first), sharded=True), _step(_config(**first), sharded=False)
    )


def test_grouped_queries_are_the_same_on_a_mesh():
    heads = dict(num_heads=4, num_kv_heads=2)
    mesh = dict(fsdp=2, context=2, tensor=2)
    _assert_same(
        _step(_config(mesh=mesh, **heads), sharded=True), _step(_config(**heads), sharded=False)
    )


def test_grouped_queries_are_copies_of_keys_and_values():
    """Gradients of the model with each head of keys copied, summed over the copies."""
    config = _config(num_heads=4, num_kv_heads=2)
    copied = dataclasses.replace(config.model, num_kv_heads=0)
    copied = dataclasses.replace(config, model=copied)
    params = ModelFunctions(config).init(3)
    attention = params["layers"]["attention"]
    repeat = {n: jax.numpy.repeat(attention[n], 2, axis=2) for n in ("key", "value")}
    more = params | {"layers": params["layers"] | {"attention": attention | repeat}}
    grads, metrics = _gradients(config, params)
    want, want_metrics = _gradients(copied, more)
    for name in ("key", "value"):
        one = want["layers"]["attention"][name]
        want["layers"]["attention"][name] = one.reshape(*one.shape[:2], 2, 2, -1).sum(axis=3)
    _assert_same((grads, metrics), (want, want_metrics))


@system
def test_everything_at_once_is_the_same_on_a_mesh():
    """Micro-batches with the step's balance, pools by share, two shared experts, remat."""
    options = dict(
        pool=PoolConfig(kind="top_p", min_size=2, max_size=5, top_p=0.6),
        moe=dict(balance_scope="step"),
        num_shared_experts=2,
        attention="window",
        micro_batches=2,
        remat="save_matmuls",
    )
    mesh = dict(replica=2, fsdp=1, expert=2, tensor=2)
    _assert_same(
        _step(_config(mesh=mesh, **options), sharded=True),
        _step(_config(**options), sharded=False),
    )


# (mesh, way, size of a round, all tokens want the same experts, at least so many rounds)
ROUNDS = {
    "one": ("fsdp 2, expert 4", "all_to_all", 4, True, 1),
    "some": ("fsdp 2, expert 4", "all_to_all", 0.1, False, 2),
    "worst": ("fsdp 2, expert 4", "all_to_all", 0.25, True, 4),
    "tensor": ("fsdp 2, expert 2, tensor 2", "all_to_all", 0.5, True, 3),
    "ragged": ("fsdp 2, expert 4", "ragged_all_to_all", 0.25, True, 8),
    "ragged, one": ("fsdp 2, expert 4", "ragged_all_to_all", 4, True, 1),
    "ragged, tensor": ("fsdp 2, expert 2, tensor 2", "ragged_all_to_all", 0.3, True, 3),
}


@pytest.mark.parametrize(
    "name", [n if n in ("worst", "ragged") else pytest.param(n, marks=system) for n in ROUNDS]
)
def test_any_number_of_rounds_gives_the_same(emulated_exchange, name):
    mesh, way, size, imbalance, least = ROUNDS[name]
    config = _config(mesh=MESHES[mesh], moe=dict(dispatch=way, receive_factor=size))
    grads, metrics = _step(config, sharded=True, imbalance=imbalance)
    used = metrics["dispatch_rounds"]
    assert used.min() >= least and used.max() < (2 if least == 1 else 99), used
    _assert_same((grads, metrics), _one_device(imbalance))


def test_what_auto_became_is_said():
    mesh = make_mesh(MeshConfig(fsdp=2, expert=4))
    chosen = ModelFunctions(_config(), mesh).choices()
    assert chosen == {
        "mesh": "fsdp 2 × expert 4",
        "attention": "blocked",
        "experts": "blocked",
        "tokens to experts": "all_to_all",
    }


def test_sums_in_stages_leave_every_device_its_piece(monkeypatch):
    """As on a torus of a TPU, where a sum over all of its axes at once is no reduce-scatter."""
    staged = tuple(stages_lib._groups((4, 2)))
    monkeypatch.setattr(collectives, "stages", lambda mesh, axis: staged if axis == "fsdp" else ())
    _assert_same(_step(_config(mesh=MESHES["fsdp 8"]), sharded=True), _one_device(False))


@system
@pytest.mark.parametrize("name", few(reversed(MESHES), 3))
def test_sums_over_gloo_are_the_same(monkeypatch, name):
    """What several processes of CPUs do, here in one; no reduce-scatter is left in the step."""
    monkeypatch.setattr(collectives, "over_gloo", lambda mesh: True)
    compiled = []
    ours = _step(_config(mesh=MESHES[name]), sharded=True, texts=compiled)
    _assert_same(ours, _one_device(False))
    assert "all-reduce" in compiled[0] and "reduce-scatter" not in compiled[0]


@pytest.mark.parametrize(
    ("model", "moe", "said"),
    [
        (dict(attention_backend="splash"), {}, "attention_backend = 'splash': is a kernel of TPUs"),
        (
            {},
            dict(dispatch="ragged_all_to_all"),
            "moe.dispatch = 'ragged_all_to_all': XLA does not have it for CPUs",
        ),
        ({}, dict(backend="tokamax"), "moe.backend = 'tokamax': is a kernel of TPUs and GPUs"),
    ],
)
def test_a_kernel_of_other_devices_is_refused(model, moe, said):
    with pytest.raises(ConfigError, match=said):
        ModelFunctions(_config(moe=moe, **model), make_mesh(MeshConfig(fsdp=2, expert=4))).choices()

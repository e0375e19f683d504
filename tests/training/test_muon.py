"""Muon, of every matrix of every stack, against optax's own on each matrix alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import tiny_batch, tiny_config

from emo_jax.batch import Batch
from emo_jax.config import MeshConfig
from emo_jax.errors import ConfigError
from emo_jax.model.functions import ModelFunctions
from emo_jax.parallel.mesh import make_mesh, windows_sharding
from emo_jax.training import muon
from emo_jax.training.optimizer import make_optimizer
from emo_jax.training.state import abstract_state, init_state
from emo_jax.training.step import jit_train_step


def with_muon(**changes):
    config = tiny_config()
    changes = {"name": "muon"} | changes
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **changes))


@pytest.fixture(scope="module")
def params():
    return ModelFunctions(tiny_config()).init(0)


def draws(params, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)


def test_who_takes_what(params):
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): label
        for path, label in jax.tree.leaves_with_path(muon.labels(params))
    }
    adam = {name for name, label in found.items() if label == muon.ADAM}
    assert adam == {
        "embed/embedding",
        "lm_head/kernel",
        "final_norm/scale",
        "layers/attention_norm/scale",
        "layers/mlp_norm/scale",
    }


@pytest.mark.system
def test_a_stack_is_updated_as_its_matrices_alone(params):
    config = tiny_config()
    ours = muon.muon(0.95)
    only = {"layers": {k: params["layers"][k] for k in ("attention", "mlp")}}
    state = ours.init(only)
    L, D = config.model.num_layers, config.model.embed_dim

    # (name, its matrices one by one)
    def alone(tree):
        attention, mlp = tree["layers"]["attention"], tree["layers"]["mlp"]
        for layer in range(L):
            for name in ("query", "key", "value"):
                yield attention[name][layer].reshape(D, -1)
            yield attention["out"][layer].reshape(-1, D)
            yield mlp["router"]["kernel"][layer]
            for name in ("gate", "up", "down"):
                yield from mlp["experts"][name][layer]

    theirs = optax.contrib.muon(-1.0, beta=0.95, consistent_rms=muon.UPDATE_RMS)
    their_state = theirs.init(list(alone(only)))
    for seed in range(3):
        grads = draws(only, seed)
        update, state = ours.update(grads, state)
        want, their_state = theirs.update(list(alone(grads)), their_state, list(alone(only)))
        for n, (one, wanted) in enumerate(zip(alone(update), want, strict=True)):
            np.testing.assert_allclose(one, wanted, rtol=2e-4, atol=2e-5, err_msg=str(n))
    for one in alone(update):
        # All directions count about alike, which is not so for momentum.
        values = jnp.linalg.svd(one / (muon.UPDATE_RMS * max(one.shape) ** 0.5), compute_uv=False)
        assert jnp.median(values) > 0.7
        assert values.max() < 1.3


def test_state_has_one_moment_of_matrices_and_is_placed_as_they_are():
    mesh = make_mesh(MeshConfig(fsdp=2, expert=4))
    sizes = {}
    for name in ("adamw", "muon"):
        config = with_muon(name=name)
        model = ModelFunctions(config, mesh)
        state = abstract_state(model, make_optimizer(config))
        sizes[name] = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
        stacks = [
            leaf
            for path, leaf in jax.tree.leaves_with_path(state.opt_state)
            if "gate" in jax.tree_util.keystr(path)
        ]
        assert len(stacks) == (2 if name == "adamw" else 1)
        where = state.params["layers"]["mlp"]["experts"]["gate"].sharding
        assert all(stack.sharding == where for stack in stacks)
    layers = jax.tree.leaves(state.params["layers"])
    matrices = sum(leaf.size for leaf in layers if leaf.ndim > 2)
    # Adam's count stands in both; Muon's count and coefficients come with it.
    assert sizes["adamw"] - sizes["muon"] == matrices - 4


def step(config, **sizes):
    """The states at the start and after each of two steps; on one device without sizes."""
    mesh = make_mesh(MeshConfig(**sizes)) if sizes else None
    model = ModelFunctions(config, mesh)
    optimizer = make_optimizer(config, model.param_shardings() if sizes else None)
    state, batch = init_state(model, optimizer, seed=0), tiny_batch(config)
    if sizes:
        batch = Batch(*(jax.device_put(a, windows_sharding(mesh)) for a in batch))
    run = jit_train_step(config, model, optimizer)
    states = [jax.device_get(state)]
    for _ in range(2):
        state, _ = run(state, batch)
        states.append(jax.device_get(state))
    return states


@pytest.fixture(scope="module")
def one_device():
    return step(with_muon())


@pytest.mark.parametrize(
    "sizes", [dict(fsdp=2, expert=4), dict(fsdp=2, expert=2, tensor=2)], ids=str
)
def test_eight_devices_do_as_one(one_device, sizes):
    before, _, one = one_device
    _, _, many = step(with_muon(), **sizes)
    for (path, a), b, old in zip(
        jax.tree.leaves_with_path(one.params),
        jax.tree.leaves(many.params),
        jax.tree.leaves(before.params),
        strict=True,
    ):
        moved = np.abs(a - old).max()
        assert moved > 0
        np.testing.assert_allclose(a, b, atol=2e-3 * moved, rtol=0, err_msg=str(path))


def test_frozen_parts_and_a_narrow_moment():
    config = with_muon(frozen=("routed", "norms"), first_moment_dtype="bfloat16")
    before, _, state = step(config, fsdp=2, expert=4)
    R = config.moe.num_routed_experts
    for name in ("gate", "up", "down"):
        old, new = (s.params["layers"]["mlp"]["experts"][name] for s in (before, state))
        np.testing.assert_array_equal(old[:, :R], new[:, :R])
        assert (old[:, R:] != new[:, R:]).any()
    old, new = (s.params["layers"]["attention"]["out"] for s in (before, state))
    assert (old != new).all()
    dtypes = {
        leaf.dtype
        for path, leaf in jax.tree.leaves_with_path(state.opt_state)
        if ".mu" in jax.tree_util.keystr(path)
    }
    assert dtypes == {jnp.dtype(jnp.bfloat16)}


def test_offload_is_for_adam():
    with pytest.raises(ConfigError, match=r"optimizer\.offload = True: must be False with muon"):
        with_muon(offload=True)

"""A first moment in bfloat16, and moments in the memory of the host."""

import dataclasses
import json
import shutil
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from cases import few
from tiny import tiny_batch, tiny_config

from emo_jax.batch import Batch
from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.checkpoint.manifest import leaves_of
from emo_jax.config import CheckpointConfig, MeshConfig
from emo_jax.errors import CheckpointError, ConfigError
from emo_jax.model.functions import ModelFunctions
from emo_jax.parallel.mesh import make_mesh, windows_sharding
from emo_jax.training import state as state_lib
from emo_jax.training.optimizer import make_optimizer
from emo_jax.training.state import HOST_MEMORY, abstract_state, init_state
from emo_jax.training.step import jit_train_step

# XLA:CPU adds in another order, and with or without fused multiply-adds, as it fuses.
NO_FUSION = {
    "xla_disable_hlo_passes": "fusion,cpu-instruction-fusion,multi_output_fusion,"
    "cpu-multi-output-fusion,algsimp"
}


def with_optimizer(**changes):
    config = tiny_config()
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **changes))


def adam(state):
    """Adam's state, in a run that skips spikes too."""
    inner = state.opt_state[0]
    return getattr(inner, "inner", inner)[1]


@cache
def run(config, steps, *, spike=None, poison=None, fusion=True):
    """The states after each of some steps on eight devices.

    The gradient of step `spike` is a hundred times as large, the loss of step `poison` is NaN.
    """
    mesh = make_mesh(MeshConfig())
    model, optimizer = ModelFunctions(config, mesh), make_optimizer(config)
    state = init_state(model, optimizer, seed=0)

    def put(batch):
        return Batch(*(jax.device_put(a, windows_sharding(mesh)) for a in batch))

    batch = tiny_batch(config)
    masks = {spike: batch.loss_mask.copy(), poison: batch.loss_mask.copy()}
    masks[spike][0, :2] += [1000, -1000]
    masks[poison][0, 0] = np.nan
    step = jit_train_step(config, model, optimizer).lower(state, put(batch))
    compiled = step.compile(compiler_options=None if fusion else NO_FUSION)
    states = []
    for i in range(1, steps + 1):
        mask = masks.get(i, batch.loss_mask)
        state, _ = compiled(state, put(batch._replace(loss_mask=mask)))
        states.append(jax.device_get(state))
    wanted = abstract_state(model, optimizer)
    for leaf, spec in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        assert leaf.sharding == spec.sharding and leaf.dtype == spec.dtype
    return states, state


def same_bits(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


# --- a first moment in bfloat16 ------------------------------------------------------------------


def test_a_narrow_first_moment_takes_two_bytes_a_parameter():
    params = ModelFunctions(tiny_config()).num_params()
    wide, narrow = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(adam(state)))
        for state in (
            abstract_state(ModelFunctions(c), make_optimizer(c))
            for c in (tiny_config(), with_optimizer(first_moment_dtype="bfloat16"))
        )
    )
    assert wide == 8 * params + 4  # and the count
    assert narrow == 6 * params + 4


def test_a_narrow_first_moment_is_within_its_rounding_of_the_wide_one():
    """Each step rounds once, by 2^-8 of it at most, and b1 of what was off before stays."""
    optimizers = [
        make_optimizer(with_optimizer(first_moment_dtype=d, clip_norm=1e9))
        for d in ("float32", "bfloat16")
    ]
    params = {"w": jnp.ones((64, 32))}
    wide, narrow = (o.init(params) for o in optimizers)
    assert narrow[0][1].mu["w"].dtype == jnp.bfloat16
    rng, bound = np.random.default_rng(0), np.zeros((64, 32))
    for n in range(1, 61):
        grads = {"w": jnp.asarray(rng.normal(0.1, 1.0, (64, 32)), jnp.float32)}
        update_wide, wide = optimizers[0].update(grads, wide, params)
        update_narrow, narrow = optimizers[1].update(grads, narrow, params)
        mu, mu_narrow = (np.asarray(s[0][1].mu["w"], np.float64) for s in (wide, narrow))
        bound *= 0.9
        # The update is of what the moment is before it is rounded.
        scale = np.sqrt(np.asarray(wide[0][1].nu["w"], np.float64) / (1 - 0.95**n)) * (1 - 0.9**n)
        lr = 1e-2 * min(n / 2, 1)
        off = np.abs(np.asarray(update_wide["w"]) - np.asarray(update_narrow["w"]))
        assert (off <= lr * (bound / scale) + 1e-7).all()
        bound += 2.0**-8 * (np.abs(mu) + bound)
        assert (np.abs(mu - mu_narrow) <= bound * (1 + 1e-5)).all()
        assert (mu != mu_narrow).mean() > 0.9
        np.testing.assert_array_equal(wide[0][1].nu["w"], narrow[0][1].nu["w"])


def test_a_narrow_first_moment_is_a_mean_without_bias():
    """b1 of 0.9 is 0.8984 in bfloat16: multiplied there, the mean would be 1.5 % short."""
    optimizer = make_optimizer(with_optimizer(first_moment_dtype="bfloat16", clip_norm=1e9))
    params, rng = {"w": jnp.zeros(2**14)}, np.random.default_rng(0)
    state = optimizer.init(params)
    for _ in range(100):
        grads = {"w": jnp.asarray(rng.normal(1.0, 0.5, 2**14), jnp.float32)}
        _, state = optimizer.update(grads, state, params)
    assert abs(np.asarray(state[0][1].mu["w"], np.float64).mean() - 1.0) < 0.005


# --- frozen parts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    few([dict(first_moment_dtype="bfloat16", skip_window=6), {}, dict(offload=True)]),
    ids=["bfloat16+skip", "float32", "offload"],
)
def test_frozen_parts_have_no_moments(changes):
    frozen = ("embeddings", "attention", "routed", "shared")
    states, state = run(with_optimizer(frozen=frozen, **changes), 2)
    moments, trained = leaves_of(adam(state).mu), leaves_of(state.params)
    trained = {
        path: leaf.shape
        for path, leaf in trained.items()
        if "router" in path or any("norm" in key for key in path[:2])
    }
    assert {path: leaf.shape for path, leaf in moments.items()} == trained and len(trained) == 4
    first, last = (leaves_of(s.params) for s in states)
    for path, leaf in first.items():
        same = leaf.view(np.uint32) == last[path].view(np.uint32)
        assert same.all() if path not in trained else not same.all(), path


# --- moments in the memory of the host -----------------------------------------------------------


@pytest.mark.system
def test_offload_changes_no_bit():
    """Where the compiler fuses nothing. Step 5 is a spike, step 7 is bad."""
    changes = dict(skip_window=6, first_moment_dtype="bfloat16")
    here, _ = run(with_optimizer(**changes), 8, spike=5, poison=7, fusion=False)
    there, on_devices = run(
        with_optimizer(offload=True, **changes), 8, spike=5, poison=7, fusion=False
    )
    moments = (adam(on_devices).mu, adam(on_devices).nu)
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(moments)} == {HOST_MEMORY}
    for ours, theirs in zip(there, here, strict=True):
        same_bits(ours, theirs)
    # The spike and the bad step hold every moment, and no other step holds any.
    assert [int(state.opt_state[0].skips) for state in there] == [0, 0, 0, 0, 1, 1, 1, 1]
    for i in (1, 2, 3, 5):
        for new, old in zip(
            jax.tree.leaves(adam(there[i])), jax.tree.leaves(adam(there[i - 1])), strict=True
        ):
            assert (new != old).any()
    same_bits(adam(there[4]), adam(there[3]))
    same_bits(there[7], there[5]._replace(halted=there[7].halted))


@pytest.mark.system
def test_offload_as_it_is_compiled_for_use_differs_by_rounding_alone():
    (here,), _ = run(tiny_config(), 1)
    (there,), _ = run(with_optimizer(offload=True), 1)
    for ours, theirs in zip(
        jax.tree.leaves((there.params, adam(there).nu)),
        jax.tree.leaves((here.params, adam(here).nu)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-9)


def test_host_memory_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(state_lib, "HOST_MEMORY", "attic")
    config = with_optimizer(offload=True)
    model = ModelFunctions(config, make_mesh(MeshConfig()))
    with pytest.raises(ConfigError, match=r"optimizer\.offload = True: cpu has no memory 'attic'"):
        abstract_state(model, make_optimizer(config))


# --- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("restored_to", few([True, False]), ids=["offload", "device"])
def test_a_checkpoint_keeps_the_dtype_and_goes_to_either_memory(tmp_path, restored_to):
    config = with_optimizer(offload=True, first_moment_dtype="bfloat16")
    _, state = run(config, 2)
    mesh = make_mesh(MeshConfig(fsdp=4, expert=2))
    wanted = with_optimizer(offload=restored_to, first_moment_dtype="bfloat16")
    model, optimizer = ModelFunctions(wanted, mesh), make_optimizer(wanted)
    with Checkpointer(tmp_path, CheckpointConfig(save_every=1)) as checkpointer:
        checkpointer.save(2, state, {"windows": 16})
        abstract = abstract_state(model, optimizer)
        got, _, _ = checkpointer.restore(abstract)
        with pytest.raises(CheckpointError, match=r"mu/.* is bfloat16.* there, float32"):
            other = tiny_config()
            checkpointer.restore(abstract_state(ModelFunctions(other, mesh), make_optimizer(other)))
    same_bits(got, state)
    for leaf, spec in zip(jax.tree.leaves(got), jax.tree.leaves(abstract), strict=True):
        assert leaf.sharding == spec.sharding and leaf.dtype == spec.dtype
    kind = HOST_MEMORY if restored_to else "device"
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(adam(got).mu)} == {kind}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(adam(got).mu)} == {"bfloat16"}


@pytest.mark.system
def test_a_run_with_both_is_resumed_to_the_last_bit(env, store, tmp_path):
    workdir, reference = tmp_path / "run", tmp_path / "reference"
    fields = dict(
        train__steps=8,
        train__eval_every=0,
        checkpoint__save_every=4,
        checkpoint__keep_every=0,
        optimizer__offload="True",
        optimizer__first_moment_dtype="bfloat16",
    )
    done = runs.emo(runs.train_argv(store, reference, **fields), env)
    assert done.returncode == 0, done.stderr
    log = runs.log_as_written(reference)
    assert len(log) >= 8
    shutil.copytree(reference, workdir)
    shutil.rmtree(workdir / "checkpoints/8")
    done = runs.emo(runs.train_argv(store, workdir, **fields), env)
    assert done.returncode == 0 and "resumed at step 4" in done.stderr, done.stderr
    assert runs.log_as_written(workdir) == log
    # Another dtype is another run, and the line says which field.
    fields["optimizer__first_moment_dtype"] = "float32"
    done = runs.emo(runs.train_argv(store, workdir, **fields), env)
    assert done.returncode == 2
    assert "optimizer.first_moment_dtype: 'bfloat16' -> 'float32'" in done.stderr
    assert json.loads((workdir / "config.json").read_text())["optimizer"]["offload"] is True

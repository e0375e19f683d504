"""Spikes are skipped as OLMo-core does it, and a skipped step leaves no trace in the optimizer."""

import dataclasses
import shutil
import statistics
from functools import partial

import compiling
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
from tiny import tiny_batch, tiny_config

from emo_jax.batch import Batch
from emo_jax.config import MeshConfig, OptimizerConfig, TrainConfig
from emo_jax.model.functions import ModelFunctions
from emo_jax.parallel.mesh import make_mesh, windows_sharding
from emo_jax.training.optimizer import decay_mask, learning_rate, make_optimizer
from emo_jax.training.skip import skip_spikes
from emo_jax.training.state import abstract_state, init_state
from emo_jax.training.step import jit_train_step


class Reference:
    """SkipStepOptimizer of OLMo-core on Python numbers: lists, in which the newest is last."""

    def __init__(self, window: int, sigma: float):
        self.window, self.sigma = window, sigma
        self.losses: list[float] = []
        self.norms: list[float] = []

    def skips(self, loss: float, norm: float) -> bool:
        for history, value in ((self.losses, loss), (self.norms, norm)):
            history.append(value)
            while len(history) > self.window + 1:
                history.pop(0)
        if len(self.losses) < max(2, self.window // 2):
            return False
        return any(
            history[-1] - statistics.mean(history[:-1])
            > self.sigma * statistics.stdev(history[:-1])
            for history in (self.losses, self.norms)
        )


def spiky(steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Losses that fall and gradient scales that do not, with spikes of either or both."""
    draw = np.random.default_rng(seed)
    losses = 3.0 + 2.0 * np.exp(-np.arange(steps) / 40) + 0.05 * draw.standard_normal(steps)
    scales = 1.0 + 0.1 * draw.random(steps)
    for at in draw.choice(steps, steps // 12, replace=False):
        losses[at] += draw.choice([0.0, 4.0])
        scales[at] *= draw.choice([1.0, 7.0])
        # A dip is no spike, however deep.
        losses[min(at + 2, steps - 1)] -= draw.choice([0.0, 3.0])
    return losses.astype(np.float32), scales.astype(np.float32)


@pytest.mark.parametrize(("window", "sigma", "seed"), [(128, 6.0, 0), (16, 3.0, 1), (6, 2.0, 2)])
def test_steps_are_skipped_like_in_the_reference_and_leave_no_trace(window, sigma, seed):
    """Parameters and moments are bit for bit those of an optimizer that never saw the step."""
    steps, total = 300, 300
    losses, scales = spiky(steps, seed)
    settings = OptimizerConfig(
        peak_lr=1e-2, warmup_steps=5, skip_window=window, skip_sigma=sigma, clip_norm=1.0
    )
    config = dataclasses.replace(
        tiny_config(), optimizer=settings, train=TrainConfig(steps=total, batch_size=8)
    )
    optimizer, schedule = make_optimizer(config), learning_rate(settings, total)
    inner = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8),
        optax.add_decayed_weights(0.1, mask=decay_mask),
    )

    @partial(jax.jit, compiler_options=compiling.USUAL)
    def ours(params, state, grads, loss):
        updates, state = optimizer.update(grads, state, params, loss=loss)
        return optax.apply_updates(params, updates), state

    @partial(jax.jit, compiler_options=compiling.USUAL)
    def theirs(params, state, grads, count):
        updates, state = inner.update(grads, state, params)
        updates = jax.tree.map(lambda u: -schedule(count) * u, updates)
        return optax.apply_updates(params, updates), state

    draw = np.random.default_rng(seed)
    start = {"embed": draw.standard_normal(5), "head": {"kernel": draw.standard_normal((3, 4))}}
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), start)
    expected, state, inner_state = params, optimizer.init(params), inner.init(params)
    reference, skipped = Reference(window, sigma), 0
    for step in range(steps):
        grads = jax.tree.map(
            lambda p: jnp.asarray(scales[step] * draw.standard_normal(p.shape), jnp.float32),  # noqa: B023
            params,
        )
        params, state = ours(params, state, grads, losses[step])
        if reference.skips(float(losses[step]), float(optax.tree.norm(grads))):
            skipped += 1
        else:
            expected, inner_state = theirs(expected, inner_state, grads, jnp.asarray(step))
        assert int(state[0].skips) == skipped, step
        assert int(state[0].inner[1].count) == step + 1 - skipped
        assert int(state[1].count) == step + 1  # the schedule goes on
        jax.tree.map(np.testing.assert_array_equal, params, expected)
    jax.tree.map(np.testing.assert_array_equal, state[0].inner, inner_state)
    assert 5 <= skipped < steps / 4


def test_a_spike_of_either_is_enough_but_not_early_and_not_downwards():
    optimizer = skip_spikes(optax.identity(), window=8, sigma=6.0)
    params = {"w": jnp.zeros(2)}

    def run(history: list[tuple[float, float]]) -> list[int]:
        state, skips = optimizer.init(params), []
        for loss, norm in history:
            before = int(state.skips)
            grads = {"w": jnp.asarray([norm, 0.0])}
            updates, state = optimizer.update(grads, state, params, loss=loss)
            skips.append(int(state.skips) - before)
            assert float(updates["w"][0]) == (0.0 if skips[-1] else norm)
        return skips

    calm = [(2.0 + (i % 2) / 64, 1.0 + (i % 2) / 64) for i in range(8)]
    assert run([*calm, (3.0, 1.0)])[-1] == 1
    assert run([*calm, (2.0, 2.0)])[-1] == 1
    assert run([*calm, (1.0, 0.5)])[-1] == 0
    # Half a window must be known, this one included.
    assert run([*calm[:2], (3.0, 1.0)])[-1] == 0
    assert run([*calm[:3], (3.0, 1.0)])[-1] == 1
    # A spike is remembered, so that a second one like it is none.
    assert run([*calm, (3.0, 1.0), (3.0, 1.0)])[-2:] == [1, 0]


def test_the_step_skips_and_its_history_is_on_every_device():
    config = tiny_config()
    settings = dataclasses.replace(config.optimizer, skip_window=6, skip_sigma=6.0)
    config = dataclasses.replace(config, optimizer=settings)
    mesh = make_mesh(MeshConfig())
    model, optimizer = ModelFunctions(config, mesh), make_optimizer(config)
    state, step = init_state(model, optimizer, seed=0), jit_train_step(config, model, optimizer)

    def put(batch):
        return Batch(*(jax.device_put(a, windows_sharding(mesh)) for a in batch))

    batch = tiny_batch(config)
    for _ in range(4):
        state, metrics = step(state, put(batch))
        assert int(metrics["skipped"]) == 0
    before = jax.device_get(state)
    mask = batch.loss_mask.copy()
    mask[0, :2] += [1000, -1000]  # as many labels, and a gradient a hundred times as large
    state, metrics = step(state, put(batch._replace(loss_mask=mask)))
    assert (int(metrics["skipped"]), int(metrics["skipped_steps"])) == (1, 1), metrics
    jax.tree.map(np.testing.assert_array_equal, before.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, before.opt_state[0].inner, state.opt_state[0].inner)
    assert int(state.step) == int(before.step) + 1
    state, metrics = step(state, put(batch))
    assert (int(metrics["skipped"]), int(metrics["skipped_steps"])) == (0, 1)
    assert state.opt_state[0].losses_W.sharding.is_fully_replicated
    jax.tree.map(
        lambda leaf, wanted: np.testing.assert_(
            leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
        ),
        state,
        abstract_state(model, optimizer),
    )


@pytest.mark.system
def test_a_run_that_skips_is_resumed_to_the_last_bit(env, store, tmp_path):
    reference, workdir = tmp_path / "reference", tmp_path / "run"
    fields = dict(
        train__steps=20,
        train__eval_every=0,
        checkpoint__keep_every=0,
        optimizer__skip_window=6,
        optimizer__skip_sigma=0.2,
    )
    done = runs.emo(runs.train_argv(store, reference, **fields), env)
    assert done.returncode == 0, done.stderr
    log = runs.log_as_written(reference)
    skipped = [r["step"] for r in log if r.get("skipped") == "1"]
    assert any(int(step) < 10 for step in skipped) and any(int(step) > 10 for step in skipped), log
    assert log[-2]["skipped_steps"] == str(len(skipped))
    shutil.copytree(reference, workdir)
    shutil.rmtree(workdir / "checkpoints/20")
    done = runs.emo(runs.train_argv(store, workdir, **fields), env)
    assert done.returncode == 0 and "resumed at step 10" in done.stderr, done.stderr
    assert runs.log_as_written(workdir) == log

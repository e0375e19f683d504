"""With JAX's 64-bit numbers turned on nothing becomes wider, and the commands do the same."""

import jax
import numpy as np
import pytest
import runs
from tiny import tiny_batch, tiny_config

from emo_jax.evals.heldout import make_eval_step
from emo_jax.model.functions import ModelFunctions
from emo_jax.training.optimizer import make_optimizer
from emo_jax.training.state import init_state
from emo_jax.training.step import jit_train_step


def programs():
    """What the state, the metrics and a held-out loss are made by, as functions of batches."""
    config = tiny_config()
    model, optimizer = ModelFunctions(config), make_optimizer(config)
    step = jit_train_step(config, model, optimizer)
    eval_step = make_eval_step(config, model, num_domains=2)

    def run(*batches):
        state = init_state(model, optimizer, config.seed)
        for batch in batches:
            state, metrics = step(state, batch)
        return state, metrics, eval_step(state.params, batches[0], None, 0)

    return run, [tiny_batch(config, seed=i) for i in range(2)]


def test_every_dtype_is_the_same():
    def shapes():
        run, batches = programs()
        return jax.eval_shape(run, *batches)

    right = shapes()
    with jax.enable_x64(True):
        found = shapes()
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(right), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), jax.tree_util.keystr(path)


@pytest.mark.system
def test_every_number_is_the_same():
    """But for rounding: what is compiled is not quite the same program."""

    def numbers():
        run, batches = programs()
        return jax.device_get(run(*batches))

    right = numbers()
    with jax.enable_x64(True):
        found = numbers()
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(right), strict=True):
        name = jax.tree_util.keystr(path)
        assert a.dtype == b.dtype, name
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_run_has_the_same_bits(env, store, tmp_path):
    fields = dict(train__steps=2, optimizer__warmup_steps=1, train__eval_every=2)
    fields |= dict(checkpoint__save_every=2)
    found = []
    for x64 in "01":
        workdir = tmp_path / x64
        done = runs.emo(runs.train_argv(store, workdir, **fields), env | {"JAX_ENABLE_X64": x64})
        assert done.returncode == 0, done.stderr
        found.append((runs.state_of(workdir, 2), runs.log_as_written(workdir)))
    assert runs.equal_trees(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert any(name.startswith("opt_state") for name in found[0][0])


@pytest.mark.system
def test_verify_passes(env):
    done = runs.emo(["verify"], env | {"JAX_ENABLE_X64": "1"})
    assert done.returncode == 0, done.stdout + done.stderr

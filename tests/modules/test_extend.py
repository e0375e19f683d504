"""More experts: what they begin as, and that nothing else moves when they are trained."""

import dataclasses

import jax
import numpy as np
import pytest
from runs import emo_here, train_argv
from tiny import NO_POOL, UNIFORM, tiny_batch, tiny_config

from emo_jax.errors import UsageError
from emo_jax.files.trees import flatten, unflatten
from emo_jax.hf import import_model
from emo_jax.hf.sources import TreeSource
from emo_jax.model.functions import ModelFunctions
from emo_jax.modules.extend import extended
from emo_jax.moe.pools import pools_of_size
from emo_jax.saved.load import load_model
from emo_jax.training.optimizer import make_optimizer
from emo_jax.training.state import state_of
from emo_jax.training.step import jit_train_step

NEW = ("embeddings", "attention", "norms", "shared", "old_experts")


@pytest.fixture(scope="module")
def params():
    return jax.jit(ModelFunctions(tiny_config()).init, static_argnums=0)(3)


def _whole(source):
    return {
        path: source.read(path, tuple(slice(0, n) for n in shape))
        for path, shape in source.shapes.items()
    }


@pytest.mark.parametrize("init", ["copy", "jitter", "random", "mean"])
def test_new_experts_begin_as_asked(params, init):
    config = tiny_config()
    origins = [[1, 4], [0, 6]]
    source, larger = extended(TreeSource(flatten(params)), config, 2, init=init, origins=origins)
    found, old = _whole(source), flatten(params)
    assert larger.moe.num_experts == 10 and larger.moe.pool.forced_experts == 2
    assert (larger.moe.pool.min_size, larger.moe.pool.max_size) == (4, 9)
    for path, leaf in found.items():
        theirs = np.asarray(old[path])
        if "/experts/" in path:
            leaf, theirs = np.moveaxis(leaf, 1, 0), np.moveaxis(theirs, 1, 0)
        elif "router" in path:
            leaf, theirs = np.moveaxis(leaf, 2, 0), np.moveaxis(theirs, 2, 0)
        else:
            np.testing.assert_array_equal(leaf, theirs)
            continue
        np.testing.assert_array_equal(leaf[:7], theirs[:7])
        np.testing.assert_array_equal(leaf[9:], theirs[7:])
        for layer in range(2):
            new, copied = leaf[7:9, layer], theirs[origins[layer], layer]
            if init == "copy":
                np.testing.assert_array_equal(new, copied)
            elif init == "jitter":
                factor = new / copied
                assert 0.005 < np.std(factor) < 0.05 and abs(np.mean(factor) - 1) < 0.02
            elif init == "mean":
                mean = theirs[:7, layer].mean(0)
                np.testing.assert_allclose(new, [mean, mean], rtol=1e-5, atol=1e-7)
            else:
                assert abs(np.corrcoef(new.ravel(), copied.ravel())[0, 1]) < 0.3
    cut = source.read("layers/mlp/experts/up", (slice(1, 2), slice(8, 9), slice(3, 9), slice(2, 5)))
    np.testing.assert_array_equal(cut, found["layers/mlp/experts/up"][1:2, 8:9, 3:9, 2:5])


def test_training_moves_the_new_experts_only(params):
    config = tiny_config(pool=UNIFORM)
    source, larger = extended(TreeSource(flatten(params)), config, 2, init="jitter")
    optimizer_config = dataclasses.replace(larger.optimizer, frozen=NEW)
    larger = dataclasses.replace(larger, optimizer=optimizer_config)
    model, optimizer = ModelFunctions(larger), make_optimizer(larger)
    before = _whole(source)
    state = state_of(jax.tree.map(jax.numpy.array, unflatten(before)), model, optimizer)
    step = jit_train_step(larger, model, optimizer)
    for seed in range(3):
        state, _ = step(state, tiny_batch(larger, seed=seed))
    for path, leaf in flatten(state.params).items():
        moved = before[path].view(np.uint32) != np.asarray(leaf).view(np.uint32)
        if "/experts/" in path:
            assert moved[:, 7:9].mean() > 0.9
            moved[:, 7:9] = False
        elif "router" in path:
            assert moved[:, :, 7:9].mean() > 0.9
            moved[:, :, 7:9] = False
        assert not moved.any(), path


def test_new_experts_are_in_every_pool(params):
    config = tiny_config(pool=UNIFORM)
    source, larger = extended(TreeSource(flatten(params)), config, 2, init="random")
    model = ModelFunctions(larger)
    batch = tiny_batch(larger)
    pools = pools_of_size(larger.moe.pool, 2, (2, 8, 32))  # room for the forced ones alone
    _, stats = jax.jit(model.hidden)(unflatten(_whole(source)), batch, pools=pools)
    counts_LE = np.asarray(stats.counts_E)
    assert (counts_LE[:, :7] == 0).all() and (counts_LE[:, 7:9] > 0).all()


@pytest.mark.system
def test_the_command(finished_run, tmp_path, capsys):
    argv = ("extend", finished_run, "--add", "2", "--init", "jitter")
    assert emo_here(*argv, "--output", tmp_path / "more") == 0
    assert "10 experts" in capsys.readouterr().out
    _, config = import_model(tmp_path / "more")
    assert config.moe.num_experts == 10 and config.moe.pool.forced_experts == 2
    assert emo_here(*argv, "--output", tmp_path / "more") == 2
    assert "is there already" in capsys.readouterr().err
    assert emo_here("extend", finished_run, "--add", "0", "--output", tmp_path / "x") == 2


@pytest.mark.system
def test_new_experts_are_trained_alone_by_the_commands(finished_run, store, tmp_path):
    """extend, import, train: everything else keeps every bit."""
    assert emo_here("extend", finished_run, "--add", "2", "--output", tmp_path / "more") == 0
    imported, workdir = tmp_path / "imported", tmp_path / "run"
    assert emo_here("import", tmp_path / "more", "--workdir", imported) == 0
    frozen = "('embeddings','attention','norms','shared','old_experts')"
    fields = {
        "moe__num_experts": 10,
        "moe__pool__min_size": 4,
        "moe__pool__max_size": 10,
        "moe__pool__eval_size": 6,
        "moe__pool__forced_experts": 2,
        "optimizer__frozen": frozen,
        "train__steps": 4,
        "train__batch_size": 8,
        "train__eval_every": 0,
    }
    argv = train_argv(store, workdir, **fields)
    assert emo_here(*argv, "--init-from", f"{imported}@0", "--init", "weights") == 0
    before, after = (flatten(load_model(str(w)).params) for w in (imported, workdir))
    for path, leaf in before.items():
        moved = leaf.view(np.uint32) != np.asarray(after[path]).view(np.uint32)
        if "/experts/" in path:
            assert moved[:, 7:9].any()
            moved[:, 7:9] = False
        elif "router" in path:
            assert moved[:, :, 7:9].any()
            moved[:, :, 7:9] = False
        assert not moved.any(), path


def test_refusals(params):
    config = tiny_config(pool=NO_POOL)
    with pytest.raises(UsageError, match="must be one of copy, jitter, random, mean"):
        extended(TreeSource(flatten(params)), config, 2, init="zero")

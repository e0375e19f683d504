"""A run with more experts: weights and moments by place, and the function where it is the same."""

import dataclasses
import json

import numpy as np
import pytest
from runs import emo_here, state_of, train_argv
from tiny import NO_POOL, tiny_batch, tiny_config

from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.config import PoolConfig, to_dict
from emo_jax.errors import UsageError
from emo_jax.model.functions import ModelFunctions
from emo_jax.modules.grow import grow, grown_config, origins
from emo_jax.run.workdir import claim_workdir, read_workdir_config
from emo_jax.saved.load import load_model
from emo_jax.training import state as states
from emo_jax.training.optimizer import make_optimizer
from emo_jax.training.step import jit_train_step

R, S = 7, 1  # routed and shared experts of the run
AXES = {"router/kernel": 2, "router/bias": 1, "experts/gate": 1, "experts/up": 1, "experts/down": 1}


def save(workdir, config, steps=0):
    """A run of some steps."""
    model, optimizer = ModelFunctions(config), make_optimizer(config)
    state = states.init_state(model, optimizer, 0)
    step = jit_train_step(config, model, optimizer)
    for seed in range(steps):
        state, _ = step(state, tiny_batch(config, seed=seed))
    claim_workdir(workdir, config)
    with Checkpointer(workdir, config.checkpoint) as checkpointer:
        extra = {"config": to_dict(config), "windows": 8 * steps, "store": "of these tokens"}
        checkpointer.save(steps, state, extra)
    return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps, whose moments are not zero."""
    return save(tmp_path_factory.mktemp("grow") / "run", tiny_config(pool=NO_POOL), 2)


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """A run of two steps with sigmoid gates, whose score bias is not zero."""
    config = tiny_config(pool=NO_POOL)
    gate = dict(gate="sigmoid", normalize_picks=True, score_bias="sign", bias_rate=0.01)
    config = dataclasses.replace(config, moe=dataclasses.replace(config.moe, **gate))
    return save(tmp_path_factory.mktemp("grow") / "biased", config, 2)


def axis_of(path):
    return next((axis for name, axis in AXES.items() if path.endswith(f"mlp/{name}")), None)


def slow(old, axis, target, sources, zero):
    """A leaf of the larger run, written as loops over places."""
    out = np.zeros((*old.shape[:axis], target, *old.shape[axis + 1 :]), old.dtype)
    for place in range(target):
        index = [slice(None)] * old.ndim
        index[axis] = place
        origin = [slice(None)] * old.ndim
        if place < R:
            origin[axis] = place
        elif place >= target - S:
            origin[axis] = R + place - (target - S)
        elif zero:
            continue
        else:
            origin[axis] = sources[place - R]
        out[tuple(index)] = old[tuple(origin)]
    return out


@pytest.mark.parametrize(
    ("target", "init", "moments"),
    [
        (16, "copy", "copy"),
        (16, "jitter", "zero"),
        (64, "copy", "zero"),
        (16, "random", "copy"),
        (16, "mean", "copy"),
    ],
)
def test_every_leaf_in_numpy(run, tmp_path, target, init, moments):
    """8 to 16 and 8 to 64, as 64 to 128 and 16 to 128 are."""
    config = grow(run, tmp_path / "more", num_experts=target, init=init, moments=moments, seed=4)
    assert config == read_workdir_config(tmp_path / "more")
    assert (config.moe.num_experts, config.moe.top_k) == (target, 3)
    sources = origins(R, target - S, 4)
    assert sources[:R] == list(range(R)) and len(sources) == target - S - R
    assert len(set(sources[R:])) > 1 or len(sources) <= R + 1
    old, new = state_of(run, 2), state_of(tmp_path / "more", 2)
    assert set(old) == set(new)
    seen = {"params": 0, "moments": 0}
    for path, leaf in old.items():
        axis = axis_of(path)
        if axis is None:
            np.testing.assert_array_equal(new[path], leaf, err_msg=path)
            continue
        is_param = path.startswith("params/")
        seen["params" if is_param else "moments"] += 1
        zero = not is_param and (moments == "zero" or init in ("random", "mean"))
        expected = slow(leaf, axis, target, sources, zero)
        found = np.moveaxis(new[path], axis, 0)
        expected = np.moveaxis(expected, axis, 0)
        fresh = slice(R, target - S)
        if is_param and init == "jitter":
            factor = found[fresh] / expected[fresh]
            assert abs(factor.mean() - 1) < 0.01 and 0.015 < factor.std() < 0.025
        elif is_param and init == "random":
            assert np.abs(found[fresh]).max() <= 3 * 0.2 and 0.15 < found[fresh].std() < 0.25
        elif is_param and init == "mean":
            mean = np.moveaxis(leaf, axis, 0)[:R].mean(0)
            np.testing.assert_allclose(found[fresh] - mean, 0 * found[fresh], atol=1e-6)
        else:
            np.testing.assert_array_equal(found[fresh], expected[fresh], err_msg=path)
        kept = np.delete(found, np.arange(R, target - S), 0)
        np.testing.assert_array_equal(kept, np.moveaxis(leaf, axis, 0))
    assert seen == {"params": 4, "moments": 8}


def test_a_score_bias_is_copied(biased, tmp_path):
    grow(biased, tmp_path / "more", num_experts=16, init="random", seed=4)
    old, new = state_of(biased, 2), state_of(tmp_path / "more", 2)
    paths = [path for path in old if path.endswith("router/bias")]
    assert paths == ["params/layers/mlp/router/bias"] and np.abs(old[paths[0]]).max() > 0
    expected = slow(old[paths[0]], 1, 16, origins(R, 15, 4), False)
    np.testing.assert_array_equal(new[paths[0]], expected)


def test_learned_labels_are_refused(tmp_path):
    pool = PoolConfig(kind="label_learned", size=3, label_rate=0.1, labels=("law", "medicine"))
    labelled = save(tmp_path / "labelled", tiny_config(pool=pool))
    with pytest.raises(UsageError, match="labelled: its router has layers/mlp/router/favour"):
        grow(labelled, tmp_path / "more", num_experts=16)
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("kind", ["run", "biased"])
def test_the_function_is_the_same_where_all_are_copied_and_picked(request, kind, tmp_path):
    """Each expert twice with half of its weight, and all copies of a pick are picked."""
    run = request.getfixturevalue(kind)
    grow(run, tmp_path / "twice", num_experts=2 * R + S, top_k=2 * 2 + S)
    before, after = load_model(str(run)), load_model(str(tmp_path / "twice"))
    batch = tiny_batch(before.config, seed=9)
    expected = np.asarray(ModelFunctions(before.config).logits(before.params, batch))
    found = np.asarray(ModelFunctions(after.config).logits(after.params, batch))
    np.testing.assert_allclose(found[..., :50], expected[..., :50], atol=2e-5)
    # With as many picks as before it is another function: copies share a weight.
    grow(run, tmp_path / "fewer", num_experts=2 * R + S)
    fewer = load_model(str(tmp_path / "fewer"))
    other = np.asarray(ModelFunctions(fewer.config).logits(fewer.params, batch))
    assert np.abs(other[..., :50] - expected[..., :50]).max() > 1e-2


@pytest.mark.system
def test_the_next_step_moves_copies_with_the_moments_they_have(run, tmp_path):
    """The restored state trains; a copy with zero moments moves otherwise than its origin."""
    changes = {}
    for moments in ("copy", "zero"):
        config = grow(run, tmp_path / moments, num_experts=16, moments=moments)
        model, optimizer = ModelFunctions(config), make_optimizer(config)
        with Checkpointer(tmp_path / moments, config.checkpoint) as checkpointer:
            state, extra, step = checkpointer.restore(states.abstract_state(model, optimizer))
        assert (step, extra["windows"], extra["store"]) == (2, 16, "of these tokens")
        assert extra["grown"]["from"] == R and extra["config"]["moe"]["num_experts"] == 16
        before = np.asarray(state.params["layers"]["mlp"]["experts"]["up"])
        batch = tiny_batch(config, seed=5)
        state, _ = jit_train_step(config, model, optimizer)(state, batch)
        after = np.asarray(state.params["layers"]["mlp"]["experts"]["up"])
        changes[moments] = (after - before)[:, R : 2 * R]
    assert np.isfinite(changes["copy"]).all()
    assert np.abs(changes["copy"] - changes["zero"]).max() > 1e-4


def test_pools_that_restrict_nothing_go_on_doing_so():
    pool = PoolConfig(kind="uniform", min_size=2, max_size=8, eval_size=3)
    grown = grown_config(tiny_config(pool=pool), 16).moe.pool
    assert (grown.min_size, grown.max_size, grown.eval_size) == (2, 16, 3)
    pool = dataclasses.replace(pool, max_size=5)
    assert grown_config(tiny_config(pool=pool), 16).moe.pool.max_size == 5


def test_refusals(run, tmp_path, capsys):
    out = tmp_path / "out"
    for experts in (8, 4):
        with pytest.raises(UsageError, match=rf"--experts {experts}: tiny has 8 already"):
            grow(run, out, num_experts=experts)
    with pytest.raises(UsageError, match=r"--moments carry: must be one of copy, zero"):
        grow(run, out, num_experts=16, moments="carry")
    with pytest.raises(UsageError, match=r"no such workdir"):
        grow(tmp_path / "none", out, num_experts=16)
    argv = ("grow", run, "--experts", "16", "--output", tmp_path / "more")
    assert emo_here(*argv) == 0
    assert "16 experts a layer, 3 of a token" in capsys.readouterr().out
    assert emo_here(*argv) == 2
    assert "is there already" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.system
def test_a_grown_run_goes_on_by_the_commands(finished_run, store, tmp_path):
    """From its step, with the learning rate and the data of that step."""
    more, workdir = tmp_path / "more", tmp_path / "on"
    assert emo_here("grow", finished_run, "--experts", "16", "--output", more) == 0
    fields = {
        "moe__num_experts": 16,
        "moe__pool__max_size": 16,
        "train__steps": 42,
        "train__batch_size": 8,
        "train__eval_every": 0,
        "init__expected_changes": "train.steps,train.batch_size",
    }
    argv = train_argv(store, workdir, **fields)
    assert emo_here(*argv, "--init-from", more, "--init", "all") == 0
    log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in log if "ce_loss" in record]
    assert steps == [41, 42]
    # At the end of a cosine: a tenth of the peak.
    assert log[-1].get("learning_rate", log[0]["learning_rate"]) == pytest.approx(4e-4, rel=0.02)
    state = state_of(workdir, 42)
    assert state["step"] == 42
    assert state["params/layers/mlp/experts/up"].shape[1] == 16

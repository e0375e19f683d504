"""Frozen parts keep every bit; the others train as if they were alone."""

import dataclasses

import jax
import numpy as np
import pytest
from cases import few
from tiny import NO_POOL, UNIFORM, dense_config, tiny_batch, tiny_config

from emo_jax.config.names import FROZEN_PARTS
from emo_jax.errors import ConfigError
from emo_jax.files.trees import flatten
from emo_jax.model.functions import ModelFunctions
from emo_jax.training.optimizer import make_optimizer
from emo_jax.training.state import init_state
from emo_jax.training.step import jit_train_step

ALL_BUT_ROUTER = ("embeddings", "attention", "norms", "routed", "shared")
ALL_BUT_NEW = ("embeddings", "attention", "norms", "shared", "old_experts")


def _frozen(config, *parts, **changes):
    optimizer = dataclasses.replace(config.optimizer, frozen=parts, **changes)
    return dataclasses.replace(config, optimizer=optimizer)


def _moved(config, steps=2):
    """The bits that some steps change: {path: bool array}."""
    model = ModelFunctions(config)
    optimizer = make_optimizer(config)
    state = init_state(model, optimizer, 0)
    before = {path: np.asarray(leaf).copy() for path, leaf in flatten(state.params).items()}
    step = jit_train_step(config, model, optimizer)
    for seed in range(steps):
        state, metrics = step(state, tiny_batch(config, seed=seed))
        assert np.isfinite(metrics["loss"])
    after = {path: np.asarray(leaf) for path, leaf in flatten(state.params).items()}
    return {path: before[path].view(np.uint32) != after[path].view(np.uint32) for path in before}


def _expected(path, config, parts):
    """Which numbers may move."""
    moe, name = config.moe, path.split("/")
    R = moe.num_routed_experts
    free = np.ones(moe.num_experts, bool)
    if name[0] in ("embed", "lm_head"):
        return "embeddings" not in parts
    if "norm" in path:
        return "norms" not in parts
    if name[1] == "attention":
        return "attention" not in parts
    old = slice(0, R - moe.pool.forced_experts)
    if name[2] == "router":
        free[R:] = "old_experts" not in parts  # dead, but weight decay moves them
        free[old] &= "old_experts" not in parts
        return free & ("router" not in parts)
    if "routed" in parts:
        free[:R] = False
    if "old_experts" in parts:
        free[old] = False
    if "shared" in parts:
        free[R:] = False
    return free[:, None, None]


@pytest.mark.parametrize(
    "parts",
    [
        ALL_BUT_ROUTER,
        ALL_BUT_NEW,
        *few([(parts,) for parts in (("routed",), ("routed", "shared"), ("router", "norms"))], 0),
    ],
    ids="+".join,
)
def test_only_what_is_not_frozen_moves(parts):
    pool = dataclasses.replace(UNIFORM, forced_experts=2)
    config = tiny_config(pool=pool)
    moved = _moved(_frozen(config, *parts))
    for path, bits in moved.items():
        expected = np.broadcast_to(_expected(path, config, parts), bits.shape)
        assert not (bits & ~expected).any(), f"{path} moved"
        if expected.any() and "embedding" not in path:
            assert bits[expected].mean() > 0.5, f"{path} did not move"


def test_the_gradient_norm_for_the_clip_is_of_what_is_trained():
    """With all gradients it would clip the router's to almost nothing."""
    config = tiny_config(pool=NO_POOL)
    frozen = _frozen(config, *ALL_BUT_ROUTER, clip_norm=1e-3)
    params = jax.jit(ModelFunctions(config).init, static_argnums=0)(0)
    grads = jax.tree.map(lambda p: 100 * np.ones_like(p), params)
    grads["layers"]["mlp"]["router"]["kernel"] = 1e-6 * np.ones((2, 16, 8), np.float32)
    optimizer = make_optimizer(frozen)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    (mu,) = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if ".mu" in jax.tree_util.keystr(path) and "router" in jax.tree_util.keystr(path)
    ]
    np.testing.assert_allclose(mu, 0.1 * 1e-6, rtol=1e-5)  # not clipped


def test_dense_models():
    config = _frozen(dense_config(), "mlp", "embeddings")
    for path, bits in _moved(config).items():
        assert bits.any() == (not path.startswith(("embed", "lm_head", "layers/mlp/"))), path


def test_refusals():
    config = tiny_config()
    with pytest.raises(ConfigError, match=r"some of embeddings.*did you mean 'router'"):
        _frozen(config, "rooter")
    with pytest.raises(ConfigError, match="without mlp: this model has none"):
        _frozen(config, "mlp")
    with pytest.raises(ConfigError, match="without old_experts, routed, router, shared"):
        _frozen(dense_config(), "router")
    assert len(set(FROZEN_PARTS)) == len(FROZEN_PARTS)

"""Experts that were added to one model in different runs, put together: add, train, merge."""

import dataclasses

import jax
import numpy as np
import pytest
from branching import save
from tiny import UNIFORM, tiny_config

import emo_jax
from emo_jax.config import differences
from emo_jax.errors import UsageError
from emo_jax.files.trees import flatten, unflatten
from emo_jax.hf.sources import TreeSource
from emo_jax.model.functions import ModelFunctions
from emo_jax.modules.extend import extended
from emo_jax.saved.load import load_model


@pytest.fixture(scope="module")
def extensions(tmp_path_factory):
    """One model with an expert more, and with two others."""
    config, folder = tiny_config(pool=UNIFORM), tmp_path_factory.mktemp("extensions")
    params = jax.device_get(jax.jit(ModelFunctions(config).init, static_argnums=0)(3))
    found = []
    for name, add in (("law", 1), ("medicine", 2)):
        source, larger = extended(TreeSource(flatten(params)), config, add, init="random", seed=add)
        whole = {
            path: source.read(path, tuple(slice(0, n) for n in shape))
            for path, shape in source.shapes.items()
        }
        found.append(save(folder / name, larger, unflatten(whole)))
    return found


def test_old_experts_then_those_of_each_run(extensions, tmp_path):
    made = emo_jax.mix(extensions, tmp_path / "joined")
    assert made.experts == (*map(str, range(7)), "law", "medicine 0", "medicine 1")
    law, medicine = (flatten(load_model(str(path)).params) for path in extensions)
    for path, leaf in flatten(load_model(str(made.workdir)).params).items():
        axis = 2 if "router" in path else 1 if "/experts/" in path else None
        if axis is None:
            np.testing.assert_array_equal(leaf, law[path])
            continue
        a, b, leaf = (np.moveaxis(x, axis, 0) for x in (law[path], medicine[path], leaf))
        # Old ones and law's, medicine's, the shared one.
        np.testing.assert_array_equal(leaf[:8], a[:8])
        np.testing.assert_array_equal(leaf[8:10], b[7:9])
        if axis == 1:
            np.testing.assert_array_equal(leaf[10:], a[8:])
    # As the first model, but for the number of experts, and pools of all of them.
    changed = differences(made.config, tiny_config(pool=UNIFORM))
    named = {line.partition(":")[0] for line in changed}
    assert named == {"name", "moe.num_experts", "moe.pool.max_size"}
    moe = made.config.moe
    assert (moe.num_experts, moe.top_k, moe.pool.max_size) == (11, 3, 11)


def test_shared_experts_that_were_trained_are_refused(extensions, tmp_path):
    loaded = load_model(str(extensions[1]))
    flat = {path: np.array(leaf) for path, leaf in flatten(loaded.params).items()}
    flat["layers/mlp/experts/up"][0, -1, 2, 2] += 1
    wrong = save(tmp_path / "wrong", loaded.config, unflatten(flat))
    with pytest.raises(UsageError, match=r"differ in layers/mlp/experts/up, layer 0"):
        emo_jax.mix([extensions[0], wrong], tmp_path / "joined")
    moe = dataclasses.replace(
        loaded.config.moe, pool=dataclasses.replace(loaded.config.moe.pool, forced_experts=3)
    )
    other = save(tmp_path / "other", dataclasses.replace(loaded.config, moe=moe), loaded.params)
    with pytest.raises(UsageError, match=r"of different parents, with 7 and 6 routed experts"):
        emo_jax.mix([extensions[0], other], tmp_path / "joined")

"""Mesh sizes, the table of rules, and what is refused."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tiny import tiny_config

from emo_jax.config import MeshConfig
from emo_jax.errors import ConfigError
from emo_jax.model.functions import ModelFunctions
from emo_jax.parallel import mesh as mesh_lib


def _sizes(devices=8, slices=1, **sizes):
    return tuple(mesh_lib.axis_sizes(MeshConfig(**sizes), devices, slices).values())


def test_one_axis_takes_the_devices_that_are_left():
    assert _sizes() == (1, 8, 1, 1, 1)
    assert _sizes(expert=4) == (1, 2, 4, 1, 1)
    assert _sizes(fsdp=2, tensor=-1) == (1, 2, 1, 1, 4)
    assert _sizes(256, slices=2, replica=2, context=4) == (2, 32, 1, 4, 1)


@pytest.mark.parametrize(
    ("sizes", "devices", "slices", "said"),
    [
        (dict(expert=3), 8, 1, "multiply to 3, which does not divide the 8 devices"),
        (dict(fsdp=2, expert=2), 8, 1, "the sizes multiply to 4, but there are 8 devices"),
        (dict(fsdp=-1, tensor=16), 8, 1, "multiply to 16, which does not divide the 8 devices"),
        (dict(replica=3), 24, 2, "config.mesh.replica = 3: must be a multiple of the 2 slices"),
        (dict(), 8, 2, "config.mesh.replica = 1: must be a multiple of the 2 slices"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, devices, slices, said):
    with pytest.raises(ConfigError, match=said):
        _sizes(devices, slices, **sizes)


def test_a_weight_is_stored_over_every_axis_but_replica():
    spec = mesh_lib.spec
    assert spec(("embed", "heads", None)) == P(("fsdp", "expert", "context"), "tensor", None)
    assert spec(("heads", None, "embed")) == P("tensor", None, ("fsdp", "expert", "context"))
    assert spec(("layers", "expert", "embed", "mlp")) == P(
        None, "expert", ("fsdp", "context"), "tensor"
    )
    assert spec(("vocab", "embed")) == P(None, ("fsdp", "expert", "context", "tensor"))
    assert spec((None,)) == P(None)


def test_optimizer_and_parameters_take_an_equal_part_of_every_device():
    """Nothing large is kept whole anywhere: the largest shard is the array over the devices."""
    config = tiny_config()
    mesh = mesh_lib.make_mesh(MeshConfig(fsdp=2, expert=2, tensor=2))
    model = ModelFunctions(config, mesh)
    shardings = model.param_shardings()
    for path, leaf in jax.tree.leaves_with_path(model.abstract_params):
        where = shardings
        for key in path:
            where = where[key.key]
        if leaf.ndim - ("layers" in str(path)) < 2:
            continue  # norms
        shard = np.prod(where.shard_shape(leaf.shape))
        assert shard == leaf.size // 8, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("sizes", "kv_heads", "said"),
    [
        (dict(tensor=8), 0, "mesh.tensor = 8: does not divide the 2 of weight axis 'kv_heads'"),
        (dict(tensor=2), 1, "mesh.tensor = 2: does not divide the 1 of weight axis 'kv_heads'"),
        (dict(fsdp=1, expert=-1), 0, None),
    ],
)
def test_a_model_that_does_not_divide_is_refused(sizes, kv_heads, said):
    config = tiny_config(num_experts=8, num_kv_heads=kv_heads)
    model = ModelFunctions(config, mesh_lib.make_mesh(MeshConfig(**sizes)))
    if said is None:
        model.param_shardings()
        return
    with pytest.raises(ConfigError, match=said):
        model.param_shardings()


def test_windows_and_their_tokens_must_divide():
    mesh = mesh_lib.make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))
    mesh_lib.check_batch(mesh, 2, 32)
    with pytest.raises(ConfigError, match="a micro-batch of 3 windows does not divide over 2"):
        mesh_lib.check_batch(mesh, 3, 32)
    with pytest.raises(ConfigError, match=r"data\.seq_len = 30: a window does not divide over 4"):
        mesh_lib.check_batch(mesh, 2, 30)

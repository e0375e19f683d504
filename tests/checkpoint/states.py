"""States that tell which step they are of, for the tests here and the processes they start."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def mesh_of(*sizes):
    names = ("a", "b", "c")[: len(sizes)]
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def state_of(step, mesh=None, rows=16):
    """Parameters, AdamW state and counters, all different, all a function of the step."""
    key = jax.random.key(step)
    params = {
        "embed": jax.random.normal(key, (rows, 8)),
        "layers": [
            {"w": jax.random.normal(jax.random.fold_in(key, i), (4, rows, 6)).astype(dtype)}
            for i, dtype in enumerate((jnp.float32, jnp.bfloat16))
        ],
        "none_shared": jnp.zeros((2, 0, 4)),
    }
    if mesh is not None:
        specs = {2: PartitionSpec("a"), 3: PartitionSpec(None, "a"), 0: PartitionSpec()}
        params = jax.tree.map(
            lambda x: jax.device_put(x, NamedSharding(mesh, specs[x.size and x.ndim])), params
        )
    return {
        "params": params,
        "opt": jax.tree.map(lambda x: x + step, optax.adam(1e-3).init(params)),
        "step": step,
        "windows": np.int64(step + 2**40),
    }


def abstract_of(state, mesh=None, spec=None):
    """What to restore: on `mesh`, or host arrays without one."""

    def leaf(x):
        x = x if hasattr(x, "dtype") else jnp.asarray(x)
        if mesh is None or x.dtype == np.int64:
            return jax.ShapeDtypeStruct(x.shape, x.dtype)
        parts = spec if spec is not None and x.ndim == 2 and x.size else PartitionSpec()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, parts))

    return jax.tree.map(leaf, state)


def assert_same(got, want):
    """Equal structure, dtypes and bits."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        y = y if hasattr(y, "dtype") else jnp.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()

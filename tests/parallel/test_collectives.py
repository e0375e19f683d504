"""The sum that CPUs of several processes make instead of a reduce-scatter is the same function."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from jax.sharding import PartitionSpec

from emo_jax.config import MeshConfig
from emo_jax.parallel import collectives
from emo_jax.parallel.island import Island
from emo_jax.parallel.mesh import AXES, make_mesh


def summed(axes, dim):
    return lambda island, x: island.sum_scatter(x, axes, dim)


def gathered(axes, dim):
    return lambda island, x: island.gather(x, axes, dim)


@pytest.mark.parametrize("collective", [summed, gathered])
@pytest.mark.parametrize("axes", [("fsdp",), ("expert", "tensor"), ("fsdp", "expert", "tensor")])
def test_values_and_gradients_are_those_of_a_reduce_scatter(monkeypatch, collective, axes):
    island = Island(make_mesh(MeshConfig(fsdp=2, expert=2, tensor=2)))
    x = np.random.default_rng(0).integers(-9, 9, (8, 8, 8)).astype(np.float32)  # of each device

    def loss(x):
        def local(x):
            found = [collective(axes, dim)(island, x[0]) for dim in (0, 1)]
            # Every number on every device weighs differently in the loss.
            weights = (jnp.arange(y.size).reshape(y.shape) % 7 + island.index(*AXES) for y in found)
            parts = [(y * y * w).sum() for y, w in zip(found, weights, strict=True)]
            return sum(parts)[None], [y[None] for y in found]

        spec = PartitionSpec(AXES)
        losses, found = island.run(local, (spec,), (spec, spec))(x)
        return losses.sum(), found

    def run():
        program = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(x).compile()
        return program.as_text(), jax.device_get(program(x))

    text, right = run()
    monkeypatch.setattr(collectives, "over_gloo", lambda mesh: True)
    gloo_text, found = run()
    jax.tree.map(np.testing.assert_array_equal, found, right)
    assert " reduce-scatter(" in text
    assert " reduce-scatter(" not in gloo_text and " all-reduce(" in gloo_text


def test_one_process_alone_is_not_over_gloo():
    assert not collectives.over_gloo(make_mesh(MeshConfig()))


def test_nothing_else_makes_a_reduce_scatter():
    """Nor an all-gather, whose transpose is one."""
    found = {
        str(path.relative_to(runs.REPO))
        for path in (runs.REPO / "emo_jax").rglob("*.py")
        if re.search(r"lax\.(psum_scatter|all_gather)\(", path.read_text())
    }
    assert found == {"emo_jax/parallel/collectives.py"}

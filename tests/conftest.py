"""Eight CPU devices for every test, so that sharded code is tested on any machine."""

import os

# Before jax is imported anywhere.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()

import jax
import pytest


@pytest.fixture(autouse=True)
def highest_matmul_precision():
    """Comparisons with golden numbers hold on every back end."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def one_device_mesh():
    """A mesh of a single device."""
    from emo_jax.config import MeshConfig
    from emo_jax.parallel.mesh import make_mesh

    return make_mesh(MeshConfig(), jax.devices()[:1])

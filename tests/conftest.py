"""Eight CPU devices for every test, so that sharded code is tested on any machine."""

import os
import signal
from pathlib import Path

import compiling

# Before jax is imported anywhere.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        compiling.FLAGS,
    ]
).strip()

# Tests send Ctrl-C, which a shell makes its background commands ignore, and these their children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import marked
import pytest
import runs
from s3_server import bucket, s3_port  # noqa: F401


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks long tests."""
    marked.mark_long(items)


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """What one test or worker compiled, no other compiles again."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled_here"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # With a limit, files are locked.
    jax.config.update("jax_compilation_cache_max_size", 4 << 30)


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


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """A token store that every process of the tests shares."""
    return runs.shared_store(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """The workdir of a run that was left alone."""
    return runs.shared_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def env(tmp_path_factory) -> dict[str, str]:
    """The environment of a process of the tests: one device, a shared compile cache."""
    return runs.environment(runs.shared_cache(tmp_path_factory.getbasetemp()))

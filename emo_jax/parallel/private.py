"""All private library APIs that we use.

Tried with the versions below. If another version has moved one, a one-line error says so.
"""

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

from emo_jax.errors import EmoError

TRIED = {"jax": "0.10.2 to 0.12.0.1", "tokamax": "0.0.12 and 0.0.17"}


def cluster(name: str) -> Any:
    """JAX's class for querying a scheduler about its processes: `SlurmCluster`, `K8sCluster`, …

    Publicly, JAX only tries all of them in turn (`jax.distributed.initialize`).
    """
    return _private("jax", "jax._src.clusters", name)


def workers_of_tpu_slice(tpu_cluster: Any) -> list[str]:
    """Host names of a TPU slice, by process, according to a TPU cluster from `cluster`."""
    return tpu_cluster._get_worker_list_in_slice()


def coordination_client() -> Any:
    """The client of JAX's coordination service, which keeps what processes tell each other.

    Publicly, JAX has only collectives for this, which wait for the running step.
    """
    return _private("jax", "jax._src.distributed", "global_state").client


def tpu_vm_metadata() -> Callable[[str], str | None]:
    """What the metadata server of a TPU VM says of a variable, by its name."""
    module = "jax._src.clusters.cloud_tpu_cluster"
    return _private("jax", module, "get_tpu_env_value_from_metadata")


def tpu_info_registry() -> dict[str, Any]:
    """The registry that tells TPU kernels about the chip, keyed by platform."""
    return _private("jax", "jax._src.pallas.mosaic.tpu_info", "registry")


def tokamax_attention() -> tuple[Any, Any]:
    """(`IMPLEMENTATIONS`, `Mask`): attention with a range of keys for each query.

    tokamax's public function takes only a mask of all queries by all keys, not ranges.
    """
    package = "tokamax._src.ops.attention"
    return (
        _private("tokamax", f"{package}.api", "IMPLEMENTATIONS"),
        _private("tokamax", f"{package}.base", "Mask"),
    )


def tokamax_tpu_matmul(name: str) -> Any:
    """`gmm` or `tgmm`, the grouped matmuls for TPUs, with tile sizes chosen by the caller."""
    return _private("tokamax", "tokamax._src.ops.ragged_dot.pallas_mosaic_tpu_kernel", name)


def _private(library: str, module: str, name: str) -> Any:
    """The attribute `name` of `module`; raises EmoError if the installed version lacks it."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        version = importlib.metadata.version(library)
        raise EmoError(
            f"{library} {version} has no {module}.{name}, which emo_jax needs; it was tried with"
            f" {library} {TRIED[library]}: install one of these"
        ) from error

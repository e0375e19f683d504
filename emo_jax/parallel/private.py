"""What we need of libraries that they do not publish: all of it is here.

Tried with the versions below. Another version may have moved it, which is then said in one line.
"""

import importlib
import importlib.metadata
from typing import Any

from emo_jax.errors import EmoError

TRIED = {"jax": "0.10.2 to 0.12.0.1", "tokamax": "0.0.12 and 0.0.17"}


def cluster(name: str) -> Any:
    """How JAX asks a scheduler for its processes: `SlurmCluster`, `K8sCluster`, …

    It publishes only that all of them are asked in turn (`jax.distributed.initialize`).
    """
    return _private("jax", "jax._src.clusters", name)


def workers_of_tpu_slice(tpu_cluster: Any) -> list[str]:
    """Host names of a slice, by process, that a TPU cluster of `cluster` knows."""
    return tpu_cluster._get_worker_list_in_slice()


def tpu_info_registry() -> dict[str, Any]:
    """Of TPU kernels: by platform, what tells them of the chip."""
    return _private("jax", "jax._src.pallas.mosaic.tpu_info", "registry")


def tokamax_attention() -> tuple[Any, Any]:
    """(`IMPLEMENTATIONS`, `Mask`): attention with a range of keys for each query.

    The function that tokamax publishes takes no ranges, only a mask of all queries by all keys.
    """
    package = "tokamax._src.ops.attention"
    return (
        _private("tokamax", f"{package}.api", "IMPLEMENTATIONS"),
        _private("tokamax", f"{package}.base", "Mask"),
    )


def tokamax_tpu_matmul(name: str) -> Any:
    """`gmm` or `tgmm`, the grouped matrix products for TPUs, with tile sizes of the caller's."""
    return _private("tokamax", "tokamax._src.ops.ragged_dot.pallas_mosaic_tpu_kernel", name)


def _private(library: str, module: str, name: str) -> Any:
    """Raises EmoError where the installed version has it no more."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        version = importlib.metadata.version(library)
        raise EmoError(
            f"{library} {version} has no {module}.{name}, which emo_jax needs; it was tried with"
            f" {library} {TRIED[library]}: install one of these"
        ) from error

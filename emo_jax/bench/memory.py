"""Memory of a step: what the state takes, what the compiler plans, and the measured peak."""

import math
import os
import resource
import sys
from typing import Any, NamedTuple

import jax

from emo_jax.errors import EmoError
from emo_jax.training.state import HOST_MEMORY, TrainState

OUT_OF_MEMORY = "out of memory"  # in the message about what does not fit


class StateBytes(NamedTuple):
    """Bytes of the state on one device."""

    parameters: int
    optimizer: int
    optimizer_in_host: int  # with optimizer.offload


def state_bytes(state: TrainState) -> StateBytes:
    """Bytes that each device, or its host, holds between steps."""
    held = [leaf for leaf in jax.tree.leaves(state.opt_state)]
    in_host = [leaf.sharding.memory_kind == HOST_MEMORY for leaf in held]
    return StateBytes(
        sum(map(_shard_bytes, jax.tree.leaves(state.params))),
        sum(_shard_bytes(x) for x, host in zip(held, in_host, strict=True) if not host),
        sum(_shard_bytes(x) for x, host in zip(held, in_host, strict=True) if host),
    )


def _shard_bytes(leaf: jax.Array) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def planned_bytes(compiled: Any) -> int | None:
    """Planned bytes of a step on one device: state, batch, temporaries; None: unknown."""
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    new = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return plan.argument_size_in_bytes + plan.temp_size_in_bytes + new


def refuse_too_large(planned: int | None, limit: int | None) -> None:
    """Raises EmoError if a step is planned to take more than a device has.

    Args:
      planned: see `planned_bytes`.
      limit: bytes; None: what the device reports, or on a CPU the machine's memory.
    """
    if limit is None:
        stats = jax.local_devices()[0].memory_stats()
        if stats and "bytes_limit" in stats:
            limit = stats["bytes_limit"]
        elif jax.default_backend() == "cpu":
            machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            limit = machine // jax.local_device_count()
    if planned is not None and limit is not None and planned > limit:
        raise EmoError(
            f"{OUT_OF_MEMORY}: a step is planned to take {gb(planned)} a device, and there are"
            f" {gb(limit)}; give a smaller train.batch_size, or model.remat, train.micro_batches,"
            " optimizer.first_moment_dtype=bfloat16 or optimizer.offload"
        )


class Peak(NamedTuple):
    """Peak usage since the process began."""

    bytes: int
    limit: int | None  # of the device
    of: str  # "device", or "process" if devices do not report it


def peak() -> Peak:
    """Peak usage of the fullest device of this process."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    used = [s for s in stats if s and "peak_bytes_in_use" in s]
    if used:
        most = max(used, key=lambda s: s["peak_bytes_in_use"])
        return Peak(most["peak_bytes_in_use"], most.get("bytes_limit"), "device")
    unit = 1 if sys.platform == "darwin" else 1024
    return Peak(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, None, "process")


def gb(size: float) -> str:
    """A size as `1.50 GB`; small ones in MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"

"""One mesh, and the one table that maps logical axes of weights and activations to its axes."""

import math
from collections.abc import Callable, Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from emo_jax.config import MeshConfig
from emo_jax.errors import ConfigError

AXES = ("replica", "fsdp", "expert")
BATCH_AXES = AXES  # windows are spread over every axis

# Logical axis -> mesh axis. A weight names its logical axes where it is made.
RULES: dict[str | None, str | None] = {
    "embed": "fsdp",
    "expert": "expert",
    "vocab": None,
    "mlp": None,
    "heads": None,
    "layers": None,
    None: None,
}


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run over all devices (or those given).

    Axis types are Auto: `jax.make_mesh` defaults to Explicit, where a plain matmul of differently
    sharded operands raises.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {axis: getattr(config, axis) for axis in AXES}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    for axis, size in sizes.items():
        if size == -1:
            sizes[axis] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise ConfigError(
            f"config.mesh = {sizes}: the sizes multiply to {math.prod(sizes.values())}, "
            f"but there are {len(devices)} devices"
        )
    return jax.make_mesh(
        tuple(sizes.values()), AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES)
    )


def sharding(mesh: Mesh, logical_axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
    """Where an array lives.

    Raises:
      ConfigError: an axis does not divide over its mesh axis.
    """
    for axis, size in zip(logical_axes, shape, strict=True):
        part = RULES[axis]
        if part is not None and size % mesh.shape[part]:
            raise ConfigError(
                f"config.mesh.{part} = {mesh.shape[part]}: does not divide the {size} of weight"
                f" axis {axis!r}; change mesh.{part} or the model"
            )
    return NamedSharding(mesh, PartitionSpec(*(RULES[axis] for axis in logical_axes)))


def windows_sharding(mesh: Mesh) -> NamedSharding:
    """Batches (B,S): windows over every axis, tokens of a window together."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES, None))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_windows(mesh: Mesh | None, function: Callable, *, num_replicated: int = 0) -> Callable:
    """`function` run by each device on its own windows; on one device, as it is.

    All arguments and results have windows as their leading axis, but the last `num_replicated`
    arguments, which every device gets whole (their gradients are summed over devices).
    """
    if mesh is None or mesh.size == 1:
        return function
    by_window = PartitionSpec(BATCH_AXES)

    def mapped(*args):
        whole = len(args) - num_replicated
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(by_window,) * whole + (PartitionSpec(),) * num_replicated,
            out_specs=by_window,
            check_vma=False,
        )(*args)

    return mapped


def check_batch(mesh: Mesh, micro_batch_size: int) -> None:
    """Raise when a micro-batch does not divide over the devices.

    Raises:
      ConfigError: with both numbers.
    """
    if micro_batch_size % mesh.size:
        raise ConfigError(
            f"config.train.batch_size: a micro-batch of {micro_batch_size} windows does not divide "
            f"over {mesh.size} devices; change train.batch_size or train.micro_batches"
        )

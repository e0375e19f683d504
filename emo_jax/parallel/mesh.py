"""The mesh, and the table that maps the logical axes of weights to mesh axes.

A batch is spread over `replica`, `fsdp` and `expert` by windows, and over `context` and `tensor`
by the tokens of a window. A weight is stored in pieces over every axis but `replica`; code that
computes with it gathers it, see `island.py`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from emo_jax.errors import ConfigError

# From the slowest network to the fastest: neighbours along the last axis communicate most.
AXES = ("replica", "fsdp", "expert", "context", "tensor")
WINDOW_AXES = ("replica", "fsdp", "expert")  # share the windows of a batch
TOKEN_AXES = ("context", "tensor")  # share the tokens of a window

# Logical axis of a weight -> mesh axes. A weight names its logical axes where it is defined. The
# table is read from the top: a mesh axis that an array already uses is not used again.
RULES: tuple[tuple[str | None, tuple[str, ...]], ...] = (
    ("expert", ("expert",)),
    ("heads", ("tensor",)),
    ("kv_heads", ("tensor",)),
    ("mlp", ("tensor",)),
    ("embed", ("fsdp", "expert", "context", "tensor")),
    ("vocab", ()),
    ("layers", ()),
    (None, ()),
)


def platform(mesh: Mesh | None) -> str:
    """`cpu`, `gpu` or `tpu`: the mesh's devices, which need not be those of this machine."""
    if mesh is None:
        return jax.default_backend()
    name = mesh.devices.flat[0].platform
    return "gpu" if name in ("cuda", "rocm") else name


def exchanges_beside(mesh: Mesh | None) -> bool:
    """Whether an all-to-all can be under way while a device computes.

    Not on CPUs; nor on a v5e, where libtpu says "Async all-to-all not supported on limited ICI".
    """
    return platform(mesh) != "cpu" and "v5 lite" not in device_kind(mesh)


def compiler_options(mesh: Mesh | None) -> dict[str, bool]:
    """What a step that is compiled for the mesh asks of the compiler, beyond its defaults."""
    if mesh is None or platform(mesh) != "tpu" or not exchanges_beside(mesh):
        return {}
    return {"xla_tpu_enable_async_all_to_all": True} if mesh.shape["expert"] > 1 else {}


def device_kind(mesh: Mesh | None) -> str:
    """The driver's name for the mesh's devices: `TPU v5 lite`, `NVIDIA H100 …`, `cpu`."""
    return (jax.devices() if mesh is None else mesh.devices.flat)[0].device_kind


class AxisSizes(Protocol):
    """Mesh axis sizes, as in `emo_jax.config.MeshConfig`; one may be -1: whatever is left."""

    @property
    def replica(self) -> int: ...  # noqa: D102
    @property
    def fsdp(self) -> int: ...  # noqa: D102
    @property
    def expert(self) -> int: ...  # noqa: D102
    @property
    def context(self) -> int: ...  # noqa: D102
    @property
    def tensor(self) -> int: ...  # noqa: D102


def axis_sizes(config: AxisSizes, num_devices: int, num_slices: int = 1) -> dict[str, int]:
    """Size of every mesh axis, with -1 resolved.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices, or `replica`, the only axis
        that crosses slices, is not a multiple of their number.
    """
    sizes = {axis: getattr(config, axis) for axis in AXES}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    shown = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
    if -1 in sizes.values():
        if num_devices % fixed:
            raise ConfigError(
                f"config.mesh = {shown}: the sizes given multiply to {fixed}, which does not divide"
                f" the {num_devices} devices"
            )
        sizes = {axis: num_devices // fixed if n == -1 else n for axis, n in sizes.items()}
    elif fixed != num_devices:
        raise ConfigError(
            f"config.mesh = {shown}: the sizes multiply to {fixed}, but there are {num_devices}"
            " devices"
        )
    if sizes["replica"] % num_slices:
        raise ConfigError(
            f"config.mesh.replica = {sizes['replica']}: must be a multiple of the {num_slices}"
            " slices, since no other axis crosses the network between them"
        )
    return sizes


def make_mesh(config: AxisSizes, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run over all devices, or the given ones.

    Neighbours in the mesh are neighbours in the torus of a TPU slice; `replica` is the axis that
    crosses slices. Axis types are Auto: with JAX's default, Explicit, a plain matmul of differently
    sharded operands raises an error.

    Raises:
      ConfigError: see `axis_sizes`.
    """
    devices = jax.devices() if devices is None else list(devices)
    slices = Counter(getattr(device, "slice_index", 0) or 0 for device in devices)
    num_slices = len(slices) if devices[0].platform == "tpu" else 1
    sizes = axis_sizes(config, len(devices), num_slices)
    shape = tuple(sizes.values())
    if num_slices > 1:
        inner = (shape[0] // num_slices, *shape[1:])
        array = mesh_utils.create_hybrid_device_mesh(
            inner,
            (num_slices, *(1,) * (len(shape) - 1)),
            devices,
            allow_split_physical_axes=True,
        )
    elif devices[0].platform == "tpu":
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        # Devices are ordered by process, so the last axes stay within a host.
        array = np.asarray(devices).reshape(shape)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def stored_over(logical_axes: Sequence[str | None]) -> list[tuple[str, ...]]:
    """The mesh axes over which each dimension of a weight is stored, according to `RULES`."""
    parts: list[tuple[str, ...]] = [()] * len(logical_axes)
    used: set[str] = set()
    for name, mesh_axes in RULES:
        for dim, axis in enumerate(logical_axes):
            if axis == name:
                free = tuple(a for a in mesh_axes if a not in used)
                used |= set(free)
                parts[dim] = free
    return parts


def spec(logical_axes: Sequence[str | None]) -> PartitionSpec:
    """The same as a JAX `PartitionSpec`."""
    return PartitionSpec(*(axes or None for axes in stored_over(logical_axes)))


def sharding(mesh: Mesh, logical_axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
    """The sharding of a weight.

    Raises:
      ConfigError: an axis does not divide evenly over its mesh axes.
    """
    stored = stored_over(logical_axes)
    for axis, size, mesh_axes in zip(logical_axes, shape, stored, strict=True):
        ways = math.prod(mesh.shape[a] for a in mesh_axes)
        if size % ways:
            over = {a: mesh.shape[a] for a in mesh_axes if mesh.shape[a] > 1}
            names = " × ".join(f"mesh.{a}" for a in over)
            raise ConfigError(
                f"config.{names} = {' × '.join(map(str, over.values()))}: does not divide the"
                f" {size} of weight axis {axis!r}; change the mesh or the model"
            )
    return NamedSharding(mesh, spec(logical_axes))


def windows_spec(trailing: int = 0) -> PartitionSpec:
    """Spec of arrays (B,S,…): windows and their tokens are sharded, the rest is not."""
    return PartitionSpec(WINDOW_AXES, TOKEN_AXES, *(None,) * trailing)


def windows_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of batches (B,S)."""
    return NamedSharding(mesh, windows_spec())


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding with the same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(mesh: Mesh | None, array: jax.Array, parts: PartitionSpec) -> jax.Array:
    """Constrains the sharding of an array; does nothing on one device."""
    if mesh is None or mesh.size == 1:
        return array
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, parts))


def check_batch(mesh: Mesh, micro_batch_size: int, seq_len: int) -> None:
    """Checks that a micro-batch divides over the devices.

    Raises:
      ConfigError: it does not; the message gives both numbers.
    """
    for what, count, axes, change in (
        (
            f"train.batch_size: a micro-batch of {micro_batch_size} windows",
            micro_batch_size,
            WINDOW_AXES,
            "train.batch_size, train.micro_batches or the mesh",
        ),
        (f"data.seq_len = {seq_len}: a window", seq_len, TOKEN_AXES, "data.seq_len or the mesh"),
    ):
        ways = math.prod(mesh.shape[axis] for axis in axes)
        if count % ways:
            names = " × ".join(f"{axis} {mesh.shape[axis]}" for axis in axes)
            raise ConfigError(
                f"config.{what} does not divide over {ways} devices ({names}); change {change}"
            )

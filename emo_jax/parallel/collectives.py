"""A gather and the sum that leaves each device its piece: each is the other's transpose.

On CPUs that `jax.distributed` joins, XLA makes collectives with gloo, whose reduce-scatter now and
then leaves wrong numbers at the end of the first device's piece: a device sends from the buffer
that it writes its own piece to, and does not wait for what is sent (jax issue 40830). There every
device makes the whole sum and takes its piece of it. So nothing else calls `lax.psum_scatter`, nor
`lax.all_gather`, whose transpose it is.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from emo_jax.parallel.mesh import platform
from emo_jax.parallel.stages import stages

Axes = tuple[str, ...]


def over_gloo(mesh: Mesh) -> bool:
    """Whether gloo makes the collectives of a mesh, between devices of one process too."""
    return platform(mesh) == "cpu" and jax.distributed.is_initialized()


def gather(array: jax.Array, axes: Axes, dim: int, mesh: Mesh) -> jax.Array:
    """The pieces of all devices along some axes, one after the other in dimension `dim`."""
    if over_gloo(mesh) and jnp.issubdtype(array.dtype, jnp.inexact):
        return _gather(array, axes, dim)
    return lax.all_gather(array, axes, axis=dim, tiled=True)


def sum_scatter(array: jax.Array, axes: Axes, dim: int, mesh: Mesh) -> jax.Array:
    """The sum over devices along some axes, of which each keeps its piece of dimension `dim`."""
    if over_gloo(mesh):
        return _sum_and_cut(array, axes, dim)
    for axis in axes:
        for groups in stages(mesh, axis) or (None,):
            array = lax.psum_scatter(
                array, axis, scatter_dimension=dim, axis_index_groups=groups, tiled=True
            )
    return array


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(array, axes, dim):
    return lax.all_gather(array, axes, axis=dim, tiled=True)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _sum_and_cut(array, axes, dim):
    piece = array.shape[dim] // lax.axis_size(axes)
    return lax.dynamic_slice_in_dim(
        lax.psum(array, axes), lax.axis_index(axes) * piece, piece, axis=dim
    )


_gather.defvjp(
    lambda array, axes, dim: (_gather(array, axes, dim), None),
    lambda axes, dim, _, grad: (_sum_and_cut(grad, axes, dim),),
)
_sum_and_cut.defvjp(
    lambda array, axes, dim: (_sum_and_cut(array, axes, dim), None),
    lambda axes, dim, _, grad: (_gather(grad, axes, dim),),
)

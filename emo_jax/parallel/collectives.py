"""All-gather and reduce-scatter: each is the other's transpose.

On CPUs joined by `jax.distributed`, XLA runs collectives on gloo, whose reduce-scatter occasionally
leaves wrong numbers at the end of the first device's piece: a device sends from the buffer into
which it writes its own piece, without waiting for the send to finish (jax issue 40830). There every
device computes the whole sum and takes its piece. So nothing else may call `lax.psum_scatter` or
`lax.all_gather`, of which it is the transpose.
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
    """Whether a mesh's collectives run on gloo, even between devices of one process."""
    return platform(mesh) == "cpu" and jax.distributed.is_initialized()


def gather(array: jax.Array, axes: Axes, dim: int, mesh: Mesh) -> jax.Array:
    """The pieces of all devices along some axes, concatenated in dimension `dim`."""
    if over_gloo(mesh) and jnp.issubdtype(array.dtype, jnp.inexact):
        return _gather(array, axes, dim)
    return lax.all_gather(array, axes, axis=dim, tiled=True)


def sum_scatter(array: jax.Array, axes: Axes, dim: int, mesh: Mesh) -> jax.Array:
    """Sums over devices along some axes; each device keeps its piece of dimension `dim`."""
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

"""Islands: parts of the step that each device runs on its own piece, with explicit collectives.

The step is one program over the whole mesh, and the compiler places whatever is small. What moves
many bytes (embedding, attention, experts, vocabulary loss) is written for one device, so that every
collective is explicit in the source. On one device all of this is the identity.

Gradients: a value that differs between devices is gathered, and the transpose of a gather is a
reduce-scatter. Nothing here relies on replicated values, whose gradients are easily counted once
per copy.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from emo_jax.parallel import collectives
from emo_jax.parallel import mesh as mesh_lib

LogicalAxes = tuple[str | None, ...]
Stored = jax.Array | tuple[jax.Array, ...]  # a weight, or some that are used side by side


class Island:
    """Communication of one device with the others, by mesh axis."""

    def __init__(self, mesh: Mesh | None):
        self.mesh = None if mesh is None or mesh.size == 1 else mesh

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Island) and self.mesh == other.mesh

    def __hash__(self) -> int:
        return hash(self.mesh)

    def run(self, function: Callable, in_specs: tuple, out_specs) -> Callable:
        """`function` mapped over each device's pieces of its arguments; unchanged on one device."""
        if self.mesh is None:
            return function
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    def used(self, axes: Sequence[str]) -> tuple[str, ...]:
        """The given axes that have several devices."""
        if self.mesh is None:
            return ()
        return tuple(axis for axis in axes if self.mesh.shape[axis] > 1)

    def size(self, *axes: str) -> int:
        """Number of devices along some axes."""
        count = 1
        for axis in self.used(axes):
            count *= self.mesh.shape[axis]  # type: ignore[union-attr]
        return count

    def index(self, *axes: str) -> jax.Array | int:
        """This device's index along some axes, the first being the most significant."""
        used = self.used(axes)
        return lax.axis_index(used) if used else 0

    def gather(self, array: jax.Array, axes: Sequence[str], dim: int) -> jax.Array:
        """The pieces of all devices along some axes, concatenated in dimension `dim`."""
        used = self.used(axes)
        if not used or self.mesh is None:
            return array
        return collectives.gather(array, used, dim, self.mesh)

    def sum_scatter(self, array: jax.Array, axes: Sequence[str], dim: int) -> jax.Array:
        """Sums over devices, each of which keeps its piece: the transpose of `gather`."""
        used = self.used(axes)
        if not used or self.mesh is None:
            return array
        return collectives.sum_scatter(array, used, dim, self.mesh)

    def sum(self, array: jax.Array, axes: Sequence[str] = mesh_lib.AXES) -> jax.Array:
        """The sum over devices, on each of them."""
        used = self.used(axes)
        return lax.psum(array, used) if used else array

    def all_to_all(self, array: jax.Array, axes: Sequence[str], split: int, join: int) -> jax.Array:
        """Sends piece i of dimension `split` to device i; joins received pieces along `join`."""
        used = self.used(axes)
        return lax.all_to_all(array, used, split, join, tiled=True) if used else array

    def whole(
        self, weight: jax.Array, logical_axes: LogicalAxes, dtype, *, leading: int = 0
    ) -> jax.Array:
        """A stored weight made ready for use: cast, then gathered over its `embed` axis.

        Its gradient is summed in float32, as in the reference (SPEC 1.4), whatever the compute
        dtype.

        Args:
          logical_axes: those the weight is stored by.
          leading: how many of the first logical axes the given array lacks.
        """
        return _whole(weight, self, self._how(logical_axes, leading), jnp.dtype(dtype))

    def hold(
        self, weight: Stored, logical_axes: LogicalAxes, dtype, *, in_loop: bool = False
    ) -> tuple["Held", "Reduce"]:
        """Like `whole`, with control over when the gradient is summed over devices.

        Several weights of the same axes become one, side by side in the last dimension; each has
        an anchor of its own, so that their gradients need not be in memory together. The
        consumer returns `Reduce(gradient)` as the anchor's gradient. With `in_loop`, `Reduce`
        only casts: gradients of many uses add up in float32 and are summed over devices once.
        """
        how = self._how(logical_axes)
        make = _held_in_loop if in_loop else _held
        return make(weight, self, how, jnp.dtype(dtype)), Reduce(self, None if in_loop else how)

    def _how(self, logical_axes: LogicalAxes, leading: int = 0) -> "Gathered":
        dim = logical_axes.index("embed")
        return Gathered(dim - leading, self.used(mesh_lib.stored_over(logical_axes)[dim]))


class Gathered(NamedTuple):
    """The dimension of a weight that is gathered, and over which mesh axes."""

    dim: int
    axes: tuple[str, ...]


class Held(NamedTuple):
    """A weight ready for use, and the anchor that receives its gradient."""

    weight: jax.Array
    anchor: Stored  # float32 zeros, never used in a computation; of each stored weight


@dataclass(frozen=True)
class Reduce:
    """Converts a weight's gradient into its anchor's: float32, and summed over devices."""

    island: Island
    how: Gathered | None  # None: not summed here

    def __call__(self, grad: jax.Array) -> jax.Array:
        """The gradient of the anchor."""
        grad = grad.astype(jnp.float32)
        return grad if self.how is None else self.island.sum_scatter(grad, *self.how[::-1])

    def use(self, held: Held) -> jax.Array:
        """The weight, for code that is differentiated automatically."""
        return _use(*held, self)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _use(weight, anchor, reduce):
    return weight


def _used(reduce, of_weight, grad):
    return jnp.zeros_like(grad), jax.tree.map(reduce, _apart(grad, of_weight))


_use.defvjp(lambda weight, anchor, reduce: (weight, _last_sizes(anchor)), _used)


def _side_by_side(weight: Stored, dtype) -> jax.Array:
    if isinstance(weight, tuple):
        return jnp.concatenate([w.astype(dtype) for w in weight], axis=-1)
    return weight.astype(dtype)


def _last_sizes(stored: Stored) -> Stored:
    """What a backward pass needs to know of stored weights: dtypes and last sizes."""
    return jax.tree.map(lambda w: jnp.zeros((0, w.shape[-1]), w.dtype), stored)


def _apart(whole: jax.Array, of: Stored) -> Stored:
    """What belongs to each of the weights that are side by side."""
    if not isinstance(of, tuple):
        return whole
    ends = list(itertools.accumulate(w.shape[-1] for w in of))
    return tuple(jnp.split(whole, ends[:-1], axis=-1))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _whole(weight, island, how, dtype):
    if not how.axes:
        return _side_by_side(weight, dtype)
    # Without the barrier, the compiler casts the weights of all layers before it loops over them.
    cast = _side_by_side(lax.optimization_barrier(weight), dtype)
    return island.gather(cast, how.axes, how.dim)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _held(weight, island, how, dtype):
    anchor = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weight)
    return Held(_whole(weight, island, how, dtype), anchor)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _held_in_loop(weight, island, how, dtype):
    whole = _whole(weight, island, how, dtype)
    pieces = jax.eval_shape(lambda whole: _apart(whole, weight), whole)
    return Held(whole, jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), pieces))


def _keeping_dtype(function):
    """The forward pass of a custom_vjp that keeps next to nothing of the weight."""
    return lambda weight, *how: (function(weight, *how), _last_sizes(weight))


def _summed(island, how, of_weight, grads):
    def one(of, grad):
        return island.sum_scatter(grad.astype(of.dtype), how.axes, how.dim)

    return (jax.tree.map(one, of_weight, grads),)


_whole.defvjp(
    _keeping_dtype(_whole),
    lambda island, how, dtype, of_weight, grad: _summed(
        island, how, of_weight, _apart(grad, of_weight)
    ),
)
_held.defvjp(
    _keeping_dtype(_held),
    lambda island, how, dtype, of_weight, grads: (
        jax.tree.map(lambda of, grad: grad.astype(of.dtype), of_weight, grads.anchor),
    ),
)
_held_in_loop.defvjp(
    _keeping_dtype(_held_in_loop),
    lambda island, how, dtype, of_weight, grads: _summed(island, how, of_weight, grads.anchor),
)

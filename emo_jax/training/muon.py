"""Muon for matrices, Adam for the rest.

The update of a matrix is its momentum, with all singular values brought close to 1 by Newton–Schulz
iterations (Jordan et al., https://kellerjordan.github.io/posts/muon). Each layer's, and each
expert's, matrices are matrices of their own: optax's own rule takes arrays of two dimensions and
leaves stacks of them to Adam without a word.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from optax.contrib import MuonDimensionNumbers

from emo_jax.files.trees import STACKS
from emo_jax.parallel.island import Island

# An update's root mean square, whatever the matrix's shape, so that AdamW's learning rate and
# weight decay can stay: Liu et al., arXiv 2502.16982, section 2.2.
UPDATE_RMS = 0.2
MUON, ADAM = "muon", "adam"

# Leaves of a layer, and how many of their last dimensions go in and come out of the matrix: the
# rest counts matrices.
_IN_AND_OUT = {"query": (1, 2), "key": (1, 2), "value": (1, 2), "out": (2, 1)}
_OTHERS = (1, 1)


def matrix_of(path: tuple[str, ...], ndim: int) -> MuonDimensionNumbers | None:
    """Which dimensions of a parameter are the matrix; None where it has none that Muon takes.

    As usual, Muon takes neither embeddings (input and output), nor norms.
    """
    if path[0] not in STACKS or path[-1] == "scale":
        return None
    into, out = _IN_AND_OUT.get(path[-1], _OTHERS)
    first = ndim - into - out
    return MuonDimensionNumbers(tuple(range(first, first + into)), tuple(range(first + into, ndim)))


def _matrices(tree: Any, otherwise: Any) -> Any:
    def leaf(path: Any, a: Any) -> Any:
        found = matrix_of(tuple(key.key for key in path), a.ndim)
        return otherwise if found is None else found

    return jax.tree_util.tree_map_with_path(leaf, tree)


def labels(params: Any) -> Any:
    """A tree like the parameters: which of the two optimizers each belongs to."""
    return jax.tree.map(
        lambda found: ADAM if found is None else MUON,
        _matrices(params, None),
        is_leaf=lambda x: x is None or isinstance(x, MuonDimensionNumbers),
    )


def muon(momentum: float, shardings: Any = None) -> optax.GradientTransformation:
    """Returns the direction of a step for matrices; a momentum of their size is all it keeps.

    Args:
      momentum: Nesterov's.
      shardings: `NamedSharding`s of the parameters, on a mesh: the state is placed alike, and each
        device makes some whole matrices orthogonal, which travel to it and back.
    """

    def matrices(tree: Any) -> Any:
        return _matrices(tree, optax.MaskedNode())

    def orthogonal(updates: Any, _: Any) -> Any:
        def leaf(path: Any, update: jax.Array) -> jax.Array:
            found = matrix_of(tuple(key.key for key in path), update.ndim)
            assert found is not None
            where = shardings
            for key in path:
                where = where and where[key.key]
            fans = [math.prod(update.shape[d] for d in dims) for dims in found]
            make = partial(_orthogonal, into=len(found.reduction_axis))
            update = _whole(make, update, found.reduction_axis[0], where)
            return update * (UPDATE_RMS * math.sqrt(max(fans)))

        return jax.tree_util.tree_map_with_path(leaf, updates)

    # No iteration here: what is left is the momentum, of norm 1.
    kept = optax.contrib.scale_by_muon(ns_steps=0, beta=momentum, weight_dimension_numbers=matrices)
    return optax.chain(kept, optax.stateless(orthogonal))


def _orthogonal(matrices: jax.Array, into: int) -> jax.Array:
    """Newton–Schulz of (n, in…, out…), with `into` dimensions that go in, by optax."""
    dims = tuple(range(1, matrices.ndim))
    optimizer = optax.contrib.scale_by_muon(
        beta=0.0,
        nesterov=False,
        weight_dimension_numbers=[MuonDimensionNumbers(dims[:into], dims[into:])],
    )
    (out,), _ = optimizer.update([matrices], optimizer.init([matrices]))
    return out


def _whole(
    function: Callable[[jax.Array], jax.Array],
    array: jax.Array,
    stacked: int,
    sharding: NamedSharding | None,
) -> jax.Array:
    """`function` of a stack (n, …) of whole matrices, some of them on each device.

    Args:
      array: its first `stacked` dimensions count matrices.
      sharding: how it is cut; the result is cut alike.
    """

    mesh, spec = (None, PartitionSpec()) if sharding is None else (sharding.mesh, sharding.spec)
    assert not isinstance(mesh, AbstractMesh)
    island = Island(mesh)
    # (dimension of a stack, mesh axes along which it is cut)
    cut = []
    for dim in range(stacked, len(spec)):
        axes = (spec[dim],) if isinstance(spec[dim], str) else spec[dim] or ()
        if used := island.used(axes):
            cut.append((dim - stacked + 1, used))

    def local(own: jax.Array) -> jax.Array:
        x = own.reshape(-1, *own.shape[stacked:])
        n, ways = x.shape[0], math.prod(island.size(*axes) for _, axes in cut)
        x = jnp.pad(x, ((0, -n % ways), *((0, 0) for _ in x.shape[1:])))
        for dim, axes in cut:
            x = island.all_to_all(x, axes, split=0, join=dim)
        x = function(x)
        for dim, axes in reversed(cut):
            x = island.all_to_all(x, axes, split=dim, join=0)
        return x[:n].reshape(own.shape)

    return island.run(local, (spec,), spec)(array)

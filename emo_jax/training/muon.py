"""Muon for matrices, Adam for the rest.

The update of a matrix is its momentum, with all singular values brought close to 1 by Newton–Schulz
iterations (Jordan et al., https://kellerjordan.github.io/posts/muon). Each layer's, and each
expert's, matrices are matrices of their own: optax's own rule takes arrays of two dimensions and
leaves stacks of them to Adam without a word.
"""

import math
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

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
    if path[0] != "layers" or path[-1] == "scale":
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


def muon(momentum: float) -> optax.GradientTransformation:
    """Returns the direction of a step for matrices; a momentum of their size is all it keeps."""

    def matrices(tree: Any) -> Any:
        return _matrices(tree, optax.MaskedNode())

    def scaled(updates: Any, _: Any) -> Any:
        def leaf(update: jax.Array, found: MuonDimensionNumbers) -> jax.Array:
            fans = (math.prod(update.shape[d] for d in dims) for dims in found)
            return update * (UPDATE_RMS * math.sqrt(max(fans)))

        return jax.tree.map(leaf, updates, matrices(updates))

    orthogonal = optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=matrices)
    return optax.chain(orthogonal, optax.stateless(scaled))

"""Sums over a torus in stages, each using only some of its axes.

The compiler does not implement a reduce-scatter over all axes of a TPU torus at once as such: it
computes the whole sum everywhere, at twice the bytes plus a full copy, and slices it. Over fewer
axes at a time it does emit a reduce-scatter.
"""

import math
from functools import cache

import numpy as np
from jax.sharding import Mesh

Groups = tuple[tuple[int, ...], ...]  # positions on a mesh axis that are summed together


@cache
def stages(mesh: Mesh, axis: str) -> tuple[Groups, ...]:
    """Groups for each stage of a reduce-scatter along a mesh axis, in order.

    For position i·n + j on an axis of m·n devices, the first stage groups equal j and the second
    equal i, so that every device keeps its own piece. An empty tuple means one stage of all.
    """
    along = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), 0)
    places = _coordinates(along.reshape(along.shape[0], -1)[:, 0])
    if places is None:
        return ()
    most = _axes_used(places) - 1
    sizes = _split(places, most) if most else (len(places),)
    return tuple(_groups(sizes)) if len(sizes) > 1 else ()


def _coordinates(devices: np.ndarray) -> np.ndarray | None:
    """(n, axes of the torus); None if the devices form no torus or span several slices."""
    if any(getattr(device, "coords", None) is None for device in devices):
        return None
    if len({getattr(device, "slice_index", 0) for device in devices}) > 1:
        return None
    return np.array([device.coords for device in devices])


def _axes_used(places: np.ndarray) -> int:
    """Number of torus axes along which the devices differ."""
    return int((np.ptp(places, axis=0) > 0).sum())


def _split(places: np.ndarray, most: int) -> tuple[int, ...]:
    """Sizes of stages that use at most `most` axes each; one stage if there is no such split."""
    n = len(places)
    for minor in (size for size in range(2, n) if n % size == 0):
        grid = places.reshape(n // minor, minor, -1)
        if _axes_used(grid[:, 0]) <= most and _axes_used(grid[0]) <= most:
            return n // minor, minor
    return (n,)


def _groups(sizes: tuple[int, ...]) -> list[Groups]:
    grid = np.arange(math.prod(sizes)).reshape(sizes)
    return [
        tuple(map(tuple, np.moveaxis(grid, stage, -1).reshape(-1, size).tolist()))
        for stage, size in enumerate(sizes)
    ]

"""Which places on a mesh axis sum together, on tori of TPUs."""

from dataclasses import dataclass

import numpy as np
import pytest
from jax.sharding import Mesh

from emo_jax.parallel import stages as stages_lib


@dataclass(frozen=True)
class _Chip:
    id: int
    coords: tuple[int, ...]
    slice_index: int = 0


def _axis(*torus, slices=1):
    """Coordinates of a mesh axis that runs through a torus, the last axis fastest."""
    places = np.array([(*c, 0, 0)[:3] for c in np.ndindex(*torus)])
    return places


@pytest.mark.parametrize(
    ("torus", "sizes"),
    [
        ((4, 4, 4), (16, 4)),
        ((8, 8, 16), (64, 16)),
        ((16, 16), (16, 16)),
        ((2, 2), (2, 2)),
        ((16,), (16,)),
    ],
)
def test_a_stage_uses_fewer_axes_than_the_torus_has(torus, sizes):
    places = _axis(*torus)
    most = stages_lib._axes_used(places) - 1
    found = stages_lib._split(places, most) if most else (len(places),)
    assert found == sizes
    groups = stages_lib._groups(sizes)
    n = len(places)
    for stage in groups:
        assert sorted(sum(stage, ())) == list(range(n))
        used = max(stages_lib._axes_used(places[list(group)]) for group in stage)
        assert used <= max(most, 1)
    # Piece after piece: the first stage leaves place p the part p // minor, the second p % minor.
    kept = {p: np.arange(n) for p in range(n)}
    for stage in groups:
        kept = {p: np.split(kept[p], len(group))[group.index(p)] for group in stage for p in group}
    assert all(kept[p].tolist() == [p] for p in range(n))


def test_devices_without_a_torus_sum_at_once():
    import jax

    mesh = Mesh(np.array(jax.devices()), ("fsdp",))
    assert stages_lib.stages(mesh, "fsdp") == ()

"""Rows of a batch by the devices that hold them, on meshes of unusual orders too."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tiny import tiny_batch, tiny_config

from emo_jax.batch import Batch
from emo_jax.config import MeshConfig
from emo_jax.errors import ConfigError
from emo_jax.parallel.mesh import make_mesh, windows_sharding
from emo_jax.parallel.rows import global_batch, own_part, own_rows


class Seen:
    """A sharding as a process sees it that has some of the devices only."""

    def __init__(self, sharding, devices):
        self._sharding, self._devices = sharding, set(devices)

    def addressable_devices_indices_map(self, shape):
        whole = self._sharding.devices_indices_map(shape)
        return {d: index for d, index in whole.items() if d in self._devices}


def windows_over(rows, columns, order):
    """Windows over `rows` groups of devices in an order of ours, tokens over `columns`."""
    devices = np.array(jax.devices())[list(order)].reshape(rows, columns)
    mesh = Mesh(devices, ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    return NamedSharding(mesh, PartitionSpec("a", "b"))


@pytest.mark.parametrize(
    ("rows", "columns", "order", "process", "expected"),
    [
        (8, 1, range(8), [0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]),
        (8, 1, range(8), [4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15]),
        # Not in the order of processes: process 0 holds the ends of the batch.
        (8, 1, [0, 4, 1, 5, 6, 2, 7, 3], [0, 1, 2, 3], [0, 1, 4, 5, 10, 11, 14, 15]),
        # Two processes share each window: both read it.
        (2, 4, range(8), [0, 1], [0, 1, 2, 3, 4, 5, 6, 7]),
        (2, 4, range(8), [2, 3], [0, 1, 2, 3, 4, 5, 6, 7]),
        (2, 4, range(8), [4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15]),
        (1, 8, range(8), [7], list(range(16))),
    ],
)
def test_rows_follow_the_devices(rows, columns, order, process, expected):
    where = Seen(windows_over(rows, columns, order), [jax.devices()[i] for i in process])
    assert own_rows(where, 16, 32) == expected


@pytest.mark.parametrize(
    "sizes",
    [dict(fsdp=8), dict(fsdp=2, context=4), dict(fsdp=1, tensor=8), dict(expert=2, tensor=2)],
    ids=str,
)
def test_the_global_batch_is_the_batch(sizes):
    where, batch = windows_sharding(make_mesh(MeshConfig(**sizes))), tiny_batch(tiny_config())
    rows = own_rows(where, 8, 32)
    assert rows == list(range(8))
    put = global_batch(batch, rows, where, 8)
    for name, field, array in zip(Batch._fields, batch, put, strict=True):
        assert array.sharding == where
        np.testing.assert_array_equal(array, field, err_msg=name)
        part, part_rows, columns = own_part(array)
        assert (part_rows, columns) == (rows, list(range(32)))
        np.testing.assert_array_equal(part, field, err_msg=name)


def test_an_unusual_order_of_devices():
    where, batch = windows_over(4, 2, [5, 0, 3, 6, 1, 7, 2, 4]), tiny_batch(tiny_config())
    put = global_batch(batch, range(8), where, 8)
    np.testing.assert_array_equal(put.tokens, batch.tokens)
    np.testing.assert_array_equal(own_part(put.tokens)[0], batch.tokens)


def test_a_batch_that_does_not_divide():
    where = windows_sharding(make_mesh(MeshConfig()))
    with pytest.raises(ConfigError, match=r"config\.train\.batch_size: a batch of 12 windows"):
        own_rows(where, 12, 32)

"""Which rows of a global batch this process reads, and the global arrays built from them.

Both follow from the sharding alone: devices in a mesh are not in process order, and if a mesh axis
splits the tokens of a window, several processes read the same rows.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding

from emo_jax.batch import Batch
from emo_jax.errors import ConfigError


def own_rows(sharding: NamedSharding, batch_size: int, seq_len: int) -> list[int]:
    """Rows of a batch (B,S) of which this process's devices hold a part, in order.

    Raises:
      ConfigError: B or S does not divide over the mesh.
    """
    held = _shards(sharding, (batch_size, seq_len))
    return sorted({row for rows, _ in held.values() for row in range(rows.start, rows.stop)})


def global_batch(batch: Batch, rows: Sequence[int], sharding: NamedSharding, size: int) -> Batch:
    """Builds the global batch, to which each process contributes its rows.

    Args:
      batch: NumPy fields (len(rows), S).
      rows: from `own_rows`, ascending.
      size: B, rows of all processes.
    """
    seq_len = batch.tokens.shape[1]
    held = _shards(sharding, (size, seq_len))
    place = {row: i for i, row in enumerate(rows)}

    def put(field: np.ndarray) -> jax.Array:
        # A shard's rows are adjacent in `field` too: `rows` is ascending and has them all.
        parts = [
            jax.device_put(field[place[r.start] : place[r.start] + len(r), c.start : c.stop], d)
            for d, (r, c) in held.items()
        ]
        return jax.make_array_from_single_device_arrays((size, seq_len), sharding, parts)

    return Batch(*(put(np.asarray(field)) for field in batch))


def own_part(array: jax.Array) -> tuple[np.ndarray, list[int], list[int]]:
    """This process's part of an array (B,S): (part, its rows, its columns).

    Entries that no local device holds are 0, which happens only with an unusual mesh order.
    """
    held = _shards(array.sharding, array.shape)
    rows = sorted({i for r, _ in held.values() for i in r})
    columns = sorted({i for _, c in held.values() for i in c})
    part = np.zeros((len(rows), len(columns)), array.dtype)
    at_row = {row: i for i, row in enumerate(rows)}
    at_column = {column: i for i, column in enumerate(columns)}
    for shard in array.addressable_shards:
        r, c = held[shard.device]
        first, left = at_row[r.start], at_column[c.start]
        part[first : first + len(r), left : left + len(c)] = shard.data
    return part, rows, columns


def _shards(
    sharding: jax.sharding.Sharding, shape: tuple[int, ...]
) -> dict[jax.Device, tuple[range, range]]:
    """The rows and columns on each device of this process."""
    try:
        indices = sharding.addressable_devices_indices_map(shape)
    except ValueError as e:
        raise ConfigError(
            f"config.train.batch_size: a batch of {shape[0]} windows of {shape[1]} tokens does not"
            " divide over the mesh; change train.batch_size, train.micro_batches or mesh"
        ) from e
    found = {}
    for device, index in indices.items():
        assert index is not None
        row, column = (range(*part.indices(n)) for part, n in zip(index, shape, strict=True))
        found[device] = (row, column)
    return found

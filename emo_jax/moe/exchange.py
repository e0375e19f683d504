"""Sends rows to the devices that hold their experts, and back, by `ragged_all_to_all`.

Each device sends every other device the rows of that device's experts and nothing else. One
all-gather of the counts tells all devices who sends how many rows to whom. If the rows a device
receives are bounded, those over the bound are not sent; they count as dropped and come back as
zeros.

Legend: M rows that this device sends, C rows that it has room to receive, P devices on the
`expert` axis, Q experts on each of them, E = P·Q, D width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

AXIS = "expert"


class Plan(NamedTuple):
    """Who sends how many rows to whom, as this device passes it to `lax.ragged_all_to_all`."""

    send_from_P: jax.Array  # int32, first row here for each device
    send_sizes_P: jax.Array
    send_to_P: jax.Array  # where they begin on the receiver
    receive_from_P: jax.Array  # first row here of what each device sends
    receive_sizes_P: jax.Array
    back_to_P: jax.Array  # where those rows begin on the device that sent them
    experts_C: jax.Array  # int32, expert of each received row, among the Q here; Q: no row
    dropped: jax.Array  # int32, rows of this device that are not sent


def plan(counts_E: jax.Array, counts_PE: jax.Array, me: jax.Array, room: int) -> Plan:
    """Plans the exchange.

    Args:
      counts_E: int32, rows for each expert; rows are in the order of the experts.
      counts_PE: the same for all devices.
      me: index of this device.
      room: C.
    """
    P, E = counts_PE.shape
    Q = E // P
    wanted_PP = counts_PE.reshape(P, P, Q).sum(axis=-1, dtype=jnp.int32)  # [sender, receiver]
    starts_PP = _before(wanted_PP, axis=0)  # rows that precede a sender's on a receiver
    ends_PP = jnp.minimum(starts_PP + wanted_PP, room)
    starts_PP = jnp.minimum(starts_PP, room)
    sizes_PP = ends_PP - starts_PP
    send_from_PP = _before(wanted_PP, axis=1)
    # Runs of equal experts among the received rows: for each sender, cut where its rows end.
    mine_PQ = lax.dynamic_slice_in_dim(counts_PE, me * Q, Q, axis=1)
    first_PQ = jnp.minimum(starts_PP[:, me, None] + _before(mine_PQ, axis=1), ends_PP[:, me, None])
    runs = jnp.diff(first_PQ.reshape(-1), append=ends_PP[-1, me])
    experts = jnp.arange(P * Q, dtype=jnp.int32) % Q
    experts = jnp.append(experts, Q)
    runs = jnp.append(runs, room - ends_PP[-1, me])
    return Plan(
        send_from_P=send_from_PP[me],
        send_sizes_P=sizes_PP[me],
        send_to_P=starts_PP[me],
        receive_from_P=starts_PP[:, me],
        receive_sizes_P=sizes_PP[:, me],
        back_to_P=send_from_PP[:, me],
        experts_C=jnp.repeat(experts, runs, total_repeat_length=room),
        dropped=counts_E.sum() - sizes_PP[me].sum(),
    )


def _before(counts: jax.Array, axis: int) -> jax.Array:
    """Exclusive cumulative sum."""
    return jnp.cumsum(counts, axis=axis, dtype=jnp.int32) - counts


# What moves the rows: the tests replace it, since XLA:CPU does not have it.
ragged_all_to_all = lax.ragged_all_to_all


@jax.custom_vjp
def send(rows_MD: jax.Array, p: Plan) -> jax.Array:
    """(C,D): the rows that this device receives, followed by zeros."""
    room = p.experts_C.shape[0]
    empty_CD = jnp.zeros((room, *rows_MD.shape[1:]), rows_MD.dtype)
    return ragged_all_to_all(
        rows_MD,
        empty_CD,
        p.send_from_P,
        p.send_sizes_P,
        p.send_to_P,
        p.receive_sizes_P,
        axis_name=AXIS,
    )


def give_back(rows_CD: jax.Array, p: Plan, num_rows: int) -> jax.Array:
    """(M,D): every row back at its origin, zeros for those that were not sent."""
    return _give_back(rows_CD, p, jnp.zeros((num_rows, 0), jnp.float32))


@jax.custom_vjp
def _give_back(rows_CD, p, of_M):
    empty_MD = jnp.zeros((of_M.shape[0], *rows_CD.shape[1:]), rows_CD.dtype)
    return ragged_all_to_all(
        rows_CD,
        empty_MD,
        p.receive_from_P,
        p.receive_sizes_P,
        p.back_to_P,
        p.send_sizes_P,
        axis_name=AXIS,
    )


# Each is the other's transpose.
send.defvjp(
    lambda rows_MD, p: (send(rows_MD, p), (p, jnp.zeros((rows_MD.shape[0], 0), jnp.float32))),
    lambda kept, grad_CD: (_give_back(grad_CD, *kept), None),
)
_give_back.defvjp(
    lambda rows_CD, p, of_M: (_give_back(rows_CD, p, of_M), p),
    lambda p, grad_MD: (send(grad_MD, p), None, None),
)

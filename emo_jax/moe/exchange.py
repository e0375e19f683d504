"""Who sends which rows to whom: two ways for rows to travel between devices, in parts.

Each device of the `expert` axis sends every other one the rows of that device's experts. All
devices know how many rows everybody has for every expert, from one all-gather of the counts.

Legend: N tokens of a device, K picks, M = N·K rows sorted by expert, D width, P devices on the
`expert` axis, Q experts on each of them, E = P·Q, c rows that travel between two devices at once, C
rows that a device receives at once, S rows that it sends.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from emo_jax.moe import dispatch
from emo_jax.moe.dispatch import NO_ROW, Permutation, rows_of, sum_rows

AXIS = "expert"
_TILE = 16  # rows, of bfloat16


class Routed(NamedTuple):
    """A device's picks in the order of their experts, and what all devices have for each expert."""

    perm: Permutation
    device_NK: jax.Array  # int32, that has the expert of a pick
    counts_PE: jax.Array  # int32, rows of all devices for all experts
    me: jax.Array  # int32, this device


def routed(
    indices_NK: jax.Array,
    num_routed: int,
    num_experts: int,
    me: jax.Array,
    gather: Callable[[jax.Array], jax.Array],
) -> Routed:
    """Sorts the picks, and tells all devices how many there are.

    Args:
      indices_NK: expert of each pick; `num_routed` or more means none.
      num_routed: routed experts; shared ones, which are no pick's, come last.
      num_experts: E.
      me: index of this device.
      gather: makes (P,E) of the (1,E) of all devices.
    """
    perm = dispatch.sort_by_expert(indices_NK, num_routed)
    counts_PE = gather(jnp.pad(perm.group_sizes_R, (0, num_experts - num_routed))[None])
    P, E = counts_PE.shape
    return Routed(perm, jnp.minimum(indices_NK // (E // P), P - 1), counts_PE, me)


def round_up(rows: float, parts: int) -> int:
    """Rows of a round of about so many, which is cut into parts."""
    tile = _TILE * parts
    return -(-math.ceil(rows) // tile) * tile


class Part(NamedTuple):
    """Rows that travel together: of each pair of devices, or for each device.

    Args:
      first: int32, the first of them.
      rows: how many.
    """

    first: jax.Array
    rows: int

    def places(self) -> jax.Array:
        """(rows,): int32, all of them."""
        return self.first + jnp.arange(self.rows, dtype=jnp.int32)


def parts_of(r: jax.Array, rows: int, count: int) -> list[Part]:
    """The parts of round r, of which each has `rows` rows."""
    return [Part(r * rows + i * (rows // count), rows // count) for i in range(count)]


# --- two ways to exchange -------------------------------------------------------------------------


@dataclass(frozen=True)
class AllToAll:
    """Equal parts for all devices, by `lax.all_to_all`, which every back end has.

    Args:
      rows: c.
    """

    rows: int

    class Plan(NamedTuple):
        """Where the rows for a device begin, and how many there are; and of whom ours will be."""

        token_M: jax.Array
        pick_M: jax.Array
        row_NK: jax.Array
        device_NK: jax.Array
        from_P: jax.Array  # int32, first row here for each device
        sizes_P: jax.Array
        ends_PQ: jax.Array  # int32, rows of each device up to and with each expert of this one
        rounds: jax.Array  # int32 scalar, at least 1

    def plan(self, r: Routed) -> Plan:
        """Returns what the rounds need to know."""
        P, E = r.counts_PE.shape
        Q = E // P
        wanted_PP = r.counts_PE.reshape(P, P, Q).sum(axis=-1, dtype=jnp.int32)
        mine_PQ = lax.dynamic_slice_in_dim(r.counts_PE, r.me * Q, Q, axis=1)
        return self.Plan(
            token_M=r.perm.token_M,
            pick_M=r.perm.pick_M,
            row_NK=r.perm.row_NK,
            device_NK=r.device_NK,
            from_P=_before(wanted_PP, axis=1)[r.me],
            sizes_P=wanted_PP[r.me],
            ends_PQ=jnp.cumsum(mine_PQ, axis=1, dtype=jnp.int32),
            rounds=jnp.maximum(1, -(-wanted_PP.max() // self.rows)),
        )

    def ready(self, x_ND: jax.Array, plan: Plan) -> jax.Array:
        """What is done once, before the rounds."""
        return x_ND

    def ready_picks(self, values_NK: jax.Array, plan: Plan) -> jax.Array:
        """The same of one value a pick."""
        return values_NK.reshape(-1, 1)

    def fetch(self, ready_ND: jax.Array, plan: Plan, part: Part) -> jax.Array:
        """(C,D): the tokens that this device computes in a part, or any where there is none."""
        return self._exchange(ready_ND[plan.token_M[self._sent(plan, part)]])

    def fetch_picks(self, ready_M1: jax.Array, plan: Plan, part: Part) -> jax.Array:
        """(C,1): the values of their picks."""
        return self._exchange(ready_M1[plan.pick_M[self._sent(plan, part)]])

    def experts(self, plan: Plan, part: Part) -> jax.Array:
        """(C,): the expert of each of them, among the Q here; Q: there is none."""
        over_PcQ = part.places()[None, :, None] >= plan.ends_PQ[:, None, :]
        return over_PcQ.sum(axis=-1, dtype=jnp.int32).reshape(-1)

    def back(self, y_CD: jax.Array, part: Part) -> jax.Array:
        """Sends what was computed in a part to the devices of its tokens."""
        return self._exchange(y_CD)

    def nothing(self, like_ND: jax.Array, plan: Plan) -> jax.Array:
        """(N,D): the sum of no round."""
        return jnp.zeros(like_ND.shape, jnp.float32)

    def add(
        self, sum_ND: jax.Array, backs: Sequence[jax.Array], plan: Plan, parts: Sequence[Part]
    ) -> jax.Array:
        """Adds what came back of all parts of a round to its tokens."""
        return sum_rows(_joined(backs), self._place(plan, parts), sum_ND)

    def sums(self, sum_ND: jax.Array, plan: Plan) -> jax.Array:
        """(N,D) float32: the sums of all rounds."""
        return sum_ND

    def no_picks(self, plan: Plan) -> jax.Array:
        """(N,K): the values of no round."""
        return jnp.zeros(plan.row_NK.shape, jnp.float32)

    def add_picks(
        self, sum_NK: jax.Array, backs: Sequence[jax.Array], plan: Plan, parts: Sequence[Part]
    ) -> jax.Array:
        """Adds one value for each pick of a round."""
        return sum_NK + rows_of(_joined(backs), self._place(plan, parts))[..., 0]

    def picks(self, sum_NK: jax.Array, plan: Plan) -> jax.Array:
        """(N,K) float32: the values of all rounds."""
        return sum_NK

    def _sent(self, plan: Plan, part: Part) -> jax.Array:
        """(S,): the sorted rows that are sent in a part, S = P·c; any row where there is none."""
        row_Pc = plan.from_P[:, None] + jnp.minimum(part.places(), plan.sizes_P[:, None])
        return jnp.minimum(row_Pc, plan.token_M.shape[0] - 1).reshape(-1)

    def _place(self, plan: Plan, parts: Sequence[Part]) -> jax.Array:
        """(N,K): where the row of a pick is among those that are sent in some parts, or NO_ROW.

        The parts follow each other, as do their rows.
        """
        rows, P = parts[0].rows, plan.from_P.shape[0]
        place_NK = plan.row_NK - plan.from_P[plan.device_NK] - parts[0].first
        there_NK = (plan.row_NK != NO_ROW) & (place_NK >= 0) & (place_NK < rows * len(parts))
        sent_NK = (place_NK // rows * P + plan.device_NK) * rows + place_NK % rows
        return jnp.where(there_NK, sent_NK, NO_ROW)

    def _exchange(self, rows_SD: jax.Array) -> jax.Array:
        """Its own inverse, and its own transpose."""
        return lax.all_to_all(rows_SD, AXIS, split_axis=0, concat_axis=0, tiled=True)


# What moves the rows: the tests replace it, since XLA:CPU does not have it.
ragged_all_to_all = lax.ragged_all_to_all


@dataclass(frozen=True)
class Ragged:
    """The rows that there are and no others, by `lax.ragged_all_to_all`.

    Args:
      rows: C: those that a device gets in a round, of all devices together.
    """

    rows: int

    class Plan(NamedTuple):
        """Who has how many rows for whom, and where they begin."""

        perm: Permutation
        wanted_PP: jax.Array  # int32 [sender, receiver]
        mine_PQ: jax.Array  # int32, rows of each device for each expert of this one
        me: jax.Array
        rounds: jax.Array

    def plan(self, r: Routed) -> Plan:
        """Returns what the rounds need to know."""
        P, E = r.counts_PE.shape
        Q = E // P
        wanted_PP = r.counts_PE.reshape(P, P, Q).sum(axis=-1, dtype=jnp.int32)
        most = wanted_PP.sum(axis=0).max()
        return self.Plan(
            perm=r.perm,
            wanted_PP=wanted_PP,
            mine_PQ=lax.dynamic_slice_in_dim(r.counts_PE, r.me * Q, Q, axis=1),
            me=r.me,
            rounds=jnp.maximum(1, -(-most // self.rows)),
        )

    def ready(self, x_ND: jax.Array, plan: Plan) -> jax.Array:
        """(M,D): the rows to send."""
        return x_ND[plan.perm.token_M]

    def ready_picks(self, values_NK: jax.Array, plan: Plan) -> jax.Array:
        """(M,1): their values."""
        return values_NK.reshape(-1, 1)[plan.perm.pick_M]

    def fetch(self, ready_MD: jax.Array, plan: Plan, part: Part) -> jax.Array:
        """As `AllToAll.fetch`."""
        empty_CD = jnp.zeros((part.rows, *ready_MD.shape[1:]), ready_MD.dtype)
        here, size, there = self._window(plan, part)
        me = plan.me
        return ragged_all_to_all(
            ready_MD, empty_CD, here[me], size[me], there[me], size[:, me], axis_name=AXIS
        )

    fetch_picks = fetch

    def experts(self, plan: Plan, part: Part) -> jax.Array:
        """As `AllToAll.experts`."""
        P, Q = plan.mine_PQ.shape
        ends_F = jnp.cumsum(plan.mine_PQ.reshape(-1), dtype=jnp.int32)  # by device, then expert
        run_C = jnp.searchsorted(ends_F, part.places(), side="right").astype(jnp.int32)
        return jnp.where(run_C < P * Q, run_C % Q, Q)

    def back(self, y_CD: jax.Array, part: Part) -> jax.Array:
        """What was computed in a part; `add` sends it."""
        return y_CD

    def nothing(self, like_ND: jax.Array, plan: Plan) -> jax.Array:
        """(M,D): rows of which none is back."""
        return jnp.zeros((plan.perm.token_M.shape[0], like_ND.shape[1]), like_ND.dtype)

    def add(
        self, back_MD: jax.Array, backs: Sequence[jax.Array], plan: Plan, parts: Sequence[Part]
    ) -> jax.Array:
        """Puts the rows of all parts of a round in their places."""
        me = plan.me
        for y_CD, part in zip(backs, parts, strict=True):
            here, size, there = self._window(plan, part)
            back_MD = ragged_all_to_all(
                y_CD, back_MD, there[:, me], size[:, me], here[:, me], size[me], axis_name=AXIS
            )
        return back_MD

    def sums(self, back_MD: jax.Array, plan: Plan) -> jax.Array:
        """As `AllToAll.sums`."""
        return sum_rows(back_MD, plan.perm.row_NK)

    def no_picks(self, plan: Plan) -> jax.Array:
        """(M,1): values of which none is back."""
        return jnp.zeros((plan.perm.token_M.shape[0], 1), jnp.float32)

    add_picks = add

    def picks(self, back_M1: jax.Array, plan: Plan) -> jax.Array:
        """As `AllToAll.picks`."""
        return rows_of(back_M1, plan.perm.row_NK)[..., 0]

    def _window(self, plan: Plan, part: Part) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[sender, receiver]: first row on the sender, rows, and first row on the receiver.

        A receiver takes the rows for it in the order of the senders, C of them in a part.
        """
        starts_PP = _before(plan.wanted_PP, axis=0) - part.first
        ends_PP = jnp.clip(starts_PP + plan.wanted_PP, 0, part.rows)
        first_PP = jnp.clip(starts_PP, 0, part.rows)
        here_PP = _before(plan.wanted_PP, axis=1) + first_PP - starts_PP
        # Where there is nothing to send, any place that is there.
        here_PP = jnp.where(ends_PP > first_PP, here_PP, 0)
        return here_PP, ends_PP - first_PP, first_PP


Way = AllToAll | Ragged


def _joined(backs: Sequence[jax.Array]) -> jax.Array:
    return backs[0] if len(backs) == 1 else jnp.concatenate(backs)


def _before(counts: jax.Array, axis: int) -> jax.Array:
    """Exclusive cumulative sum."""
    return jnp.cumsum(counts, axis=axis, dtype=jnp.int32) - counts

"""The expert computation: `experts(x, routing, weights)`, dropless, on one device or many.

On a mesh it is an island (`parallel/island.py`). Axis `expert` places different experts on
different devices: either each device gathers the tokens of the whole axis, applies its own experts
to them, and the results are summed back on the tokens' devices (`all_gather`); or tokens travel to
their experts and back (`ragged_all_to_all`, `exchange.py`). Axis `tensor` splits the hidden size of
every expert. Axes that only store weights (`fsdp`, `context`) gather them.

Legend: B windows, S tokens, N = B·S on a device, D width, E experts (shared ones last), R routed,
s shared, K picks, F hidden size of an expert, P devices on the `expert` axis, Q experts on each.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from emo_jax.config import MoeConfig
from emo_jax.errors import ConfigError
from emo_jax.moe import blocked, dispatch, exchange, grouped
from emo_jax.moe.router import Routing
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.parallel.island import Held, Island, Reduce

GATE_UP_AXES, DOWN_AXES = ("expert", "embed", "mlp"), ("expert", "mlp", "embed")


class ExpertWeights(NamedTuple):
    """Weights of all experts of a layer."""

    gate_EDF: jax.Array
    up_EDF: jax.Array
    down_EFD: jax.Array


def pick_backend(name: str, mesh: Mesh | None = None) -> str:
    """Resolves `auto` for the mesh's devices.

    Raises:
      ConfigError: the requested kernel does not run on these devices.
    """
    platform = mesh_lib.platform(mesh)
    if name == "auto":
        return grouped.default_backend(platform, mesh_lib.device_kind(mesh))
    if platform == "cpu" and name in grouped.KERNELS:
        raise ConfigError(
            f"config.moe.backend = {name!r}: is a kernel of TPUs and GPUs, and the devices are"
            " CPUs; must be auto, blocked or ragged_dot"
        )
    return name


def pick_dispatch(name: str, mesh: Mesh | None) -> str:
    """Resolves `auto`: XLA has `ragged_all_to_all` on GPUs and on TPUs other than v5e.

    XLA:CPU lacks the operation; for v5e the compiler says "limited ICI routing".

    Raises:
      ConfigError: `ragged_all_to_all` is requested and the devices are CPUs.
    """
    cpu = mesh_lib.platform(mesh) == "cpu"
    if name == "ragged_all_to_all" and cpu and exchange.ragged_all_to_all is lax.ragged_all_to_all:
        raise ConfigError(
            "config.moe.dispatch = 'ragged_all_to_all': XLA does not have it for CPUs, and the"
            " devices are CPUs; must be auto or all_gather"
        )
    if name != "auto":
        return name
    without = cpu or "v5 lite" in mesh_lib.device_kind(mesh)
    return "all_gather" if without else "ragged_all_to_all"


def experts(
    x_BSD: jax.Array,
    routing: Routing,
    weights: ExpertWeights,
    config: MoeConfig,
    *,
    mesh: Mesh | None = None,
    with_shared: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Σ over the routed picks of weight · expert(x), plus the output of every shared expert.

    Args:
      x_BSD: tokens in the compute dtype.
      weights: as stored, in any float dtype.
      with_shared: False omits the shared experts.
      config: `moe.dispatch` and `moe.receive_factor` matter when `mesh.expert` is above 1.

    Returns:
      The sums (B,S,D), and the number of dropped picks: float32 scalar, 0 without a
      `receive_factor`.
    """
    island = Island(mesh)
    local = _Local(config, island, pick_backend(config.backend, mesh), with_shared).__call__
    tokens: Any = mesh_lib.windows_spec(1)
    gate_up: Any = mesh_lib.spec(GATE_UP_AXES)  # specs take the places of the arrays
    down: Any = mesh_lib.spec(DOWN_AXES)
    out_BSD, dropped = island.run(
        local,
        (tokens, Routing(tokens, tokens), ExpertWeights(gate_up, gate_up, down)),
        (tokens, PartitionSpec(mesh_lib.AXES)),
    )(x_BSD, routing, weights)
    return out_BSD, dropped.sum()


class _Local(NamedTuple):
    """What one device computes; call it with the device's own pieces."""

    config: MoeConfig
    island: Island
    backend: str
    with_shared: bool

    def __call__(
        self, x_BSD: jax.Array, routing: Routing, weights: ExpertWeights
    ) -> tuple[jax.Array, jax.Array]:
        island, s = self.island, self.config.num_shared_experts
        dtype = x_BSD.dtype
        # Devices that split the hidden size see the same tokens and sum their outputs.
        gathered = [island.gather(a, ("tensor",), 1) for a in (x_BSD, *routing)]
        x_BSD, weights_BSK, indices_BSK = gathered
        B, S, D = x_BSD.shape
        x_ND = x_BSD.reshape(B * S, D)
        K = indices_BSK.shape[-1]
        weights_NK, indices_NK = weights_BSK.reshape(-1, K), indices_BSK.reshape(-1, K)
        parts = self._parts(B * S)
        held, reduces = zip(*self._hold(weights, dtype, in_loop=parts > 1), strict=True)
        if parts == 1:
            out_ND, dropped = self._all_routed(x_ND, weights_NK, indices_NK, held, reduces)
        else:
            # Each part is recomputed in the backward pass: otherwise the residuals of all parts
            # would exist at once, which is what parts are meant to avoid.
            body = jax.checkpoint(
                lambda x, w, i: self._all_routed(x, w, i, held, reduces), prevent_cse=False
            )
            cut = lambda a_N: a_N.reshape(parts, B * S // parts, *a_N.shape[1:])  # noqa: E731
            outs, dropped_p = lax.map(
                lambda part: body(*part), tuple(map(cut, (x_ND, weights_NK, indices_NK)))
            )
            out_ND, dropped = outs.reshape(B * S, D), dropped_p.sum()
        # A shared expert sees every token with weight 1: plain matmuls, no routing.
        for e in range(s if self.with_shared else 0):
            out_ND = out_ND + self._shared(x_ND, weights, e)
        out_BSD = island.sum_scatter(out_ND.reshape(B, S, D), ("tensor",), 1)
        return out_BSD, dropped.astype(jnp.float32).reshape(1) / island.size("tensor")

    def _hold(self, weights: ExpertWeights, dtype, *, in_loop: bool) -> list[tuple[Held, Reduce]]:
        """The gathered weights. For kernels the third has the shape of the other two.

        If it were gathered along its last dimension, it and its gradient would each be laid out
        again for the kernel: a copy of a layer's experts each time.
        """
        axes = (GATE_UP_AXES, GATE_UP_AXES, DOWN_AXES)
        if self.backend != "blocked":
            swapped = jnp.swapaxes(weights.down_EFD, 1, 2)
            weights, axes = weights._replace(down_EFD=swapped), (GATE_UP_AXES,) * 3
        return [
            self.island.hold(w, a, dtype, in_loop=in_loop)
            for w, a in zip(weights, axes, strict=True)
        ]

    def _routed(self, x_ND, weights_NK, perm, held, reduces) -> jax.Array:
        with jax.named_scope("experts"):
            if self.backend == "blocked":
                weights = (reduce.use(h) for h, reduce in zip(held, reduces, strict=True))
                return blocked.routed_swiglu(x_ND, weights_NK, perm, *weights)
            return grouped.routed_swiglu(
                x_ND,
                weights_NK,
                perm,
                held,
                reduces[0],  # all have the same shape and are reduced alike
                backend=self.backend,
                platform=mesh_lib.platform(self.island.mesh),
            )

    def _parts(self, num_tokens: int) -> int:
        """Number of parts in which the tokens go to the experts, one after the other."""
        if self.island.size("expert") == 1:
            return 1
        wanted = self.config.token_parts or self.island.size("expert")
        # Parts are equal, so perhaps a few more than requested: fewer would take more memory.
        numbers = range(wanted, min(2 * wanted, num_tokens + 1))
        return next((n for n in numbers if num_tokens % n == 0), math.gcd(num_tokens, wanted))

    def _all_routed(
        self, x_ND, weights_NK, indices_NK, held, reduces
    ) -> tuple[jax.Array, jax.Array]:
        """Output of all routed experts for some of this device's tokens, and the dropped picks."""
        if self.island.size("expert") == 1:
            return self._own(x_ND, weights_NK, indices_NK, held, reduces)
        if pick_dispatch(self.config.dispatch, self.island.mesh) == "all_gather":
            return self._by_all_gather(x_ND, weights_NK, indices_NK, held, reduces)
        return self._by_exchange(x_ND, weights_NK, indices_NK, held, reduces)

    def _own(self, x_ND, weights_NK, indices_NK, held, reduces) -> tuple[jax.Array, jax.Array]:
        """The case where every device has all experts."""
        with jax.named_scope("dispatch"):
            perm = dispatch.sort_by_expert(indices_NK, self.config.num_routed_experts)
        return self._routed(x_ND, weights_NK, perm, held, reduces), perm.dropped

    def _room(self, num_picks: int) -> int:
        """Rows a device has for picks from the `expert` axis; `num_picks` are those it sends."""
        most = num_picks * self.island.size("expert")
        factor = self.config.receive_factor
        return min(most, math.ceil(num_picks * factor)) if factor else most

    def _by_all_gather(
        self, x_ND, weights_NK, indices_NK, held, reduces
    ) -> tuple[jax.Array, jax.Array]:
        island, Q = self.island, held[0].weight.shape[0]
        with jax.named_scope("dispatch"):
            # From all devices of the axis: P·N tokens.
            x_ND, weights_NK, all_NK = (
                island.gather(a, ("expert",), 0) for a in (x_ND, weights_NK, indices_NK)
            )
            mine_NK = all_NK - island.index("expert") * Q
            # Padding has index R, which is no routed expert's on any device; on the last device it
            # is a shared expert's place.
            is_mine = (mine_NK >= 0) & (mine_NK < Q) & (all_NK < self.config.num_routed_experts)
            perm = dispatch.sort_by_expert(
                jnp.where(is_mine, mine_NK, Q), Q, self._room(indices_NK.size)
            )
        out_ND = self._routed(x_ND, weights_NK, perm, held, reduces)
        with jax.named_scope("dispatch"):
            return island.sum_scatter(out_ND, ("expert",), 0), perm.dropped

    def _by_exchange(
        self, x_ND, weights_NK, indices_NK, held, reduces
    ) -> tuple[jax.Array, jax.Array]:
        island, R = self.island, self.config.num_routed_experts
        Q = held[0].weight.shape[0]
        with jax.named_scope("dispatch"):
            perm = dispatch.sort_by_expert(indices_NK, R)
            counts_E = jnp.pad(perm.group_sizes_R, (0, self.config.num_experts - R))
            counts_PE = island.gather(counts_E[None], ("expert",), 0)
            me = jnp.asarray(island.index("expert"))
            plan = exchange.plan(counts_E, counts_PE, me, self._room(indices_NK.size))
            rows_MD = dispatch.gather_rows(x_ND, perm)
            weights_M1 = dispatch.gather_picks(weights_NK.reshape(-1, 1), perm)
            rows_CD = exchange.send(rows_MD, plan)
            weights_C1 = exchange.send(weights_M1, plan)
            # Received rows are ordered by sender; each row is a token with one pick.
            received = dispatch.sort_by_expert(plan.experts_C[:, None], Q)
        out_CD = self._routed(rows_CD, weights_C1, received, held, reduces)
        with jax.named_scope("dispatch"):
            back_MD = exchange.give_back(out_CD, plan, rows_MD.shape[0])
            return dispatch.sum_rows(back_MD, perm), plan.dropped

    def _shared(self, x_ND: jax.Array, weights: ExpertWeights, number: int) -> jax.Array:
        """Output of shared expert `number`; shared experts come last, on the last devices."""
        island, Q = self.island, weights.gate_EDF.shape[0]
        e = self.config.num_routed_experts + number

        def own(stored: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
            piece = stored[e % Q]
            if island.size("expert") > 1:
                is_owner = island.index("expert") == e // Q
                piece = island.sum(jnp.where(is_owner, piece, 0), ("expert",))
            return island.whole(piece, axes, x_ND.dtype, leading=1)

        gate_DF, up_DF = (own(w, GATE_UP_AXES) for w in weights[:2])
        down_FD = own(weights.down_EFD, DOWN_AXES)
        with jax.named_scope("experts"):
            hidden = (checkpoint_name(x_ND @ w, "expert_hidden") for w in (gate_DF, up_DF))
            return grouped.swiglu(*hidden) @ down_FD

"""The expert computation: `experts(x, routing, weights)`, dropless, on one device or many.

On a mesh it is an island (`parallel/island.py`). Axis `expert` places different experts on
different devices, and tokens travel to their experts and back, in rounds (`rounds.py`). Axis
`tensor` splits the hidden size of every expert. Axes that only store weights (`fsdp`, `context`)
gather them.

Legend: B windows, S tokens, N = B·S on a device, D width, E experts (shared ones last), R routed,
s shared, K picks, F hidden size of an expert, P devices on the `expert` axis, Q experts on each.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from emo_jax.config import MoeConfig
from emo_jax.errors import ConfigError
from emo_jax.moe import blocked, dispatch, exchange, grouped, rounds
from emo_jax.moe.ghosts import Ghosts, ghost_outputs
from emo_jax.moe.router import Routing
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.parallel.island import Held, Island, Reduce

# `moe.receive_factor` = 0. A margin over balanced routing: parts of 16 devices differ by a tenth.
DEFAULT_RECEIVE_FACTOR = 1.25
PARTS = 2  # of a round, of which one is computed while others travel
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
    """Resolves `auto`: `all_to_all`, which every back end has.

    For a v5p, it needs fewer passes over memory than the other one (docs/benchmarks.md), which
    libtpu does not compile for larger v5e slices ("limited ICI routing"), nor XLA for CPUs.

    Raises:
      ConfigError: `ragged_all_to_all` is requested and the devices are CPUs.
    """
    cpu = mesh_lib.platform(mesh) == "cpu"
    if name == "ragged_all_to_all" and cpu and exchange.ragged_all_to_all is lax.ragged_all_to_all:
        raise ConfigError(
            "config.moe.dispatch = 'ragged_all_to_all': XLA does not have it for CPUs, and the"
            " devices are CPUs; must be auto or all_to_all"
        )
    return "all_to_all" if name == "auto" else name


def experts(
    x_BSD: jax.Array,
    routing: Routing,
    weights: ExpertWeights,
    config: MoeConfig,
    *,
    mesh: Mesh | None = None,
    with_shared: bool = True,
    ghosts: Ghosts | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Σ over the picks of weight · expert(x), plus the output of each shared expert that is none.

    Args:
      x_BSD: tokens in the compute dtype.
      weights: as stored, in any float dtype.
      with_shared: False omits the shared experts.
      ghosts: of the documents, whose outputs are added; where every device has all experts.
      config: `moe.dispatch` and `moe.receive_factor` matter when `mesh.expert` is above 1.

    Returns:
      The sums (B,S,D), and the number of rounds in which tokens travelled: float32 scalar, 0 if
      every device has all experts.
    """
    island = Island(mesh)
    how = grouped.How(
        pick_backend(config.backend, mesh), mesh_lib.platform(mesh), mesh_lib.device_kind(mesh)
    )
    local = _Local(config, island, how, with_shared).__call__
    tokens: Any = mesh_lib.windows_spec(1)
    ids: Any = mesh_lib.windows_spec()
    gate_up: Any = mesh_lib.spec(GATE_UP_AXES)  # specs take the places of the arrays
    down: Any = mesh_lib.spec(DOWN_AXES)
    out_BSD, rounds_ = island.run(
        local,
        (
            tokens,
            Routing(tokens, tokens),
            ExpertWeights(gate_up, gate_up, down),
            None if ghosts is None else Ghosts(tokens, ids, ids),
        ),
        (tokens, PartitionSpec(mesh_lib.AXES)),
    )(x_BSD, routing, weights, ghosts)
    return out_BSD, rounds_.max()


class _Local(NamedTuple):
    """What one device computes; call it with the device's own pieces."""

    config: MoeConfig
    island: Island
    how: grouped.How
    with_shared: bool

    def __call__(
        self,
        x_BSD: jax.Array,
        routing: Routing,
        weights: ExpertWeights,
        ghosts: Ghosts | None,
    ) -> tuple[jax.Array, jax.Array]:
        island, E = self.island, self.config.num_experts
        # Devices that split the hidden size see the same tokens and sum their outputs.
        gathered = [island.gather(a, ("tensor",), 1) for a in (x_BSD, *routing)]
        x_BSD, weights_BSK, indices_BSK = gathered
        B, S, D = x_BSD.shape
        x_ND = x_BSD.reshape(B * S, D)
        K = indices_BSK.shape[-1]
        weights_NK, indices_NK = weights_BSK.reshape(-1, K), indices_BSK.reshape(-1, K)
        routed = self._here if island.size("expert") == 1 else self._in_rounds
        out_ND, used = routed(x_ND, weights_NK, indices_NK, weights)
        # A shared expert sees every token with weight 1: plain matmuls, no routing.
        for e in range(self.config.dispatched_experts, E if self.with_shared else 0):
            out_ND = out_ND + self._shared(x_ND, weights, e)
        out_BSD = out_ND.reshape(B, S, D)
        if ghosts is not None:
            ghosts = Ghosts(*(island.gather(a, ("tensor",), 1) for a in ghosts))
            out_BSD = out_BSD + self._ghosts(x_BSD, ghosts, weights)
        out_BSD = island.sum_scatter(out_BSD, ("tensor",), 1)
        return out_BSD, jnp.asarray(used, jnp.float32).reshape(1)

    def _here(self, x_ND, weights_NK, indices_NK, weights) -> tuple[jax.Array, int]:
        """Output of the routed experts where every device has all of them."""
        held, reduces = zip(*self._hold(weights, x_ND.dtype, in_loop=False), strict=True)
        with jax.named_scope("dispatch"):
            perm = dispatch.sort_by_expert(indices_NK, self.config.dispatched_experts)
        return self._routed(x_ND, weights_NK, perm, held, reduces), 0

    def _in_rounds(self, x_ND, weights_NK, indices_NK, weights) -> tuple[jax.Array, jax.Array]:
        """Output of the routed experts where they are on several devices, and the rounds."""
        config, island = self.config, self.island
        held = tuple(h for h, _ in self._hold(weights, x_ND.dtype, in_loop=True))
        with jax.named_scope("dispatch"):
            routed = exchange.routed(
                indices_NK,
                config.dispatched_experts,
                config.num_experts,
                jnp.asarray(island.index("expert")),
                lambda counts_1E: island.gather(counts_1E, ("expert",), 0),
            )
            parts = PARTS if mesh_lib.exchanges_beside(island.mesh) else 1
            way = self._way(indices_NK.size, parts)
            plan = way.plan(routed)
        compute = rounds.Compute(way, self._round, held[0].weight.shape[0], parts)
        return rounds.in_rounds(compute, x_ND, weights_NK, held, plan), plan.rounds

    def _round(self, x_CD, weights_C1, perm, held) -> jax.Array:
        reduces = [Reduce(self.island, None)] * 2
        # Rows without a token come from no pick, and nobody reads what becomes of them.
        return self._routed(x_CD, weights_C1, perm, held, reduces, zeros=False)

    def _way(self, num_picks: int, parts: int) -> exchange.Way:
        """How rows travel, and how many in a round, for the picks of a device."""
        rows = functools.partial(exchange.round_up, parts=parts)
        balanced = num_picks * (self.config.receive_factor or DEFAULT_RECEIVE_FACTOR)
        if pick_dispatch(self.config.dispatch, self.island.mesh) == "ragged_all_to_all":
            most = num_picks * self.island.size("expert")
            return exchange.Ragged(min(rows(balanced), rows(most)))
        each = rows(balanced / self.island.size("expert"))
        return exchange.AllToAll(min(each, rows(num_picks)))

    def _hold(self, weights: ExpertWeights, dtype, *, in_loop: bool) -> list[tuple[Held, Reduce]]:
        """The gathered weights: gate and up side by side, and down, for kernels as (E,D,F).

        If that were gathered along its last dimension, it and its gradient would each be laid out
        again for the kernel: a copy of a layer's experts each time.
        """
        down, axes = weights.down_EFD, DOWN_AXES
        if self.how.backend != "blocked":
            down, axes = jnp.swapaxes(down, 1, 2), GATE_UP_AXES
        gate_up = (weights.gate_EDF, weights.up_EDF)
        hold = self.island.hold
        return [
            hold(gate_up, GATE_UP_AXES, dtype, in_loop=in_loop),
            hold(down, axes, dtype, in_loop=in_loop),
        ]

    def _routed(self, x_ND, weights_NK, perm, held, reduces, zeros=True) -> jax.Array:
        with jax.named_scope("experts"):
            if self.how.backend == "blocked":
                weights = (reduce.use(h) for h, reduce in zip(held, reduces, strict=True))
                return blocked.routed_swiglu(x_ND, weights_NK, perm, *weights)
            return grouped.routed_swiglu(
                x_ND,
                weights_NK,
                perm,
                held,
                reduces[0],  # both are reduced alike
                how=self.how,
                zeros=zeros,
            )

    def _ghosts(self, x_BSD: jax.Array, ghosts: Ghosts, weights: ExpertWeights) -> jax.Array:
        """Outputs of the documents' ghosts, weighted."""
        whole = [
            self.island.whole(w, axes, x_BSD.dtype)
            for w, axes in zip(weights, (GATE_UP_AXES, GATE_UP_AXES, DOWN_AXES), strict=True)
        ]
        reduces = [Reduce(self.island, None)] * 2

        def few(x_ND, weights_N1, indices_N1, some) -> jax.Array:
            gate, up, down = some
            if self.how.backend != "blocked":
                down = jnp.swapaxes(down, 1, 2)
            gate_up = lax.stop_gradient(jnp.concatenate([gate, up], axis=-1))
            # The anchors get the gradients of the weights.
            gate, up, down32 = (w.astype(jnp.float32) for w in (gate, up, down))
            held = [Held(gate_up, (gate, up)), Held(lax.stop_gradient(down), down32)]
            perm = dispatch.sort_by_expert(indices_N1, gate.shape[0])
            return self._routed(x_ND, weights_N1, perm, held, reduces)

        return ghost_outputs(x_BSD, ghosts, whole, few)

    def _shared(self, x_ND: jax.Array, weights: ExpertWeights, e: int) -> jax.Array:
        """Output of expert `e`, a shared one; these come last, on the last devices."""
        island, Q = self.island, weights.gate_EDF.shape[0]

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

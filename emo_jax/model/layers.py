"""RMSNorm, rotary embedding, dense SwiGLU (SPEC 1.2), and weight initialisation.

Legend: B windows, S tokens, D width, H heads, h head size, F hidden size.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from emo_jax.config import ModelConfig
from emo_jax.model.params import DOWN_AXES, UP_AXES, Leaf
from emo_jax.moe.grouped import swiglu
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.parallel.island import Island

INIT_CUT = 3.0  # truncation of the normal, in standard deviations (SPEC 1.3)


def weight(rngs: nnx.Rngs, config: ModelConfig, leaf: Leaf) -> nnx.Param:
    """A float32 weight with its logical axes: normal with `init_std`, truncated at three of it."""
    draw = jax.random.truncated_normal(rngs.params(), -INIT_CUT, INIT_CUT, leaf.shape, jnp.float32)
    return nnx.Param(config.init_std * draw, logical_axes=leaf.axes)


class RMSNorm(nnx.Module):
    """x · rsqrt(mean(x²) + eps) · scale in float32, cast back to the dtype of x."""

    def __init__(self, config: ModelConfig, leaves: Mapping[str, Leaf]):
        leaf = leaves["scale"]
        self.scale = nnx.Param(jnp.ones(leaf.shape, jnp.float32), logical_axes=leaf.axes)
        self.eps = config.norm_eps

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        """(B,S,D) in the dtype of the input."""
        x32_BSD = x_BSD.astype(jnp.float32)
        mean_square_BS1 = jnp.mean(x32_BSD**2, axis=-1, keepdims=True)
        normed_BSD = x32_BSD * jax.lax.rsqrt(mean_square_BS1 + self.eps)
        return (normed_BSD * self.scale[...].astype(jnp.float32)).astype(x_BSD.dtype)


def rotary(x_BSHh: jax.Array, positions_BS: jax.Array, theta: float) -> jax.Array:
    """Rotates dims (i, i + h/2) by position · theta^(-2i/h), in float32: the half-split layout."""
    half = x_BSHh.shape[-1] // 2
    inv_freq = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BS1i = (positions_BS.astype(jnp.float32)[..., None] * inv_freq)[:, :, None, :]
    cos, sin = jnp.cos(angle_BS1i), jnp.sin(angle_BS1i)
    first, second = jnp.split(x_BSHh.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BSHh.dtype)


class DenseMlp(nnx.Module):
    """down( silu(gate(x)) · up(x) ) with hidden size `mlp_dim`.

    On a mesh it is an island: axis `tensor` splits the hidden size.
    """

    def __init__(
        self,
        config: ModelConfig,
        rngs: nnx.Rngs,
        leaves: Mapping[str, Leaf],
        mesh: Mesh | None = None,
    ):
        self.gate = weight(rngs, config, leaves["gate"])
        self.up = weight(rngs, config, leaves["up"])
        self.down = weight(rngs, config, leaves["down"])
        self.island = Island(mesh)

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        """(B,S,D) in the dtype of the input."""
        tokens: Any = mesh_lib.windows_spec(1)  # specs take the places of the arrays
        up, down = mesh_lib.spec(UP_AXES), mesh_lib.spec(DOWN_AXES)
        with jax.named_scope("dense_mlp"):
            return self.island.run(self._local, (tokens, up, up, down), tokens)(
                x_BSD, self.gate[...], self.up[...], self.down[...]
            )

    def _local(self, x_BSD: jax.Array, *stored: jax.Array) -> jax.Array:
        """One device's part of the hidden size, for the tokens of all devices that share it."""
        island, dtype = self.island, x_BSD.dtype
        x_BSD = island.gather(x_BSD, ("tensor",), 1)
        axes = (UP_AXES, UP_AXES, DOWN_AXES)
        gate_DF, up_DF, down_FD = (
            island.whole(w, a, dtype) for w, a in zip(stored, axes, strict=True)
        )
        gate_BSF, up_BSF = (checkpoint_name(x_BSD @ w, "expert_hidden") for w in (gate_DF, up_DF))
        return island.sum_scatter(swiglu(gate_BSF, up_BSF) @ down_FD, ("tensor",), 1)

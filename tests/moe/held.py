"""Plain weights as `grouped.routed_swiglu` takes them, on one device."""

import jax.numpy as jnp

from emo_jax.moe.experts import GATE_UP_AXES
from emo_jax.parallel.island import Island


def held(gate_EDF, up_EDF, down_EFD):
    """Gate and up, and down, and how their gradients are reduced: not at all."""
    weights = (gate_EDF, up_EDF), jnp.swapaxes(down_EFD, 1, 2)
    pairs = [Island(None).hold(w, GATE_UP_AXES, gate_EDF.dtype) for w in weights]
    return [weight for weight, _ in pairs], pairs[0][1]

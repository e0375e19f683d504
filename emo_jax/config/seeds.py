"""Seeds, and the random keys made from them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax

RANGE = "of 64 bits, -2**63..2**63-1"


def is_seed(number: int) -> bool:
    """Whether it fits in a signed 64-bit integer."""
    return -(2**63) <= number < 2**63


def key(seed: int) -> "jax.Array":
    """The key of a seed, using all of its 64 bits.

    It equals JAX's own with 64-bit numbers enabled; without, JAX uses only the low 32 bits. Seeds
    in 0..2**32-1 have the same key either way.
    """
    import jax  # imported here because the checks above do not need it
    import numpy as np

    # Built by hand instead of by `jax.random.key`, which needs 64-bit numbers enabled and an array
    # on a device; a step compiled for another machine's chips has no such device.
    shape = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
    words = np.resize(np.array([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32), shape)
    # The training loop forbids unintended transfers to the device; this one is intended.
    with jax.transfer_guard("allow"):
        return jax.random.wrap_key_data(words)  # type: ignore[arg-type]

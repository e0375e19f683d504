"""Seeds and the random keys that are made of them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax

RANGE = "of 64 bits, -2**63..2**63-1"


def is_seed(number: int) -> bool:
    """Whether it has 64 bits at most, one of them the sign."""
    return -(2**63) <= number < 2**63


def key(seed: int) -> "jax.Array":
    """The key of a seed, all of whose 64 bits count.

    It is JAX's own with 64-bit numbers turned on; without, JAX takes the low 32 bits. Seeds of
    0..2**32-1 have the same key either way.
    """
    import jax  # the checks above do without
    import numpy as np

    # Written here, and not by `jax.random.key`: that needs 64-bit numbers turned on, and an array
    # on a device, which a step that is compiled for chips of another machine has none of.
    shape = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
    words = np.resize(np.array([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32), shape)
    # The training loop allows no transfer to the device but those that are meant, as this one is.
    with jax.transfer_guard("allow"):
        return jax.random.wrap_key_data(words)  # type: ignore[arg-type]

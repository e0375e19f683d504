"""What `lax.ragged_all_to_all` does, by gathering everything: XLA:CPU does not have it."""

import jax
import jax.numpy as jnp
from jax import lax


def emulated(
    operand: jax.Array,
    output: jax.Array,
    send_from,
    send_sizes,
    send_to,
    receive_sizes,
    *,
    axis_name,
) -> jax.Array:
    """Takes and returns what the operation does."""
    me = lax.axis_index(axis_name)
    rows = lax.all_gather(operand, axis_name)
    column = lambda a: lax.all_gather(a, axis_name)[:, me]  # noqa: E731
    first, size, to = column(send_from), column(send_sizes), column(send_to)
    r = jnp.arange(output.shape[0])[:, None]
    here = (r >= to) & (r < to + size)
    sender = here.argmax(axis=1)
    source = first[sender] + r[:, 0] - to[sender]
    return jnp.where(here.any(axis=1)[:, None], rows[sender, source], output)

"""Adam's moments in host memory, streamed through the device one layer at a time.

The shardings of the state (`state.py`) say where the moments are; this module follows them. Whole
trees of moments on the device at once would take more memory than without offload, since old and
new ones could not share buffers.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from emo_jax.files.trees import STACKS


def in_host_memory(leaf: jax.Array) -> bool:
    """Whether an array of a compiled function is in host memory."""
    return jax.typeof(leaf).memory_space == jax.memory.Space.Host


def keep_old(hold: jax.Array, old: Any, new: Any) -> Any:
    """Returns `old` if `hold`, else `new`; arrays in host memory were selected while streaming."""
    return jax.tree.map(
        lambda old, new: new if in_host_memory(new) else jnp.where(hold, old, new), old, new
    )


def follow_memory(adam: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Returns `adam` unchanged, but streamed if its moments are in host memory.

    Its update then needs `hold`, which leaves moments unchanged: selecting afterwards would take
    another pass over them.
    """

    def update(
        grads: Any, state: Any, params: Any = None, *, hold: jax.Array | None = None, **extra: Any
    ) -> tuple[Any, Any]:
        del extra
        if not any(in_host_memory(leaf) for leaf in jax.tree.leaves(state)):
            return adam.update(grads, state, params)
        assert hold is not None

        def layer(grad: Any, mu: Any, nu: Any) -> tuple[Any, Any, Any]:
            old = state._replace(
                mu=jax.device_put(mu, jax.memory.Space.Device),
                nu=jax.device_put(nu, jax.memory.Space.Device),
            )
            update, new = adam.update(grad, old)
            mu, nu = jax.tree.map(
                lambda old, new: jnp.where(hold, old, new), (old.mu, old.nu), (new.mu, new.nu)
            )
            return (
                update,
                jax.device_put(mu, jax.memory.Space.Host),
                jax.device_put(nu, jax.memory.Space.Host),
            )

        def leaf(path: Any, grad: Any, mu: Any, nu: Any) -> tuple[Any, Any, Any]:
            if path[0].key not in STACKS:
                return layer(grad, mu, nu)

            def body(i: jax.Array, arrays: tuple) -> tuple:
                at = jax.tree.map(
                    lambda a: jax.lax.dynamic_index_in_dim(a, i, keepdims=False), arrays
                )
                return jax.tree.map(
                    lambda a, new: jax.lax.dynamic_update_index_in_dim(a, new, i, 0),
                    arrays,
                    layer(*at),
                )

            # The update replaces the gradient in place, new moments the old ones.
            return jax.lax.fori_loop(0, grad.shape[0], body, (grad, mu, nu))

        done = jax.tree_util.tree_map_with_path(leaf, grads, state.mu, state.nu)
        updates, mu, nu = (
            jax.tree.map(lambda _, of_leaf, n=n: of_leaf[n], grads, done) for n in range(3)
        )
        count = optax.safe_increment(state.count)
        return updates, state._replace(count=count, mu=mu, nu=nu)

    return optax.GradientTransformationExtraArgs(adam.init, update)

"""Freezes parts of a model, which training then leaves unchanged to the last bit.

Legend: L layers, D width, E experts, R routed experts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emo_jax.config import Config
from emo_jax.files.trees import STACKS
from emo_jax.model.params import DENSE_LAYERS, FAVOUR, LAYERS, SCORE_BIAS

# Paths of each part's leaves in the parameters; parts that are subsets of the experts are below.
_LEAVES = {
    "embeddings": (("embed",), ("lm_head",)),
    "attention": tuple((stack, "attention") for stack in STACKS),
    "norms": (
        *((stack, norm) for stack in STACKS for norm in ("attention_norm", "mlp_norm")),
        ("final_norm",),
    ),
    "router": ((LAYERS, "mlp", "router"),),
    "mlp": ((DENSE_LAYERS, "mlp"),),
}
# The step sets them, see `router_state`; no optimizer sees them.
_NEVER = tuple(tuple(path.split("/")) for path in (SCORE_BIAS, FAVOUR))


def holds_back(config: Config) -> bool:
    """Whether there is anything that the optimizer leaves unchanged."""
    moe = config.moe
    has_state = moe is not None and (moe.score_bias != "none" or moe.pool.kind == "label_learned")
    return bool(config.optimizer.frozen) or has_state


def trains(config: Config, path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray | bool:
    """Returns which numbers of a leaf are trained: all, none, or a mask that broadcasts to it."""
    if path in _NEVER:
        return False
    frozen, moe = set(config.optimizer.frozen), config.moe
    for part, places in _LEAVES.items():
        if part in frozen and any(path[: len(p)] == p for p in places):
            return False
    if path[:2] != (LAYERS, "mlp"):
        return True
    if moe is None:
        return "mlp" not in frozen
    R, E = moe.num_routed_experts, moe.num_experts
    old = R - moe.pool.forced_experts
    mask_E = np.ones(E, bool)
    if path[2] == "router":  # the shared experts' columns are unused
        if "old_experts" in frozen:
            mask_E[:old] = False
            mask_E[R:] = False
        return mask_E if not mask_E.all() else True
    if "routed" in frozen:
        mask_E[:R] = False
    if "old_experts" in frozen:
        mask_E[:old] = False
    if "shared" in frozen:
        mask_E[R:] = False
    if not mask_E.any():
        return False
    return True if mask_E.all() else mask_E.reshape(1, E, *[1] * (len(shape) - 2))


def trained_only(tree: Any, config: Config, value: float = 0.0) -> Any:
    """Returns a tree like the parameters with `value` for every number that is not trained."""
    if not holds_back(config):
        return tree

    def leaf(path: Any, a: jax.Array) -> jax.Array:
        mask = trains(config, tuple(key.key for key in path), a.shape)
        if mask is True:
            return a
        if mask is False:
            return jnp.full_like(a, value)  # so `a` is never computed
        return jnp.where(jnp.asarray(mask), a, jnp.asarray(value, a.dtype))

    return jax.tree_util.tree_map_with_path(leaf, tree)


def freeze(
    inner: optax.GradientTransformation, config: Config
) -> optax.GradientTransformationExtraArgs:
    """Applies `inner` to the trained parts: frozen parts get zero gradients and zero updates.

    Zero gradients alone do not suffice: weight decay moves weights without gradients, and so do
    Adam's earlier moments. Updates of frozen numbers are −0.0, and adding that changes no bit of
    any number. `inner` does not see leaves that are frozen as a whole, so it keeps no moments for
    them.
    """
    inner = optax.with_extra_args_support(inner)
    if not holds_back(config):
        return inner

    def seen(tree: Any) -> Any:
        def leaf(path: Any, a: Any) -> Any:
            mask = trains(config, tuple(key.key for key in path), a.shape)
            return optax.MaskedNode() if mask is False else a

        return jax.tree_util.tree_map_with_path(leaf, tree)

    def init(params: Any) -> Any:
        return inner.init(seen(params))

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        trained = seen(trained_only(grads, config))
        updates, state = inner.update(trained, state, seen(params), **extra)
        # Any leaf may stand in for an unseen one: none of its numbers is used.
        updates = jax.tree.map(
            lambda update, grad: grad if is_unseen(update) else update,
            *(updates, grads),
            is_leaf=is_unseen,
        )
        return trained_only(updates, config, -0.0), state

    return optax.GradientTransformationExtraArgs(init, update)


def is_unseen(leaf: Any) -> bool:
    """Whether it stands for a leaf that is frozen as a whole, in a tree of the optimizer."""
    return isinstance(leaf, optax.MaskedNode)

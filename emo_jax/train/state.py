"""Everything a run is, beside its config: a pytree of arrays."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_jax.model.transformer import ModelFunctions, Params
from emo_jax.parallel import mesh as mesh_lib


class TrainState(NamedTuple):
    """Parameters and optimizer state after `step` steps; float32."""

    step: Any  # int32 scalar, steps done
    params: Params
    opt_state: Any


def init_state(
    model: ModelFunctions, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """A fresh state; sharded as its mesh says when the model has one."""

    def make() -> TrainState:
        params = model.init(seed)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    shardings = None if model.mesh is None else state_shardings(model, optimizer)
    return jax.jit(make, out_shardings=shardings)()


def abstract_state(model: ModelFunctions, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes, dtypes and, with a mesh, shardings of the state: what a restore wants."""
    abstract = jax.eval_shape(
        lambda p: TrainState(jnp.zeros((), jnp.int32), p, optimizer.init(p)), model.abstract_params
    )
    if model.mesh is None:
        return abstract
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract,
        state_shardings(model, optimizer),
    )


def state_shardings(model: ModelFunctions, optimizer: optax.GradientTransformation) -> TrainState:
    """A sharding for every leaf; optimizer state lies where its parameter does."""
    assert model.mesh is not None
    everywhere = mesh_lib.replicated(model.mesh)
    param_shardings = model.param_shardings()
    abstract_opt = jax.eval_shape(optimizer.init, model.abstract_params)
    opt_shardings = optax.tree.map_params(
        optimizer,
        lambda _, where: where,
        abstract_opt,
        param_shardings,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(everywhere, param_shardings, opt_shardings)

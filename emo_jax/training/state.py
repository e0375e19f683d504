"""The complete state of a run besides its config, as a pytree of arrays."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from emo_jax.errors import ConfigError
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.training.freeze import is_unseen

HOST_MEMORY = "pinned_host"  # which a device copies to and from by itself


class TrainState(NamedTuple):
    """Parameters and optimizer state after `step` steps; float32."""

    step: Any  # int32 scalar, steps done
    params: Params
    opt_state: Any
    # bool scalar. The step after these had a loss or gradient that is not finite: neither it nor
    # any later one changes anything. False in every checkpoint.
    halted: Any


def init_state(
    model: ModelFunctions, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """Returns a fresh state, sharded if the model has a mesh."""
    shardings = None if model.mesh is None else state_shardings(model, optimizer)
    return jax.jit(lambda: _fresh(model.init(seed), optimizer), out_shardings=shardings)()


def state_of(
    params: Params, model: ModelFunctions, optimizer: optax.GradientTransformation
) -> TrainState:
    """Returns a fresh state around parameters that are placed as the model needs; donates them."""
    shardings = None if model.mesh is None else state_shardings(model, optimizer)
    make = jax.jit(lambda p: _fresh(p, optimizer), donate_argnums=0, out_shardings=shardings)
    return make(params)


def _fresh(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jnp.zeros((), bool))


def abstract_state(model: ModelFunctions, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns shapes, dtypes and, with a mesh, shardings of the state, as a restore needs them."""
    abstract = jax.eval_shape(lambda p: _fresh(p, optimizer), model.abstract_params)
    if model.mesh is None:
        return abstract
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract,
        state_shardings(model, optimizer),
    )


def state_shardings(model: ModelFunctions, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns a sharding for every leaf; optimizer state is placed with its parameter.

    With `optimizer.offload`, Adam's moments are in host memory.

    Raises:
      ConfigError: the devices have no such memory.
    """
    mesh = model.mesh
    assert mesh is not None
    everywhere = mesh_lib.replicated(mesh)
    param_shardings = model.param_shardings()
    moment_shardings = param_shardings
    if model.config.optimizer.offload:
        _check_host_memory(mesh)
        moment_shardings = jax.tree.map(
            lambda where: where.with_memory_kind(HOST_MEMORY), param_shardings
        )
    abstract_opt = jax.eval_shape(optimizer.init, model.abstract_params)
    opt_shardings = optax.tree.map_params(
        optimizer,
        lambda moment, where: moment if is_unseen(moment) else where,
        abstract_opt,
        moment_shardings,
        transform_non_params=lambda _: everywhere,
        is_leaf=is_unseen,
    )
    return TrainState(everywhere, param_shardings, opt_shardings, everywhere)


def _check_host_memory(mesh: Mesh) -> None:
    device = mesh.devices.flat[0]
    kinds = {memory.kind for memory in device.addressable_memories()}
    if HOST_MEMORY not in kinds:
        raise ConfigError(
            f"config.optimizer.offload = True: {device.device_kind} has no memory"
            f" {HOST_MEMORY!r} (it has {', '.join(sorted(kinds))}); leave it out"
        )

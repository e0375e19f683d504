"""The real train step, compiled for a TPU topology by libtpu on a machine without TPUs."""

import contextlib
import importlib.metadata
import importlib.util
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from emo_jax.aot.chips import GIB, Topology
from emo_jax.config import Config
from emo_jax.errors import EmoError, UsageError
from emo_jax.parallel.libtpu import WITHOUT_TPUS

_CACHE = "jax_enable_compilation_cache"
# The temporaries of the second message hold the arguments too.
_TOO_MUCH = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")
_TOO_MANY_TEMPORARIES = re.compile(
    r"HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device."""

    parameters: int
    optimizer: int
    batch: int  # plus the few scalars of the state, and tile padding of all arguments
    arguments: int
    outputs: int
    aliased: int  # outputs that reuse the memory of an argument
    total: int  # the most that is in use at once, according to the compiler
    code: int  # the program, in addition
    host: int = 0  # in the host's memory, in addition

    @property
    def temporaries(self) -> int:
        """What the step needs beyond its arguments, outputs with memory of their own included."""
        return self.total - self.arguments


@dataclass(frozen=True, kw_only=True)
class CompiledStep:
    """A compiled step and what is known about it."""

    config: Config
    topology: Topology
    mesh_shape: dict[str, int]
    memory: Memory
    text: str  # the optimized program
    seconds: float  # tracing and compiling
    mesh: Any
    xla_flops: float  # XLA's own count: each loop once, kernels as zero


class DoesNotFitError(EmoError):
    """The step needs more memory than a device has."""

    def __init__(
        self,
        message: str,
        *,
        used: int,
        usable: int,
        parameters: int,
        optimizer: int,
        mesh_shape: dict[str, int],
    ):
        super().__init__(message)
        self.used, self.usable = used, usable
        self.parameters, self.optimizer = parameters, optimizer  # their bytes on a device
        self.mesh_shape = mesh_shape

    @property
    def state(self) -> int:
        """Bytes of parameters and optimizer on a device."""
        return self.parameters + self.optimizer


def prepare_environment() -> None:
    """Sets the variables that libtpu and JAX read on loading; call it before importing JAX.

    libtpu is loaded for its compiler, and the topology is given by name.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.update(WITHOUT_TPUS)


def require_libtpu() -> None:
    """Raises UsageError if the compiler or the kernels are not installed."""
    for package in ("libtpu", "tokamax"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"emo compile needs {package}, which is not installed: pip install"
                " 'emo-jax[tpu-aot]'"
            )


def topology_devices(topology: Topology) -> list[Any]:
    """Devices to compile for; nothing can run on them."""
    from jax.experimental import topologies

    try:
        made = topologies.get_topology_desc(
            platform="tpu",
            topology_name=topology.name,
            wrap=topology.wrap,
            num_slices=topology.slices,
            # A single chip is less than a host has.
            chips_per_host_bounds=(1, 1, 1) if math.prod(topology.shape) == 1 else (2, 2, 1),
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"--topology {topology.name}: libtpu refuses it: {reason}") from error
    return list(made.devices)


def compile_step(
    config: Config,
    topology: Topology,
    devices: list[Any] | None = None,
    *,
    starting: Callable[[], None] = lambda: None,
) -> CompiledStep:
    """Compiles the train step as `emo train` does on these chips.

    Args:
      config: config of the run; its batch is that of all chips.
      topology: what to compile for.
      devices: those of `topology_devices`, if already available.
      starting: called when all checks have passed and the long part begins.

    Raises:
      ConfigError: the mesh or the batch does not fit the topology.
      DoesNotFitError: a device's memory is too small.
      EmoError: the compiler gives up.
    """
    import jax

    from emo_jax.batch import Batch, from_documents
    from emo_jax.model.functions import ModelFunctions
    from emo_jax.parallel import mesh as mesh_lib
    from emo_jax.training.optimizer import make_optimizer
    from emo_jax.training.state import abstract_state
    from emo_jax.training.step import jit_train_step

    devices = topology_devices(topology) if devices is None else devices
    mesh = mesh_lib.make_mesh(config.mesh, devices)
    mesh_lib.check_batch(
        mesh, config.train.batch_size // config.train.micro_batches, config.data.seq_len
    )
    model = ModelFunctions(config, mesh)
    optimizer = make_optimizer(config, model.param_shardings())
    state = abstract_state(model, optimizer)
    shape = (config.train.batch_size, config.data.seq_len)
    one = from_documents(*_one_window())
    where = mesh_lib.windows_sharding(mesh)
    batch: Batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct(shape, a.dtype, sharding=where), one)
    step: Any = jit_train_step(config, model, optimizer)
    starting()
    started = time.perf_counter()
    with _compiling_for(devices):
        try:
            compiled = step.trace(state, batch).lower(lowering_platforms=("tpu",)).compile()
        except jax.errors.JaxRuntimeError as error:
            raise _explained(
                error,
                topology,
                _bytes_of(state.params),
                _bytes_of(state.opt_state),
                dict(mesh.shape),
            ) from error
        seconds = time.perf_counter() - started
        text = _text(compiled)
    stats = compiled.memory_analysis()
    parts = [_bytes_of(tree) for tree in (state.params, state.opt_state)]
    analysis = compiled.cost_analysis() or {}
    memory = Memory(
        parameters=parts[0],
        optimizer=parts[1],
        batch=stats.argument_size_in_bytes - sum(parts),
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        # Not the sum of the parts, as these need not be there at once: a step can fit whose sum
        # is larger than the memory.
        total=stats.peak_memory_in_bytes,
        code=stats.generated_code_size_in_bytes,
        host=stats.host_argument_size_in_bytes + stats.host_temp_size_in_bytes,
    )
    return CompiledStep(
        config=config,
        topology=topology,
        mesh_shape=dict(mesh.shape),
        memory=memory,
        text=text,
        seconds=seconds,
        mesh=mesh,
        xla_flops=float(analysis.get("flops", 0.0)),
    )


def _text(compiled: Any) -> str:
    """The optimized program."""
    import jax
    import jaxlib

    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        raise EmoError(
            f"libtpu {importlib.metadata.version('libtpu')} writes programs that jaxlib"
            f" {jaxlib.__version__} cannot read; pip install 'emo-jax[tpu-aot]' takes the one that"
            " belongs to it"
        ) from error


def _one_window() -> tuple[Any, Any]:
    import numpy as np

    return np.zeros((1, 2), np.int32), np.zeros((1, 2), np.int32)


def _bytes_of(tree: Any) -> int:
    """Bytes of one device's share, in its own memory."""
    import jax

    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind in (None, "device")
    )


@contextlib.contextmanager
def _compiling_for(devices: list[Any]) -> Iterator[None]:
    """Selects kernels for the topology's chips, and disables the compilation cache."""
    import jax
    from tokamax import config as tokamax_config

    logger = logging.getLogger("absl")
    level, cached = logger.level, getattr(jax.config, _CACHE)
    # tokamax logs every kernel for which it has no measured tiles.
    logger.setLevel(logging.ERROR)
    jax.config.update(_CACHE, False)
    try:
        with tokamax_config.cross_compile(True), jax.default_device(devices[0]):
            yield
    finally:
        logger.setLevel(level)
        jax.config.update(_CACHE, cached)


def _explained(
    error: Exception,
    topology: Topology,
    parameters: int,
    optimizer: int,
    mesh_shape: dict[str, int],
) -> EmoError:
    text = str(error)
    found = _TOO_MUCH.search(text) or _TOO_MANY_TEMPORARIES.search(text)
    if found is None:
        return EmoError(f"the compiler for {topology} gave up: {' '.join(text.split())[:400]}")
    used, usable = (int(float(found[i]) * _UNITS[found[i + 1]]) for i in (1, 3))
    return DoesNotFitError(
        f"does not fit: {used / GIB:.2f} GiB of the {usable / GIB:.2f} GiB that a"
        f" {topology.chip.generation} {topology.chip.device} has for a program,"
        f" {(used - usable) / GIB:.2f} GiB too much",
        used=used,
        usable=usable,
        parameters=parameters,
        optimizer=optimizer,
        mesh_shape=mesh_shape,
    )

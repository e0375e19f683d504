"""`emo grow`: a run with more routed experts, Adam's moments included (SPEC 10, "Upcycling").

As the reference does it, by place: the old routed experts stay where they are; each is then copied
once, in order; what is still missing are copies of random ones; the shared experts move to the end.
The step, the place in the data and all moments of what was there stay as they are, so that `emo
train --init all` goes on. (`emo extend` adds experts to be trained alone.)

Legend: L layers, E experts, R routed ones, s shared ones.
"""

import dataclasses
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.checkpoint.reading import open_state
from emo_jax.checkpoint.slices import Block, SlicedLeaf, extent
from emo_jax.config import Config, MeshConfig, moe_of
from emo_jax.config.names import MOMENTS, NEW_EXPERTS
from emo_jax.errors import CheckpointError, UsageError
from emo_jax.files.atomic import refuse_existing
from emo_jax.files.progress import Progress
from emo_jax.files.trees import nest
from emo_jax.model.params import EXPERTS, ROUTER, SCORE_BIAS, leaf_shapes, unit_axes
from emo_jax.modules.assemble import Assembled, refuse_router_state
from emo_jax.modules.extend import Extended, new_places
from emo_jax.run.workdir import TOKENIZER_FOLDER, read_workdir_config, split_step
from emo_jax.saved.transfer import make_workdir, save_sliced, tokenizer_of
from emo_jax.tokenizer.load import load_tokenizer

_AXES = {ROUTER: 2, SCORE_BIAS: 1, **dict.fromkeys(EXPERTS, 1)}  # of the experts in a leaf


def origins(old: int, new: int, seed: int) -> list[int]:
    """For each new routed expert, in order, the old one that it is a copy of."""
    rng = np.random.default_rng(seed)
    return [n if n < old else int(rng.integers(old)) for n in range(new - old)]


def grown_config(config: Config, num_experts: int, top_k: int = 0) -> Config:
    """The config of the larger model.

    A largest pool of all experts stays one of all; other sizes of pools, and `top_k` if not given,
    stay as they are.

    Raises:
      UsageError: the model has as many experts already, or layers of different sizes.
    """
    moe = config.moe
    if moe is None:
        raise UsageError(f"{config.name} is dense, it has no experts; see emo branch")
    if moe.experts_per_layer:
        raise UsageError(f"{config.name}: its layers have different numbers of experts")
    if num_experts <= moe.num_experts:
        raise UsageError(
            f"--experts {num_experts}: {config.name} has {moe.num_experts} already; give more, or"
            " take some away with emo select"
        )
    pool = moe.pool
    if pool.max_size >= moe.num_routed_experts:
        pool = dataclasses.replace(pool, max_size=num_experts)
    larger = dataclasses.replace(moe, num_experts=num_experts, top_k=top_k or moe.top_k, pool=pool)
    return dataclasses.replace(config, moe=larger, mesh=MeshConfig())


def grow(
    run: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    num_experts: int,
    top_k: int = 0,
    init: str = "copy",
    moments: str = "copy",
    seed: int = 0,
    quiet: bool = True,
) -> Config:
    """Writes a run's state with more routed experts, as a workdir at the same step.

    With `copy`, R routed experts that become m·R, each m times, and m times as many routed picks,
    the function is the same; otherwise picks change, as the copies of one expert share its weight.

    Args:
      run: `WORKDIR` or `WORKDIR@STEP`.
      output: workdir to create.
      num_experts: of each layer, shared ones included.
      top_k: experts that a token uses, shared ones included; 0: as before.
      init: of the new experts and their columns of the router: `copy`, `jitter`, `random` or
        `mean`, see `emo_jax.modules.extend`. A score bias is copied, or the mean.
      moments: Adam's of the new experts: `copy` of the copied one's, or `zero`; zero where none is
        copied.
      seed: for the experts copied beyond once each, and for random numbers.
      quiet: show no progress.

    Returns:
      The config of the larger run.

    Raises:
      UsageError: no such run, or it holds parameters alone; it has as many experts already, or
        learned labels; or `output` already exists.
      CheckpointError: it has no good checkpoint, or none of that step.
    """
    if init not in NEW_EXPERTS:
        raise UsageError(f"--init {init}: must be one of {', '.join(NEW_EXPERTS)}")
    if moments not in MOMENTS:
        raise UsageError(f"--moments {moments}: must be one of {', '.join(MOMENTS)}")
    refuse_existing(output)
    folder, step = split_step(run)
    config = read_workdir_config(folder)
    larger = grown_config(config, num_experts, top_k)
    leaves, extra, step = open_state(folder, step)
    if ("step",) not in leaves:
        raise UsageError(
            f"{run}: step {step} holds parameters only, as an import does; train it first, or use"
            " emo extend"
        )
    stopped = threading.Event()
    base = _Leaves(leaves, ("params",))
    refuse_router_state(base, str(run), but=(SCORE_BIAS,))
    R = moe_of(config).num_routed_experts
    copied = origins(R, moe_of(larger).num_routed_experts, seed)
    layers = [new_places(R, copied, init)] * config.model.stacked_layers
    new = range(R, R + len(copied))
    assembled = Assembled([base], larger, layers)
    params = Extended(assembled, new, init, config.model.init_std, seed)
    keeps = moments == "copy" and init in ("copy", "jitter")
    made: dict[tuple[str, ...], SlicedLeaf] = {}
    for path, leaf in leaves.items():
        name = "/".join(path)
        inner = next((p for p in _AXES if name.endswith(f"/{p}")), None)
        if path[0] == "params":
            inside = "/".join(path[1:])
            shape, read = params.shapes[inside], _reader(params.read, inside)
        elif inner is None:
            shape, read = leaf.shape, leaf.read
        else:
            if leaf.shape != base.shapes[inner]:
                raise CheckpointError(
                    f"{run}: {name} has shape {leaf.shape}, not that of its parameter"
                )
            shape = leaf_shapes(larger)[inner]
            read = _moved(leaf.read, _AXES[inner], R, copied if keeps else [None] * len(copied))
        axes = unit_axes(inner or "/".join(path[1:]))
        made[path] = SlicedLeaf(shape, leaf.dtype, _until(read, stopped), axes)
    about = {name: value for name, value in extra.items() if name not in ("step", "versions")}
    about["grown"] = {"run": str(folder.absolute()), "step": step, "from": R, "init": init}

    def fill(unfinished: Path) -> None:
        if (tokenizer := tokenizer_of(folder)) is not None:
            load_tokenizer(tokenizer, within=folder).save(unfinished / TOKENIZER_FOLDER)

    def save(unfinished: Path) -> None:
        save_sliced(unfinished, larger, nest(made), step, about, stopped)

    with Progress("grow", enabled=not quiet) as shown:
        shown.show(f"writing {output}")
        make_workdir(output, larger, fill, save)
    return larger


class _Leaves:
    """A `LeafSource` of the leaves of a state below a path."""

    def __init__(self, leaves: dict[tuple[str, ...], SlicedLeaf], below: tuple[str, ...]):
        self._leaves = {
            "/".join(path[len(below) :]): leaf
            for path, leaf in leaves.items()
            if path[: len(below)] == below
        }
        self.shapes = {path: leaf.shape for path, leaf in self._leaves.items()}

    def read(self, path: str, block: Block) -> np.ndarray:
        return self._leaves[path].read(block)


Read = Callable[[Block], np.ndarray]


def _reader(read: Callable[[str, Block], np.ndarray], path: str) -> Read:
    return lambda block: read(path, block)


def _until(read: Read, stopped: threading.Event) -> Read:
    def guarded(block: Block) -> np.ndarray:
        if stopped.is_set():
            raise CheckpointError("stopped")
        return read(block)

    return guarded


def _moved(read: Read, axis: int, old: int, copied: list[Any]) -> Read:
    """Reads a moment of the larger leaf; a new expert without an origin has zeros."""

    def moved(block: Block) -> np.ndarray:
        found = []
        for place in range(block[axis].start, block[axis].stop):
            origin = place if place < old else place - len(copied)  # shared ones come last
            if old <= place < old + len(copied):
                origin = copied[place - old]
            at = 0 if origin is None else origin
            part = read((*block[:axis], slice(at, at + 1), *block[axis + 1 :]))
            found.append(np.zeros_like(part) if origin is None else part)
        out = np.concatenate(found, axis=axis)
        assert out.shape == extent(block)
        return out

    return moved

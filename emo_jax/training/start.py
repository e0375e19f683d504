"""Decides where a run begins: its own newest checkpoint, else another run's, else a fresh state.

`plan_start` checks and refuses before anything is written; `Start.make` reads and builds the state.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.checkpoint.local import LocalCheckpointer
from emo_jax.checkpoint.manifest import leaves_of
from emo_jax.checkpoint.reading import restore_params
from emo_jax.config import Config
from emo_jax.data.run_windows import RunWindows
from emo_jax.data.stream import TokenSource
from emo_jax.errors import CheckpointError, UsageError
from emo_jax.model.functions import ModelFunctions
from emo_jax.parallel import processes
from emo_jax.run.workdir import all_succeed, refused_changes
from emo_jax.training import init_from
from emo_jax.training.init_from import InitFrom, Source
from emo_jax.training.optimizer import moments_only
from emo_jax.training.passed import PassedWindows
from emo_jax.training.state import (
    TrainState,
    abstract_state,
    init_state,
    state_of,
    state_shardings,
)

Made = tuple[TrainState, int, int]  # state, steps done, windows consumed


@dataclass(frozen=True, kw_only=True)
class Start:
    """How a run begins.

    Args:
      make: reads or makes the state.
      resumes: it continues from its own checkpoints.
      record: the source it began from, now or earlier; None: no source.
      lines: lines to show.
      refused: differences from the config in the workdir that make it another run.
    """

    make: Callable[[], Made]
    resumes: bool = False
    record: dict[str, Any] | None = None
    lines: list[str] = field(default_factory=list)
    refused: Callable[[Config, Config], list[str]] = refused_changes


def plan_start(
    workdir: Path,
    config: Config,
    asked: InitFrom | None,
    *,
    checkpointer: Checkpointer,
    source: TokenSource,
    windows: RunWindows,
    model: ModelFunctions,
    optimizer: optax.GradientTransformationExtraArgs,
    refuses: Callable[[dict[str, Any]], str | None] = lambda extra: None,
) -> Start:
    """Decides where the run begins; writes nothing. Every process calls it.

    Args:
      refuses: given the `extra` of one of the run's checkpoints when it is read, says why it is not
        used, if it is not.

    Raises:
      UsageError, CheckpointError: it cannot begin as requested.
    """
    found: list[Start] = []
    plan = partial(_plan, workdir, config, asked, checkpointer, source, windows, refuses)
    all_succeed(lambda: found.append(plan(model, optimizer)), UsageError)
    resumes = processes.gather(found[0].resumes)
    if any(resumes) and not all(resumes):
        raise CheckpointError(
            f"{workdir}: process {resumes.index(False)} does not see its checkpoints yet: its file"
            " system is behind; run the same command again"
        )
    if asked is not None:
        step = (found[0].record or {}).get("step", -1)
        if set(processes.gather(step)) != {step}:  # it is still being trained
            raise UsageError(f"{asked}: has a new checkpoint just now; give {asked.workdir}@STEP")
    return found[0]


def _plan(
    workdir: Path,
    config: Config,
    asked: InitFrom | None,
    checkpointer: Checkpointer,
    source: TokenSource,
    windows: RunWindows,
    refuses: Callable[[dict[str, Any]], str | None],
    model: ModelFunctions,
    optimizer: optax.GradientTransformationExtraArgs,
) -> Start:
    record = init_from.read_record(workdir)
    if steps := checkpointer.steps():
        lines = []
        if asked is not None:
            init_from.check_same_source(asked, record, workdir)
            lines = [f"{asked} is not read again: the run goes on from its own checkpoint"]
        if steps == [0] and checkpointer.items(0) == {"params"}:
            return _imported(workdir, model, optimizer, record, lines)

        def resume() -> Made:
            state, extra, step = checkpointer.restore(
                abstract_state(model, optimizer), refuses=refuses
            )
            return state, step, init_from.windows_of(extra, f"{workdir}: step {step}")

        return Start(make=resume, resumes=True, record=record, lines=lines)
    if asked is not None:
        abstract = abstract_state(model, optimizer)
        of_mode = {"params": abstract.params} if asked.mode == "weights" else abstract
        found = init_from.find_source(
            *(asked, config),
            source=source,
            windows=windows,
            wanted=leaves_of(of_mode),
            record=record,
        )
        about = {"weights": "parameters only", "weights+optimizer": "parameters and Adam's moments"}
        what = about.get(found.mode, f"all of it, window {found.window} next")

        def make() -> Made:
            try:
                return _take_over(found, model, optimizer, abstract)
            except CheckpointError as e:
                reason = str(e).partition("; ask for")[0]
                raise CheckpointError(
                    f"{reason}; give --init-from {found.workdir}@STEP with another step"
                ) from e

        return Start(
            make=make,
            record=found.record,
            lines=[
                f"begins from step {found.step} of {found.workdir}: {what}",
                *(f"changed: {line}" for line in found.changes),
            ],
        )
    if record is not None:
        raise UsageError(
            f"{workdir} began from {init_from.described(record)} and has no checkpoint of its own"
            " yet: give the same --init-from and --init again"
        )
    # A fresh state is not saved: it is a function of the config.
    return Start(make=lambda: (init_state(model, optimizer, config.seed), 0, 0))


def from_local_disks(
    local: LocalCheckpointer,
    model: ModelFunctions,
    optimizer: optax.GradientTransformationExtraArgs,
    windows: RunWindows,
    passed: PassedWindows,
) -> Made | None:
    """Restores the newest state on the hosts' own disks, if it is newer than the shared ones.

    Every process calls it.
    """
    abstract = abstract_state(model, optimizer)

    def same_past(extra: dict[str, Any]) -> bool:
        window = init_from.windows_of(extra, "a local checkpoint")
        same = extra.get("store") == windows.fingerprint_at(window)
        return same and passed.agree_with(extra)

    found = local.find(abstract, same_past)
    if found is None:
        return None
    return local.restore(abstract, found.step), found.step, found.extra["windows"]


def _imported(
    workdir: Path,
    model: ModelFunctions,
    optimizer: optax.GradientTransformationExtraArgs,
    record: dict[str, Any] | None,
    lines: list[str],
) -> Start:
    """Starts in a workdir of `emo import`: its parameters, with a recipe that is free to choose."""

    def make() -> Made:
        params, _, _ = restore_params(workdir, 0, abstract_state(model, optimizer).params)
        return state_of(params, model, optimizer), 0, 0

    def refused(config: Config, theirs: Config) -> list[str]:
        return init_from.unexpected_differences(config, theirs, "weights")

    lines = [*lines, "step 0 holds parameters only; the optimizer starts fresh"]
    return Start(make=make, resumes=True, record=record, lines=lines, refused=refused)


def _take_over(
    source: Source,
    model: ModelFunctions,
    optimizer: optax.GradientTransformationExtraArgs,
    abstract: TrainState,
) -> Made:
    if source.mode == "weights":
        params, _, _ = restore_params(source.workdir, source.step, abstract.params)
        return state_of(params, model, optimizer), 0, 0
    with Checkpointer(source.workdir, model.config.checkpoint) as theirs:
        state, _, step = theirs.restore(abstract, source.step)
    if source.mode == "all":
        return state, step, source.window

    def anew(state: TrainState) -> TrainState:
        opt_state = moments_only(state.opt_state, optimizer.init(state.params))
        return TrainState(jnp.zeros_like(state.step), state.params, opt_state, state.halted)

    shardings = None if model.mesh is None else state_shardings(model, optimizer)
    return jax.jit(anew, donate_argnums=0, out_shardings=shardings)(state), 0, 0

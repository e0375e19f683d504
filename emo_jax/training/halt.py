"""Handles a loss or gradient that is not finite: what is saved, and what is reported.

The step itself refuses the update (`TrainState.halted`), so the state is the one before the step.
"""

import io
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from emo_jax.batch import Batch
from emo_jax.errors import EmoError, NotFiniteError, one_line
from emo_jax.files.atomic import write_bytes_atomic
from emo_jax.parallel.rows import own_part
from emo_jax.training.state import TrainState


def is_halted(metrics: dict[str, Any]) -> bool:
    """Whether this step or an earlier one was not finite. Waits for the step."""
    return bool(jax.device_get(metrics["halted"]))


def go_on(state: TrainState) -> TrainState:
    """Returns the state with its flag cleared, as it was before the bad step."""
    flag = jax.device_put(np.zeros((), bool), state.halted.sharding)
    return state._replace(halted=flag)


def keep_batch(workdir: Path, step: int, batch: Batch) -> Path:
    """Writes all fields of a batch as `bad_batch_step{n}.npz`.

    With several processes, each writes its own part; `rows` and `columns` say which part of the
    batch that is.
    """
    process = f".process{jax.process_index()}" if jax.process_count() > 1 else ""
    path = workdir / f"bad_batch_step{step}{process}.npz"
    fields: dict[str, Any] = {}
    for name, array in batch._asdict().items():
        fields[name], rows, columns = own_part(array)
    if process:
        fields |= {"rows": np.asarray(rows), "columns": np.asarray(columns)}
    buffer = io.BytesIO()
    np.savez(buffer, **fields)
    try:
        write_bytes_atomic(epath.Path(path), buffer.getvalue())
    except OSError as e:
        raise EmoError(
            f"step {step} is not finite, and {path} cannot be written: {one_line(e)}"
        ) from e
    return path


def described(metrics: dict[str, Any]) -> str:
    """Says in words what was wrong with a step."""
    values = {"loss": float(metrics["loss"]), "gradient norm": float(metrics["grad_norm"])}
    bad = " and ".join(f"the {n} is {v}" for n, v in values.items() if not math.isfinite(v))
    return bad or "a spike: " + ", ".join(f"the {n} is {v:.4g}" for n, v in values.items())


def failure(
    step: int, metrics: dict[str, Any], batch_file: Path, kept: str, tried: str = ""
) -> NotFiniteError:
    """Returns the error that ends the run.

    Args:
      kept: where the previous state is saved.
      tried: what was done before about the same step.
    """
    other = ", or pass over it with --config.train.on_nan=skip" if not tried else ""
    return NotFiniteError(
        f"step {step}: {described(metrics)}{tried}; nothing was updated: {kept}, the batch is"
        f" {batch_file}. The same command stops here again: look at the batch{other}, or begin anew"
        " with --init-from and a lower optimizer.peak_lr"
    )

"""The largest batch whose step fits into memory, found by trying.

Each try is a separate process (`emo bench train` with that batch), so that one that runs out of
memory leaves nothing behind; the process that starts them never touches a device. The config's
batch is doubled (or halved, if it does not fit), and then one size in between is tried.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from emo_jax.bench.memory import OUT_OF_MEMORY, gb
from emo_jax.config import Config
from emo_jax.errors import EmoError

_NO_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", OUT_OF_MEMORY)
_MOST_TRIES = 12
_KILLED = (-9, 137)  # by the kernel, when the host runs out of memory


def largest_batch(
    config: Config,
    file: str,
    overrides: Sequence[str],
    *,
    memory_bytes: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[int, dict[str, Any]]:
    """The largest batch that fits, and the figures of its try.

    Args:
      config: the file with its overrides; gives the batch to start from, and its name.
      file: the config file.
      overrides: overrides of its fields, as on the command line.
      memory_bytes: limit on a step's planned memory on one device; None: all there is.
      progress: called with lines about the progress.

    Raises:
      EmoError: the smallest batch does not fit, or a try failed for another reason.
    """
    unit = _unit(file, overrides)
    begin = max(config.train.batch_size // unit, 1)
    tried: dict[int, dict[str, Any] | None] = {}

    def fits(n: int) -> bool:
        if len(tried) == _MOST_TRIES and n not in tried:
            raise EmoError(f"{_MOST_TRIES} tries: begin nearer with --config.train.batch_size=N")
        if n not in tried:
            tried[n] = _try(file, overrides, n * unit, memory_bytes, progress)
        return tried[n] is not None

    good = begin
    while not fits(good):
        if good == 1:
            raise EmoError(
                f"{config.name}: not even a batch of {unit} fits; give fewer layers, model.remat or"
                " train.micro_batches"
            )
        good //= 2
    if good == begin:
        while fits(2 * good):
            good *= 2
    between = good + good // 2
    if good > 1 and fits(between):
        good = between
    return good * unit, tried[good] or {}


_ASK = """
import sys
from emo_jax.bench.largest import smallest_batch
from emo_jax.config.file import load_config
print(smallest_batch(load_config(sys.argv[1], sys.argv[2:])))
"""


def _unit(file: str, overrides: Sequence[str]) -> int:
    """`smallest_batch`, computed in a process that may touch the devices."""
    command = [sys.executable, "-c", _ASK, file, *overrides]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    if done.returncode:
        line = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise EmoError(line.partition(": ")[2] or line)
    return int(done.stdout.split()[-1])


def smallest_batch(config: Config) -> int:
    """Windows of which every batch is a multiple: micro-batches times the mesh's window axes."""
    from emo_jax.parallel import mesh as mesh_lib

    mesh = mesh_lib.make_mesh(config.mesh)
    unit = config.train.micro_batches
    for axis in mesh_lib.WINDOW_AXES:
        unit *= mesh.shape[axis]
    return unit


def _try(
    file: str,
    overrides: Sequence[str],
    batch_size: int,
    memory_bytes: int | None,
    progress: Callable[[str], None],
) -> dict[str, Any] | None:
    """Figures of a step with this batch; None if it does not fit."""
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "figures.json"
        command = [
            *(sys.executable, "-m", "emo_jax.cli", "bench", "train", "--config", file),
            *("--rounds", "1", "--steps", "1", "--no-breakdown", "--json", str(result)),
            *(() if memory_bytes is None else ("--memory", str(memory_bytes / 1e9))),
            *overrides,
            f"--config.train.batch_size={batch_size}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment())
        if done.returncode == 0:
            figures = json.loads(result.read_text())["configs"][0]
            speed = figures["tokens_per_second_median"]
            planned = figures["planned_bytes"]
            of = "" if planned is None else f", {gb(planned)} a device planned"
            progress(f"batch {batch_size}: fits, {speed:,.0f} tokens/s{of}")
            return figures
    lines = done.stderr.strip().splitlines() or ["nothing was said"]
    if done.returncode in _KILLED or any(word in done.stderr for word in _NO_MEMORY):
        progress(f"batch {batch_size}: does not fit")
        return None
    raise EmoError(f"batch {batch_size}: {lines[-1].removeprefix('emo: ')}")


def _environment() -> dict[str, str]:
    """An environment in which a child process imports this code from the same place."""
    root = str(Path(__file__).parents[2])
    known = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": root + (os.pathsep + known if known else "")}

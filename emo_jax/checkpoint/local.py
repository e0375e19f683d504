"""Checkpoints on the disks of the hosts, more often than those that all share.

A disk that fails costs these checkpoints, never the run: it is said, on the process that has it.

Each process keeps the parts of the state that its devices hold, in `FOLDER/NAME-ID/process<i>/`,
where ID is the run's. They are checkpoints like any other, with a manifest and checksums, of one
process each. A run goes on from them if all processes have the same step, with the same parts, and
it is newer than the shared checkpoint that it came after, which must still be there.
"""

import hashlib
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.checkpoint.manifest import (
    DamagedError,
    LeafPath,
    compare,
    complete,
    leaves_of,
    like,
    read_manifest,
    savable,
    verify,
)
from emo_jax.checkpoint.peers import ALONE, TOGETHER
from emo_jax.checkpoint.reading import checkpoints_of, read_leaves
from emo_jax.checkpoint.slices import SlicedLeaf
from emo_jax.config import CheckpointConfig
from emo_jax.errors import CheckpointError, UsageError, one_line
from emo_jax.files.atomic import write_atomic
from emo_jax.files.inside import check_own_files
from emo_jax.files.json_files import NotReadableError, read_regular
from emo_jax.files.trees import nest
from emo_jax.parallel import host_memory

RUN_ID = ".run_id"  # in the workdir
_KEEP = 2  # each process may be killed while another has finished the next one
_ITEMS = {"params", "rest"}
_LOG = logging.getLogger(__name__)

Index = tuple[tuple[int, int], ...]  # start and stop on every axis


class Local(NamedTuple):
    """A step that a process has on its own disk; `start` is of the start that wrote it."""

    step: int
    start: int
    extra: dict[str, Any]


class LocalCheckpointer:
    """Saves and restores this process's parts of a run's states, as all processes do at once.

    Args:
      workdir: of the run; the shared checkpoints are there.
      config: with `local` and `local_every` set.
    """

    def __init__(self, workdir: Path, config: CheckpointConfig):
        self._shared = checkpoints_of(workdir)
        self._folder = _folder_of(workdir, Path(config.local))
        kept = CheckpointConfig(save_every=1, keep_last=_KEEP)
        self._checkpointer = Checkpointer(self._folder, kept, peers=ALONE)
        self._start = TOGETHER.gather(secrets.randbits(48))[0]  # the same on all processes

    def save(
        self, step: int, state: Any, extra: Mapping[str, Any], *, shared: int | None = None
    ) -> None:
        """Starts saving; the one before is waited for.

        Args:
          shared: the step whose shared checkpoint is being written; None: none is.
        """
        # Before this state is copied: one copy in memory is enough.
        self._try(self._checkpointer.wait)
        leaves = {path: savable(path, leaf) for path, leaf in leaves_of(state).items()}
        parts: dict[LeafPath, Any] = {}
        for path, leaf in leaves.items():
            for number, part in enumerate(_parts(leaf)):
                parts[*path, str(number)] = part
        base = max(complete(self._shared), default=0) if shared is None else shared
        here = {"layout": _layout(leaves), "base": base, "start": self._start}
        self._try(lambda: self._checkpointer.save(step, nest(parts), {**extra, "local": here}))

    def look(self) -> None:
        """Says that the save in the background has failed, if it has; never waits."""
        if self._checkpointer.failed is not None:
            self._try(self._checkpointer.wait)

    def drop_after(self, step: int) -> None:
        """Removes this process's later steps: the run goes another way from here."""
        self._try(lambda: self._checkpointer.drop_after(step))

    def close(self) -> None:
        """Waits for the last save."""
        self._try(self._checkpointer.close)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except CheckpointError as error:
            _LOG.warning("process %d: %s", TOGETHER.index, error)

    def find(self, abstract_state: Any, accepts: Callable[[dict[str, Any]], bool]) -> Local | None:
        """Returns the newest step that all processes have whole, if it is worth going on from.

        Args:
          abstract_state: leaves with shapes, dtypes and shardings, as of `Checkpointer.restore`.
          accepts: takes the `extra` of a step, and says whether this run may go on from it.
        """
        layout, shared = _layout(leaves_of(abstract_state)), complete(self._shared)
        bound = 2**62
        while True:
            try:
                ours = self._newest(bound, layout, shared, accepts)
            except OSError as error:
                _LOG.warning("process %d: %s: %s", TOGETHER.index, self._folder, one_line(error))
                ours = None
            all_steps = TOGETHER.gather(-1 if ours is None else ours.step)
            starts = TOGETHER.gather(-1 if ours is None else ours.start)
            if min(all_steps) < 0:
                return None
            alike = max(all_steps) == min(all_steps)
            if alike and max(starts) == min(starts):
                return ours
            bound = min(all_steps) - alike

    def restore(self, abstract_state: Any, step: int) -> Any:
        """Returns the state of a step from `find`.

        Raises:
          CheckpointError: its files cannot be read.
        """
        wanted = leaves_of(abstract_state)
        folder = checkpoints_of(self._folder) / str(step)
        specs = {
            path: {
                (*path, str(number)): jax.ShapeDtypeStruct(_shape(index), leaf.dtype)
                for number, index in enumerate(_indices(leaf))
            }
            for path, leaf in wanted.items()
        }
        whole = {}
        try:
            manifest = read_manifest(folder)
            compare(folder, manifest, {p: x for of in specs.values() for p, x in of.items()}, ())
            with host_memory.nothing_kept():
                for path, leaf in wanted.items():  # in turn: none is held twice for long
                    parts = dict(read_leaves(folder, manifest, specs[path]))
                    whole[path] = _whole(leaf, path, parts)
        except DamagedError as error:
            raise CheckpointError(
                f"{folder}: {error}; remove {self._folder} to go on from the shared checkpoints"
            ) from error
        return like(abstract_state, whole)

    def _newest(
        self,
        bound: int,
        layout: str,
        shared: list[int],
        accepts: Callable[[dict[str, Any]], bool],
    ) -> Local | None:
        """Returns this process's newest good step up to a bound, newer than all shared ones."""
        newest = max(shared, default=-1)
        for step in reversed(self._checkpointer.steps()):
            if not newest < step <= bound:
                continue
            try:
                extra = verify(checkpoints_of(self._folder) / str(step), _ITEMS, ALONE)["extra"]
            except DamagedError as error:
                _LOG.warning("%s: step %d is not used: %s", self._folder, step, error)
                continue
            about = extra.get("local")
            if not isinstance(about, dict) or not isinstance(about.get("start"), int):
                continue
            if about.get("layout") != layout or not accepts(extra):
                continue  # of another mesh, another number of processes, other data
            base = about.get("base")
            if base and not any(base <= other <= step for other in shared):
                _LOG.warning(
                    "%s: step %d is not used: it came after step %s, which is no longer in %s",
                    *(self._folder, step, base, self._shared),
                )
                continue
            return Local(step, about["start"], extra)
        return None


def _folder_of(workdir: Path, base: Path) -> Path:
    """Returns this process's folder; process 0 makes the run's id if it has none."""
    file = workdir / RUN_ID

    def make() -> None:
        if not file.exists():
            write_atomic(file, secrets.token_hex(8) + "\n")

    TOGETHER.all_succeed(lambda: make() if TOGETHER.index == 0 else None, CheckpointError)
    check_own_files(workdir, [RUN_ID], error=UsageError)
    try:
        run = read_regular(file, max_bytes=64).decode("ascii", "replace").strip()
    except (OSError, NotReadableError) as error:
        raise CheckpointError(f"{file}: cannot be read: {one_line(error)}") from error
    if not run.isalnum():
        raise UsageError(f"{file}: not the id of a run; restore it, or remove it for a new one")
    return base / f"{workdir.name}-{run}" / f"process{TOGETHER.index}"


def _indices(leaf: Any) -> list[Index]:
    """Returns which parts of a leaf this process's devices hold, each once, in order."""
    shape, sharding = tuple(leaf.shape), getattr(leaf, "sharding", None)
    if sharding is None:
        return [tuple((0, size) for size in shape)]
    found = set()
    for slices in sharding.addressable_devices_indices_map(shape).values():
        found.add(tuple(part.indices(size)[:2] for part, size in zip(slices, shape, strict=True)))
    return sorted(found)


def _shape(index: Index) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in index)


def _parts(leaf: Any) -> Iterator[SlicedLeaf]:
    """Yields copies on the host of this process's parts of a leaf, in the order of `_indices`."""
    indices = _indices(leaf)
    held: dict[Index, Any] = {}
    if isinstance(leaf, jax.Array):
        for shard in leaf.addressable_shards:
            spans = zip(shard.index, leaf.shape, strict=True)
            held.setdefault(tuple(part.indices(size)[:2] for part, size in spans), shard.data)
    else:
        held[indices[0]] = leaf
    for index in indices:
        copied = np.array(held[index])  # of its own: the state is donated to the next step
        yield SlicedLeaf(copied.shape, copied.dtype, copied.__getitem__)


def _layout(leaves: Mapping[LeafPath, Any]) -> str:
    """Returns what is equal only for the same parts of the same state on the same process."""
    parts = [(path, tuple(leaf.shape), _indices(leaf)) for path, leaf in sorted(leaves.items())]
    content = repr((TOGETHER.index, TOGETHER.count, parts))
    return hashlib.sha256(content.encode()).hexdigest()


def _whole(leaf: Any, path: LeafPath, read: Mapping[LeafPath, Any]) -> Any:
    """Returns a leaf on its devices, given this process's parts."""
    parts = {index: read[*path, str(n)] for n, index in enumerate(_indices(leaf))}
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        (part,) = parts.values()
        return part
    shape = tuple(leaf.shape)

    def of(slices: Any) -> Any:
        return parts[tuple(p.indices(size)[:2] for p, size in zip(slices, shape, strict=True))]

    return jax.make_array_from_callback(shape, sharding, of)

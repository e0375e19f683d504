"""`emo compile --search`: which meshes, remat policies and micro-batches fit, fastest first.

The batch of a step stays as in the config. What varies is how many windows a chip processes at
once, through `train.micro_batches`, so that all candidates compute the same and times compare.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from emo_jax.aot.analysis import Analysis, analyse
from emo_jax.aot.chips import Topology
from emo_jax.aot.compiler import DoesNotFitError, topology_devices
from emo_jax.config import Config, MeshConfig
from emo_jax.config.names import Remat
from emo_jax.errors import ConfigError, EmoError

REMATS: tuple[Remat, ...] = (
    "full",
    "save_attention",
    "save_matmuls",
    "none",
)  # each needs more memory than the one before
SPLIT_AXES = ("expert", "tensor", "context")
LARGEST_SPLIT = 16  # per axis


@dataclass(frozen=True, order=True)
class Candidate:
    """One point of the search."""

    mesh: tuple[tuple[str, int], ...]
    remat: Remat
    windows: int  # processed at once by a chip (or the chips that share a window)

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the mesh axes."""
        return dict(self.mesh)

    def __str__(self) -> str:
        axes = ", ".join(f"{axis} {n}" for axis, n in self.mesh if n > 1) or "one chip"
        return f"{axes}; remat {self.remat}; {self.windows} windows at once"


@dataclass(frozen=True)
class Tried:
    """The outcome for a candidate."""

    candidate: Candidate
    found: Analysis | None  # None: it does not fit, or does not compile
    reason: str = ""


def meshes(config: Config, topology: Topology) -> Iterator[dict[str, int]]:
    """Axis sizes that multiply to the devices: all on `fsdp`, then one more axis, then two."""
    replica = max(config.mesh.replica, topology.slices)
    devices = topology.num_devices // replica
    sizes = [n for n in (2**i for i in range(1, 10)) if n <= min(LARGEST_SPLIT, devices)]
    axes = [a for a in SPLIT_AXES if not (a == "expert" and config.moe is None)]
    splits: list[dict[str, int]] = [{}]
    splits += [{axis: n} for n in sizes for axis in axes]
    splits += [
        {a: n, b: m}
        for a, b in itertools.combinations(axes, 2)
        for n in sizes
        for m in sizes
        if n * m <= devices
    ]
    for split in splits:
        ways = 1
        for n in split.values():
            ways *= n
        if devices % ways == 0:
            yield {"replica": replica, "fsdp": devices // ways, **split}


def config_of(config: Config, candidate: Candidate) -> Config | None:
    """The config with the candidate's values; None if the batch does not divide that way.

    Raises:
      ConfigError: the model does not divide that way.
    """
    sizes = {"expert": 1, "context": 1, "tensor": 1} | candidate.sizes
    ways = sizes["replica"] * sizes["fsdp"] * sizes["expert"] * candidate.windows
    if config.train.batch_size % ways:
        return None
    return dataclasses.replace(
        config,
        mesh=MeshConfig(**sizes),
        model=dataclasses.replace(config.model, remat=candidate.remat),
        train=dataclasses.replace(config.train, micro_batches=config.train.batch_size // ways),
    )


def search(
    config: Config,
    topology: Topology,
    *,
    limit: int,
    show: Callable[[str], None] = lambda _: None,
    analyse_one: Callable[[Config, Topology, list[Any]], Analysis] = analyse,
) -> list[Tried]:
    """Compiles at most `limit` candidates; those that fit come first, fastest first.

    For each mesh, nothing is tried that needs more memory than a candidate that did not fit.
    """
    devices = topology_devices(topology)
    tried: list[Tried] = []
    for sizes in meshes(config, topology):
        if len(tried) >= limit:
            break
        _search_mesh(config, topology, devices, sizes, limit, tried, show, analyse_one)
    return sorted(tried, key=_rank)


def _rank(tried: Tried) -> tuple[float, float]:
    if tried.found is None:
        return (float("inf"), 0.0)
    return (tried.found.roofline.overlapped, tried.found.roofline.summed)


def _search_mesh(config, topology, devices, sizes, limit, tried, show, analyse_one) -> None:
    mesh = tuple(sizes.items())
    most = None  # windows at once that fit with the previous remat policy
    for remat in REMATS:
        windows = 1
        while most is None or windows <= most:
            candidate = Candidate(mesh, remat, windows)
            try:
                changed = config_of(config, candidate)
            except ConfigError as error:
                show(f"{candidate}: left out: {error}")
                return
            if changed is None or len(tried) >= limit:
                break
            show(f"{len(tried) + 1} of at most {limit}: {candidate}")
            try:
                found = analyse_one(changed, topology, devices)
            except ConfigError as error:
                show(f"{candidate}: left out: {error}")
                return
            except DoesNotFitError as error:
                tried.append(Tried(candidate, None, str(error)))
                show(f"{candidate}: {error}")
                break
            except EmoError as error:
                tried.append(Tried(candidate, None, str(error)))
                show(f"{candidate}: {error}")
                return
            tried.append(Tried(candidate, found))
            show(
                f"{candidate}: {found.step.memory.total / 1e9:.2f} GB,"
                f" {found.roofline.overlapped:.3f} s a step at least"
            )
            windows *= 2
        if windows == 1:  # not even one fits, and later policies need more
            return
        most = windows // 2

"""`emo compile --search`: which meshes, remat policies and micro-batches fit, the fastest first.

The batch of a step stays what the config says. What varies is how many windows a chip takes at
once, by `train.micro_batches`, so that every candidate computes the same and times compare.
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
)  # each wants more memory than the last
SPLIT_AXES = ("expert", "tensor", "context")
LARGEST_SPLIT = 16  # of one of them


@dataclass(frozen=True, order=True)
class Candidate:
    """One point of the search."""

    mesh: tuple[tuple[str, int], ...]
    remat: Remat
    windows: int  # that a chip (or those that share a window) takes at once

    @property
    def sizes(self) -> dict[str, int]:
        """Of the mesh axes."""
        return dict(self.mesh)

    def __str__(self) -> str:
        axes = ", ".join(f"{axis} {n}" for axis, n in self.mesh if n > 1) or "one chip"
        return f"{axes}; remat {self.remat}; {self.windows} windows at once"


@dataclass(frozen=True)
class Tried:
    """What came of a candidate."""

    candidate: Candidate
    found: Analysis | None  # None: it does not fit, or does not compile
    reason: str = ""


def meshes(config: Config, topology: Topology) -> Iterator[dict[str, int]]:
    """Sizes that multiply to the chips: all on `fsdp` first, then one other axis, then two."""
    replica = max(config.mesh.replica, topology.slices)
    chips = topology.num_chips // replica
    sizes = [n for n in (2**i for i in range(1, 10)) if n <= min(LARGEST_SPLIT, chips)]
    axes = [a for a in SPLIT_AXES if not (a == "expert" and config.moe is None)]
    splits: list[dict[str, int]] = [{}]
    splits += [{axis: n} for n in sizes for axis in axes]
    splits += [
        {a: n, b: m}
        for a, b in itertools.combinations(axes, 2)
        for n in sizes
        for m in sizes
        if n * m <= chips
    ]
    for split in splits:
        ways = 1
        for n in split.values():
            ways *= n
        if chips % ways == 0:
            yield {"replica": replica, "fsdp": chips // ways, **split}


def config_of(config: Config, candidate: Candidate) -> Config | None:
    """The config with the candidate's values; None where the batch does not divide so.

    Raises:
      ConfigError: the model does not divide so.
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
    """Compiles candidates, at most `limit`; those that fit come first, the fastest before others.

    Of a mesh nothing is tried that wants more memory than what did not fit.
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
    most = None  # windows at once that fit the weaker remat so far
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
        if windows == 1:  # not even one fits, and what follows wants more
            return
        most = windows // 2

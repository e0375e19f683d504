"""A lower bound on the time of a step: matrix unit, main memory and network, each at its peak.

No run reaches it. It serves to compare configs, and to see what a step waits for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emo_jax.aot.chips import Topology
from emo_jax.aot.collectives import NO_AXIS
from emo_jax.aot.counts import Counts


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds per step on one device."""

    matmul: float  # bfloat16 passes of all matrix products, at the peak
    memory: float  # bytes read and written, at full bandwidth
    network: float  # collectives, one after another
    by_axes: dict[str, float]  # network seconds by axes

    @property
    def overlapped(self) -> float:
        """Time if everything overlaps with everything else."""
        return max(self.matmul, self.memory, self.network)

    @property
    def summed(self) -> float:
        """Time if nothing overlaps."""
        return self.matmul + self.memory + self.network

    @property
    def bound(self) -> str:
        """What takes longest."""
        times = {"matmul": self.matmul, "memory": self.memory, "network": self.network}
        return max(times, key=lambda name: times[name])


def roofline(counts: Counts, topology: Topology, mesh: Any) -> Roofline:
    """Estimates the time of a step.

    Args:
      counts: counts for one device.
      topology: the topology of the chips and links.
      mesh: the mesh it was compiled for; the places of its devices determine an axis's links.
    """
    chip = topology.chip
    by_axes: dict[str, float] = {}
    for c in counts.collectives:
        if c.axes != NO_AXIS:
            seconds = c.times * c.wire / group_bandwidth(c.group, topology, mesh)
            by_axes[c.axes] = by_axes.get(c.axes, 0.0) + seconds
    return Roofline(
        matmul=counts.passes_flops / chip.peak_flops,
        memory=counts.hbm_bytes / chip.hbm_bandwidth,
        network=sum(by_axes.values()),
        by_axes=by_axes,
    )


def group_bandwidth(group: Sequence[int], topology: Topology, mesh: Any) -> float:
    """Bytes per second that a device receives from the others in a group.

    Each torus axis that the group spans contributes its links: both if it closes to a ring,
    otherwise one. The two devices of a chip share them; if both are in the group, they are taken
    to receive each byte once, and to exchange it inside the chip. Links shared between groups of
    different chips are not taken into account. Between slices it is the device's share of the
    host's network.

    Args:
      group: mesh positions.
      topology: the topology of the links.
      mesh: maps positions to devices.
    """
    devices = [mesh.devices.flat[i] for i in group]
    if len({getattr(device, "slice_index", 0) or 0 for device in devices}) > 1:
        return topology.chip.dcn_bandwidth
    chip, links = topology.chip, _links(devices, topology)
    together = len({getattr(device, "core_on_chip", 0) for device in devices})
    if links == 0 and together > 1:
        return chip.inner_bandwidth
    return chip.ici_link_bandwidth * max(1, links) * together / chip.devices


def _links(devices: list[Any], topology: Topology) -> int:
    links = 0
    for dim, size in enumerate(topology.shape):
        extent = len({device.coords[dim] for device in devices})
        if extent > 1:
            links += 2 if topology.wrap[dim] and extent == size else 1
    return min(links, topology.chip.ici_links)

"""TPU slices as Google Cloud names them."""

from dataclasses import dataclass
from typing import NamedTuple

import click

from emo_jax.aot.chips import Topology, parse_topology
from emo_jax.errors import UsageError


class _Names(NamedTuple):
    gke: str  # value of the node label gke-tpu-accelerator
    accelerator: str  # what --accelerator-type begins with
    runtime: str  # --runtime-version


_NAMES = {
    "v5e": _Names("tpu-v5-lite-podslice", "v5litepod", "v2-alpha-tpuv5-lite"),
    "v5p": _Names("tpu-v5p-slice", "v5p", "v2-alpha-tpuv5"),
    "v6e": _Names("tpu-v6e-slice", "v6e", "v2-alpha-tpuv6e"),
}


@dataclass(frozen=True)
class Slice:
    """A TPU slice."""

    topology: Topology

    @property
    def gke_name(self) -> str:
        """Its chips, as a node label of GKE has them."""
        return self._names.gke

    @property
    def accelerator_type(self) -> str:
        """As gcloud has it: `v5p-128` has 64 chips of two cores each."""
        cores = self.topology.num_chips * self.topology.chip.cores
        return f"{self._names.accelerator}-{cores}"

    @property
    def runtime_version(self) -> str:
        """Software of a TPU VM."""
        return self._names.runtime

    @property
    def _names(self) -> _Names:
        return _NAMES[self.topology.chip.generation]

    def chips_per_host(self, given: int | None) -> int:
        """Chips of one host.

        Raises:
          click.UsageError: those given do not divide the slice.
        """
        chips = self.topology.num_chips
        found = min(4, chips) if given is None else given
        if chips % found:
            raise click.UsageError(f"--chips-per-host {found}: must divide the {chips} of --tpu")
        return found


class _SliceType(click.ParamType):
    name = "slice"

    def convert(self, value, param, ctx) -> Slice:
        """Parses `v5p:4x4x4` or `v5p-128`."""
        if isinstance(value, Slice):
            return value
        try:
            return Slice(parse_topology(value))
        except UsageError as e:
            raise click.UsageError(str(e).replace("--topology", "--tpu", 1)) from e


SLICE = _SliceType()
CHIPS_PER_HOST = click.option(
    "--chips-per-host",
    type=click.IntRange(min=1, max=8),
    help="4 (or all, of a smaller slice), if not given; 8 on the hosts of ct5lp-hightpu-8t and"
    " ct6e-standard-8t.",
)

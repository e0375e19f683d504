"""TPU generations: what a device can do, and the slices that exist.

A device is a chip, but half of one on a TPU7x, whose chips have two, each with its own memory.

Figures come from Google's documentation of each generation (docs.cloud.google.com/tpu/docs/v5e,
/v5p, /v6e, /tpu7x, read in 2026); a link's one-way bandwidth is half of a chip's stated two-way
bandwidth, divided by its ports. Exceptions: `usable_hbm` is what the compiler allows a program, as
reported by libtpu ("… of 15.75G hbm"; 0.0.52, and 0.0.42.1 for a TPU7x), and a v5p has 96 GiB, of
which the documentation gives users 95. Peaks are those that MFU is reported against.
"""

import difflib
import itertools
import math
import re
from dataclasses import dataclass

from emo_jax.errors import UsageError
from emo_jax.training.flops import PEAK_FLOPS

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """Figures of a device, links apart; bandwidths are in bytes per second in one direction."""

    generation: str
    peak_flops: float  # bfloat16, dense
    hbm_bytes: int
    usable_hbm: int  # what the runtime leaves for a program
    hbm_bandwidth: float
    ici_link_bandwidth: float  # per link, one way
    ici_links: int  # of a chip
    dcn_bandwidth: float  # to other slices, a device's share of its host's
    cores: int  # TensorCores of a chip, which the names of v5p and TPU7x slices count
    devices: int = 1  # of a chip, as JAX sees them
    inner_bandwidth: float = 0.0  # between the devices of a chip
    shapes: tuple[str, ...]  # of one slice; with `max_cubes`, the common ones
    closed_at: int  # see `Topology.wrap`
    max_cubes: int = 0  # any box of whole 4x4x4 cubes is a slice, up to this many

    @property
    def device(self) -> str:
        """What to call a device."""
        return "chip" if self.devices == 1 else "device"

    def has_shape(self, shape: tuple[int, ...]) -> bool:
        """Whether a slice can have this shape."""
        if "x".join(map(str, shape)) in self.shapes:
            return True
        boxes = (
            len(shape) == 3 and list(shape) == sorted(shape) and not any(n % CUBE for n in shape)
        )
        return boxes and 0 < math.prod(shape) <= self.max_cubes * CUBE**3

    def shape_of(self, num_chips: int) -> tuple[int, ...]:
        """The slice shape with `num_chips` chips, as close to a cube as possible; () if none."""
        for text in self.shapes:
            shape = tuple(int(n) for n in text.split("x"))
            if math.prod(shape) == num_chips:
                return shape
        cubes, rest = divmod(num_chips, CUBE**3)
        if rest or cubes > self.max_cubes:
            return ()
        sides = [n for n in range(1, cubes + 1) if cubes % n == 0]
        boxes = [
            (CUBE * x, CUBE * y, CUBE * (cubes // (x * y)))
            for x, y in itertools.product(sides, sides)
            if cubes % (x * y) == 0
        ]
        return min(filter(self.has_shape, boxes), key=sum, default=())


CUBE = 4
_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_3D = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16"),
    *("8x16x16", "16x16x16", "16x16x24"),
)

CHIPS = {
    chip.generation: chip
    for chip in (
        Chip(
            generation="v5e",
            peak_flops=PEAK_FLOPS["TPU v5e"],
            hbm_bytes=16 * GIB,
            usable_hbm=int(15.75 * GIB),
            hbm_bandwidth=819e9,
            ici_link_bandwidth=50e9,  # 400 GB/s both ways per chip
            ici_links=4,
            dcn_bandwidth=3.125e9,  # 6.4 Tbit/s per pod of 256
            cores=1,
            shapes=_2D,
            closed_at=16,
        ),
        Chip(
            generation="v5p",
            peak_flops=PEAK_FLOPS["TPU v5p"],
            hbm_bytes=96 * GIB,
            usable_hbm=int(95.74 * GIB),
            hbm_bandwidth=2765e9,
            ici_link_bandwidth=100e9,  # 1200 GB/s both ways per chip
            ici_links=6,
            dcn_bandwidth=6.25e9,  # 50 Gbit/s per chip
            cores=2,
            shapes=_3D,
            closed_at=CUBE,
            max_cubes=96,
        ),
        Chip(
            generation="v6e",
            peak_flops=PEAK_FLOPS["TPU v6e"],
            hbm_bytes=32 * GIB,
            usable_hbm=int(31.25 * GIB),
            hbm_bandwidth=1638e9,
            ici_link_bandwidth=100e9,  # 800 GB/s both ways per chip
            ici_links=4,
            dcn_bandwidth=12.5e9,  # 25.6 Tbit/s per pod of 256
            cores=1,
            shapes=_2D,
            closed_at=16,
        ),
        Chip(
            generation="tpu7x",
            peak_flops=PEAK_FLOPS["TPU7x"],
            hbm_bytes=96 * GIB,
            usable_hbm=int(94.75 * GIB),
            hbm_bandwidth=7380e9 / 2,
            ici_link_bandwidth=100e9,  # 1200 GB/s both ways per chip
            ici_links=6,
            dcn_bandwidth=12.5e9 / 2,  # 100 Gbit/s per chip
            cores=2,
            devices=2,
            inner_bandwidth=600e9,  # six times that of a link
            shapes=("1x1x1", *_3D),
            closed_at=CUBE,
            max_cubes=144,
        ),
    )
}
ALIASES = {
    **{"v5litepod": "v5e", "v5lite": "v5e", "v5": "v5p", "trillium": "v6e"},
    **dict.fromkeys(("ironwood", "v7x", "tpu7"), "tpu7x"),
}


@dataclass(frozen=True)
class Topology:
    """Slices of one generation and shape."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """The name of one slice: `v5p:4x4x4`."""
        return f"{self.chip.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def num_chips(self) -> int:
        """Number of chips in all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def num_devices(self) -> int:
        """Number of devices in all slices."""
        return self.num_chips * self.chip.devices

    @property
    def size(self) -> str:
        """For people: `64 chips`, or `64 chips of 2 devices`."""
        chips = "1 chip" if self.num_chips == 1 else f"{self.num_chips} chips"
        return chips if self.chip.devices == 1 else f"{chips} of {self.chip.devices} devices"

    @property
    def wrap(self) -> tuple[bool, bool, bool]:
        """Which axes close to rings.

        On v5e and v6e an axis of 16 chips does; on v5p and TPU7x all axes do if the shape is whole
        4x4x4 cubes. Without it the compiler treats a torus as a grid, where it has no gather along
        three axes.
        """
        x, y, *z = (n % self.chip.closed_at == 0 for n in self.shape)
        if z:
            return (x and y and z[0],) * 3
        return x, y, False

    def __str__(self) -> str:
        return self.name if self.slices == 1 else f"{self.slices} × {self.name}"


def known_topologies() -> str:
    """All known topologies, for messages."""
    return "; ".join(
        f"{name}: {' '.join(chip.shapes)}"
        + (", and other boxes of whole 4x4x4, x ≤ y ≤ z" if chip.max_cubes else "")
        for name, chip in CHIPS.items()
    )


def parse_topology(text: str, slices: int = 1) -> Topology:
    """Parses `v5p:4x4x4`, or a cloud name: `v5p-128` counts TensorCores, `v5e-256` chips.

    A TPU7x has two TensorCores a chip, like a v5p: `tpu7x-128` is `tpu7x:4x4x4`.

    Raises:
      UsageError: there is no such topology; the known ones are listed.
    """
    match = re.fullmatch(r"([a-z0-9]+)[:-]([0-9x]{1,20})", text.strip().lower())
    generation = ALIASES.get(match[1], match[1]) if match else ""
    chip = CHIPS.get(generation)
    shape: tuple[int, ...] = ()
    if chip is not None and match is not None:
        if "x" in match[2]:
            shape = tuple(int(n or 0) for n in match[2].split("x"))
        elif int(match[2]) % chip.cores == 0:
            shape = chip.shape_of(int(match[2]) // chip.cores)
    if chip is None or not chip.has_shape(shape):
        names = [f"{name}:{shape}" for name, chip in CHIPS.items() for shape in chip.shapes]
        near = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
        mean = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"--topology {text}: no such topology{mean} (known: {known_topologies()})")
    return Topology(chip, shape, slices)

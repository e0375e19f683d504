"""Topologies by their names, what a roofline takes of them, and `emo compile`'s refusals."""

import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from emo_jax.aot import chips, compiler, report
from emo_jax.aot.collectives import Collective
from emo_jax.aot.counts import Counts
from emo_jax.aot.roofline import group_bandwidth, roofline
from emo_jax.cli.app import main
from emo_jax.config import MeshConfig
from emo_jax.parallel.libtpu import WITHOUT_TPUS
from emo_jax.parallel.mesh import make_mesh


@pytest.fixture(autouse=True, scope="module")
def _environment():
    """What `emo compile` sets for libtpu; the rest of the process is as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        for name, value in WITHOUT_TPUS.items():
            patch.setenv(name, value)
        yield


def _refused(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["compile", "--config", "experiments/emo_tiny.py", *argv])
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert printed.out == ""
    (line,) = printed.err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("text", "name", "num_chips"),
    [
        ("v5p:4x4x4", "v5p:4x4x4", 64),
        ("v5p-128", "v5p:4x4x4", 64),  # counts TensorCores
        ("v5e-256", "v5e:16x16", 256),  # counts chips
        ("v5litepod-16", "v5e:4x4", 16),
        ("V6E:8x8", "v6e:8x8", 64),
        ("trillium:2x2", "v6e:2x2", 4),
        ("v5p-384", "v5p:4x4x12", 192),  # not of the common ones: boxes of whole cubes
        ("v5p-1152", "v5p:4x12x12", 576),
        ("v5p:12x16x24", "v5p:12x16x24", 4608),
        ("tpu7x-128", "tpu7x:4x4x4", 64),  # counts TensorCores, which are devices there
        ("ironwood:2x2x1", "tpu7x:2x2x1", 4),
        ("v7x:12x24x32", "tpu7x:12x24x32", 9216),
    ],
)
def test_names_of_topologies(text, name, num_chips):
    found = chips.parse_topology(text)
    assert (found.name, found.num_chips) == (name, num_chips)


@pytest.mark.parametrize(
    "text",
    [
        *("v5p:3x3x3", "v5p-127", "v5e:4x4x4", "v7x:2x2", "h100:8", "v5e", "", "v5e:16x1"),
        *("v5p:4x12x4", "v5p:16x16x28", "v5p-17920", "v5p:0x0x0", "v5p:x", "v5e-99999999999999999"),
    ],
)
def test_a_topology_that_does_not_exist_is_refused_and_the_known_are_listed(capsys, text):
    line = _refused(capsys, "--topology", text)
    assert f"--topology {text}: no such topology" in line
    for known in ("v5e: 1x1", "16x16", "v5p: 2x2x1", "16x16x24", "v6e: "):
        assert known in line


def test_the_nearest_name_is_offered(capsys):
    assert "did you mean 'v5p:4x4x8'?" in _refused(capsys, "--topology", "v5p:4x4x9")


@pytest.mark.parametrize(
    ("text", "slices", "overrides", "said"),
    [
        ("v5e:4x4", "1", ["--config.mesh.fsdp=8"], "multiply to 8, but there are 16 devices"),
        ("v5e:2x2", "1", ["--config.mesh.expert=3"], "config.moe.num_experts"),
        ("v5e:2x2", "2", [], "config.mesh.replica = 1: must be a multiple of the 2 slices"),
        ("v5e:16x16", "1", [], "does not divide"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_the_sizes(capsys, text, slices, overrides, said):
    line = _refused(capsys, "--topology", text, "--slices", slices, *overrides)
    assert said in line


def test_files_are_looked_at_before_the_work(capsys, tmp_path):
    (tmp_path / "there").write_text("precious")
    line = _refused(capsys, "--topology", "v5e:2x2", "--json", str(tmp_path / "there"))
    assert "is there already" in line
    line = _refused(capsys, "--topology", "v5e:2x2", "--hlo", str(tmp_path / "no/x"))
    assert "no such folder" in line


@pytest.mark.parametrize("package", ["libtpu", "tokamax"])
def test_without_the_extra_one_line_says_which(capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    line = _refused(capsys, "--topology", "v5e:2x2")
    assert "pip install 'emo-jax[tpu-aot]'" in line and package in line


@pytest.mark.parametrize(
    ("text", "slices"),
    [
        *(("v5e:1x1", 1), ("v5e:2x2", 2), ("v5p:2x2x1", 1), ("v6e:4x4", 1)),
        *(("tpu7x:1x1x1", 1), ("tpu7x:4x4x4", 1), ("tpu7x:2x2x2", 2)),
    ],
)
def test_libtpu_knows_the_topologies_and_says_nothing_else(capfd, text, slices):
    topology = chips.parse_topology(text, slices)
    devices = compiler.topology_devices(topology)
    assert len(devices) == topology.num_devices
    slice_of = [getattr(d, "slice_index", 0) or 0 for d in devices]
    assert len(set(slice_of)) == slices
    places = {(s, *d.coords) for s, d in zip(slice_of, devices, strict=True)}
    assert len(places) == topology.num_chips
    assert capfd.readouterr().err == ""


def test_rings_close_where_the_chips_make_whole_cubes_or_rows_of_sixteen():
    rings = {name: chips.parse_topology(name).wrap for name in ("v5p:4x4x4", "v5p:2x4x4")}
    rings |= {name: chips.parse_topology(name).wrap for name in ("v5e:16x16", "v5e:8x16")}
    assert rings == {
        "v5p:4x4x4": (True, True, True),
        "v5p:2x4x4": (False, False, False),
        "v5e:16x16": (True, True, False),
        "v5e:8x16": (False, True, False),
    }


def _mesh(topology: chips.Topology, shape: dict[str, int]) -> Mesh:
    devices = np.asarray(compiler.topology_devices(topology)).reshape(tuple(shape.values()))
    return Mesh(devices, tuple(shape))


def test_an_axis_has_the_links_of_the_chips_that_it_spans():
    whole = chips.parse_topology("v5p:4x4x4")
    mesh = _mesh(whole, {"replica": 1, "fsdp": 64})
    link = whole.chip.ici_link_bandwidth
    assert group_bandwidth(range(64), whole, mesh) == 6 * link  # three rings
    small = chips.parse_topology("v5e:4x4")
    mesh = _mesh(small, {"fsdp": 4, "expert": 4})
    by_place = {tuple(device.coords[:2]): i for i, device in enumerate(mesh.devices.flat)}
    link = small.chip.ici_link_bandwidth
    row, square = [(0, j) for j in range(4)], [(i, j) for i in range(2) for j in range(2)]
    assert group_bandwidth([by_place[c] for c in row], small, mesh) == link  # no ring
    assert group_bandwidth([by_place[c] for c in square], small, mesh) == 2 * link
    two = chips.parse_topology("v5e:4x4", 2)
    mesh = _mesh(two, {"replica": 2, "fsdp": 16})
    assert group_bandwidth([0, 16], two, mesh) == two.chip.dcn_bandwidth


def test_the_two_devices_of_a_chip_share_its_links():
    topology = chips.parse_topology("tpu7x:4x4x4")
    chip = topology.chip
    assert (topology.num_chips, topology.num_devices, topology.wrap) == (64, 128, (True,) * 3)
    assert topology.size == "64 chips of 2 devices"
    link = chip.ici_link_bandwidth
    for sizes in ({"fsdp": 128}, {"fsdp": 64, "tensor": 2}, {"fsdp": 16, "expert": 8}):
        devices = compiler.topology_devices(topology)
        mesh = make_mesh(MeshConfig(**sizes), devices)
        places = {(*d.coords, d.core_on_chip): i for i, d in enumerate(mesh.devices.flat)}
        assert group_bandwidth(range(128), topology, mesh) == 6 * link  # each byte comes once
        one_chip = [places[0, 0, 0, core] for core in (0, 1)]
        assert group_bandwidth(one_chip, topology, mesh) == chip.inner_bandwidth
        ring = [places[x, 0, 0, 0] for x in range(4)]
        assert group_bandwidth(ring, topology, mesh) == 2 * link / 2  # the other half has its own
        # The last axis of a mesh, which talks most, is inside a chip or along a ring with it.
        last = [tuple(d.coords) for d in mesh.devices.reshape(-1, list(sizes.values())[-1])[0]]
        assert len(set(last)) * 2 == len(last)


def test_the_roofline_is_the_work_over_the_peaks():
    topology = chips.parse_topology("v5p:4x4x4")
    chip = topology.chip
    mesh = _mesh(topology, {"fsdp": 64})
    counts = Counts()
    counts.passes_flops, counts.hbm_bytes = 3 * chip.peak_flops, 2 * chip.hbm_bandwidth
    wire = 0.5 * 6 * chip.ici_link_bandwidth
    everyone = tuple(range(64))
    counts.collectives = [Collective("all-gather", "fsdp", 64, 1, wire, 10, "", everyone)]
    found = roofline(counts, topology, mesh)
    assert (found.matmul, found.memory, found.network) == pytest.approx((3.0, 2.0, 5.0))
    assert (found.overlapped, found.summed, found.bound) == (
        pytest.approx(5.0),
        pytest.approx(10.0),
        "network",
    )


def test_what_would_fit_is_said_for_each_cause(tiny):
    topology = chips.parse_topology("v5e:2x2")
    GIB = chips.GIB

    def hint(used: float, state: float, mesh=None, topology=topology, **changes) -> str:
        error = compiler.DoesNotFitError(
            "",
            used=int(used * GIB),
            usable=int(15.75 * GIB),
            parameters=int(state * GIB / 3),
            optimizer=int(state * GIB * 2 / 3),
            mesh_shape=mesh or {"fsdp": 4},
        )
        return report.what_would_fit(tiny(**changes), error, topology)

    assert "take 17.00 GiB" in hint(40, 17) and "more chips (2x4, 4x4, 4x8)" in hint(40, 17)
    # Not those that are too small themselves, nor offload where parameters alone are too much.
    assert "more chips (4x4, 4x8, 8x8) or --config.optimizer.offload=true" in hint(50, 40)
    assert "more chips (8x8, 8x16, 16x16) has" in hint(500, 150)
    assert "no slice of this generation has room" in hint(9e3, 6e3)
    # Larger is a slice, not all of them; copies on replicas may be given up.
    two = chips.parse_topology("v5e:2x2", 2)
    assert "more chips (2x4, 4x4, 4x8)" in hint(40, 17, topology=two)
    mesh = {"replica": 4, "fsdp": 2}
    assert "or --config.mesh.replica=2 and a larger mesh.fsdp or" in hint(40, 17, mesh, two)
    assert "mesh" not in hint(40, 17, {"replica": 2, "fsdp": 4}, two)

    both = "micro_batches=2 would fit; --config.model.remat=full would help"
    assert both in hint(20, 2, remat="none")
    line = hint(20, 5, remat="full")
    assert "by estimate --config.train.micro_batches=2 would fit; emo compile --search" in line
    assert "by estimate --config.train.micro_batches=2 or --config.optimizer.offload" in hint(
        18, 5, remat="full"
    )
    # One window a chip at once already.
    assert "mesh.context=2, which cuts windows between chips, would help" in hint(
        30, 5, remat="full", batch_size=4
    )


@pytest.fixture
def tiny():
    from tiny import tiny_config

    return tiny_config


def test_peaks_stand_in_one_table():
    from emo_jax.training.flops import PEAK_FLOPS

    for name, chip in chips.CHIPS.items():
        assert chip.peak_flops == PEAK_FLOPS[f"TPU {name}" if name != "tpu7x" else "TPU7x"]
    assert jax.default_backend() == "cpu"

"""The real train step of a small model, compiled for TPUs that are not here."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tiny import tiny_config

from emo_jax.aot import chips, compiler, hlo, report
from emo_jax.aot.analysis import Analysis, analyse
from emo_jax.aot.counts import count
from emo_jax.aot.matmuls import is_kernel
from emo_jax.aot.peak import find_peak
from emo_jax.aot.roofline import roofline
from emo_jax.aot.search import Candidate, config_of, meshes, search
from emo_jax.cli.app import main
from emo_jax.config import MeshConfig
from emo_jax.errors import ConfigError
from emo_jax.parallel.libtpu import WITHOUT_TPUS
from emo_jax.parallel.mesh import make_mesh

# Real compiles or profiles: longer than the README's tests may take.
pytestmark = pytest.mark.system

# Weights of different sizes, so that bytes tell which is meant.
D, H, h, E, F, V, S, B = 128, 2, 64, 8, 256, 384, 128, 8
CHIPS = 4


@pytest.fixture(autouse=True, scope="module")
def _environment():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        for name, value in WITHOUT_TPUS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def highest_matmul_precision():
    """As in a run: the tests' float32 is not a run's."""


def _config(num_layers: int = 2, **mesh: int):
    config = tiny_config(
        embed_dim=D,
        head_dim=h,
        num_layers=num_layers,
        compute_dtype="bfloat16",
        remat="full",
        vocab_multiple=V,
        batch_size=B,
    )
    return dataclasses.replace(
        config,
        moe=dataclasses.replace(config.moe, expert_dim=F),
        data=dataclasses.replace(config.data, seq_len=S),
        mesh=MeshConfig(**mesh),
    )


@functools.cache
def _analysis(num_layers: int = 2, fsdp: int = 4, expert: int = 1) -> Analysis:
    config = _config(num_layers, fsdp=fsdp, expert=expert)
    return analyse(config, chips.parse_topology("v5e:2x2"))


def _matmul_flops(num_layers: int) -> float:
    """SPEC 1.5's of one chip, with what is known to differ.

    The router has no columns for shared experts; attention kernels leave out blocks that no query
    sees (one block here) and have 2 products forward, 7 backward for the formula's 4; the backward
    pass computes attention, the router and the experts' first two products a second time.
    """
    tokens, K, R = B * S // CHIPS, 3, E - 1
    forward_again = 4 * 2 * D * H * h + 2 * D * R + K * 2 * 2 * D * F
    kernels = (2 + 2 + 7) * 2 * H * h * S
    layer = 3 * (4 * 2 * D * H * h + 2 * D * R + K * 3 * 2 * D * F) + forward_again + kernels
    return tokens * (num_layers * layer + 3 * 2 * D * V)


@pytest.mark.parametrize("num_layers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_flops_are_those_of_the_formula(num_layers):
    counts = _analysis(num_layers).counts
    assert counts.total_flops == pytest.approx(_matmul_flops(num_layers), rel=0.05)
    assert counts.flops_again > 0.15 * counts.total_flops


def test_flops_grow_with_depth_and_only_with_it():
    two, four, eight = (_analysis(n).counts for n in (2, 4, 8))
    assert eight.total_flops - four.total_flops == 2 * (four.total_flops - two.total_flops)
    # XLA's own count takes the loop over layers once.
    xla = [_analysis(n).step.xla_flops for n in (2, 8)]
    assert xla[1] < 1.5 * xla[0]
    assert eight.total_flops > 3 * two.total_flops


def test_one_chip_runs_the_kernels_of_many():
    config = dataclasses.replace(_config(fsdp=1), train=_config().train)
    found = analyse(config, chips.parse_topology("v5e:1x1"))
    assert found.counts.kernels["grouped matmul"][0] == 8 * 2
    assert "attention" in found.counts.kernels


@pytest.mark.parametrize("expert", [1, 2])
def test_grouped_matmuls_are_kernels_and_not_dense(expert):
    found = _analysis(fsdp=CHIPS // expert, expert=expert)
    calls, flops, _ = found.counts.kernels["grouped matmul"]
    kernels = [v for v in hlo.parse(found.step.text).visits() if is_kernel(v.instruction)]
    assert {"gmm", "tgmm"} <= {
        name for v in kernels for name in ("gmm", "tgmm") if name in v.instruction.name
    }
    # Of each layer: 2 forward, 1 again, 5 backward; of them 3 with gate and up side by side.
    assert calls == 8 * 2
    rows = B * S // CHIPS * 2  # picks of routed experts
    assert flops == pytest.approx(2 * 11 * 2.0 * rows * D * F)


def _sum(found: Analysis, kinds: set[str], axes: str, payload: int) -> int:
    return sum(
        c.times
        for c in found.counts.collectives
        if c.kind in kinds and c.axes == axes and c.payload == payload
    )


def test_collectives_of_fsdp_have_the_bytes_of_the_weights():
    found, L = _analysis(), 2
    gather, reduce = {"all-gather"}, {"reduce-scatter", "all-reduce"}
    # Forward and again in the backward pass: bfloat16 weights; backward: float32 gradients.
    assert _sum(found, gather, "fsdp", E * D * 2 * F * 2) == 2 * L  # gate and up
    assert _sum(found, gather, "fsdp", E * D * F * 2) == 2 * L
    assert _sum(found, gather, "fsdp", D * F * 2) == 2 * 3 * L  # of the shared expert
    assert _sum(found, gather, "fsdp", D * H * h * 2) == 2 * 4 * L
    assert _sum(found, gather, "fsdp", D * V * 2) == 1
    assert _sum(found, reduce, "fsdp", E * D * F * 4) == 3 * L
    assert _sum(found, reduce, "fsdp", D * F * 4) == 3 * L
    assert _sum(found, reduce, "fsdp", D * H * h * 4) == 4 * L
    assert _sum(found, reduce, "fsdp", D * V * 4) == 1
    # Windows' ids to all that share the table, columns back.
    assert _sum(found, gather, "fsdp", B * S * 4) == 1
    assert _sum(found, {"all-to-all"}, "fsdp", B * S * D // CHIPS * 2) == 2
    assert {c.axes for c in found.counts.collectives} == {"fsdp"}


def test_collectives_of_an_expert_axis():
    found, L = _analysis(fsdp=2, expert=2), 2
    # Each chip gathers the weights of its own experts only, over fsdp.
    assert _sum(found, {"all-gather"}, "fsdp", E // 2 * D * 2 * F * 2) == 2 * L
    assert _sum(found, {"all-gather"}, "fsdp", E // 2 * D * F * 2) == 2 * L
    # Gradients in float32: of its own experts, and in stages of what all chips share.
    reduced = sum(
        c.payload * c.times
        for c in found.counts.collectives
        if c.kind in ("reduce-scatter", "all-reduce") and c.axes == "fsdp"
    )
    hand = 4 * (3 * L * (E // 2 + 1) * D * F + 4 * L * D * H * h + D * V)
    assert reduced == pytest.approx(hand, rel=0.01)
    # Rows of a round, 1.25 times a chip's picks: there and back, and there again, gradients there
    # and back. Weights of the picks with them, and their gradients.
    rows = B * S // CHIPS * 2 * 5 // 4
    assert _sum(found, {"all-to-all"}, "expert", rows * D * 2) == 5 * L
    assert _sum(found, {"all-to-all"}, "expert", rows * 4) == 3 * L


def test_collectives_between_slices_are_counted():
    """Slices have one program each: what crosses between them is not a collective in it."""
    topology = chips.parse_topology("v5e:2x2", 2)
    mesh = make_mesh(MeshConfig(replica=2), compiler.topology_devices(topology))
    where = NamedSharding(mesh, PartitionSpec(("replica", "fsdp")))

    def function(x):
        return jax.lax.psum(x, ("replica", "fsdp"))

    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=where.spec, out_specs=PartitionSpec(), check_vma=False
    )
    argument = jax.ShapeDtypeStruct((8 * 1024, 1024), jnp.float32, sharding=where)
    counts = count(hlo.parse(jax.jit(mapped).lower(argument).compile().as_text()), dict(mesh.shape))
    found = {c.kind: c for c in counts.collectives}
    whole = 1024 * 1024 * 4
    assert (found["reduce-scatter"].axes, found["reduce-scatter"].payload) == ("fsdp", whole)
    # Summed in the slice first, so that a quarter goes between slices.
    assert (found["all-reduce"].axes, found["all-reduce"].payload) == ("replica", whole // 4)
    roof = roofline(counts, topology, mesh)
    assert roof.by_axes["replica"] == pytest.approx(whole // 4 / topology.chip.dcn_bandwidth)


def test_memory_adds_up():
    found = _analysis()
    memory, config = found.step.memory, found.step.config
    from emo_jax.model.functions import ModelFunctions

    sizes = [leaf.size for leaf in jax.tree.leaves(ModelFunctions(config).abstract_params)]
    # Everything but the norms is cut into four.
    assert sum(sizes) // CHIPS * 4 <= memory.parameters <= sum(sizes) // CHIPS * 4 + 4 * 8 * D
    assert memory.optimizer == pytest.approx(2 * memory.parameters, rel=1e-3)
    assert memory.parameters + memory.optimizer < memory.arguments
    assert memory.arguments < memory.total == memory.arguments + memory.temporaries
    assert found.fits


def test_what_does_not_fit_is_measured_as_what_does():
    """Memory grows by about the same for each window, on both sides of what a chip has."""

    def used(windows: int) -> int:
        config = _config(1, fsdp=1)
        config = dataclasses.replace(
            config,
            moe=dataclasses.replace(config.moe, expert_dim=2**17),
            train=dataclasses.replace(config.train, batch_size=windows),
        )
        try:
            found = compiler.compile_step(config, chips.parse_topology("v5e:1x1"))
        except compiler.DoesNotFitError as error:
            assert error.state > 4e9
            return error.used
        return found.memory.total

    few, many, more = used(8), used(64), used(128)
    assert few < chips.CHIPS["v5e"].usable_hbm < many
    assert few == pytest.approx(many - 56 * (more - many) / 64, rel=0.08)


def test_the_peak_of_a_program_is_about_the_compilers():
    def function(x, w):
        first = jnp.tanh(x @ w)
        second = jnp.maximum(first @ w, first)
        return ((second @ w) * first).sum(axis=1)  # `first` lives until here

    devices = compiler.topology_devices(chips.parse_topology("v5e:1x1"))
    where = NamedSharding(Mesh(devices, ("x",)), PartitionSpec())
    shapes = ((2**17, 1024), (1024, 1024))  # 0.5 GB of float32
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=where) for s in shapes]
    compiled = jax.jit(function).lower(*arguments).compile()
    peak = find_peak(hlo.parse(compiled.as_text()))
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    assert peak.bytes == pytest.approx(temporaries, rel=0.2)
    assert peak.buffers[0].dims == shapes[0]


def test_a_tpus_loops_count_from_their_start_in_their_steps():
    """Its programs do not say how often a loop runs: the condition and the body do."""

    def function(x):
        def body(state):
            i, x = state
            return i + 3, jnp.tanh(x @ x)

        # 4, 7, 10, 13, 16, 19: six times.
        return jax.lax.while_loop(lambda s: s[0] < 20, body, (jnp.int32(4), x))[1]

    devices = compiler.topology_devices(chips.parse_topology("v5e:1x1"))
    where = NamedSharding(Mesh(devices, ("x",)), PartitionSpec())
    argument = jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=where)
    program = hlo.parse(jax.jit(function).lower(argument).compile().as_text())
    (loop,) = [v.instruction for v in program.visits() if v.instruction.opcode == "while"]
    assert "known_trip_count" not in loop.rest
    assert program.trip_count(loop) == 6


def test_the_report_has_every_figure():
    found = _analysis()
    figures = json.loads(json.dumps(report.to_json(found)))
    assert figures["memory_bytes"]["total"] == found.step.memory.total
    assert figures["flops"]["total"] == pytest.approx(sum(figures["flops"]["by_part"].values()))
    assert figures["chip"]["generation"] == "v5e"
    assert {c["kind"] for c in figures["collectives"]} >= {"all-gather", "reduce-scatter"}
    # The loop over blocks of documents.
    assert any("routing" in name for name in figures["loops_counted_once"])
    times = figures["roofline_seconds"]
    assert times["max"] == max(times["matmul"], times["memory"], times["network"])


def test_the_command(capfd, tmp_path, monkeypatch):
    found = _analysis()
    monkeypatch.setattr("emo_jax.aot.analysis.analyse", lambda *_, **__: found)
    file, text = tmp_path / "figures.json", tmp_path / "step.hlo"
    argv = ["compile", "--config", "experiments/emo_tiny.py", "--topology", "v5e:2x2"]
    with pytest.raises(SystemExit) as stopped:
        main([*argv, "--json", str(file), "--hlo", str(text)])
    printed = capfd.readouterr()
    assert stopped.value.code == 0
    assert json.loads(file.read_text())["flops"] == report.to_json(found)["flops"]
    assert text.read_text() == found.step.text
    for part in ("temporaries", "fits", "all-gather", "grouped matmul kernels", "TFLOP/s"):
        assert part in printed.out


def test_a_model_that_does_not_fit_says_by_how_much(capfd, tmp_path):
    file = tmp_path / "big.py"
    file.write_text(
        "from emo_jax.config.presets import emo_tiny\n"
        "def get_config(arg=''):\n"
        "    config = emo_tiny()\n"
        "    config.model.vocab_size = 50_000_000\n"
        "    config.train.loss_chunk = 8\n"
        "    return config\n"
    )
    with pytest.raises(SystemExit) as stopped:
        main(["compile", "--config", str(file), "--topology", "v5e:2x2"])
    assert stopped.value.code == 1
    *_, line = capfd.readouterr().err.strip().splitlines()
    assert "of the 15.75 GiB that a v5e chip has" in line and "GiB too much" in line
    assert "parameters and optimizer alone take" in line
    assert "more chips (4x4, " in line  # on 2x4 they would be too much still


# --- the search ----------------------------------------------------------------------------------


def test_meshes_of_a_search_multiply_to_the_chips():
    config, topology = _config(fsdp=-1), chips.parse_topology("v5e:4x4", 2)
    found = list(meshes(config, topology))
    assert found[0] == {"replica": 2, "fsdp": 16}
    assert all(math.prod(sizes.values()) == 32 and sizes["replica"] == 2 for sizes in found)
    assert {"replica": 2, "fsdp": 4, "expert": 2, "tensor": 2} in found


def test_a_candidate_keeps_the_batch():
    config = _config(fsdp=-1)
    made = config_of(config, Candidate((("replica", 1), ("fsdp", 4)), "none", 1))
    assert made.train.batch_size == B and made.train.micro_batches == 2
    assert made.model.remat == "none"
    assert config_of(config, Candidate((("replica", 1), ("fsdp", 4)), "none", 4)) is None


def test_a_search_stops_where_nothing_fits_and_ranks_by_time():
    found, asked = _analysis(), []

    def analyse_one(config, topology, devices):
        asked.append((config.mesh, config.model.remat, config.train.micro_batches))
        windows = B // config.train.micro_batches // config.mesh.fsdp
        if config.mesh.tensor > 1:
            raise ConfigError("no")
        if windows > 1 or config.model.remat == "none":
            raise compiler.DoesNotFitError(
                "no", used=2, usable=1, parameters=0, optimizer=0, mesh_shape={}
            )
        seconds = {"full": 3.0, "save_attention": 1.0, "save_matmuls": 2.0}[config.model.remat]
        roof = dataclasses.replace(found.roofline, matmul=seconds)
        return dataclasses.replace(found, roofline=roof)

    topology = chips.parse_topology("v5e:2x2")
    tried = search(_config(fsdp=-1), topology, limit=9, analyse_one=analyse_one)
    assert len(tried) == 9
    of_fsdp = [one for one in tried if one.candidate.sizes == {"replica": 1, "fsdp": 4}]
    # Two windows were tried once, with the strongest remat, and not again.
    assert [(o.candidate.remat, o.candidate.windows) for o in of_fsdp if o.found is None] == [
        ("full", 2),
        ("none", 1),
    ]
    ranked = [o.found.roofline.matmul for o in tried if o.found is not None]
    assert ranked == sorted(ranked) and len(ranked) < len(tried)
    assert all(o.found is None for o in tried[len(ranked) :])
    assert report.search_table(tried).row_count == len(ranked)
    assert len(report.search_json(tried)) == len(tried)

"""The big model's step, and how a step grows with the devices: minutes each."""

import dataclasses
from pathlib import Path

import pytest
from test_compile import B, S, _config

from emo_jax.aot import chips
from emo_jax.aot.analysis import analyse
from emo_jax.aot.report import grouped
from emo_jax.config import Config
from emo_jax.config.file import load_config
from emo_jax.parallel.libtpu import WITHOUT_TPUS

pytestmark = pytest.mark.slow

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


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


def _load(name: str, *overrides: str) -> Config:
    batch = ("--config.train.batch_size=256", "--config.train.micro_batches=1")
    return load_config(str(EXPERIMENTS / f"{name}.py"), (*batch, *overrides))


def test_flops_of_the_1b14b_shape_are_those_of_spec_1_5():
    found = analyse(_load("emo_1b14b"), chips.parse_topology("v5p:4x4x4"))
    counts, tokens = found.counts, 4 * 4096
    D, S_, L, V = 2048, 4096, 16, 100_352
    # SPEC 1.5 counts attention in full and nothing twice.
    _, kernels, kernels_full = counts.kernels["attention"]
    products = 2 + 2 + 7  # forward, again, backward; the formula has 6
    assert kernels_full == pytest.approx(tokens * L * products * 2 * D * S_)
    assert 0.5 <= kernels / kernels_full < 0.6  # the causal half, in whole blocks
    attention_once = tokens * L * 6 * 2 * D * S_
    kernels_again = kernels * 2 / products
    matmuls = counts.total_flops - kernels
    once = matmuls - (counts.flops_again - kernels_again)
    assert once + attention_once == pytest.approx(found.spec_flops, rel=0.05)
    # What is computed again: projections, router, two of the three products of an expert.
    again = tokens * L * (2 * 4 * D * D + 2 * 127 * D + 8 * 2 * 2 * D * 1024)
    assert counts.flops_again - kernels_again == pytest.approx(again, rel=0.05)
    assert counts.flops["vocab_loss"] == pytest.approx(tokens * 6 * D * V, rel=0.01)
    # Memory of a chip, against MaxText's 11.3 GB.
    assert found.step.memory.arguments + found.step.memory.temporaries <= 11.3e9


def test_pools_cost_little():
    topology = chips.parse_topology("v5p:4x4x4")
    # Of the same attention, which is no matter of pools.
    emo = analyse(_load("emo_1b14b"), topology).counts
    standard = analyse(_load("stdmoe_1b14b", "--config.model.attention=document"), topology).counts
    assert emo.total_flops / standard.total_flops - 1 <= 0.005
    assert emo.hbm_bytes / standard.hbm_bytes - 1 <= 0.02


def test_weak_scaling_leaves_the_work_of_a_device_as_it_is():
    flops, received = [], []
    for shape, devices in (("2x4", 8), ("4x4", 16), ("4x8", 32)):
        config = _config(fsdp=-1)
        train = dataclasses.replace(config.train, batch_size=B // 4 * devices)
        config = dataclasses.replace(config, train=train)
        found = analyse(config, chips.parse_topology(f"v5e:{shape}"))
        flops.append(found.counts.total_flops)
        kinds = grouped(found)
        received.append(sum(wire for (kind, _), (_, _, wire) in kinds.items() if "gather" in kind))
    assert flops[1] == pytest.approx(flops[0], rel=0.01)
    assert flops[2] == pytest.approx(flops[0], rel=0.01)
    # A gather of weights brings what a device does not have itself, (n-1)/n of them; ids grow.
    ids = 4 * B // 4 * S
    weights = [wire - ids * (n - 1) for wire, n in zip(received, (8, 16, 32), strict=True)]
    for n, wire in zip((16, 32), weights[1:], strict=True):
        assert wire / weights[0] == pytest.approx((n - 1) / n / (7 / 8), rel=0.02)

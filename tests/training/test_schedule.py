"""Learning rates of the SPEC, and the anneals that are derived from the runs they follow."""

import math

import numpy as np
import pytest
from runs import REPO

from emo_jax.config import OptimizerConfig, from_config_dict, presets
from emo_jax.config.file import load_config
from emo_jax.errors import ConfigError
from emo_jax.training.init_from import counted_differences, unexpected_differences
from emo_jax.training.optimizer import learning_rate

POOL = {"moe.pool.kind", "moe.pool.min_size", "moe.pool.max_size", "moe.pool.eval_size"}
ANNEAL = {
    "train.steps",
    *(f"optimizer.{n}" for n in ("schedule", "peak_lr", "final_lr_fraction", "decay_steps")),
}


def rate(config, n: int) -> float:
    """At step n of SPEC 4, which counts from 1."""
    return float(learning_rate(config.optimizer, config.train.steps)(np.int32(n - 1)))


def rounded_once(exact: float, scale: float) -> float:
    """How far float32 may be from an exact value made of numbers up to `scale`."""
    return 4 * float(np.finfo(np.float32).eps) * max(abs(exact), scale * 1e-7)


@pytest.mark.parametrize("arg", ["emo", "std", "std_to_emo"])
def test_the_anneal_of_the_big_run_is_that_of_the_spec(arg):
    config = from_config_dict(presets.anneal_1b14b(arg))
    assert (config.train.steps, config.optimizer.decay_steps) == (250_339, 11_920)
    for n in (238_420, 238_421, 244_000, 250_338, 250_339):
        exact = 4e-4 * (250_339 - n) / 11_920
        assert abs(rate(config, n) - exact) <= rounded_once(exact, 4e-4), n
    assert rate(config, 250_339) == 0.0
    # Where the run before it ended.
    before = from_config_dict(presets.emo_1b14b("1t"))
    assert before.train.steps == 238_419
    assert rate(before, 238_419) == pytest.approx(4e-4, rel=1e-6)
    assert rate(config, 238_419) == pytest.approx(4e-4, rel=1e-6)


def test_wsd_rises_stays_and_falls():
    fields = dict(schedule="wsd", peak_lr=2e-3, warmup_steps=10, decay_steps=20)
    schedule = learning_rate(OptimizerConfig(final_lr_fraction=0.25, **fields), 100)
    at = lambda n: float(schedule(np.int32(n - 1)))  # noqa: E731
    for n, exact in ((1, 2e-4), (5, 1e-3), (10, 2e-3), (11, 2e-3), (80, 2e-3), (81, None)):
        exact = 5e-4 + 1.5e-3 * 19 / 20 if exact is None else exact
        assert abs(at(n) - exact) <= rounded_once(exact, 2e-3), n
    assert [at(90), at(100), at(120)] == pytest.approx([1.25e-3, 5e-4, 5e-4], rel=1e-6)


def test_cosine_in_the_middle():
    config = from_config_dict(presets.emo_1b14b("130b"))
    for n in (2001, 16_000, 30_000):
        part = (n - 2000) / (30_995 - 2000)
        exact = 4e-4 + 3.6e-3 * 0.5 * (1 + math.cos(math.pi * part))
        assert rate(config, n) == pytest.approx(exact, rel=2e-6)


@pytest.mark.parametrize("size", ["1b14b", "tiny"])
@pytest.mark.parametrize("arg", ["emo", "std", "std_to_emo"])
def test_an_anneal_differs_from_its_run_in_what_its_file_names(size, arg):
    kind = "emo" if arg == "emo" else "stdmoe"
    suffix = ":1t" if size == "1b14b" else ""
    before = load_config(str(REPO / f"experiments/{kind}_{size}.py{suffix}"))
    config = load_config(str(REPO / f"experiments/anneal_{size}.py:{arg}"))
    assert unexpected_differences(config, before, "all") == []
    found = {line.partition(":")[0] for line in counted_differences(config, before, "all")}
    switched = set()
    if arg == "std_to_emo":
        switched = POOL | ({"model.attention"} if size == "1b14b" else set())
    assert found == ANNEAL | switched
    assert config.optimizer.peak_lr == pytest.approx(rate(before, before.train.steps), rel=1e-6)
    if arg == "std_to_emo":
        emo = load_config(str(REPO / f"experiments/emo_{size}.py{suffix}"))
        assert config.moe == emo.moe and config.model == emo.model
        assert config.data == before.data


def test_the_tiny_anneal_is_sixty_steps_more():
    config = from_config_dict(presets.anneal_tiny("std_to_emo"))
    assert (config.train.steps, config.optimizer.decay_steps) == (260, 60)
    assert (rate(config, 200), rate(config, 260)) == (pytest.approx(4e-4), 0.0)


def test_an_anneal_that_there_is_not():
    with pytest.raises(ConfigError, match="'emo_to_std': must be one of emo, std, std_to_emo"):
        presets.anneal_tiny("emo_to_std")


def test_the_dense_recipe_skips_spikes_and_the_others_do_not():
    assert from_config_dict(presets.dense_1b()).optimizer.skip_window == 128
    assert from_config_dict(presets.dense_1b()).optimizer.skip_sigma == 6.0
    assert from_config_dict(presets.emo_1b14b()).optimizer.skip_window == 0

"""Seeds have 64 bits wherever something is drawn; those of 32 draw what they always drew."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from tiny import tiny_config

from emo_jax.analysis.cluster import spherical_kmeans
from emo_jax.config import seeds
from emo_jax.generation.decode import Generator
from emo_jax.model.functions import ModelFunctions
from emo_jax.training.step import draw_pools

# Of the same low or the same high 32 bits, by pairs.
SEEDS = [0, 2**32, -1, 2**32 - 1, 2**63 - 1, -(2**63)]


def words(key):
    return np.asarray(jax.random.key_data(key))


def initial(seed):
    model = ModelFunctions(tiny_config(num_layers=1))
    return jax.jit(lambda: model.init(seed)["lm_head"]["kernel"])()


def pools(seed):
    config = dataclasses.replace(tiny_config(), seed=seed)
    return jax.jit(lambda: draw_pools(config, 3, np.arange(2)).size_BG)()


def generating(seed):
    model = ModelFunctions(tiny_config())
    return jax.random.key_data(Generator(model, {}, 0, seed=seed)._keys([[1, 2]], [0], 1))


def keys(seed):
    return words(seeds.key(seed))


@pytest.mark.parametrize("draw", [keys, initial, pools, generating])
def test_every_bit_counts(draw):
    found = {seed: np.asarray(draw(seed)) for seed in SEEDS}
    for a, b in itertools.combinations(SEEDS, 2):
        assert (found[a] != found[b]).any(), f"{a} and {b}"


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_seeds_of_32_bits_have_the_keys_of_jax(seed):
    np.testing.assert_array_equal(words(seeds.key(seed)), words(jax.random.key(np.uint32(seed))))


def test_a_step_that_is_traced_in_the_training_loop_draws():
    """It allows no transfer that is not asked for."""
    config = dataclasses.replace(tiny_config(), seed=2**40)
    step = jax.jit(lambda rows_B: draw_pools(config, 3, rows_B))
    rows_B = jax.device_put(np.arange(2))
    with jax.transfer_guard("disallow"):
        step(rows_B)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_are_those_of_jax_with_64_bits(kind):
    with jax.default_prng_impl(kind):
        with jax.enable_x64(True):
            found = [(seed, words(jax.random.key(seed))) for seed in SEEDS]
        for seed, right in found:
            np.testing.assert_array_equal(words(seeds.key(seed)), right)


def test_groups_of_large_seeds_are_made():
    """scikit-learn by itself takes 32 bits."""
    rows = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ids = [spherical_kmeans(rows, 5, seed).ids_N for seed in (2**32, 2**32, 2**33)]
    assert (ids[0] == ids[1]).all() and (ids[0] != ids[2]).any()

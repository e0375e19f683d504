"""A dense model, a store of its bytes, and what training would make of its branches."""

import dataclasses

import jax
import numpy as np
import pytest
from runs import emo_here, write_corpus
from tiny import dense_config

from emo_jax.files.trees import flatten
from emo_jax.hf.sources import TreeSource
from emo_jax.model.functions import ModelFunctions
from emo_jax.saved.load import load_model
from emo_jax.saved.transfer import import_leaves


def save(workdir, config, params):
    """A workdir with these parameters as step 0."""
    import_leaves(TreeSource(flatten(params)), config, workdir, lambda unfinished: None)
    return workdir


def moved(params, by):
    """Parameters with random numbers added."""
    draw = np.random.default_rng(by)
    return jax.tree.map(
        lambda leaf: np.float32(leaf + 0.1 * draw.standard_normal(leaf.shape)), params
    )


def trained(workdir, change, name=None):
    """A branch whose parameters were changed."""
    loaded = load_model(str(workdir))
    name = name or workdir.name
    new = workdir.with_name(f"{name}_trained") / name
    new.parent.mkdir()
    save(new, loaded.config, change(loaded.params))
    (new / "init.json").write_bytes((workdir / "init.json").read_bytes())
    return new


@pytest.fixture(scope="session")
def byte_store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("branches")
    argv = ("--output", folder / "store", "--tokenizer", "bytes")
    assert emo_here("prepare", write_corpus(folder / "corpus.jsonl", 60), *argv) == 0
    return folder / "store"


@pytest.fixture(scope="session")
def dense_seed(tmp_path_factory):
    """A dense model of the store's bytes."""
    config = dense_config()
    model = dataclasses.replace(config.model, vocab_size=259)
    config = dataclasses.replace(config, model=model, name="seed")
    params = jax.device_get(jax.jit(ModelFunctions(config).init, static_argnums=0)(5))
    return save(tmp_path_factory.mktemp("seed") / "seed", config, params)

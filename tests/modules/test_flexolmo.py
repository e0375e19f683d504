"""FlexOlmo: experts trained beside a public model, each alone, and put together untrained."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from branching import save, trained
from runs import emo_here, equal_trees
from tiny import tiny_batch

import emo_jax
from emo_jax.batch import from_documents
from emo_jax.config import from_config_dict, to_dict
from emo_jax.data.store import TokenStore
from emo_jax.errors import ConfigError, UsageError
from emo_jax.files.trees import flatten
from emo_jax.hf import import_model
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.transformer import ForwardInputs
from emo_jax.modules.opt_out import opt_out
from emo_jax.moe.router import RouterTokens
from emo_jax.saved.load import load_model

ROUTER = "layers/mlp/router/kernel"
EXPERTS = [f"layers/mlp/experts/{name}" for name in ("gate", "up", "down")]
EXAMPLES = 6


@pytest.fixture(scope="module")
def branches(dense_seed, byte_store, tmp_path_factory):
    """One of each domain."""
    made = emo_jax.branch(
        *(dense_seed, byte_store, ("cooking", "law"), tmp_path_factory.mktemp("flex") / "b"),
        method="flexolmo",
        steps=2,
        examples=EXAMPLES,
    )
    return [one.workdir for one in made]


@pytest.fixture(scope="module")
def three(branches):
    """Branches whose own expert and column differ; the last is a second one of law."""

    def change(by):
        def add(params):
            flat, draw = flatten(params), np.random.default_rng(by)
            for path in EXPERTS:
                flat[path] = flat[path].copy()
                flat[path][:, 1] += 0.1 * draw.standard_normal(flat[path][:, 1].shape)
            flat[ROUTER] = flat[ROUTER].copy()
            flat[ROUTER][:, :, 1] += draw.standard_normal(flat[ROUTER].shape[:2])
            return emo_jax.files.trees.unflatten(flat)

        return add

    names = (None, None, "medicine")
    paths = (*branches, branches[1])
    return [trained(path, change(n), names[n]) for n, path in enumerate(paths)]


def slow_row(model, params, store):
    """The mean of the documents' embeddings in each layer, a document at a time, (L,D)."""
    config = model.config
    S, found = config.data.seq_len, []

    @jax.jit
    def read_by_routers(params, batch):
        inputs = ForwardInputs(batch.segment_ids, batch.positions, RouterTokens(batch.pool_ids))
        bound, reads = model.bind(params), []
        x_1SD = bound.embedded(batch)
        for number in range(config.model.num_layers):
            layer = bound.layer(number)
            x_1SD, _ = layer.attend(x_1SD, inputs)
            reads.append(layer.mlp_norm(x_1SD))
            x_1SD = x_1SD + layer.mlp(reads[-1])
        return reads

    for document in store.documents("train", 0, EXAMPLES):
        length = min(len(document.tokens), S)
        tokens, segments = np.zeros((1, S), np.int32), np.full((1, S), -1, np.int32)
        tokens[0, :length], segments[0, :length] = document.tokens[:length], 0
        reads = read_by_routers(params, from_documents(tokens, segments))
        means = [np.asarray(read[0, :length], np.float64).mean(axis=0) for read in reads]
        found.append([mean_D / np.linalg.norm(mean_D) for mean_D in means])
    return np.mean(found, axis=0)


def test_a_branch_begins_as_the_public_model(dense_seed, byte_store, branches):
    public, store = load_model(str(dense_seed)), TokenStore.open(byte_store)
    model, theirs = ModelFunctions(public.config), flatten(public.params)
    parts = {"cooking": store.only(["cooking"]), "law": store.only(["law"])}
    batch = tiny_batch(public.config)
    real = np.asarray(batch.segment_ids) >= 0
    expected = np.asarray(model.logits(public.params, batch))[real][:, :259]
    for workdir in branches:
        ours = load_model(str(workdir))
        moe, found = ours.config.moe, flatten(ours.params)
        assert (moe.num_experts, moe.top_k, moe.num_shared_experts) == (2, 2, 0)
        assert ours.config.optimizer.frozen == ("embeddings", "attention", "norms", "old_experts")
        assert ours.config.optimizer.weight_decay == 0
        for path in EXPERTS:
            dense = theirs[path.replace("/experts/", "/")]
            np.testing.assert_array_equal(found[path], np.stack([dense, dense], axis=1))
        for path in set(found) - {ROUTER, *EXPERTS}:
            np.testing.assert_array_equal(found[path], theirs[path])
        rows = [slow_row(model, public.params, s) for s in (store, parts[workdir.name])]
        np.testing.assert_allclose(found[ROUTER], np.stack(rows, axis=-1), atol=2e-6)
        logits = ModelFunctions(ours.config).logits(ours.params, batch)
        np.testing.assert_allclose(np.asarray(logits)[real][:, :259], expected, atol=2e-5)


def test_the_public_column_is_of_what_the_model_was_trained_on(
    dense_seed, byte_store, branches, tmp_path
):
    loaded = load_model(str(dense_seed))
    data = dataclasses.replace(loaded.config.data, domains=("cooking",))
    config = dataclasses.replace(loaded.config, data=data)
    public = save(tmp_path / "public", config, loaded.params)
    (one,) = emo_jax.branch(
        *(public, byte_store, ("law",), tmp_path / "b"), method="flexolmo", examples=EXAMPLES
    )
    found = load_model(str(one.workdir)).params["layers"]["mlp"]["router"]["kernel"]
    cooking, law = (
        load_model(str(b)).params["layers"]["mlp"]["router"]["kernel"] for b in branches
    )
    np.testing.assert_array_equal(found[..., 0], cooking[..., 1])
    np.testing.assert_array_equal(found[..., 1], law[..., 1])


@pytest.mark.system
def test_training_moves_the_own_expert_and_its_column_only(branches, tmp_path):
    """For the length of a run, with every bit compared."""
    before = load_model(str(branches[0]))
    values = to_dict(before.config)
    emo_jax.train(values, tmp_path / "run", init_from=f"{branches[0]}@0", init="weights")
    after = flatten(load_model(str(tmp_path / "run")).params)
    for path, leaf in flatten(before.params).items():
        moved = leaf.view(np.uint32) != np.asarray(after[path]).view(np.uint32)
        if path in EXPERTS:
            assert moved[:, 1].mean() > 0.9
            moved = moved[:, 0]
        elif path == ROUTER:
            assert moved[:, :, 1].mean() > 0.9
            moved = moved[:, :, 0]
        assert not moved.any(), path


def test_experts_side_by_side_in_numpy(three, tmp_path):
    made = emo_jax.mix(three, tmp_path / "mixed")
    assert made.experts == ("public", "cooking", "law", "medicine")
    moe = made.config.moe
    assert (moe.num_experts, moe.top_k, moe.pool.forced_experts) == (4, 4, 0)
    assert made.config.optimizer.frozen == () and not moe.normalize_picks
    parts = [flatten(load_model(str(path)).params) for path in three]
    found = flatten(load_model(str(tmp_path / "mixed")).params)
    for path in (ROUTER, *EXPERTS):
        axis = 2 if path == ROUTER else 1
        columns = [parts[0][path].take([0], axis), *(p[path].take([1], axis) for p in parts)]
        np.testing.assert_array_equal(found.pop(path), np.concatenate(columns, axis))
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, parts[0][path])
    assert emo_jax.mix(three, tmp_path / "two", top_k=2).config.moe.top_k == 2


def test_opting_out_gives_the_mixture_of_the_others(three, tmp_path):
    whole = emo_jax.mix(three, tmp_path / "whole").workdir
    others = emo_jax.mix([three[0], three[2]], tmp_path / "others").workdir
    folder, config = opt_out(whole, ["law"], tmp_path / "hf")
    params, _ = import_model(folder)
    loaded = load_model(str(others))
    known = loaded.params  # a folder has no rows of ids that no tokenizer makes
    known["embed"]["embedding"][259:] = 0
    known["lm_head"]["kernel"][:, 259:] = 0
    assert equal_trees(params, known)
    assert (config.moe.num_experts, config.moe.top_k) == (3, 3)
    # A run that began from the mixture has the names of its experts.
    later = save(tmp_path / "later", loaded.config, loaded.params)
    names = {"experts": ["public", "cooking", "medicine"]}
    (later / "init.json").write_text(json.dumps(names))
    assert opt_out(later, ["cooking", "medicine"], tmp_path / "one")[1].moe.top_k == 1
    argv = ("select", whole, "--output", tmp_path / "no")
    assert emo_here(*argv, "--without", "lawn") == 2
    assert emo_here(*argv, "--without", "public,cooking,law,medicine") == 2
    assert emo_here(*argv, "--without", "law", "--keep", "2") == 2
    assert emo_here(*argv) == 2
    assert emo_here("select", three[0], "--without", "law", "--output", tmp_path / "no") == 2
    assert not (tmp_path / "no").exists()


def test_a_branch_that_was_trained_further_than_its_expert_is_refused(three, tmp_path):
    def norm(params):
        flat = {path: np.array(leaf) for path, leaf in flatten(params).items()}
        flat["layers/mlp_norm/scale"][1, 3] *= 1.5
        return emo_jax.files.trees.unflatten(flat)

    wrong = trained(three[1], norm, "wrong")
    with pytest.raises(UsageError, match=r"differ in layers/mlp_norm/scale, layer 1: they have"):
        emo_jax.mix([three[0], wrong], tmp_path / "mixed")
    loaded = load_model(str(three[1]))
    values = to_dict(loaded.config)
    values["moe"]["pool"]["forced_experts"] = 0
    other = save(tmp_path / "other", from_config_dict(values), loaded.params)
    with pytest.raises(UsageError, match=r"other: has no experts of its own"):
        emo_jax.mix([three[0], other], tmp_path / "mixed")
    with pytest.raises(UsageError, match=r"--with-seed .*: is of dense branches"):
        emo_jax.mix(three[:2], tmp_path / "mixed", with_seed=three[2])
    assert not (tmp_path / "mixed").exists()


def test_the_negative_bias(dense_seed, byte_store, tmp_path):
    """No layout has it, and it is at most 0; what it does: tests/moe/test_expert_bias.py."""
    (one,) = emo_jax.branch(
        *(dense_seed, byte_store, ("law",), tmp_path / "b"),
        method="flexolmo",
        examples=1,
        expert_bias=-0.7,
    )
    assert load_model(str(one.workdir)).config.moe.expert_bias == -0.7
    with pytest.raises(UsageError, match=r"has moe.expert_bias = -0.7, as no layout can"):
        emo_jax.export(one.workdir, tmp_path / "hf")
    moe = load_model(str(one.workdir)).config.moe
    with pytest.raises(ConfigError, match=r"moe.expert_bias = 0.1: must be at most 0"):
        dataclasses.replace(moe, expert_bias=0.1)

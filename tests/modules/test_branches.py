"""Branches of a dense model, and the mixture that is made of them (BTX)."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from branching import moved, save, trained
from runs import emo_here, equal_trees
from tiny import tiny_batch, tiny_config

import emo_jax
from emo_jax.config import to_dict
from emo_jax.config.file import load_config
from emo_jax.data.store import TokenStore
from emo_jax.errors import UsageError
from emo_jax.files.trees import flatten
from emo_jax.model.functions import ModelFunctions
from emo_jax.saved.load import load_model

DOMAINS = ("cooking", "law")


@pytest.fixture
def branches(dense_seed, byte_store, tmp_path):
    made = emo_jax.branch(dense_seed, byte_store, DOMAINS, tmp_path / "branches", steps=3)
    return [one.workdir for one in made]


def test_a_branch_begins_with_the_model(dense_seed, branches, byte_store, tmp_path):
    theirs = load_model(str(dense_seed))
    for domain, workdir in zip(DOMAINS, branches, strict=True):
        ours = load_model(str(workdir))
        assert equal_trees(ours.params, theirs.params)
        config = load_config(str(workdir.with_suffix(".py")))
        assert config == ours.config
        assert config.data.domains == (domain,) and config.data.store == str(byte_store)
        assert (config.train.steps, config.optimizer.warmup_steps) == (3, 0)
        assert config.optimizer.peak_lr == theirs.config.optimizer.peak_lr
        record = json.loads((workdir / "init.json").read_text())
        assert (record["workdir"], record["step"], record["mode"]) == (
            str(dense_seed),
            0,
            "weights",
        )
    # More branches of the same model may follow; those that are there stay.
    with pytest.raises(UsageError, match=r"law: is there already"):
        emo_jax.branch(dense_seed, byte_store, ("law",), tmp_path / "branches")


def test_a_mixture_of_branches_in_numpy(dense_seed, branches, tmp_path):
    """Experts are the feed-forwards, bit for bit; all else is the mean; the router is new."""
    branches = [trained(b, lambda p, n=n: moved(p, n)) for n, b in enumerate(branches)]
    made = emo_jax.mix(branches, tmp_path / "mixed", with_seed=dense_seed, seed=3)
    assert made.experts == ("cooking", "law", "seed")
    moe = made.config.moe
    assert (moe.num_experts, moe.top_k, moe.num_shared_experts) == (3, 2, 0)
    assert moe.normalize_picks and moe.load_balance_weight == 0.01 * 2
    parts = [flatten(load_model(str(path)).params) for path in (*branches, dense_seed)]
    found = flatten(load_model(str(tmp_path / "mixed")).params)
    router = found.pop("layers/mlp/router/kernel")
    assert router.shape == (2, 16, 3) and 0.1 < router.std() < 0.25 and abs(router).max() <= 0.6
    for name in ("gate", "up", "down"):
        stacked = np.stack([part.pop(f"layers/mlp/{name}") for part in parts], axis=1)
        np.testing.assert_array_equal(found.pop(f"layers/mlp/experts/{name}"), stacked)
    assert set(found) == set(parts[0])
    for path, leaf in found.items():
        mean = np.mean([part[path].astype(np.float64) for part in parts], axis=0)
        np.testing.assert_array_equal(leaf, mean.astype(np.float32), err_msg=path)


def test_branches_that_were_not_trained_are_the_model(dense_seed, branches, tmp_path):
    """Weights of the picks sum to 1, so that equal experts are one feed-forward."""
    made = emo_jax.mix(branches, tmp_path / "mixed")
    dense, mixed = load_model(str(dense_seed)), load_model(str(made.workdir))
    batch = tiny_batch(dense.config)
    expected = ModelFunctions(dense.config).logits(dense.params, batch)
    found = ModelFunctions(mixed.config).logits(mixed.params, batch)
    real = np.asarray(batch.segment_ids) >= 0  # experts do not compute padding
    np.testing.assert_allclose(found[real][:, :259], expected[real][:, :259], atol=2e-5)
    for path, leaf in flatten(dense.params).items():
        if "/mlp/" not in path:
            np.testing.assert_array_equal(flatten(mixed.params)[path], leaf)


def test_branches_of_different_parents_or_shapes(dense_seed, branches, byte_store, tmp_path):
    loaded = load_model(str(dense_seed))
    other = save(tmp_path / "other", loaded.config, moved(loaded.params, 1))
    (stranger,) = emo_jax.branch(other, byte_store, ("law",), tmp_path / "others")
    with pytest.raises(UsageError, match=r"cooking and .*law: of different parents, .*seed@0 and"):
        emo_jax.mix([branches[0], stranger.workdir], tmp_path / "mixed")
    with pytest.raises(UsageError, match=r"--with-seed .*: is not what the branches began from"):
        emo_jax.mix(branches, tmp_path / "mixed", with_seed=other)
    config = dataclasses.replace(
        loaded.config, model=dataclasses.replace(loaded.config.model, mlp_dim=32)
    )
    params = jax.jit(ModelFunctions(config).init, static_argnums=0)(5)
    wide = save(tmp_path / "wide", config, params)
    with pytest.raises(UsageError, match=r"of different shapes: model.mlp_dim: 24 -> 32"):
        emo_jax.mix([branches[0], wide], tmp_path / "mixed")
    config = tiny_config(vocab_size=259)
    routed = save(
        tmp_path / "routed", config, jax.jit(ModelFunctions(config).init, static_argnums=0)(5)
    )
    with pytest.raises(UsageError, match=r"only .*cooking is dense; give branches of one kind"):
        emo_jax.mix([branches[0], routed], tmp_path / "mixed")
    with pytest.raises(UsageError, match=r"seed: did not begin from another run"):
        emo_jax.mix([branches[0], dense_seed], tmp_path / "mixed")
    with pytest.raises(UsageError, match=r"cooking: more than one expert would be called so"):
        emo_jax.mix([branches[0], branches[0]], tmp_path / "mixed")
    with pytest.raises(UsageError, match=r"--top-k 3: must be 1..2"):
        emo_jax.mix(branches, tmp_path / "mixed", top_k=3)
    with pytest.raises(UsageError, match=r"give two or more branches"):
        emo_jax.mix(branches[:1], tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_domains_and_models_that_cannot_be_branched(dense_seed, byte_store, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=r"no domain 'lawn' \(did you mean 'law'\?\)"):
        emo_jax.branch(dense_seed, byte_store, ("cooking", "lawn"), out)
    with pytest.raises(UsageError, match=r"--domains law,law: must be different names"):
        emo_jax.branch(dense_seed, byte_store, ("law", "law"), out)
    with pytest.raises(UsageError, match=r"--method btm: must be one of btx, flexolmo"):
        emo_jax.branch(dense_seed, byte_store, ("law",), out, method="btm")
    config = tiny_config(vocab_size=259)
    params = jax.jit(ModelFunctions(config).init, static_argnums=0)(5)
    experts = save(tmp_path / "experts", config, params)
    with pytest.raises(UsageError, match=r"tiny has experts already; give a dense model"):
        emo_jax.branch(experts, byte_store, ("law",), out)
    tokens = TokenStore.open(byte_store).count("train", domain="law")
    loaded = load_model(str(dense_seed))
    data = dataclasses.replace(loaded.config.data, seq_len=tokens + 1)
    long = save(tmp_path / "long", dataclasses.replace(loaded.config, data=data), loaded.params)
    with pytest.raises(UsageError, match=f"'law' has {tokens} tokens to train on, less than one"):
        emo_jax.branch(long, byte_store, ("law",), out)
    assert not out.exists()


@pytest.mark.system
def test_the_commands(dense_seed, byte_store, tmp_path, capsys):
    """Branch, train each, mix, train on: as typed."""
    out = tmp_path / "b"
    argv = ("branch", dense_seed, "--data", byte_store, "--domains", "cooking,law", "--output", out)
    assert emo_here(*argv, "--steps", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert emo_here(*line.split()[1:]) == 0
    assert emo_here("mix", out / "cooking", out / "law", "--output", tmp_path / "mixed") == 0
    assert "2 experts, 2 for a token: cooking, law" in capsys.readouterr().out
    a, b = (load_model(str(out / name)) for name in DOMAINS)
    assert (a.step, b.step) == (2, 2)
    assert not equal_trees(a.params, b.params)
    mixed = load_model(str(tmp_path / "mixed"))
    np.testing.assert_array_equal(
        mixed.params["layers"]["mlp"]["experts"]["up"][:, 1], b.params["layers"]["mlp"]["up"]
    )
    values = to_dict(mixed.config)
    values["data"] |= {"store": str(byte_store)}
    values["train"] |= {"steps": 1}
    values["optimizer"] |= {"frozen": ["embeddings", "attention", "norms", "routed"]}
    values["optimizer"] |= {"warmup_steps": 0}
    emo_jax.train(values, tmp_path / "on", init_from=f"{tmp_path / 'mixed'}@0", init="weights")
    assert json.loads((tmp_path / "on/init.json").read_text())["experts"] == ["cooking", "law"]
    after, before = flatten(load_model(str(tmp_path / "on")).params), flatten(mixed.params)
    changed = {path for path in after if not np.array_equal(after[path], before[path])}
    assert changed == {"layers/mlp/router/kernel"}

"""What is recorded of a sample is what the router says of each document by itself."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from runs import emo_here
from tiny import NO_POOL, dense_config, tiny_config

from emo_jax.analysis import activations
from emo_jax.analysis.activations import Activations, record, same_documents, window_of
from emo_jax.analysis.sample import Sample, sample_documents
from emo_jax.config import MeshConfig
from emo_jax.data.store import TokenStore
from emo_jax.errors import DataError, UsageError
from emo_jax.hf import export_model
from emo_jax.model.functions import ModelFunctions
from emo_jax.parallel.mesh import make_mesh
from emo_jax.selection.examples import pack


@pytest.fixture(scope="module")
def model():
    config = tiny_config(pool=NO_POOL)
    return ModelFunctions(config, make_mesh(MeshConfig()))


@pytest.fixture(scope="module")
def params(model):
    params = jax.jit(ModelFunctions(model.config).init, static_argnums=0)(1)
    return jax.device_put(params, model.param_shardings())


def _sample(lengths=(20, 7, 32, 40, 3), domains=(0, 0, 1, 1, 2)):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 50, n).astype(np.int32) for n in lengths]
    return Sample(documents, np.array(domains, np.int32), ("a", "b", "c"), {"seed": 0})


def test_each_token_has_the_probabilities_of_its_document_alone(
    model, params, tmp_path, monkeypatch
):
    sample = _sample()
    found = record(model, params, sample, tmp_path / "made", {"name": "tiny"})
    assert (found.num_tokens, found.num_layers, found.num_routed, found.num_picks) == (102, 2, 7, 2)
    np.testing.assert_array_equal(found.tokens_N, np.concatenate(sample.documents))
    np.testing.assert_array_equal(found.doc_ends_D, [20, 27, 59, 99, 102])
    np.testing.assert_array_equal(np.bincount(found.domains_N), [27, 72, 3])
    alone = ModelFunctions(model.config)
    host, S = jax.device_get(params), model.config.data.seq_len
    run = jax.jit(lambda p, b: alone.hidden(p, b, token_probs=True)[1].probs_BSR)
    start = 0
    for ids in sample.documents:
        for at in range(0, len(ids), S):
            part = ids[at : at + S]
            (batch,) = pack([part], S, 1, 0)
            probs_LSR = np.asarray(run(host, batch))[:, 0, : len(part)]
            recorded = found.probs(slice(start, start + len(part)))
            np.testing.assert_allclose(recorded, np.moveaxis(probs_LSR, 0, 1), atol=2e-3)
            start += len(part)
    monkeypatch.setattr(activations, "_PIECE_BYTES", 10 * 4 * 2 * 7)
    pieces = list(found.pieces())
    assert [len(piece) for _, piece in pieces] == [10] * 10 + [2]
    whole = np.concatenate([piece for _, piece in pieces])
    np.testing.assert_allclose(whole.sum(-1), 1, atol=5e-3)
    np.testing.assert_array_equal(whole[20:40], found.probs(slice(20, 40)))
    again = record(model, params, sample, tmp_path / "again", {"name": "tiny"})
    assert same_documents(found, again)
    other = record(model, params, _sample(lengths=(20, 7, 32, 40, 4)), tmp_path / "other", {})
    assert not same_documents(found, other)


def test_picks_are_those_of_the_router(model, params, tmp_path):
    """Also where probabilities are equal in float16."""
    near = jax.tree_util.tree_map_with_path(
        lambda path, a: a * 1e-5 if "router" in jax.tree_util.keystr(path) else a, params
    )
    sample = _sample()
    found = record(model, near, sample, tmp_path / "made", {"name": "tiny"})
    probs = found.probs(slice(None))
    picks = found.picks(slice(None))
    of_largest = np.argsort(-probs, axis=-1, kind="stable")[..., :2]
    assert (picks != of_largest).any()  # float16 does not tell them apart
    alone = ModelFunctions(model.config)
    run = jax.jit(lambda p, b: alone.hidden(p, b)[1].counts_E)
    counts_LE = sum(
        np.asarray(run(jax.device_get(near), batch))
        for batch in pack(sample.documents, model.config.data.seq_len, 1, 0)
    )
    ours_LR = [np.bincount(picks[:, layer].ravel(), minlength=7) for layer in range(2)]
    np.testing.assert_array_equal(counts_LE[:, :7], ours_LR)


def test_long_windows_are_not_filled_with_nothing():
    config = tiny_config(pool=NO_POOL)
    long = dataclasses.replace(config, data=dataclasses.replace(config.data, seq_len=4096))
    assert window_of(long, _sample(lengths=(20, 300, 3, 3, 3))) == 384
    assert window_of(config, _sample(lengths=(20, 300, 3, 3, 3))) == config.data.seq_len


def test_a_sample_is_even_over_domains_and_the_same_each_time(store):
    opened = TokenStore.open(store)
    sample = sample_documents(opened, "train", tokens=600, max_length=40, min_length=10)
    sizes = np.bincount(sample.domain_ids, weights=[len(ids) for ids in sample.documents])
    assert sample.domains == opened.domains
    assert (sizes >= 300).all() and (sizes < 300 + 40).all()
    assert all(10 <= len(ids) <= 40 for ids in sample.documents)
    again = sample_documents(opened, "train", tokens=600, max_length=40, min_length=10)
    other = sample_documents(opened, "train", tokens=600, max_length=40, min_length=10, seed=1)
    assert [ids.tolist() for ids in again.documents] == [ids.tolist() for ids in sample.documents]
    assert [ids.tolist() for ids in other.documents] != [ids.tolist() for ids in sample.documents]
    with pytest.raises(UsageError, match="no split 'tset'; it has"):
        sample_documents(opened, "tset", tokens=600)
    with pytest.raises(UsageError, match="no document of at least 9999 tokens"):
        sample_documents(opened, "test", tokens=600, min_length=9999)


def test_damage_and_absence_are_named(model, params, tmp_path, monkeypatch):
    monkeypatch.setenv("EMO_READ_WAIT", "0.2")
    record(model, params, _sample(), tmp_path / "made", {"name": "tiny"})
    with pytest.raises(UsageError, match=r"no activations\.json; make it with emo activations"):
        Activations.open(tmp_path)
    file = tmp_path / "made/activations.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": "other"}))
    with pytest.raises(DataError, match=r"damaged \(another format\); make it again"):
        Activations.open(tmp_path / "made")
    found = record(model, params, _sample(), tmp_path / "lost", {"name": "tiny"})
    (chunk,) = (p for p in (tmp_path / "lost/probs").rglob("*") if p.is_file() and p.suffix == "")
    chunk.unlink()
    with pytest.raises(DataError, match=r"probs: cannot be read .*make it again"):  # no zeros
        list(found.pieces())
    (tmp_path / "lost/probs/more").symlink_to(file)
    with pytest.raises(DataError, match=r"probs/more is a link to .*, outside of its folder"):
        Activations.open(tmp_path / "lost")
    file = tmp_path / "list/activations.json"
    file.parent.mkdir()
    file.write_text("[]")
    with pytest.raises(DataError, match="damaged"):
        Activations.open(file.parent)


def test_what_a_killed_one_left_is_removed(model, params, tmp_path):
    left = tmp_path / f".made.{'0' * 16}.partial"
    (left / "probs").mkdir(parents=True)
    record(model, params, _sample(), tmp_path / "made", {"name": "tiny"})
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_domains_without_a_document_are_named_and_left_out(tmp_path):
    lines = [
        json.dumps({"text": "word " * (30 if name != "short" else 1), "domain": name})
        for name in ("a", "short", "z")
        for _ in range(200)
    ]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    argv = ("prepare", tmp_path / "docs.jsonl", "--output", tmp_path / "store")
    assert emo_here(*argv, "--tokenizer", "bytes") == 0
    opened = TokenStore.open(tmp_path / "store")
    sample = sample_documents(opened, "train", tokens=600)
    assert opened.domains == ("a", "short", "z") and sample.domains == ("a", "z")
    assert sample.about["missing"] == ["short"] and set(sample.domain_ids.tolist()) == {0, 1}


@pytest.mark.system
def test_the_commands(finished_run, store, tmp_path, capsys):
    out = tmp_path / "made"
    argv = ("activations", finished_run, "--data", store, "--tokens", "800", "--min-length", "8")
    assert emo_here(*argv, "--output", out) == 0
    assert "2 layers, 7 routed experts" in capsys.readouterr().out
    found = Activations.open(out)
    assert found.about["pool"].startswith("uniform") and found.domains == ("cooking", "law")
    assert emo_here(*argv, "--output", out) == 2
    assert "is there already" in capsys.readouterr().err
    made = tmp_path / "clusters"
    argv = ("cluster", out, "--clusters", "2", "--per-layer", "--output", made)
    assert emo_here(*argv) == 0
    rows = json.loads((made / "clusters.json").read_text())["rows"]
    for row in rows:
        ids = np.load(made / row["file"])
        assert len(ids) == (800 if row["of"] == "tokens" else len(found.doc_ends_D))
        assert [group["size"] for group in row["groups"]] == np.bincount(ids, minlength=2).tolist()
        assert sum(sum(group["tokens"].values()) for group in row["groups"]) == found.num_tokens
    assert emo_here(*argv) == 2
    assert "clusters: is there already" in capsys.readouterr().err
    assert [(row["of"], row["layer"]) for row in rows] == [
        (of, layer) for layer in (None, 0, 1) for of in ("tokens", "documents")
    ]
    assert all(0 <= row["scores"]["nmi"] <= 1 for row in rows)
    for more, said in (
        (["--layer", "2"], "--layer 2: the model has layers 0..1"),
        (["--clusters", "9999"], "--clusters 9999: must be 1..8"),
    ):
        assert emo_here("cluster", out, *more) == 2
        assert said in capsys.readouterr().err


def test_a_dense_model_has_nothing_to_look_at(store, tmp_path, capsys):
    config = dense_config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=259))
    params = jax.jit(ModelFunctions(config).init, static_argnums=0)(0)
    export_model(jax.device_get(params), config, tmp_path / "dense")
    for name in ("activations", "explore"):
        argv = (name, tmp_path / "dense", "--data", store, "--output", tmp_path / name)
        assert emo_here(*argv) == 2
        assert "is dense, it has no experts to look at" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense"]

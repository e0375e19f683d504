"""Runs whose pools follow labels: whose domains they are, and what is refused before the start."""

import dataclasses
import json
import shutil

import pytest
import runs
from corpus_fixtures import DOMAINS, corpus, store, store_path  # noqa: F401
from tiny import tiny_config

import emo_jax
from emo_jax.config import (
    CheckpointConfig,
    DataConfig,
    PoolConfig,
    SourceConfig,
)
from emo_jax.data.sources import open_data
from emo_jax.errors import ConfigError, UsageError
from emo_jax.preparation.prepare import prepare
from emo_jax.run.workdir import read_workdir_config
from emo_jax.tokenizer.load import byte_tokenizer
from emo_jax.training.label_pools import with_labels


def _config(kind="label_table", labels=(), **pool):
    size = 0 if any("=" in label for label in labels) else 3
    pool = PoolConfig(kind=kind, size=size, labels=labels, **pool)
    return tiny_config(vocab_size=259, vocab_multiple=1, pool=pool)


def _labels(config, path):
    config = dataclasses.replace(config, data=DataConfig(store=str(path), seq_len=32))
    return with_labels(config, open_data(config.data)).moe.pool.labels


def test_labels_are_those_of_the_data_in_its_order(store_path):  # noqa: F811
    assert _labels(_config(), store_path) == DOMAINS
    assert _labels(_config(labels=DOMAINS[::-1]), store_path) == DOMAINS
    given = ("law=0-2", "music=3-4", "cooking=5-6")
    assert _labels(_config(labels=given), store_path) == (given[2], given[0], given[1])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("cooking", "law"), "has no domain 'music', which documents of"),
        ((*DOMAINS, "maths"), r"'maths' is no domain of .* \(cooking, law, music\); leave it out"),
    ],
)
def test_labels_that_do_not_fit_the_data(store_path, labels, said):  # noqa: F811
    with pytest.raises(ConfigError, match=said):
        _labels(_config(labels=labels), store_path)


def _prepared(folder, domains):
    folder.mkdir()
    texts = ({"text": "some words " * 9, "id": i} | d for i, d in enumerate(domains * 20))
    (folder / "docs.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    prepare([folder / "docs.jsonl"], folder / "store", byte_tokenizer())
    return folder / "store"


@pytest.mark.parametrize(
    ("domains", "said"),
    [
        ([{}], "none of its documents has a domain"),
        ([{"domain": "law"}, {}], "some of its documents have none"),
    ],
)
def test_documents_without_a_domain_are_refused(tmp_path, domains, said):
    with pytest.raises(UsageError, match=f"need a domain for every document, and {said}"):
        _labels(_config(), _prepared(tmp_path / "made", domains))


def test_a_mixture_gives_a_domain_to_what_has_none(tmp_path, store_path):  # noqa: F811
    bare = _prepared(tmp_path / "bare", [{}])
    sources = (
        SourceConfig(store=str(store_path), weight=0.5),
        SourceConfig(store=str(bare), weight=0.5, domain="web"),
    )
    config = dataclasses.replace(_config(), data=DataConfig(sources=sources, seq_len=32))
    assert with_labels(config, open_data(config.data)).moe.pool.labels == (*DOMAINS, "web")


@pytest.mark.system
def test_a_run_goes_on_with_its_bias_and_its_table_to_the_last_bit(tmp_path, store_path):  # noqa: F811
    config = _config("label_learned", label_rate=0.3)
    config = dataclasses.replace(
        config,
        moe=dataclasses.replace(
            config.moe,
            gate="sigmoid",
            score_bias="sign",
            bias_rate=0.01,
            capacity_factor=1.0,
            input_jitter=0.1,
        ),
        data=DataConfig(store=str(store_path), seq_len=32),
        train=dataclasses.replace(config.train, steps=6, log_every=1),
        checkpoint=CheckpointConfig(save_every=3, keep_last=2),
    )
    whole = tmp_path / "whole"
    emo_jax.train(config, whole)
    assert read_workdir_config(whole).moe.pool.labels == DOMAINS
    half = tmp_path / "half"
    shutil.copytree(whole, half)
    shutil.rmtree(half / "checkpoints" / "6")
    emo_jax.train(config, half)
    ours, theirs = runs.state_of(half, 6), runs.state_of(whole, 6)
    names = [name for name in theirs if "router" in str(name)]
    assert any("bias" in str(n) for n in names) and any("favour" in str(n) for n in names)
    assert runs.equal_trees(ours, theirs)
    assert (whole / "metrics.jsonl").read_text().count('"dropped_by_layer"') == 6
    # Training and its export agree on what the model is without them.
    found = emo_jax.evaluate(whole, store_path, windows=8, as_trained=True)
    nats = found.losses.ce_sum_CM
    assert abs(nats["as trained"] - nats["full"]).max() > 0.1
    folder = emo_jax.export(whole, tmp_path / "hf").folder
    again = emo_jax.evaluate(folder, store_path, windows=8)
    assert abs(again.losses.ce_sum_CM["full"] - nats["full"]).max() < 1e-3

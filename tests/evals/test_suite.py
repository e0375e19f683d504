"""Several stores at once: bits a byte by source, and micro and macro means."""

import dataclasses
import json
import math

import numpy as np
import pytest
import runs
from runs import emo_here

import emo_jax
from emo_jax.errors import UsageError
from emo_jax.preparation.prepare import prepare
from emo_jax.saved.load import load_model
from emo_jax.tokenizer.load import load_tokenizer, train_bpe


@pytest.fixture(scope="module")
def small(tmp_path_factory, finished_run):
    """A second store of the same tokenizer, with three domains and fewer tokens."""
    return runs.store_of_domains(tmp_path_factory.mktemp("small") / "small", finished_run, 3)


def test_means_are_over_bytes_and_over_sources(finished_run, store, small, tmp_path):
    loaded = emo_jax.load(finished_run)
    keep = {"keep": "50%", "windows": 8}
    alone = [emo_jax.evaluate(loaded, s, **keep).to_json() for s in (store, small)]
    suite = emo_jax.evaluate_suite(loaded, [store, small], **keep)
    assert list(suite.sources) == ["shared_store", small.name]
    found = suite.to_json()
    for one, name in zip(alone, suite.sources, strict=True):
        assert found["sources"][name] == {
            k: v for k, v in one.items() if k in found["sources"][name]
        }
    sizes = np.array([one["overall"]["bytes"] for one in alone])
    assert sizes[0] > sizes[1] > 0
    for way, of in (
        ("full", lambda one: one["overall"]["bits_per_byte"]),
        ("keep=4", lambda one: one["overall"]["keep"]["4"]["bits_per_byte"]),
    ):
        bits = np.array([of(one) for one in alone])
        means = found["bits_per_byte"][way]
        assert means["micro"] == pytest.approx((bits * sizes).sum() / sizes.sum(), rel=1e-6)
        assert means["macro"] == pytest.approx(bits.mean(), rel=1e-6)
        assert means["micro"] != pytest.approx(means["macro"], rel=1e-4)


def test_the_command_prints_a_row_for_each_source(finished_run, store, small, tmp_path, capsys):
    file = tmp_path / "suite.json"
    argv = ("eval", finished_run, "--data", store, "--data", small, "--windows", "8")
    assert emo_here(*argv, "--keep", "4", "--json", file) == 0
    rows = capsys.readouterr().out.splitlines()
    found = json.loads(file.read_text())
    for name, one in found["sources"].items():
        (row,) = (row for row in rows if row.strip().startswith(name))
        assert f"{one['overall']['bits_per_byte']:.3f}" in row
        assert f"{one['mean_of_domains']['bits_per_byte']:.3f}" in row
        assert f"{one['overall']['bytes']:,}" in row and f"{one['overall']['tokens']:,}" in row
    for mean, name in (("macro", "macro: mean of sources"), ("micro", "micro: all bytes")):
        (row,) = (row for row in rows if row.strip().startswith(name))
        assert f"{found['bits_per_byte']['full'][mean]:.3f}" in row
        assert f"{found['bits_per_byte']['keep=4'][mean]:.3f}" in row
    assert set(found["data"]) == set(found["sources"])


def test_stores_that_cannot_be_put_together(finished_run, store, small, tmp_path, refused):
    argv = ("eval", finished_run, "--data", store)
    assert "is given twice" in refused(2, *argv, "--data", store)
    (np.arange(4000, dtype=np.uint32) % 250 + 3).tofile(tmp_path / "part.npy")
    loaded = load_model(str(finished_run))
    raw = dataclasses.replace(
        loaded.config.data, raw_vocab_size=259, raw_eos_id=10, raw_dtype="uint32"
    )
    config = dataclasses.replace(loaded.config, data=raw)
    of_raw = dataclasses.replace(loaded, config=config, tokenizer=None)
    with pytest.raises(UsageError, match=r"part.npy: its tokenizer is not known, so its bytes"):
        emo_jax.evaluate_suite(of_raw, [store, tmp_path / "part.npy"], split="train")
    corpus = runs.write_corpus(tmp_path / "corpus.jsonl", 40)
    other = train_bpe([corpus.read_text()], 258)
    prepare([corpus], tmp_path / "other", other)
    assert "the tokenizer is not the store's" in refused(2, *argv, "--data", tmp_path / "other")
    # A model that has no tokenizer does not tell which of the stores is its own.
    without = dataclasses.replace(loaded, tokenizer=None)
    with pytest.raises(UsageError, match=r"other: its tokenizer is not that of .*shared_store"):
        emo_jax.evaluate_suite(without, [store, tmp_path / "other"])
    with pytest.raises(UsageError, match="names no store"):
        emo_jax.evaluate_suite(without, [])


def test_stores_of_one_name_are_called_by_their_paths(finished_run, small, tmp_path):
    corpus = runs.write_corpus(tmp_path / "corpus.jsonl", 40)
    twin = tmp_path / small.name
    prepare([corpus], twin, load_tokenizer("bytes"))
    suite = emo_jax.evaluate_suite(finished_run, [small, twin], windows=2)
    assert list(suite.sources) == [str(small), str(twin)]
    assert math.isfinite(suite.macro("full"))

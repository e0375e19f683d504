"""Some domains of a store: what a store of their documents alone would give."""

import dataclasses

import numpy as np
import pytest

from emo_jax.config import DataConfig
from emo_jax.data.provenance import documents_of
from emo_jax.data.sources import open_data
from emo_jax.data.store import TokenStore
from emo_jax.data.store_writer import SplitContent, write_store
from emo_jax.data.windows import Windows, open_windows
from emo_jax.errors import UsageError
from emo_jax.tokenizer.load import byte_tokenizer

DOMAINS = ("cooking", "law", "medicine", "rare", "unseen")
D = 2500  # documents: three blocks of the index
S = 32


def _split(documents):
    """(tokens, domain) of each document."""
    lengths = np.array([len(tokens) for tokens, _ in documents])
    ids = np.array([domain for _, domain in documents])
    return SplitContent(lengths, ids, [np.concatenate([t for t, _ in documents])])


@pytest.fixture(scope="module")
def documents():
    """Training documents; the rare ones are all in the second block."""
    draw = np.random.default_rng(0)
    found = []
    for n in range(D):
        tokens = draw.integers(3, 259, draw.integers(1, 40))
        tokens[-1] = 1
        found.append((tokens, 3 if n in (1500, 1501, 1777) else int(draw.integers(3))))
    return found


@pytest.fixture(scope="module")
def stores(documents, tmp_path_factory):
    """The whole store, and one with the documents of law and rare only."""
    folder = tmp_path_factory.mktemp("domains")
    kept = [(tokens, {1: 0, 3: 1}[m]) for tokens, m in documents if m in (1, 3)]
    held = [(np.array([5, 6, 1]), 1), (np.array([7, 1]), 0), (np.array([8, 1]), 4)]
    for name, domains, train, select in (
        ("whole", DOMAINS, documents, held),
        ("part", ("law", "rare"), kept, [(held[0][0], 0)]),
    ):
        splits = {"train": _split(train), "select": _split(select)}
        write_store(folder / name, tokenizer=byte_tokenizer(), domains=domains, splits=splits)
    return folder / "whole", folder / "part"


@pytest.mark.parametrize("packing", ["cut", "best_fit", "document"])
def test_the_windows_are_those_of_a_store_of_these_documents(stores, packing):
    whole, part = stores
    config = DataConfig(store=str(whole), domains=("rare", "law"), seq_len=S, packing=packing)
    ours = open_windows(config, source=open_data(config))
    theirs = Windows(TokenStore.open(part), S, packing=packing, repetition_filter=True)
    assert ours.domains == ("law", "rare") and len(ours) == len(theirs) > 100
    order = np.random.default_rng(1).permutation(len(ours))
    for mine, other in zip(ours.read(order), theirs.read(order), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_the_documents_are_those_of_the_store(stores, documents):
    store = TokenStore.open(stores[0]).only(["law", "rare"])
    kept = [(tokens, m) for tokens, m in documents if m in (1, 3)]
    (stream,) = store.streams("train")
    assert store.count("train", "documents") == stream.num_documents == len(kept)
    assert store.count("train") == stream.num_tokens == sum(len(t) for t, _ in kept)
    assert store.count("train", "documents", "rare") == 3
    ends = np.cumsum([len(t) for t, _ in kept])
    np.testing.assert_array_equal(stream.document_ends(0, len(kept)), ends)
    for first, stop in ((0, 0), (0, 1), (350, 420), (len(kept) - 1, len(kept)), (5, 5)):
        np.testing.assert_array_equal(stream.document_ends(first, stop), ends[first:stop])
        assert stream.document_ids(first, stop) == [""] * (stop - first)
        for found, (tokens, m) in zip(
            store.documents("train", first, stop), kept[first:stop], strict=True
        ):
            np.testing.assert_array_equal(found.tokens, tokens)
            assert store.domains[found.domain_id] == DOMAINS[m]
    for token in (0, int(ends[400]) - 1, int(ends[400]), stream.num_tokens - 1):
        assert stream.document_at(token) == np.searchsorted(ends, token, side="right")
    with pytest.raises(IndexError):
        stream.read(0, stream.num_tokens + 1)


def test_a_domain_in_one_block_of_many(stores, documents):
    store = TokenStore.open(stores[0]).only(["rare"])
    (stream,) = store.streams("train")
    rare = np.concatenate([tokens for tokens, m in documents if m == 3])
    span = stream.read(0, stream.num_tokens)
    np.testing.assert_array_equal(span.tokens, rare)
    assert span.segment_ids[-1] == 2 and set(span.domain_ids) == {0}
    assert store.streams("select") == [] and store.count("select") == 0


def test_a_part_can_be_grouped_and_traced(stores):
    store = TokenStore.open(stores[0]).only(["cooking", "law", "medicine", "rare"]).grouped(2)
    assert len(store.domains) == 3 and store.domains[-1] == "other (2 domains)"
    assert store.count("train") == TokenStore.open(stores[0]).count("train")
    windows = Windows(TokenStore.open(stores[0]).only(["law"]), S)
    parts = list(documents_of(windows, np.array([3])))
    assert sum(part.columns[1] - part.columns[0] for part in parts) == S
    assert {part.domain for part in parts} == {"law"}


def test_fingerprints_tell_parts_apart(stores):
    store = TokenStore.open(stores[0])
    prints = [store.fingerprint, store.only(["law"]).fingerprint, store.only(["rare"]).fingerprint]
    assert len(set(prints)) == 3
    assert store.only(["rare", "law"]).fingerprint == store.only(["law", "rare"]).fingerprint


def test_refusals(stores, tmp_path):
    config = DataConfig(store=str(stores[0]), domains=("lawn",), seq_len=S)
    with pytest.raises(UsageError, match=r"no domain 'lawn' \(did you mean 'law'\?\); it has coo"):
        open_data(config)
    np.arange(3000, dtype=np.uint32).tofile(tmp_path / "raw.npy")
    raw = dataclasses.replace(config, store=str(tmp_path / "raw.npy"), raw_dtype="uint32")
    with pytest.raises(UsageError, match=r"cannot be chosen by domain .* emo prepare"):
        open_data(raw)
    unseen = dataclasses.replace(config, domains=("unseen",))
    with pytest.raises(UsageError, match=r"no training documents of config.data.domains = unseen"):
        open_data(unseen)
    with pytest.raises(UsageError, match=r"config.data.domains = .*: must be different names"):
        dataclasses.replace(config, domains=("law", "law"))

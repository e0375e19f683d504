"""Duplicates that were planted between training and held-out documents are found, and no others."""

import sys

import numpy as np
import pytest

from emo_jax.data.store import TokenStore
from emo_jax.data.store_writer import SplitContent, write_store
from emo_jax.errors import DataError, UsageError
from emo_jax.preparation import dedup, minhash
from emo_jax.preparation.dedup import DedupReport, find_duplicates
from emo_jax.tokenizer.load import byte_tokenizer, train_bpe

DOMAINS = ("law", "web")


def documents(count: int, seed: int) -> list[list[int]]:
    """Documents of 30 to 400 tokens that share nothing but chance."""
    draw = np.random.default_rng(seed)
    return [[*draw.integers(3, 259, n).tolist(), 1] for n in draw.integers(30, 400, count)]


def store_of(folder, tokenizer=None, **splits) -> TokenStore:
    content = {
        name: SplitContent(
            np.array([len(ids) for ids in of_split]),
            np.arange(len(of_split)) % 2,
            [np.array(ids) for ids in of_split],
        )
        for name, of_split in splits.items()
    }
    tokenizer = tokenizer or byte_tokenizer()
    write_store(folder, tokenizer=tokenizer, domains=DOMAINS, splits=content)
    return TokenStore.open(folder)


def changed(ids: list[int], share: float, seed: int) -> list[int]:
    """A document with some of its tokens replaced: about 5 of its 5-grams are new for each."""
    draw = np.random.default_rng(seed)
    at = draw.choice(len(ids) - 1, max(1, round(share * len(ids))), replace=False)
    made = np.array(ids)
    made[at] = draw.integers(3, 259, len(at))
    return made.tolist()


def jaccard(a: list[int], b: list[int]) -> float:
    one, two = ({tuple(ids[i : i + 5]) for i in range(len(ids) - 4)} for ids in (a, b))
    return len(one & two) / len(one | two)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A store, and what was planted: (train document, split, document there, similarity)."""
    train, select, test = documents(3000, 0), documents(150, 1), documents(150, 2)
    pairs = []
    for n in range(40):
        train[50 * n] = test[n]
        pairs.append((50 * n, "test", n, 1.0))
    for n in range(60):
        train[50 * n + 7] = changed(select[n], 0.02, n)
        pairs.append((50 * n + 7, "select", n, jaccard(train[50 * n + 7], select[n])))
    for n in range(60):  # alike, but not that much
        train[50 * n + 9] = changed(test[90 + n], 0.12, n)
        assert jaccard(train[50 * n + 9], test[90 + n]) < 0.7
    folder = tmp_path_factory.mktemp("planted")
    return store_of(folder / "s", train=train, select=select, test=test), pairs


@pytest.mark.parametrize("near", [0.0, 0.8])
@pytest.mark.parametrize("block", [7, 4096])
def test_planted_duplicates(planted, near, block, monkeypatch):
    monkeypatch.setattr(dedup, "_BLOCK_DOCUMENTS", block)
    store, pairs = planted
    report = DedupReport(near)
    found = {one.document: one for one in find_duplicates(store, near=near, report=report)}
    exact = {pair[0] for pair in pairs if pair[3] == 1.0}
    assert {n for n, one in found.items() if one.exact} == exact
    wanted = {pair[0]: pair for pair in pairs if pair[3] >= (near or 1.0)}
    assert 85 < len(wanted) < 100 or not near
    assert set(found) <= set(wanted) and len(wanted) - len(found) <= 1
    for n, one in found.items():
        _, split, number, similarity = wanted[n]
        assert (one.split, one.of_document) == (split, number)
        assert one.similarity == pytest.approx(similarity, abs=1e-4)
        assert one.domain == DOMAINS[n % 2]
    assert list(found) == sorted(found)
    assert sum(report.exact.values()) == len(exact)
    assert report.duplicates == len(found) == sum(report.splits.values())
    assert (report.documents, report.held_out) == (3000, 300)
    assert len(report.examples) == dedup.EXAMPLES
    assert report.bytes_each == (12 if not near else 12 + 12 * minhash.bands_for(near)[0])


def test_a_corpus_without_duplicates(tmp_path):
    splits = {name: documents(500, n) for n, name in enumerate(("train", "select", "test"))}
    report = DedupReport(0.8)
    assert list(find_duplicates(store_of(tmp_path / "s", **splits), near=0.5, report=report)) == []
    assert (report.duplicates, report.documents, report.examples) == (0, 500, [])


def test_against_another_store(tmp_path):
    train, other = documents(50, 0), documents(20, 1)
    ours = store_of(tmp_path / "a", train=train, test=documents(5, 3))
    theirs = store_of(tmp_path / "b", train=other, select=[train[30], *documents(3, 4)])
    (found,) = find_duplicates(ours, theirs)
    assert (found.document, found.split, found.of_document) == (30, "select", 0)
    with pytest.raises(UsageError, match="no held-out documents"):
        list(find_duplicates(ours, store_of(tmp_path / "c", train=other)))
    tokenizer = train_bpe(["some text of words"] * 9, 262)
    with pytest.raises(DataError, match="its tokenizer is not that"):
        list(find_duplicates(ours, store_of(tmp_path / "d", tokenizer, test=[[5, 6]])))


def test_short_documents(tmp_path):
    train = [[5, 1], [5, 6, 1], [1], [7, 8, 9, 1], [7, 8, 1]]
    store = store_of(tmp_path / "s", train=train, test=[[7, 8, 9, 1], [1], [5, 7, 1]])
    found = [(one.document, one.of_document, one.exact) for one in find_duplicates(store)]
    assert found == [(2, 1, True), (3, 0, True)]


def test_ngrams_are_of_one_document():
    draw = np.random.default_rng(0)
    texts = [draw.integers(0, 50, n) for n in (1, 3, 4, 5, 6, 30, 2, 100)]
    hashes, starts = minhash.ngrams(np.concatenate(texts), np.cumsum([t.size for t in texts]))
    assert starts[-1] == hashes.size
    seen: dict[tuple, int] = {}
    for text, low, high in zip(texts, starts, starts[1:], strict=False):
        grams = [tuple(text[i : i + 5].tolist()) for i in range(max(text.size - 4, 1))]
        assert len(grams) == high - low
        for gram, number in zip(grams, hashes[low:high].tolist(), strict=True):
            assert seen.setdefault(gram, number) == number
    assert len(set(seen.values())) == len(seen)


def test_signatures_agree_as_often_as_documents_are_alike():
    base = documents(200, 5)
    for share in (0.01, 0.05, 0.15):
        other = [changed(ids, share, n) for n, ids in enumerate(base)]
        both = [
            minhash.signatures(
                *minhash.ngrams(np.concatenate(some), np.cumsum([len(ids) for ids in some]))
            )
            for some in (base, other)
        ]
        agree = (both[0] == both[1]).mean(axis=1)
        exact = np.array([jaccard(a, b) for a, b in zip(base, other, strict=True)])
        assert abs((agree - exact).mean()) < 0.02
        assert np.abs(agree - exact).max() < 0.2


def test_bands_find_nearly_all_pairs_at_the_threshold():
    for near in (0.3, 0.5, 0.8, 0.95, 1.0):
        bands, rows = minhash.bands_for(near)
        assert bands * rows <= minhash.PERMUTATIONS
        assert 1 - (1 - near**rows) ** bands >= 0.98


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rensa", None)
    some = documents(5, 0)
    store = store_of(tmp_path / "s", train=some, test=some[2:3])
    with pytest.raises(UsageError, match=r"pip install 'emo-jax\[dedup\]', or give --near 0"):
        list(find_duplicates(store))
    assert [one.document for one in find_duplicates(store, near=0.0)] == [2]

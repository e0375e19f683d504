"""Few domains out of many: the largest by name, the rest as one, the same numbers in all."""

import numpy as np
import pytest

from emo_jax.analysis.sample import sample_documents
from emo_jax.data.domain_groups import group_domains
from emo_jax.data.domain_view import domain_number
from emo_jax.data.store import TokenStore
from emo_jax.data.store_writer import SplitContent, write_store
from emo_jax.data.windows import Windows
from emo_jax.errors import UsageError
from emo_jax.tokenizer.load import byte_tokenizer

M, LENGTH = 3000, 12  # domains, tokens of a document
LARGE = (700, 20, 2999)  # domains with more than one document


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A document of each domain in every split; of three domains more in one."""
    draw = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("many") / "store"

    def split(more):
        ids = draw.permutation(np.repeat(np.arange(M), [1 + more.get(m, 0) for m in range(M)]))
        tokens = draw.integers(3, 259, (len(ids), LENGTH))
        tokens[:, -1] = 1
        return SplitContent(np.full(len(ids), LENGTH), ids, [tokens.ravel()])

    write_store(
        folder,
        tokenizer=byte_tokenizer(),
        domains=[f"site {m}" for m in range(M)],
        splits={"train": split({700: 5}), "select": split({2999: 9}), "test": split({20: 7})},
    )
    return TokenStore.open(folder)


def test_the_largest_are_by_name_and_the_others_are_one(store):
    few = store.grouped(3)
    assert few.domains == ("site 20", "site 700", "site 2999", "other (2,997 domains)")
    assert few.groups.note == (
        "3,000 domains: the 3 largest by name, 'other (2,997 domains)' as one"
    )
    assert few.fingerprint == store.fingerprint and store.groups is None
    for split in ("train", "select", "test"):
        counts = [few.count(split, "documents", name) for name in few.domains]
        assert sum(counts) == store.count(split, "documents") == few.count(split, "documents")
        assert counts[:3] == [store.count(split, "documents", name) for name in few.domains[:3]]
        documents = few.documents(split, 0, 10**6)
        before = store.documents(split, 0, 10**6)
        for now, then in zip(documents, before, strict=True):
            name = store.domains[then.domain_id]
            assert few.domains[now.domain_id] == (name if name in few.domains else few.domains[3])
            np.testing.assert_array_equal(now.tokens, then.tokens)
        found = np.bincount([d.domain_id for d in documents], minlength=4)
        np.testing.assert_array_equal(found, counts)


def test_windows_have_the_groups(store):
    few = store.grouped(3)
    ours, theirs = Windows(few, 60, split="test"), Windows(store, 60, split="test")
    assert ours.domains == few.domains
    as_group = np.full(M, 3)
    as_group[[20, 700, 2999]] = [0, 1, 2]
    for n in range(0, len(ours), 50):
        assert ours[n].domain_ids.dtype == np.int32
        np.testing.assert_array_equal(ours[n].domain_ids, as_group[theirs[n].domain_ids])


def test_a_sample_is_even_over_the_groups(store):
    sample = sample_documents(store.grouped(3), "test", tokens=40_000, min_length=4)
    assert sample.domains == store.grouped(3).domains and not sample.about["missing"]
    tokens = [sum(len(d) for d, m in zip(*sample[:2], strict=True) if m == g) for g in range(4)]
    assert tokens[0] == 8 * LENGTH and tokens[3] >= 10_000


def test_few_domains_stay_as_they_are(store):
    assert store.grouped(M) is store and store.grouped(M - 1) is store
    assert len(store.grouped(M - 2).domains) == M - 1
    assert group_domains(["a", "b"], [1, 2], 1) is None
    groups = group_domains(["a", "other (2 domains)", "b"], [1, 9, 1], 1)
    assert len(set(groups.names)) == 2
    equal = group_domains([f"d{m}" for m in range(10)], [5] * 10, 3)
    assert equal.names == ("d0", "d1", "d2", "other (7 domains)")


def test_a_domain_that_is_not_there_is_not_answered_with_all_that_are(store):
    with pytest.raises(UsageError, match=r"no domain 'site 12x' \(did you mean 'site 12'\?\)") as e:
        domain_number(store.domains, "site 12x", store.path)
    assert len(str(e.value)) < 800 and "and 2,980 more" in str(e.value)


@pytest.mark.parametrize("tokens", [200, 3000, 40_000])
def test_a_sample_of_many_domains_is_no_larger_than_asked_for(store, tokens):
    sample = sample_documents(store, "test", tokens=tokens, min_length=8)
    taken = sum(map(len, sample.documents))
    assert tokens - LENGTH < taken <= tokens or len(sample.domains) == M
    assert len(sample.domains) + len(sample.about["missing"]) == M

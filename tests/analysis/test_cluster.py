"""Clusters find what was planted; coverage and texts against slow counting."""

import math

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from emo_jax.analysis import cluster
from emo_jax.analysis.coverage import coverage
from emo_jax.analysis.texts import standing_out, token_texts
from emo_jax.errors import UsageError
from emo_jax.tokenizer.load import train_bpe

SIZES = (30, 50, 20, 40)


class Made:
    """Activations in memory: documents of planted groups use experts of their own."""

    def __init__(self, seed=0, layers=2, routed=12, domains=("a", "b")):
        rng = np.random.default_rng(seed)
        self.num_layers, self.num_routed, self.num_picks = layers, routed, 2
        self.domains = domains
        self.doc_domains_D = np.array([0, 0, 1, 1], np.int32) % len(domains)
        self.doc_ends_D = np.cumsum(SIZES)
        self.documents_N = np.repeat(np.arange(4), SIZES)
        self.num_tokens = sum(SIZES)
        favoured = np.eye(routed)[3 * self.documents_N]
        logits = 5 * favoured[:, None] + 0.3 * rng.standard_normal(
            (self.num_tokens, layers, routed)
        )
        self._probs = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).astype(np.float32)
        self.tokens_N = rng.integers(0, 9, self.num_tokens).astype(np.int32)

    @property
    def domains_N(self):
        return self.doc_domains_D[self.documents_N]

    experts_L = (12, 12)

    def picks(self, where):
        return np.argsort(-self._probs[where], axis=-1, kind="stable")[..., :2]

    def pieces(self, tokens=37):
        for start in range(0, self.num_tokens, tokens):
            where = slice(start, min(start + tokens, self.num_tokens))
            yield where, self._probs[where]


def test_planted_groups_are_found():
    found = Made()
    rows = cluster.reduced(cluster.token_features(found))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    made = cluster.spherical_kmeans(rows, 4)
    assert made.number == 4 and made.rounds < cluster.ROUNDS
    assert normalized_mutual_info_score(made.ids_N, found.documents_N) == pytest.approx(1)
    np.testing.assert_allclose(
        made.closeness_N, (rows * made.centres_CP[made.ids_N]).sum(1), rtol=1e-5
    )
    scores = cluster.scores(
        made, rows, found.domains_N, (found.tokens_N, np.arange(found.num_tokens))
    )
    assert scores.purity == 1 and 0.6 < scores.nmi < 0.75  # two groups a domain
    assert scores.silhouette > 0.8
    by_hand = sum(
        size * cluster.entropy_of_types(found.tokens_N[found.documents_N == d])
        for d, size in enumerate(SIZES)
    )
    assert scores.token_entropy == pytest.approx(by_hand / sum(SIZES))
    one = cluster.spherical_kmeans(cluster.reduced(cluster.token_features(found, 1)), 4)
    assert normalized_mutual_info_score(one.ids_N, made.ids_N) == pytest.approx(1)


def test_groups_of_words_are_told_from_groups_of_topics():
    found = Made()
    ids = found.tokens_N.astype(np.int32)  # as if the router looked at the word alone
    words = cluster.Clusters(ids, np.ones(len(ids)), np.eye(9), 9, 1)
    rows = np.eye(9, dtype=np.float32)[ids]
    types = (found.tokens_N, np.arange(found.num_tokens))
    scores = cluster.scores(words, rows, found.domains_N, types)
    assert scores.token_entropy == 0 and scores.token_nmi == pytest.approx(1)
    assert scores.nmi < 0.1


def test_documents_are_means_of_their_tokens():
    found = Made()
    means = cluster.document_means(found)
    for d in range(4):
        mine = found._probs[found.documents_N == d]
        np.testing.assert_allclose(means[d], mine.mean(axis=0), rtol=1e-5)
    rows = cluster.reduced(cluster.document_features(cluster.document_means(found)))
    made = cluster.spherical_kmeans(rows, 4)
    assert sorted(made.ids_N.tolist()) == [0, 1, 2, 3]
    scores = cluster.scores(made, rows, found.doc_domains_D, (found.tokens_N, found.documents_N))
    assert math.isnan(scores.token_nmi) and math.isnan(scores.silhouette) and scores.purity == 1


def test_components_hold_95_percent():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 20)).astype(np.float32) * np.linspace(3, 0.1, 20)
    features = cluster.Features(400, lambda: [(slice(0, 400), rows)])
    P = cluster.reduced(features).shape[1]
    values = np.linalg.eigvalsh(np.cov(rows.T))[::-1]
    held = np.cumsum(values) / values.sum()
    assert held[P - 1] >= 0.95 > held[P - 2]


def test_of_one_domain_there_is_nothing_to_tell_apart():
    found = Made(domains=("all documents",))
    rows = cluster.reduced(cluster.token_features(found))
    made = cluster.spherical_kmeans(rows, 3)
    types = (found.tokens_N, np.arange(found.num_tokens))
    scores = cluster.scores(made, rows, found.domains_N, types)
    assert math.isnan(scores.nmi) and math.isnan(scores.purity) and scores.silhouette > 0
    assert coverage(found).use_LMR.shape == (2, 1, 12)


def test_one_document_is_one_group():
    found = Made()
    means = cluster.document_means(found)[:1]
    rows = cluster.reduced(cluster.document_features(means))
    made = cluster.spherical_kmeans(rows, 1)
    assert made.ids_N.tolist() == [0] and made.components == 1


def test_groups_are_of_the_last_centres(monkeypatch):
    """Also where the rounds ran out."""
    monkeypatch.setattr(cluster, "ROUNDS", 1)
    rows = np.random.default_rng(0).standard_normal((500, 6)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    made = cluster.spherical_kmeans(rows, 9)
    cosines = rows @ made.centres_CP.T
    np.testing.assert_array_equal(made.ids_N, cosines.argmax(axis=1))
    np.testing.assert_allclose(made.closeness_N, cosines.max(axis=1), rtol=1e-5)


def test_layers_with_fewer_experts_have_an_even_share_of_their_own():
    found = Made()
    found.experts_L = (12, 3)
    use = coverage(found).use_LMR[1, 0]
    assert coverage(found).experts_LM[1, 0] == (use > 1 / 3).sum()


def test_refusals():
    found = Made()
    with pytest.raises(UsageError, match=r"--layer 2: the model has layers 0\.\.1"):
        cluster.token_features(found, 2)
    with pytest.raises(UsageError, match=r"--clusters 5: must be 1\.\.4"):
        cluster.spherical_kmeans(
            cluster.reduced(cluster.document_features(cluster.document_means(found))), 5
        )


def test_coverage_counts():
    found = Made()
    covered = coverage(found)
    chosen = found.picks(slice(None))
    for layer in range(2):
        for m in range(2):
            mine = found.domains_N == m
            np.testing.assert_allclose(
                covered.use_LMR[layer, m], found._probs[mine, layer].mean(0), rtol=1e-5
            )
            for e in range(12):
                share = (chosen[mine, layer] == e).any(axis=1).mean()
                assert covered.picked_LMR[layer, m, e] == pytest.approx(share)
        both = ((chosen[:, layer] == 0).any(1) & (chosen[:, layer] == 3).any(1)).mean()
        assert covered.together_LRR[layer, 0, 3] == pytest.approx(both)
    np.testing.assert_allclose(covered.load_LR.sum(1), 1)
    np.testing.assert_allclose(covered.picked_LMR.sum(-1), 2)
    p = covered.use_LMR[0, 0]
    assert covered.entropy_LM[0, 0] == pytest.approx(-(p * np.log2(p)).sum())
    assert covered.experts_LM[0, 0] == (p > 1 / 12).sum()
    q = covered.use_LMR[0, 1]
    cosine = (p * q).sum() / np.sqrt((p * p).sum() * (q * q).sum())
    assert covered.similarity_LMM[0, 0, 1] == pytest.approx(cosine)
    assert covered.distance_LMM[0, 0, 1] == pytest.approx(np.linalg.norm(p - q))
    alone = np.diagonal(covered.together_LRR[1])
    lift = covered.together_LRR[1, 0, 3] / (alone[0] * alone[3])
    assert covered.companions_LRR[1, 0, 3] == pytest.approx(lift)


def test_texts_of_tokens_are_the_document():
    text = "naïve café 🙂 日本 <b> done\n\n"
    tokenizer = train_bpe([text, "plain words and more words"] * 3, 290)
    ids = tokenizer.encode_batch([text])[0]
    found = token_texts([ids, ids[:4]], tokenizer)
    shown = [found.texts[i] for i in found.index_N]
    assert "".join(shown[: len(ids)]) == text
    assert shown[len(ids) :] == shown[:4]
    assert "" in shown  # a character of several tokens shows with its last one
    numbers = token_texts([np.array([5, 7])], None)
    assert [numbers.texts[i] for i in numbers.index_N] == ["5", "7"]


def test_what_stands_out_is_neither_everywhere_nor_rare():
    everywhere = np.array([1000, 40, 3, 200, 100])
    inside = np.array([100, 30, 3, 20, 0])
    found = standing_out(inside, everywhere)
    assert [t for t, _ in found][:1] == [1]
    expected = everywhere[1] * inside.sum() / everywhere.sum()
    assert found[0][1] == pytest.approx(30 / expected)
    assert all(t not in (0, 4) for t, _ in found)
    assert standing_out(np.zeros(5), everywhere) == []

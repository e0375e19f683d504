"""The prior of routing: against conditioning written out, and what it does with few documents."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny import NO_POOL, tiny_config

from emo_jax.config import MeshConfig
from emo_jax.errors import UsageError
from emo_jax.model.functions import ModelFunctions
from emo_jax.parallel.mesh import make_mesh
from emo_jax.selection.examples import examples_of
from emo_jax.selection.prior import (
    REACHES,
    document_shares,
    likeliest_reach,
    posterior_scores,
    prior_of,
)
from emo_jax.selection.scores import choose_by_examples

L, R, M = 2, 5, 4


def _documents(rng, means, per_domain=40, spread=0.05):
    """Shares of documents around the means of their domains."""
    shares, domains = [], []
    for d, mean in enumerate(means):
        for _ in range(per_domain):
            shares.append(np.abs(mean + spread * rng.normal(size=mean.shape)))
            domains.append(d)
    return np.array(shares), np.array(domains)


def slow(shares, domains, x, n, reach):
    """Loops for the moments; then precisions instead of covariances for the posterior."""
    F = shares[0].size
    groups = [[s.ravel() for s, d in zip(shares, domains, strict=True) if d == k] for k in range(M)]
    means = [sum(g) / len(g) for g in groups]
    mean = sum(means) / M
    between, within = np.zeros((F, F)), np.zeros((F, F))
    for g, m in zip(groups, means, strict=True):
        for i in range(F):
            for j in range(F):
                between[i, j] += (m[i] - mean[i]) * (m[j] - mean[j]) / M
                within[i, j] += sum((s[i] - m[i]) * (s[j] - m[j]) for s in g) / len(g) / M
    domain = np.linalg.inv(between + reach * within)
    noise = n * np.linalg.inv(within)
    return np.linalg.inv(domain + noise) @ (domain @ mean + noise @ x.ravel())


@pytest.mark.parametrize(("n", "reach"), [(1, 0.1), (1, 1.0), (7, 0.1)])
def test_the_posterior_is_that_of_gaussians(n, reach):
    rng = np.random.default_rng(0)
    shares, domains = _documents(rng, rng.dirichlet(np.ones(R), (M, L)))
    x = rng.dirichlet(np.ones(R), L)
    ours = posterior_scores(prior_of(shares, domains), x, n, reach)
    np.testing.assert_allclose(ours.ravel(), slow(shares, domains, x, n, reach), rtol=1e-5)


def test_many_documents_speak_for_themselves_and_one_is_drawn_to_its_domain():
    rng = np.random.default_rng(1)
    means = rng.dirichlet(np.ones(R), (M, L))
    prior = prior_of(*_documents(rng, means, 400))
    x = _documents(rng, means[2:3], 1)[0][0]
    np.testing.assert_allclose(posterior_scores(prior, x, 10**9), x, atol=1e-6)
    one = posterior_scores(prior, x, 1)
    assert np.abs(one - means[2]).mean() < 0.7 * np.abs(x - means[2]).mean()


def test_the_reach_is_the_likeliest():
    """Densities written out; a domain like the others has a small one, one unlike them a large."""
    rng = np.random.default_rng(3)
    means = rng.dirichlet(np.ones(R), (M, L))
    prior = prior_of(*_documents(rng, means, 200))
    found = []
    for x in (_documents(rng, means[1:2], 1)[0][0], rng.dirichlet(np.ones(R), L) * 3):
        densities = []
        for reach in REACHES:
            scatter = prior.between_FF + (reach + 1 / 2) * prior.within_FF
            away = x.ravel() - prior.mean_F
            within = away @ np.linalg.inv(scatter) @ away
            densities.append(np.exp(-within / 2) / np.sqrt(np.linalg.det(2 * np.pi * scatter)))
        found.append(likeliest_reach(prior, x, 2))
        assert found[-1] == REACHES[int(np.argmax(densities))]
        np.testing.assert_allclose(
            posterior_scores(prior, x, 2), posterior_scores(prior, x, 2, found[-1])
        )
    assert found[0] <= 1 < 100 <= found[1]


def test_domains_weigh_the_same():
    rng = np.random.default_rng(2)
    shares, domains = _documents(rng, rng.dirichlet(np.ones(R), (M, L)))
    again = np.concatenate([shares, shares[domains == 1]]), np.append(domains, [1] * 40)
    for ours, theirs in zip(prior_of(shares, domains), prior_of(*again), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_too_few_documents():
    with pytest.raises(UsageError, match="--prior: needs two domains"):
        prior_of(np.ones((3, L, R)), np.array([0, 0, 1]))


def test_shares_of_documents_are_what_global_sums():
    config = tiny_config(pool=NO_POOL)
    config = dataclasses.replace(config, mesh=MeshConfig())
    model = ModelFunctions(config, make_mesh(MeshConfig(), jax.devices()[:1]))
    params = jax.jit(model.init, static_argnums=0)(0)
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 50, n).astype(np.int32) for n in (5, 31, 80, 2, 17)]
    ours = document_shares(model, params, documents, 0)
    for number in (0, 2, 4):  # one by one; of the third, the first window
        alone = examples_of([documents[number][:32]], "")
        routed = [1] * config.model.num_layers
        scores = choose_by_examples(model, params, alone, routed, method="global", pad_id=0)
        sums = scores.scores_LMR[:, 0]
        np.testing.assert_allclose(ours[number], sums / sums.sum(-1, keepdims=True), rtol=1e-5)

"""Scores of removal against their formulas, one expert after the other."""

import math

import numpy as np
import pytest
import runs
from tiny import tiny_batch, tiny_config

from emo_jax.errors import UsageError
from emo_jax.model.functions import ModelFunctions
from emo_jax.selection.removal import removal_scores

L, M, R = 3, 4, 6


def _mass(seed=0):
    rng = np.random.default_rng(seed)
    mass = rng.gamma(0.5, size=(L, M, R)) * rng.integers(1, 1000, (1, M, 1))
    mass[:, 2] = 0  # a domain without tokens is no other domain
    mass[1, 0, 3] = 0  # an expert that one does not use
    return mass


def slow(mass, domain, method):
    """In plain Python."""
    out = np.zeros((L, R))
    for layer in range(L):
        shares = {m: mass[layer, m] / sum(mass[layer, m]) for m in range(M) if sum(mass[layer, m])}
        others = [m for m in shares if m != domain]
        for r in range(R):
            own = float(shares[domain][r])
            other = sum(float(shares[m][r]) for m in others) / len(others)
            if method == "mass":
                out[layer, r] = own
            elif method == "contrast":
                out[layer, r] = own - other
            elif method == "ratio":
                out[layer, r] = own / other
            else:
                out[layer, r] = own * math.log(own / other) if own else 0.0
    return out


@pytest.mark.parametrize("method", ["contrast", "ratio", "information", "mass"])
@pytest.mark.parametrize("domain", [0, 3])
def test_formulas(method, domain):
    mass = _mass()
    ours = removal_scores(mass, domain, method)
    np.testing.assert_allclose(ours, slow(mass, domain, method), rtol=1e-9, atol=1e-200)


def test_the_number_of_tokens_does_not_matter():
    mass = _mass()
    larger = mass * np.array([7, 1, 1, 50])[:, None]
    for method in ("contrast", "ratio", "information", "mass"):
        np.testing.assert_allclose(
            removal_scores(mass, 1, method), removal_scores(larger, 1, method), rtol=1e-9
        )


def test_an_unknown_method():
    with pytest.raises(UsageError, match="--method most: must be one of contrast"):
        removal_scores(_mass(), 0, "most")


def test_unlearning_raises_the_loss_of_its_domain_alone():
    """What `experiments/removal.py` compares removal with: 16 steps of ascent move both ways."""
    config = tiny_config()
    model, batch = ModelFunctions(config), tiny_batch(config)
    domain_ids = (batch.segment_ids + 1) % 2 * (batch.segment_ids >= 0)
    batch = batch._replace(domain_ids=domain_ids.astype(np.int32))
    params = model.init(0)

    def losses(params):
        hidden_BSD, _ = model.hidden(params, batch)
        ce_BS = model.label_losses(params, hidden_BSD, batch.labels, batch.loss_mask)
        return [ce_BS[(batch.domain_ids == n) & (batch.loss_mask > 0)].mean() for n in (0, 1)]

    before = losses(params)
    trained, steps = runs.script("removal")._ascend(
        model, params, [batch] * 16, 1, 3e-3, lambda params: False
    )
    after = losses(trained)
    assert steps == 16
    assert after[0] < before[0] - 0.1 and after[1] > before[1] + 0.1

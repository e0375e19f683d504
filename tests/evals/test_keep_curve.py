"""Keep-k losses while a model trains: chosen on one half of the windows, judged on the other."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import runs
from tiny import NO_POOL, tiny_batch, tiny_config

from emo_jax.errors import ConfigError
from emo_jax.evals.heldout import evaluate, make_eval_step
from emo_jax.evals.keep import in_halves, keep_curve
from emo_jax.model.functions import ModelFunctions
from emo_jax.selection.budgets import keep_experts

M, DOMAINS = 3, ["a", "b", "c"]


def _batches(config, domains=M):
    out = []
    for seed in range(2):
        batch = tiny_batch(config, seed=seed, rows=3)  # odd: the halves go on over batches
        ids = np.random.default_rng(seed).integers(0, domains, 64).astype(np.int32)
        of_token = np.where(batch.segment_ids >= 0, ids[batch.segment_ids], -1)
        out.append(batch._replace(domain_ids=of_token.astype(np.int32)))
    return out


def _curve(config, batches, keeps):
    model = ModelFunctions(config)
    params = jax.jit(model.init, static_argnums=0)(0)
    step = make_eval_step(config, model, 2 * M, router_probs=True)
    calls = []

    def run(keep_LMR):
        calls.append(keep_LMR)
        return evaluate(step, params, in_halves(batches, M), keep_LMR=keep_LMR)

    return keep_curve(config, run, DOMAINS, keeps), params, calls


def test_chosen_on_one_half_and_judged_on_the_other():
    config = tiny_config(pool=NO_POOL)
    batches = _batches(config)
    record, params, calls = _curve(config, batches, [8, 4])
    rows = [[row for row in zip(*b, strict=True)] for b in batches]
    windows = [row for batch in rows for row in batch]
    halves = [
        type(batches[0])(*(np.stack(f) for f in zip(*windows[n::2], strict=True))) for n in (0, 1)
    ]
    step = make_eval_step(config, ModelFunctions(config), M)
    scores_LMR = evaluate(step, params, halves[:1]).router_probs_LMR
    full_M = evaluate(step, params, halves[1:]).loss_M
    for keep in (8, 4):
        kept_M = evaluate(
            step, params, halves[1:], keep_LMR=keep_experts(scores_LMR, config, keep)
        ).loss_M
        np.testing.assert_allclose(record[f"heldout_loss (keep={keep})"], kept_M.mean(), rtol=1e-5)
        for m, name in enumerate(DOMAINS):
            rise = record[f"heldout_rise/{name} (keep={keep})"]
            np.testing.assert_allclose(rise, (kept_M - full_M)[m], atol=1e-5)
    assert record["heldout_rise (keep=8)"] == pytest.approx(0, abs=1e-6)
    assert abs(record["heldout_rise (keep=4)"]) > 1e-4
    assert calls[0] is None and calls[1].shape == (2, 2 * M, 7)


def test_domains_of_one_half_only_are_left_out():
    config = tiny_config(pool=NO_POOL)
    record, _, _ = _curve(config, _batches(config, domains=2), [4])
    assert set(record) == {
        "heldout_loss (keep=4)",
        "heldout_rise (keep=4)",
        "heldout_rise/a (keep=4)",
        "heldout_rise/b (keep=4)",
    }


@pytest.mark.system
def test_a_run_logs_it(store, tmp_path):
    argv = runs.train_argv(
        store, tmp_path / "run", train__steps=4, train__eval_every=0, train__batch_size=8
    )
    assert runs.emo_here(*argv, "--config.train.eval_keep=(4,8)") == 0
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    last = {k: v for line in lines for k, v in json.loads(line).items()}
    assert last["heldout_rise (keep=8)"] == pytest.approx(0, abs=1e-5)
    assert np.isfinite(last["heldout_loss (keep=4)"])
    assert {"heldout_rise/law (keep=4)", "heldout_rise/cooking (keep=4)"} <= last.keys()


def test_refusals():
    config = tiny_config()
    train = dataclasses.replace(config.train, eval_keep=(2,))
    with pytest.raises(ConfigError, match=r"train.eval_keep = \(2,\): must be counts in 3..8"):
        dataclasses.replace(config, train=train)

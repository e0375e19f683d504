"""Losses with what acts in training only."""

import dataclasses

import jax
import numpy as np
import pytest
from corpus_fixtures import DOMAINS, corpus, store, store_path  # noqa: F401
from tiny import tiny_config

from emo_jax.config import MeshConfig, PoolConfig
from emo_jax.errors import UsageError
from emo_jax.evals.by_domain import (
    AS_TRAINED,
    FULL,
    EvalSettings,
    Pass,
    domain_losses,
    open_split,
)
from emo_jax.evals.heldout import evaluate, make_eval_step
from emo_jax.model.functions import ModelFunctions
from emo_jax.moe.labels import label_experts
from emo_jax.parallel.mesh import make_mesh
from emo_jax.tokenizer.load import load_tokenizer


def _labelled(labels, **moe):
    pool = PoolConfig(kind="label_table", size=3, labels=labels)
    config = tiny_config(vocab_size=259, vocab_multiple=1, pool=pool)
    return dataclasses.replace(config, moe=dataclasses.replace(config.moe, **moe))


def test_documents_have_the_pools_of_their_domains_by_name(store):  # noqa: F811
    """As if each domain's tokens could use its experts alone; the labels are in another order."""
    config = _labelled(DOMAINS[::-1])
    chosen = open_split(str(store.path), config, "test", load_tokenizer("bytes"))
    params, mesh = ModelFunctions(config).init(0), make_mesh(MeshConfig(), jax.devices()[:1])
    settings = EvalSettings(as_trained=True)
    found = domain_losses(config, params, chosen, settings, mesh=mesh).ce_sum_CM
    assert list(found) == [FULL, AS_TRAINED]
    rows_M = [DOMAINS[::-1].index(name) for name in DOMAINS]
    keep_LMR = np.broadcast_to(label_experts(config.moe)[rows_M], (2, 3, 7))
    step = make_eval_step(config, ModelFunctions(config, mesh), 3, router_probs=False)
    data = Pass(chosen.windows, settings.windows, mesh)
    alone = evaluate(step, params, data.batches(lambda _: None, ""), keep_LMR=keep_LMR)
    np.testing.assert_allclose(found[AS_TRAINED], alone.ce_sum_M, rtol=1e-5)
    assert (np.abs(found[AS_TRAINED] / found[FULL] - 1) > 1e-4).all()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (tiny_config(vocab_size=259, vocab_multiple=1), "tiny is trained without a capacity"),
        (_labelled(("cooking", "law")), "domain 'music' of the data is no label of tiny"),
    ],
)
def test_what_there_is_nothing_of(store, config, said):  # noqa: F811
    chosen = open_split(str(store.path), config, "test", load_tokenizer("bytes"))
    params, mesh = ModelFunctions(config).init(0), make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(UsageError, match=said):
        domain_losses(config, params, chosen, EvalSettings(as_trained=True), mesh=mesh)

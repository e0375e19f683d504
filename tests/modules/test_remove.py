"""emo remove writes the masked model whose losses it reports, and refuses what cannot be."""

import json

import jax
import numpy as np
import pytest

import emo_jax
from emo_jax.config import moe_of
from emo_jax.data.store import TokenStore
from emo_jax.errors import UsageError
from emo_jax.evals.by_domain import Pass, eval_mesh, open_split
from emo_jax.evals.heldout import evaluate, make_eval_step
from emo_jax.model.functions import ModelFunctions
from emo_jax.modules.remove import remove
from emo_jax.saved.load import load_model
from emo_jax.saved.selection_file import read_selection
from emo_jax.selection.removal import removal_scores


@pytest.fixture(scope="module")
def made(finished_run, store, tmp_path_factory):
    domain = TokenStore.open(store).domains[0]
    output = tmp_path_factory.mktemp("removed") / "without"
    return remove(finished_run, f"{store}:{domain}", output, drop=2, eval_data=store, windows=64)


def test_losses_are_those_of_the_folder(made, finished_run, store):
    for path, theirs in ((finished_run, made.before_M), (made.folder, made.after_M)):
        losses = emo_jax.evaluate(path, store, windows=64).losses
        assert losses.domains == made.domains
        np.testing.assert_allclose(losses.loss_M("full"), theirs, rtol=1e-5)
    assert not np.allclose(made.before_M, made.after_M, atol=1e-7, equal_nan=True)


def test_the_experts_with_the_largest_scores_are_gone(made, finished_run, store):
    loaded = load_model(str(finished_run))
    mesh = eval_mesh(loaded.config)
    windows = open_split(str(store), loaded.config, "select", loaded.tokenizer).windows
    seen = Pass(windows, 64, mesh)
    model = ModelFunctions(loaded.config, mesh)
    params = jax.device_put(loaded.params, model.param_shardings())
    step = make_eval_step(loaded.config, model, len(seen.domains))
    mass = evaluate(step, params, seen.batches(lambda _: None, "")).router_probs_LMR
    scores = removal_scores(mass, 0, "contrast")
    for row, kept in zip(scores, read_selection(made.folder).kept, strict=True):
        assert sorted(np.argsort(-row, kind="stable")[2:].tolist()) == list(kept)
    config = load_model(str(made.folder)).config
    assert moe_of(config).num_experts == moe_of(loaded.config).num_experts - 2


def test_figures_are_json(made):
    said = json.loads(json.dumps(made.to_json()))
    assert said["removed"] == made.domain and said["dropped"] == 2
    own, others = made.rises
    rise = [said["after"][d] - said["before"][d] for d in made.domains if said["before"][d]]
    assert own == pytest.approx(rise[0])
    assert others == pytest.approx(np.mean(rise[1:]))


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        ("{store}", {}, r"--data .*: must be STORE:DOMAIN"),
        ("{store}:nothing", {}, r".*: no domain 'nothing'; it has "),
        (
            "{store}:{domain}",
            {"drop": "100%"},
            r"--drop 100%: is \d+ experts a layer, must be 1\.\.",
        ),
        ("{store}:{domain}", {"drop": 0}, "--drop 0: is 0 experts a layer"),
        ("{store}:{domain}", {"drop": "some"}, "--drop some: must be a count like 8 or a share"),
        # Before any data is opened.
        ("{store}:nothing", {"layout": "llama"}, "layout 'llama' is for dense models"),
        ("{store}:{domain}", {"method": "best"}, "--method best: must be one of contrast"),
    ],
)
def test_refusals(finished_run, store, tmp_path, data, options, said):
    domain = TokenStore.open(store).domains[0]
    given = data.format(store=store, domain=domain)
    with pytest.raises(UsageError, match=f"^{said}"):
        remove(finished_run, given, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()

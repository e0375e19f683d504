"""Our model in lm-evaluation-harness says what the harness's own `hf` model does.

Needs torch, transformers and lm_eval[hf] (CI installs them before `-m system`).
"""

import json

import harness_files
import numpy as np
import pytest
from hf_folders import make_model  # noqa: F401

import emo_jax
from emo_jax.errors import DataError, UsageError
from emo_jax.evals.by_domain import eval_mesh
from emo_jax.selection.variants import within_documents

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return harness_files.write_tasks(tmp_path_factory.mktemp("tasks"))


def _ours(folder):
    from emo_jax.tasks.harness import require

    require()
    from emo_jax.tasks.lm import EmoLM

    loaded = emo_jax.load(folder)
    mesh = eval_mesh(within_documents(loaded.config))
    return EmoLM(loaded.config, loaded.params, loaded.need_tokenizer(), mesh)


def _theirs(folder):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=8)


def _evaluated(lm, path):
    from lm_eval import evaluator

    from emo_jax.tasks.harness import TaskSource

    (task,) = TaskSource().load(str(path))
    task.set_fewshot_seed(1234)
    task.config.num_fewshot = task.config.num_fewshot or 0
    return evaluator.evaluate(lm, {"tasks": {task.task_name: task}}, bootstrap_iters=0)


@pytest.fixture(scope="module", params=["experts", "dense"])
def both(request, make_model, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("models") / "model"
    harness_files.export(make_model, folder, dense=request.param == "dense")
    return _ours(folder), _theirs(folder)


@pytest.mark.parametrize("kind", ["words", "letters", "merged", "rolling", "writing"])
def test_every_answer_is_that_of_the_hf_model(both, tasks, kind):
    both[0].cut.clear()
    ours, theirs = (_evaluated(lm, tasks[kind]) for lm in both)
    said, expected = harness_files.answers(ours), harness_files.answers(theirs)
    assert len(said) == len(expected) >= 40
    assert bool(both[0].cut) == (kind != "rolling")  # longer than the window of 48
    if kind == "writing":
        assert said == expected and len(set(said)) > 10
    else:
        np.testing.assert_allclose(
            np.array(said, float), np.array(expected, float), rtol=0, atol=1e-4
        )
    (name,) = ours["results"]
    for metric, value in theirs["results"][name].items():
        if isinstance(value, float):
            assert ours["results"][name][metric] == pytest.approx(value, rel=1e-5), metric


@pytest.fixture(scope="module")
def module(make_model, tmp_path_factory):  # noqa: F811
    """A whole model, the folder of a module of it, and the experts that the module keeps."""
    root = tmp_path_factory.mktemp("modules")
    whole = harness_files.export(make_model, root / "whole")
    (root / "law.jsonl").write_text('{"text": "the court finds"}\n{"text": "the law of salt"}\n')
    emo_jax.select(whole, root / "law.jsonl", root / "module", keep=5)
    kept = json.loads((root / "module/selection.json").read_text())["kept"]
    keep_LR = np.zeros((2, 8), bool)
    for layer, experts in enumerate(kept):
        keep_LR[layer, experts] = True
    return whole, root / "module", keep_LR


@pytest.mark.parametrize("kind", ["words", "writing"])
def test_a_module_gives_the_numbers_of_its_folder_in_the_hf_model(module, tasks, kind):
    whole, folder, keep_LR = module
    masked = _ours(whole)
    unmasked = harness_files.answers(_evaluated(masked, tasks[kind]))
    masked.keep_LR = keep_LR
    expected = harness_files.answers(_evaluated(_theirs(folder), tasks[kind]))
    for lm in (masked, _ours(folder)):
        said = harness_files.answers(_evaluated(lm, tasks[kind]))
        if kind == "writing":
            assert said == expected != unmasked
        else:
            np.testing.assert_allclose(
                np.array(said, float), np.array(expected, float), rtol=0, atol=1e-4
            )
            assert np.abs(np.array(unmasked, float) - np.array(expected, float)).max() > 0.1


def test_a_continuation_begins_where_the_harness_says(both):
    from lm_eval.api.instance import Instance

    encode = both[0].tok_encode
    pairs = [
        ("", "the court"),
        ("the cou", "rt law"),
        ("fl", "our"),
        ("law. ", " and"),
        ("a ", "b"),
    ]
    pairs += [(f"{a}  ", f"{b} of") for a in harness_files.WORDS for b in ("the", "n", "f")]
    assert any(encode(a + b)[: len(encode(a))] != encode(a) for a, b in pairs[1:])
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    seen = []
    for model in both:
        model._loglikelihood_tokens = lambda made, **_: seen.append([(p, c) for _, p, c in made])
        model.loglikelihood(requests)
        del model._loglikelihood_tokens
    assert seen[0] == seen[1]


def test_nothing_to_predict_is_a_line(both):
    from lm_eval.api.instance import Instance

    with pytest.raises(DataError, match=r"no tokens to predict; it is empty, or merges"):
        both[0].loglikelihood([Instance("loglikelihood", {}, ("the court", ""), 0)])
    with pytest.raises(DataError, match="more than the model's window of 48"):
        both[0].loglikelihood([Instance("loglikelihood", {}, ("the", "court " * 60), 0)])
    for kwargs, said in (
        ({"num_beams": 3}, "generation_kwargs num_beams are not supported"),
        ({"max_gen_toks": 48}, "max_gen_toks 48 leaves no room"),
    ):
        with pytest.raises(UsageError, match=said):
            both[0].generate_until([Instance("generate_until", {}, ("the", kwargs), 0)])

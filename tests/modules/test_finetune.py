"""Finetuning: the reference's recipe, frozen bits, resuming, and a module put back."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from cases import few
from runs import emo_here
from tiny import NO_POOL, tiny_batch, tiny_config

from emo_jax.files.trees import flatten
from emo_jax.hf import import_model
from emo_jax.model.functions import ModelFunctions
from emo_jax.run.metrics_file import read_metrics
from emo_jax.saved.load import load_model
from emo_jax.saved.selection_file import read_selection


@pytest.fixture
def pairs(tmp_path):
    file = tmp_path / "pairs.jsonl"
    lines = [
        {"prompt": f"word {i % 4}: ", "answer": "court judge law"[: 5 + i % 8]} for i in range(64)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def module(finished_run, store, tmp_path):
    argv = ("select", finished_run, "--data", f"{store}:law", "--keep", "4", "--method", "global")
    assert emo_here(*argv, "--output", tmp_path / "law") == 0
    return tmp_path / "law"


def _finetune(model, pairs, workdir, *more):
    argv = ("finetune", model, "--data", pairs, "--workdir", workdir, "--batch-size", "8")
    return emo_here(*argv, "--lr", "0.003", *more)


def test_a_module_learns_and_goes_back(finished_run, module, pairs, tmp_path, capsys):
    workdir, out = tmp_path / "run", tmp_path / "tuned"
    assert _finetune(module, pairs, workdir, "--epochs", "4", "--output", out) == 0
    assert "64 pairs in" in capsys.readouterr().out
    losses = [r["ce_loss"] for r in read_metrics(workdir)]
    assert losses[-1] < 0.8 * losses[0]
    config = json.loads((workdir / "config.json").read_text())
    assert config["optimizer"]["b2"] == 0.999 and config["optimizer"]["weight_decay"] == 0
    assert config["moe"]["balance_tokens"] == "labels" and config["moe"]["pool"]["kind"] == "none"
    rates = [r["learning_rate"] for r in read_metrics(workdir)]
    assert rates[-1] > 0 and max(rates) == pytest.approx(0.003)
    assert read_selection(out).kept == read_selection(module).kept
    merged = tmp_path / "merged"
    assert emo_here("merge", out, "--into", finished_run, "--output", merged) == 0
    tuned, whole = import_model(out)[0], load_model(str(merged)).params
    for layer, kept in enumerate(read_selection(out).kept):
        np.testing.assert_array_equal(
            whole["layers"]["mlp"]["experts"]["up"][layer, list(kept)],
            tuned["layers"]["mlp"]["experts"]["up"][layer, : len(kept)],
        )
    # The same command has nothing left to do; another recipe is another run.
    assert _finetune(module, pairs, workdir, "--epochs", "4") == 0
    assert _finetune(module, pairs, workdir, "--epochs", "8") == 2
    assert "is another run: epochs 4.0 -> 8.0" in capsys.readouterr().err
    assert _finetune(finished_run, pairs, workdir, "--epochs", "4") == 2
    assert "is another run: another model" in capsys.readouterr().err
    pairs.write_text(pairs.read_text().replace("word 1", "word 9"))
    assert _finetune(module, pairs, workdir, "--epochs", "4") == 2
    assert "is another run: another data" in capsys.readouterr().err
    # A folder that was moved goes on.
    moved = workdir.rename(tmp_path / "moved")
    pairs.write_text(pairs.read_text().replace("word 9", "word 1"))
    # To no place for its metrics that a file there names: it may be somebody else's.
    said = json.loads((moved / "config.json").read_text())
    said["tracking"] |= {"tensorboard": True, "mlflow_uri": "https://203.0.113.1"}
    (moved / "config.json").write_text(json.dumps(said))
    assert _finetune(module, pairs, moved, "--epochs", "4") == 0
    assert json.loads((moved / "config.json").read_text())["tracking"] == config["tracking"]


def test_one_step_trains(module, pairs, tmp_path):
    out = tmp_path / "tuned"
    assert _finetune(module, pairs, tmp_path / "run", "--batch-size", "200", "--output", out) == 0
    assert len(read_metrics(tmp_path / "run")) == 1
    before, after = import_model(module)[0], import_model(out)[0]
    moved = np.abs(
        after["layers"]["mlp"]["router"]["kernel"][..., :3]
        - before["layers"]["mlp"]["router"]["kernel"][..., :3]
    )
    assert moved.max() > 1e-4


@pytest.mark.parametrize(
    ("freeze", "still"),
    few(
        [
            ("routed", ["experts routed"]),
            ("routed+shared", ["experts routed", "experts shared"]),
            ("all-but-router", ["experts routed", "experts shared", "rest"]),
        ]
    ),
)
def test_frozen_parts_keep_every_bit(module, pairs, tmp_path, freeze, still):
    out = tmp_path / "tuned"
    assert _finetune(module, pairs, tmp_path / "run", "--freeze", freeze, "--output", out) == 0
    before, after = flatten(import_model(module)[0]), flatten(import_model(out)[0])
    found = {"experts routed": True, "experts shared": True, "rest": True}
    for path, leaf in before.items():
        same = leaf.view(np.uint32) == after[path].view(np.uint32)
        if "/experts/" in path:
            found["experts routed"] &= same[:, :3].all()
            found["experts shared"] &= same[:, 3:].all()
        elif "router" in path:
            assert not same[..., :3].all()
        else:
            found["rest"] &= same.all()
    assert [name for name, same in found.items() if same] == still


def test_load_balance_of_label_tokens():
    """(R/K) Σ N_e P̄_e / T with counts and probabilities of the tokens that are labels."""
    config = tiny_config(pool=NO_POOL)
    moe = dataclasses.replace(config.moe, balance_tokens="labels")
    labelled = dataclasses.replace(config, moe=moe)
    batch = tiny_batch(config)
    mask = batch.loss_mask * (np.random.default_rng(0).random(batch.loss_mask.shape) < 0.3)
    batch = batch._replace(loss_mask=mask.astype(np.float32))
    model = ModelFunctions(labelled)
    params = jax.jit(model.init, static_argnums=0)(0)
    T = float(mask.sum())
    run = jax.jit(
        lambda m, d: m.hidden(params, d, loss_tokens=T, num_domains=2)[1], static_argnums=0
    )
    # Domain 1 are the label tokens, so that its probabilities are what we want the mean of.
    is_label = np.pad(mask[:, :-1], ((0, 0), (1, 0))) > 0
    stats = run(model, batch._replace(domain_ids=is_label.astype(np.int32)))
    ours = np.asarray(stats.load_balance_loss)
    mean_LR = np.asarray(stats.domain_probs_MR)[:, 1] / is_label.sum()
    only = batch._replace(pool_ids=np.where(is_label, batch.pool_ids, -1))
    # First layer alone: its input does not depend on which tokens are routed.
    counts_R = np.asarray(run(ModelFunctions(config), only).counts_E)[0, :7]
    expected = 7 / 2 * np.sum(counts_R / T * mean_LR[0])
    np.testing.assert_allclose(ours[0], expected, rtol=1e-5)
    everything = np.asarray(run(ModelFunctions(config), batch).load_balance_loss)
    assert abs(everything[0] - ours[0]) > 1e-3


def test_refusals(finished_run, pairs, tmp_path, capsys):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "x"}\n')
    half = tmp_path / "half.jsonl"
    long = json.dumps({"prompt": "x", "answer": "y" * 99})
    half.write_text(pairs.read_text() + f'{{"prompt": "x"}}\n{long}\n')
    for data, code, said in (
        (
            half,
            1,
            "half.jsonl: 1 lines that are no pair, 1 pairs longer than a window",
        ),
        (bad, 1, "no pair can be used of 1; the first: bad.jsonl:1: no 'answer'"),
        (tmp_path / "none.jsonl", 2, "no such file"),
    ):
        assert _finetune(finished_run, data, tmp_path / "run") == code
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    assert _finetune(finished_run, half, tmp_path / "run", "--skip-unusable") == 0
    assert "1 unusable left out (half.jsonl:65: no 'answer')" in capsys.readouterr().out
    argv = ("--output", tmp_path / "hf", "--layout", "llama")
    assert _finetune(finished_run, pairs, tmp_path / "other", *argv) == 2
    assert "is for dense models" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()

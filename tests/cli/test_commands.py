"""Each command does what it says, on real files."""

import json
import shutil

import numpy as np
import pytest
import runs

from emo_jax.checkpoint.reading import restore_params
from emo_jax.checks.numerics import SHIPPED_CASES
from emo_jax.data.store import TokenStore
from emo_jax.tokenizer.load import load_tokenizer


def test_prepare_with_bytes(run, corpus, tmp_path, capsys):
    assert run("prepare", corpus, "--output", tmp_path / "store", "--tokenizer", "bytes") == 0
    store = TokenStore.open(tmp_path / "store")
    texts = {json.loads(line)["text"] for line in corpus.read_text().splitlines()}
    tokenizer = store.tokenizer()
    found = [
        tokenizer.decode(document.tokens)
        for split in store.splits
        for document in store.documents(split, 0, store.count(split, "documents"))
    ]
    assert len(found) == 240
    assert set(found) == texts
    shown = capsys.readouterr().out
    assert "cooking" in shown and "240 documents read, 0 skipped" in shown


def test_prepare_with_a_tokenizer_made_by_tokenizer_train(run, corpus, tmp_path, capsys):
    made = tmp_path / "tokenizer"
    assert run("tokenizer", "train", corpus, "--vocab-size", 300, "--output", made) == 0
    tokenizer = load_tokenizer(made)
    assert 258 < tokenizer.vocab_size <= 300
    assert tokenizer.fingerprint[:12] in capsys.readouterr().out
    assert run("prepare", corpus, "--output", tmp_path / "store", "--tokenizer", made) == 0
    store = TokenStore.open(tmp_path / "store")
    assert store.tokenizer_fingerprint == tokenizer.fingerprint
    text = tokenizer.decode(store.documents("train", 0, 1)[0].tokens)
    assert set(text.split()) <= set(" ".join(runs.WORDS.values()).split())


def test_prepare_takes_other_field_names_and_an_order_of_its_own(run, tmp_path):
    corpus = tmp_path / "renamed.jsonl"
    records = [{"body": f"text {i}", "key": f"k{i}", "site": f"s{i % 3}"} for i in range(60)]
    corpus.write_text("".join(json.dumps(r) + "\n" for r in records))
    fields = ["--text-field", "body", "--id-field", "key", "--domain-field", "site"]
    orders = []
    for seed in (0, 0, 1):
        output = tmp_path / f"store{len(orders)}"
        argv = ["--output", output, "--tokenizer", "bytes", "--seed", seed]
        assert run("prepare", corpus, *fields, *argv) == 0
        store = TokenStore.open(output)
        assert store.domains == ("s0", "s1", "s2")
        orders.append([tuple(d.tokens) for d in store.documents("train", 0, 60)])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


@pytest.mark.system
def test_train_takes_relative_paths(env, store, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    argv = runs.train_argv("store", "runs/tiny")
    argv[argv.index(str(runs.EXPERIMENT))] = "experiment.py"
    shutil.copy(runs.EXPERIMENT, tmp_path / "experiment.py")
    done = runs.emo(argv, env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert runs.checkpoints(tmp_path / "runs/tiny") == [20, 30, 40]
    assert runs.steps_logged(tmp_path / "runs/tiny") == 40
    config = json.loads((tmp_path / "runs/tiny/config.json").read_text())
    assert config["train"]["steps"] == 40 and config["model"]["embed_dim"] == 32


@pytest.mark.parametrize("layout", ["qwen2_moe", "emo"])
def test_export_and_import_give_the_parameters_back(run, finished_run, store, tmp_path, layout):
    folder, workdir = tmp_path / "hf", tmp_path / "imported"
    assert run("export", finished_run, "--output", folder, "--layout", layout) == 0
    card = (folder / "README.md").read_text()
    assert "40" in card
    assert load_tokenizer(folder).fingerprint == TokenStore.open(store).tokenizer_fingerprint
    assert run("import", folder, "--workdir", workdir) == 0
    trained, _, step = restore_params(finished_run)
    imported, _, fresh = restore_params(workdir)
    assert (step, fresh) == (40, 0)
    assert runs.equal_trees(_without_dead_numbers(trained), _without_dead_numbers(imported))
    again = tmp_path / "again"
    assert run("export", workdir, "--output", again, "--layout", layout) == 0
    weights = [(f / "model.safetensors").read_bytes() for f in (folder, again)]
    assert weights[0] == weights[1]


def _without_dead_numbers(params: dict) -> dict:
    """Without those no loss reaches: the vocabulary's padding, the router's shared expert."""
    vocab, routed = runs.TINY["model.vocab_size"], runs.TINY["moe.num_experts"] - 1
    layers = params["layers"]
    router = {"kernel": layers["mlp"]["router"]["kernel"][..., :routed]}
    return params | {
        "embed": {"embedding": params["embed"]["embedding"][:vocab]},
        "lm_head": {"kernel": params["lm_head"]["kernel"][:, :vocab]},
        "layers": layers | {"mlp": layers["mlp"] | {"router": router}},
    }


def test_export_of_an_older_step(run, finished_run, tmp_path):
    argv = ["export", finished_run, "--layout", "emo"]
    assert run(*argv, "--output", tmp_path / "new") == 0
    assert run(*argv, "--output", tmp_path / "old", "--step", 20) == 0
    new, old = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("new", "old"))
    assert new != old


def test_export_needs_no_store(run, finished_run, store, tmp_path, capsys):
    """A relative path of it may lead nowhere from here, and is nobody else's business."""
    workdir, folder = tmp_path / "run", tmp_path / "hf"
    shutil.copytree(finished_run, workdir)
    text = (workdir / "config.json").read_text()
    assert str(store) in text
    (workdir / "config.json").write_text(text.replace(str(store), "gone/private"))
    assert run("export", workdir, "--output", folder) == 0
    assert capsys.readouterr().err == ""
    assert load_tokenizer(folder).fingerprint == TokenStore.open(store).tokenizer_fingerprint
    assert not any("gone/private" in p.read_text() for p in folder.glob("*.json"))

    shutil.rmtree(workdir / "tokenizer")  # as of a run of raw tokens
    assert run("export", workdir, "--output", tmp_path / "without") == 0
    line = capsys.readouterr().err
    assert line.startswith("emo: no tokenizer.json found") and line.count("\n") == 1
    assert str(workdir) in line and "give --tokenizer FOLDER" in line


def test_export_of_a_run_without_a_store_takes_no_tokenizer_from_here(
    run, finished_run, store, tmp_path, capsys, monkeypatch
):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    shutil.rmtree(workdir / "tokenizer")
    text = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(text.replace(str(store), ""))
    monkeypatch.chdir(store)  # holds a folder "tokenizer"
    assert run("export", workdir, "--output", tmp_path / "hf") == 0
    assert "no tokenizer.json found" in capsys.readouterr().err


def test_export_with_the_runs_own_tokenizer_named(run, finished_run, store, tmp_path):
    argv = ["export", finished_run, "--output", tmp_path / "hf", "--tokenizer", store / "tokenizer"]
    assert run(*argv) == 0
    assert (tmp_path / "hf/tokenizer.json").exists()


@pytest.mark.system
def test_an_imported_model_trains_on(env, run, finished_run, store, tmp_path):
    folder, workdir = tmp_path / "hf", tmp_path / "imported"
    assert run("export", finished_run, "--output", folder) == 0
    assert run("import", folder, "--workdir", workdir) == 0
    done = runs.emo(runs.train_argv(store, workdir), env)
    assert done.returncode == 0, done.stderr
    first = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
    untrained = json.loads((finished_run / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 1
    assert first["ce_loss"] < untrained["ce_loss"] - 1


@pytest.mark.system
def test_verify_fails_where_a_number_is_wrong(env, tmp_path):
    case, found = tmp_path / "case", tmp_path / "verify.json"
    shutil.copytree(SHIPPED_CASES / "step_emo", case)
    with np.load(case / "case.npz") as arrays:
        values = dict(arrays)
    values["ce_loss"] = values["ce_loss"] * 1.001
    np.savez(case / "case.npz", **values)
    done = runs.emo(["verify", case, "--json", found], env)
    assert done.returncode == 1
    assert done.stderr == "emo: 1 quantities are beyond their limits\n"
    quantities = json.loads(found.read_text())
    assert [name for name, q in quantities.items() if not q["ok"]] == ["ce_loss"]
    assert 0 < quantities["grads"]["error"] < quantities["grads"]["limit"]
    assert done.stdout.count(" ok\n") == len(quantities) - 1


@pytest.mark.system
def test_verify_of_all_cases(tmp_path):
    done = runs.emo(["verify"], runs.environment(XLA_FLAGS=""))
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(case.name in done.stdout for case in SHIPPED_CASES.iterdir())

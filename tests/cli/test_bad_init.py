"""What users get wrong with --init-from: one line, the right exit code, and nothing is made."""

import json
import shutil

import pytest
import runs

FAILED, USAGE = 1, 2
STEPS = "--config.init.expected_changes=train.steps,train.batch_size"


def _train(store, workdir, *more, **fields):
    """A run of steps beyond the source's, in this process, which has eight devices."""
    fields = {"train__batch_size": 8, "train__steps": 60, **fields}
    return [*runs.train_argv(store, workdir, **fields), *map(str, more)]


@pytest.fixture
def new(tmp_path):
    """A workdir that must not come to be."""
    yield tmp_path / "new"
    assert not (tmp_path / "new").exists()


def test_init_alone_and_modes_that_there_are_not(refused, finished_run, store, new):
    line = refused(USAGE, *_train(store, new, "--init", "weights"))
    assert "--init weights" in line and "--init-from" in line
    for mode in ("everything", "optimizer"):
        line = refused(USAGE, *_train(store, new, "--init-from", finished_run, "--init", mode))
        assert mode in line and "weights+optimizer" in line and "--help" in line


def test_a_source_that_is_none(refused, finished_run, store, new, tmp_path):
    line = refused(USAGE, *_train(store, new, "--init-from", tmp_path / "none"))
    assert f"{tmp_path / 'none'}: no such workdir" in line
    (tmp_path / "folder").mkdir()
    assert "not a workdir" in refused(
        USAGE, *_train(store, new, "--init-from", tmp_path / "folder")
    )
    line = refused(FAILED, *_train(store, new, "--init-from", f"{finished_run}@123", STEPS))
    assert f"no checkpoint of step 123 in {finished_run} (steps there: [20, 30, 40])" in line
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(finished_run / "config.json", empty)
    line = refused(FAILED, *_train(store, new, "--init-from", empty, STEPS))
    assert f"no checkpoint in {empty} (steps there: none)" in line


def test_a_hugging_face_folder_is_no_source(refused, run, finished_run, store, new, tmp_path):
    folder = tmp_path / "hf"
    assert run("export", finished_run, "--output", folder) == 0
    line = refused(USAGE, *_train(store, new, "--init-from", folder, "--init", "weights"))
    assert f"--init-from {folder}: a Hugging Face folder" in line
    assert f"emo import {folder} --workdir WORKDIR" in line


def test_a_damaged_source(refused, finished_run, store, tmp_path, capsys):
    """A manifest is seen before anything is made, a flipped byte when it is read."""
    copy, new = tmp_path / "copy", tmp_path / "new"
    shutil.copytree(finished_run, copy)
    manifest = copy / "checkpoints/40/manifest.json"
    manifest.write_text(manifest.read_text().replace('"windows": 160', '"windows": 161'))
    line = refused(FAILED, *_train(store, new, "--init-from", copy, STEPS))
    assert "step 40" in line and "was changed after it was written" in line
    assert not new.exists()
    runs.damage_checkpoint(copy, 30)
    assert runs.emo_here(*_train(store, new, "--init-from", f"{copy}@30", STEPS)) == FAILED
    *shown, line = capsys.readouterr().err.splitlines()  # the differences are shown before
    assert line.startswith("emo: ") and not any(other.startswith("emo: ") for other in shown)
    assert "step 30" in line and "is damaged" in line and "other bytes than were written" in line
    assert line.endswith(f"give --init-from {copy}@STEP with another step")
    assert runs.checkpoints(new) == [] and not (new / "metrics.jsonl").exists()
    # A run that has nothing yet may begin from another step, but not from random parameters.
    line = refused(USAGE, *_train(store, new, STEPS))
    assert f"{new} began from {copy}@30 (all)" in line and "same --init-from" in line


def test_an_unexpected_difference(refused, finished_run, store, new):
    argv = _train(store, new, "--init-from", finished_run)
    line = refused(USAGE, *argv, "--config.moe.pool.max_size=7", "--config.seed=3")
    for found in ("moe.pool.max_size: 8 -> 7", "seed: 0 -> 3", "train.steps: 40 -> 60"):
        assert found in line
    assert (
        "--config.init.expected_changes=moe.pool.max_size,seed,train.batch_size,train.steps" in line
    )
    line = refused(USAGE, *argv, STEPS, "--config.moe.pool.max_size=7", "--config.name=x")
    assert "(moe.pool.max_size: 8 -> 7); if it is meant" in line
    line = refused(USAGE, *argv, "--init", "weights", "--config.model.attention=window")
    assert "(model.attention: 'document' -> 'window'); if" in line  # the recipe is its own
    assert "--config.init.expected_changes=model.attention\n" in line


@pytest.mark.parametrize(
    "field",
    ["model.num_layers=3", "moe.num_experts=16", "moe.expert_dim=24", "model.vocab_size=600"],
)
@pytest.mark.parametrize("mode", ["weights", "all"])
def test_another_shape_is_refused_though_it_is_expected(
    refused, finished_run, store, new, field, mode
):
    everything = "--config.init.expected_changes=model,moe,train,optimizer,data,seed"
    argv = _train(store, new, f"--config.{field}", everything, "--init-from", finished_run)
    line = refused(USAGE, *argv, "--init", mode)
    name, _, value = field.partition("=")
    assert "is of another model or optimizer" in line
    assert f"{name}: " in line and f" -> {value}" in line


def test_another_optimizer_is_refused_where_its_state_is_taken(refused, finished_run, store, new):
    fields = {"optimizer__skip_window": 8}
    argv = _train(store, new, "--init-from", finished_run, **fields)
    line = refused(USAGE, *argv, f"{STEPS},optimizer")
    assert "another model or optimizer" in line and "optimizer.skip_window: 0 -> 8" in line


def test_another_store(refused, run, finished_run, store, new, tmp_path):
    other = tmp_path / "other"
    corpus = runs.write_corpus(tmp_path / "corpus.jsonl", documents=230)
    assert run("prepare", corpus, "--output", other, "--tokenizer", "bytes") == 0
    argv = _train(other, new, "--init-from", finished_run)
    line = refused(USAGE, *argv, STEPS)
    assert "another store" in line and "data.store" in line
    made, words = tmp_path / "tokenizer", tmp_path / "words"
    assert run("tokenizer", "train", corpus, "--vocab-size", 259, "--output", made) == 0
    assert run("prepare", corpus, "--output", words, "--tokenizer", made) == 0
    argv = _train(words, new, "--init-from", finished_run, "--init", "weights")
    line = refused(USAGE, *argv)
    assert "tokenizer is not the store's" in line and "data.store" in line


def test_nothing_left_to_train(refused, finished_run, store, new):
    argv = _train(store, new, "--init-from", finished_run, train__steps=40)
    line = refused(USAGE, *argv, STEPS)
    assert "goes on at step 40" in line and "config.train.steps = 40" in line


def test_a_workdir_that_began_otherwise(refused, finished_run, store, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    argv = runs.train_argv(store, workdir)  # four windows a batch: it never gets to train
    argv += ["--config.train.batch_size=8", "--init-from", str(tmp_path / "other")]
    line = refused(USAGE, *argv)
    assert "did not begin with --init-from" in line and str(workdir) in line
    record = {"workdir": str(finished_run), "name": "emo_tiny", "step": 20, "mode": "all"}
    (workdir / "init.json").write_text(json.dumps(record))
    for source, mode in (
        (tmp_path / "other", "all"),
        (f"{finished_run}@30", "all"),
        (finished_run, "weights"),
    ):
        line = refused(USAGE, *argv[:-1], source, "--init", mode)
        assert f"began from {finished_run}@20 (all), not with" in line
    (workdir / "init.json").write_text("{")
    assert "init.json: cannot be read" in refused(USAGE, *argv)


def test_no_permission_to_write(refused, finished_run, store, tmp_path):
    (tmp_path / "file").write_text("precious")
    argv = _train(store, tmp_path / "file/below", "--init-from", finished_run, STEPS)
    assert str(tmp_path / "file") in refused(USAGE, *argv)
    assert (tmp_path / "file").read_text() == "precious"
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.tex").write_text("precious")
    line = refused(USAGE, *_train(store, folder, "--init-from", finished_run, STEPS))
    assert "not a workdir" in line and [p.name for p in folder.iterdir()] == ["chapter.tex"]


@pytest.mark.system
def test_of_a_real_process(env, store, tmp_path):
    argv = runs.train_argv(store, tmp_path / "new")
    done = runs.emo([*argv, "--init-from", tmp_path / "none"], env)
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert done.stderr == (
        f"emo: {tmp_path / 'none'}: no such workdir; a run makes it with emo train --workdir\n"
    )

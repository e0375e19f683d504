"""What users get wrong: one line that says what to do, the right exit code, nothing lost."""

import json
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import runs

from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.config import DataConfig
from emo_jax.config.file import load_config
from emo_jax.data.store import TokenStore
from emo_jax.data.windows import open_source
from emo_jax.run.workdir import claim_workdir

FAILED, USAGE = 1, 2


def _train(store, workdir, **fields):
    """Arguments for a run in this process, which has eight devices."""
    return runs.train_argv(store, workdir, **{"train__batch_size": 8, **fields})


@pytest.fixture
def below_a_file(tmp_path) -> Path:
    """A path nobody can write to, not even root."""
    (tmp_path / "file").write_text("precious")
    return tmp_path / "file/below"


def _content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["frobnicate"], "'frobnicate'"),
        (["export", "--frobnicate", "x"], "--frobnicate"),
        (["export"], "WORKDIR"),
        (["export", "x", "--output", "y", "--layout", "gguf"], "gguf"),
        (["export", "x", "--output", "y", "--step", "last"], "last"),
        (["tokenizer"], "Missing command"),
        (["quickstart", "--steps", "0"], "--steps"),
        (["train", "--config", "x.py"], "--workdir"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_usage(refused, argv, named):
    line = refused(USAGE, *argv)
    assert named in line
    assert line.endswith("--help)\n")


def test_bad_usage_of_a_real_process(env):
    done = runs.emo(["frobnicate"], env)
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert done.stderr.startswith("emo: ") and done.stderr.count("\n") == 1


def test_nothing_to_do_shows_the_help(env):
    done = runs.emo([], env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: emo ")


def test_debug_shows_the_traceback(env):
    done = runs.emo(["export", "nowhere", "--output", "x", "--debug"], env)
    assert done.returncode == USAGE
    assert "Traceback" in done.stderr
    assert "nowhere: no such workdir" in done.stderr.splitlines()[-1]


# --- documents -----------------------------------------------------------------------------------


def _prepare(corpus, output, *more):
    return ["prepare", corpus, "--output", output, "--tokenizer", "bytes", *more]


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": ""}\n', '{"other": "x"}\n'])
def test_a_corpus_without_documents(refused, tmp_path, content):
    corpus, output = tmp_path / "corpus.jsonl", tmp_path / "store"
    corpus.write_text(content)
    line = refused(FAILED, *_prepare(corpus, output))
    assert "corpus.jsonl" in line and "no usable document" in line
    assert sorted(tmp_path.iterdir()) == [corpus]


def test_a_missing_corpus(refused, tmp_path):
    line = refused(USAGE, *_prepare(tmp_path / "none.jsonl", tmp_path / "store"))
    assert "none.jsonl: no such file" in line
    line = refused(USAGE, "quickstart", "--documents", "none.jsonl", "--output", tmp_path / "q")
    assert "none.jsonl: no such file" in line
    assert not list(tmp_path.iterdir())


def test_a_document_without_tokens_is_left_out(run, tmp_path, capsys):
    corpus, output = tmp_path / "corpus.jsonl", tmp_path / "store"
    corpus.write_text('{"text": "a"}\n{"text": ""}\n{"text": "b"}\n{"text": "c"}\n')
    assert run(*_prepare(corpus, output)) == 0
    store = TokenStore.open(output)
    assert sum(store.count(s, "documents") for s in store.splits) == 3
    assert "3 documents read, 1 skipped" in capsys.readouterr().out


BROKEN = b'{"text": "fine"}\n{"text": "bad \xff\xfe"}\n{"text": "cut sho\n[1]\n{"text": "good"}\n'


def test_broken_lines_are_counted_and_the_first_is_named(run, tmp_path, capsys):
    corpus, output = tmp_path / "corpus.jsonl", tmp_path / "store"
    corpus.write_bytes(BROKEN)
    assert run(*_prepare(corpus, output)) == 0
    shown = capsys.readouterr().out
    assert "2 documents read, 3 skipped" in shown
    assert "1 x invalid UTF-8" in shown and "1 x broken JSON" in shown
    assert "corpus.jsonl:2: invalid UTF-8" in shown
    made = tmp_path / "tokenizer"
    assert run("tokenizer", "train", corpus, "--vocab-size", 260, "--output", made) == 0
    assert "2 documents read, 3 skipped" in capsys.readouterr().out


def test_broken_lines_fail_when_strict(refused, tmp_path):
    corpus, output = tmp_path / "corpus.jsonl", tmp_path / "store"
    corpus.write_bytes(BROKEN)
    line = refused(FAILED, *_prepare(corpus, output, "--strict"))
    assert "corpus.jsonl:2: invalid UTF-8" in line
    assert sorted(tmp_path.iterdir()) == [corpus]


def test_a_tokenizer_that_is_none(refused, corpus, tmp_path):
    argv = ["prepare", corpus, "--output", tmp_path / "store", "--tokenizer"]
    assert "no such tokenizer" in refused(USAGE, *argv, tmp_path / "none")
    (tmp_path / "tokenizer.json").write_text("{")
    assert "not a tokenizer.json" in refused(FAILED, *argv, tmp_path / "tokenizer.json")
    argv = ["tokenizer", "train", corpus, "--output", tmp_path / "tok", "--vocab-size", 100]
    assert "at least 258" in refused(USAGE, *argv)
    assert not (tmp_path / "store").exists() and not (tmp_path / "tok").exists()


# --- the store -----------------------------------------------------------------------------------


def test_no_store(refused, tmp_path):
    assert "emo prepare" in refused(USAGE, *_train("", tmp_path / "run"))
    assert "no such token store" in refused(USAGE, *_train(tmp_path / "x", tmp_path / "run"))
    (tmp_path / "folder").mkdir()
    line = refused(FAILED, *_train(tmp_path / "folder", tmp_path / "run"))
    assert "not a token store" in line
    assert not (tmp_path / "run").exists()


def test_a_store_with_more_ids_than_the_model(refused, store, tmp_path):
    line = refused(USAGE, *_train(store, tmp_path / "run", model__vocab_size=258))
    assert "259" in line and "258" in line and "--config.model.vocab_size=259" in line
    assert not (tmp_path / "run").exists()


def test_a_store_shorter_than_a_window(refused, store, tmp_path):
    line = refused(FAILED, *_train(store, tmp_path / "run", data__seq_len=100_000))
    assert "data.seq_len" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "manifest"])
def test_a_damaged_store(refused, store, tmp_path, damage):
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    file = max(copy.glob("train/tokens/**/*"), key=lambda p: p.is_file() and p.stat().st_size)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-7])
    elif damage == "flipped":
        runs.flip_byte(file)
    elif damage == "missing":
        file.unlink()
    else:
        file = copy / "store.json"
        file.write_text(file.read_text().replace('"eos_id": 1', '"eos_id": 2'))
    line = refused(FAILED, *_train(copy, tmp_path / "run"))
    assert str(file) in line and "damaged" in line and "prepare it again" in line
    assert not (tmp_path / "run").exists()


# --- the config ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"moe__top_k": 9}, "config.moe.top_k = 9: must be 2..8"),
        ({"moe__pool__min_size": 1}, "config.moe.pool.min_size = 1: must be 2..8"),
        ({"moe__pool__max_size": 9}, "config.moe.pool.max_size = 9: must be 2..8"),
        ({"moe__pool__eval_size": 9}, "config.moe.pool.eval_size = 9: must be 0 or 2..8"),
        ({"moe__top_k": 5}, "config.moe.pool.min_size = 2: must be 4..8"),
        ({"mesh__expert": 3}, "config.moe.num_experts = 8: must be divisible by mesh.expert = 3"),
        ({"mesh__expert": -1}, "cannot all be -1"),
        ({"mesh__fsdp": 16, "train__batch_size": 16}, "there are 8 devices"),
        ({"mesh__fsdp": 2, "mesh__replica": 2}, "there are 8 devices"),
        ({"train__batch_size": 4}, "config.train.batch_size"),
        ({"train__micro_batches": 3}, "config.train.micro_batches = 3: must be a divisor"),
        ({"optimizer__warmup_steps": 41}, "config.optimizer.warmup_steps = 41: must be at most"),
        ({"model__head_dim": 15}, "config.model.head_dim = 15: must be even"),
        ({"model__num_layer": 3}, "did you mean 'model.num_layers'?"),
        ({"model__num_layers": "two"}, "--config.model.num_layers=two: must be int"),
        ({"model__num_layers": 2.5}, "--config.model.num_layers=2.5: must be int"),
        ({"moe__pool__kind": "unifrom"}, "did you mean 'uniform'?"),
        ({"moe": 3}, "config.moe"),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if value is dict else None,
)
def test_a_wrong_field(refused, store, tmp_path, fields, named):
    line = refused(USAGE, *_train(store, tmp_path / "run", **fields))
    assert named in line
    assert not (tmp_path / "run").exists()


def test_a_wrong_experiment_file(refused, tmp_path):
    train = ["train", "--workdir", tmp_path / "run", "--config"]
    assert "no such file" in refused(USAGE, *train, tmp_path / "none.py")
    (tmp_path / "script.py").write_text("x = 1\n")
    assert "has no get_config()" in refused(USAGE, *train, tmp_path / "script.py")
    assert "no config argument" in refused(USAGE, *train, f"{runs.EXPERIMENT}:130b")
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config():\n  return 1/0\n")
    assert "broken.py: ZeroDivisionError" in refused(USAGE, *train, broken)
    unknown = tmp_path / "unknown.py"
    unknown.write_text(
        "import ml_collections\n\n\ndef get_config():\n"
        "    return ml_collections.ConfigDict({'name': 'x', 'modle': {}})\n"
    )
    assert "config.modle" in refused(USAGE, *train, unknown)
    assert "did you mean 'model'?" in refused(USAGE, *train, unknown)
    words = ["model.num_layers=3"], ["--model.num_layers=3"], ["--config.model.num_layers"]
    for more in words:
        line = refused(USAGE, *train, runs.EXPERIMENT, *more)
        assert more[0] in line and "--config.model.num_layers=" in line
    assert not (tmp_path / "run").exists()


# --- the workdir ---------------------------------------------------------------------------------


def test_a_workdir_of_another_run(refused, finished_run, store, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    before = _content(workdir)
    line = refused(USAGE, *_train(store, workdir, model__num_layers=4))
    assert "another config" in line
    assert "model.num_layers: 2 -> 4" in line and "train.batch_size: 4 -> 8" in line
    assert "--init-from" not in line
    line = refused(USAGE, *_train(store, workdir, train__steps=50))
    names = "--config.init.expected_changes=train.batch_size,train.steps"
    assert f"give another workdir and --init-from {workdir} {names}; or give" in line
    assert _content(workdir) == before


def _begun(store: Path, workdir: Path, extra: dict) -> None:
    """A run at step 3, of a state that fits no model: nothing but a refusal comes before that."""
    _, _, file, _, _, *overrides = _train(store, workdir)
    config = load_config(file, overrides)
    claim_workdir(workdir, config)
    with Checkpointer(workdir, config.checkpoint) as checkpointer:
        state = {"params": {"w": np.zeros(2)}, "step": np.int32(3)}
        about = {"config": {"data": {"store": config.data.store}}, "windows": 24}
        checkpointer.save(3, state, about | extra)


@pytest.mark.parametrize("where", ["same path", "elsewhere"])
def test_going_on_with_another_corpus(refused, run, store, tmp_path, where):
    workdir, old, new = tmp_path / "run", tmp_path / "store", tmp_path / "new"
    shutil.copytree(store, old)
    _begun(old, workdir, {"store": TokenStore.open(old).fingerprint})
    other = runs.write_corpus(tmp_path / "other.jsonl", documents=230)
    assert run(*_prepare(other, new)) == 0
    if where == "same path":
        shutil.rmtree(old)
        new = new.rename(old)
    before = _content(workdir)
    line = refused(USAGE, *_train(new, workdir, train__log_every=7))
    assert "was trained on another store" in line and str(workdir) in line
    assert str(old) in line and TokenStore.open(store).fingerprint[:12] in line
    assert str(new) in line and TokenStore.open(new).fingerprint[:12] in line
    assert "--config.data.store=STORE" in line
    assert _content(workdir) == before


def test_going_on_with_another_tokenizer(refused, run, store, corpus, tmp_path):
    workdir, made, new = tmp_path / "run", tmp_path / "tokenizer", tmp_path / "new"
    assert run("tokenizer", "train", corpus, "--vocab-size", 259, "--output", made) == 0
    assert run("prepare", corpus, "--output", new, "--tokenizer", made) == 0
    _begun(store, workdir, {})
    shutil.copytree(store / "tokenizer", workdir / "tokenizer")
    before = _content(workdir)
    line = refused(USAGE, *_train(new, workdir, train__log_every=7))
    assert str(workdir) in line and f"{new}: the tokenizer is not the store's" in line
    assert _content(workdir) == before


@pytest.mark.parametrize("recorded", [True, False])
def test_going_on_with_the_same_corpus(refused, store, tmp_path, recorded):
    """Moved, or with checkpoints from before the store was recorded."""
    workdir, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(store, moved)
    _begun(store, workdir, {"store": TokenStore.open(store).fingerprint} if recorded else {})
    assert "is of another model" in refused(FAILED, *_train(moved, workdir))  # it went on


def test_a_damaged_newest_checkpoint_does_not_hide_another_corpus(refused, run, store, tmp_path):
    workdir = tmp_path / "run"
    _begun(store, workdir, {"store": "0" * 64})
    damaged = workdir / "checkpoints/4"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{")
    assert "another store" in refused(USAGE, *_train(store, workdir))


def test_going_on_with_other_raw_files(refused, tmp_path):
    raw, workdir = tmp_path / "raw", tmp_path / "run"
    raw.mkdir()
    for name, size in (("a", 4096), ("b", 8192)):
        np.zeros(size, np.uint32).tofile(raw / f"{name}.npy")
    fields = {"model__vocab_size": 100_278, "train__eval_windows": 0}
    _, _, file, _, _, *overrides = _train(raw / "a.npy", workdir, **fields)
    config = load_config(file, overrides)
    claim_workdir(workdir, config)
    with Checkpointer(workdir, config.checkpoint) as checkpointer:
        extra = {"config": {"data": {"store": "a"}}, "windows": 8}
        extra["store"] = open_source(raw / "a.npy", DataConfig()).fingerprint
        checkpointer.save(1, {"params": {"w": np.zeros(2)}}, extra)
    assert "another store" in refused(USAGE, *_train(raw / "*.npy", workdir, **fields))
    content = (raw / "a.npy").read_bytes()
    np.ones(4096, np.uint32).tofile(raw / "a.npy")  # a file of the same name and size
    assert "another store" in refused(USAGE, *_train(raw / "a.npy", workdir, **fields))
    (raw / "a.npy").write_bytes(content)
    moved = raw.rename(tmp_path / "moved")
    assert "another model" in refused(FAILED, *_train(moved / "a.npy", workdir, **fields))


def test_a_folder_that_is_no_workdir(refused, store, tmp_path):
    workdir = tmp_path / "thesis"
    workdir.mkdir()
    (workdir / "chapter.tex").write_text("precious")
    line = refused(USAGE, *_train(store, workdir))
    assert "not a workdir" in line and "chapter.tex" in line
    assert _content(workdir) == {"chapter.tex": b"precious"}
    assert "not a workdir" in refused(USAGE, "export", workdir, "--output", tmp_path / "hf")
    assert "no such workdir" in refused(USAGE, "export", tmp_path / "x", "--output", tmp_path / "h")


def test_all_checkpoints_damaged(refused, finished_run, store, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    for step in runs.checkpoints(workdir):
        runs.damage_checkpoint(workdir, step, "params")
    before = _content(workdir)
    line = refused(FAILED, "export", workdir, "--output", tmp_path / "hf")
    assert "no good checkpoint" in line
    assert not (tmp_path / "hf").exists()
    assert _content(workdir) == before


@pytest.mark.system
def test_training_with_all_checkpoints_damaged_fails_and_keeps_them(
    env, finished_run, store, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    steps = runs.checkpoints(workdir)
    for step in steps:
        runs.damage_checkpoint(workdir, step)
    before = _content(workdir)
    done = runs.emo(runs.train_argv(store, workdir), env)
    assert done.returncode == FAILED
    last = done.stderr.splitlines()[-1]
    assert last.startswith("emo: no good checkpoint")
    assert all(f"step {step}:" in last for step in steps)
    assert "bring one back from a copy, or move checkpoints/ away to begin from the start" in last
    assert "Traceback" not in done.stderr
    assert _content(workdir) == before
    (workdir / "checkpoints").rename(tmp_path / "damaged")
    done = runs.emo(runs.train_argv(store, workdir), env)
    assert done.returncode == 0 and "resumed" not in done.stderr, done.stderr
    assert runs.log_as_written(workdir) == runs.log_as_written(finished_run)


@pytest.mark.system
def test_a_damaged_newest_checkpoint_is_not_used(env, finished_run, store, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    runs.damage_checkpoint(workdir, 40)
    done = runs.emo(runs.train_argv(store, workdir), env)
    assert done.returncode == 0, done.stderr
    assert "emo: checkpoint of step 40 in " in done.stderr and "is not used: " in done.stderr
    assert "other bytes than were written" in done.stderr
    assert "resumed at step 30" in done.stderr
    assert runs.log_as_written(workdir) == runs.log_as_written(finished_run)
    again = runs.emo(runs.train_argv(store, workdir), env)
    assert again.returncode == 0
    assert "already finished at step 40" in again.stderr and "not used" not in again.stderr


# --- export and import ---------------------------------------------------------------------------


def test_export_of_a_step_that_is_not_there(refused, finished_run, tmp_path):
    output = tmp_path / "hf"
    line = refused(FAILED, "export", finished_run, "--output", output, "--step", 7)
    assert "no checkpoint of step 7" in line and "[20, 30, 40]" in line
    assert not output.exists()


def test_export_with_another_tokenizer(refused, run, finished_run, corpus, tmp_path):
    made, output = tmp_path / "tokenizer", tmp_path / "hf"
    assert run("tokenizer", "train", corpus, "--vocab-size", 259, "--output", made) == 0
    line = refused(USAGE, "export", finished_run, "--output", output, "--tokenizer", made)
    assert "not the tokenizer of the run" in line and str(made) in line
    line = refused(USAGE, "export", finished_run, "--output", output, "--tokenizer", tmp_path)
    assert "no such tokenizer" in line
    assert not output.exists()


def test_import_of_another_architecture(refused, tmp_path):
    folder, workdir = tmp_path / "hf", tmp_path / "run"
    folder.mkdir()
    settings = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
    (folder / "config.json").write_text(json.dumps(settings))
    line = refused(FAILED, "import", folder, "--workdir", workdir)
    assert "config.json" in line and "gpt2" in line.lower() and "qwen2_moe" in line
    assert "config.json" in refused(FAILED, "import", tmp_path / "x", "--workdir", workdir)
    assert not workdir.exists()


def test_import_of_an_incomplete_folder(refused, run, finished_run, tmp_path):
    folder, workdir = tmp_path / "hf", tmp_path / "run"
    assert run("export", finished_run, "--output", folder) == 0
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in refused(FAILED, "import", folder, "--workdir", workdir)
    weights.unlink()
    assert "model.safetensors" in refused(FAILED, "import", folder, "--workdir", workdir)
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("error", "code"), [(OSError(28, "No space"), 2), (KeyboardInterrupt, 130)]
)
def test_an_import_cut_short_leaves_nothing(run, finished_run, tmp_path, monkeypatch, error, code):
    """A claimed workdir without a checkpoint would train from random parameters."""
    folder, workdir = tmp_path / "hf", tmp_path / "run"
    assert run("export", finished_run, "--output", folder) == 0

    def fail(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("emo_jax.saved.transfer.Checkpointer.save", fail)
        assert run("import", folder, "--workdir", workdir) == code
    assert list(tmp_path.iterdir()) == [folder]
    workdir.mkdir()  # an empty one will do
    assert run("import", folder, "--workdir", workdir) == 0
    assert sorted(tmp_path.iterdir()) == [folder, workdir]
    assert runs.checkpoints(workdir) == [0]


def test_an_output_that_is_there(refused, run, finished_run, corpus, tmp_path):
    folder, file, hf = tmp_path / "folder", tmp_path / "file", tmp_path / "hf"
    folder.mkdir()
    (folder / "precious").write_text("precious")
    file.write_text("precious")
    assert run("export", finished_run, "--output", hf) == 0
    for output in (folder, file):
        for argv in (
            _prepare(corpus, output),
            ["export", finished_run, "--output", output],
            ["import", hf, "--workdir", output],
            ["tokenizer", "train", corpus, "--vocab-size", 260, "--output", output],
            ["quickstart", "--output", output],
        ):
            assert str(output) in refused(USAGE, *argv)
    assert _content(folder) == {"precious": b"precious"}
    assert file.read_text() == "precious"


def test_no_permission_to_write(refused, run, finished_run, store, corpus, below_a_file, tmp_path):
    hf = tmp_path / "hf"
    assert run("export", finished_run, "--output", hf) == 0
    for code, argv in (
        (FAILED, _prepare(corpus, below_a_file)),
        (FAILED, ["export", finished_run, "--output", below_a_file]),
        (USAGE, ["import", hf, "--workdir", below_a_file]),
        (USAGE, _train(store, below_a_file)),
        (FAILED, ["tokenizer", "train", corpus, "--vocab-size", 260, "--output", below_a_file]),
        (FAILED, ["quickstart", "--documents", corpus, "--output", below_a_file]),
    ):
        assert str(below_a_file.parent) in refused(code, *argv)
    assert below_a_file.parent.read_text() == "precious"


def test_a_tokenizer_that_cannot_be_written_shows_before_the_documents_are_read(
    refused, below_a_file, tmp_path
):
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_text("")
    argv = ["tokenizer", "train", nothing, "--vocab-size", 260, "--output"]
    assert f"{below_a_file}: cannot be written" in refused(FAILED, *argv, below_a_file)
    assert "no usable document" in refused(FAILED, *argv, tmp_path / "tok")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "nothing.jsonl"]


def test_verify_of_what_is_no_case(refused, tmp_path):
    assert "no such folder" in refused(USAGE, "verify", tmp_path / "none")
    assert "not a case" in refused(USAGE, "verify", tmp_path)


# --- a full disk ---------------------------------------------------------------------------------


@pytest.mark.system
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits another process")
def test_a_full_disk_leaves_the_last_checkpoint(env, store, tmp_path):
    """Writing fails as on a full disk (EFBIG for ENOSPC) once the first checkpoint is there."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    argv = runs.train_argv(
        *(store, workdir),
        train__steps=400,
        train__log_every=100,
        train__eval_windows=0,
        checkpoint__save_every=100,
        checkpoint__keep_every=0,
    )
    process = runs.start(argv, env, log)
    first = workdir / "checkpoints/100/manifest.json"
    runs.wait_until(first.exists, process, log)
    process.send_signal(signal.SIGSTOP)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=120) == FAILED, log.read_text()
    last = log.read_text().splitlines()[-1]
    assert last.startswith("emo: checkpoint of step ") and "is the last good one" in last
    assert "Traceback" not in log.read_text()
    (good,) = runs.checkpoints(workdir)  # what was half written gave its space back

    done = runs.emo(argv, env)
    assert done.returncode == 0, done.stderr
    assert f"resumed at step {good}" in done.stderr and "not used" not in done.stderr
    assert runs.checkpoints(workdir) == [300, 400]


BIG = "9" * 5000


@pytest.mark.parametrize(
    "argv",
    [
        ("merge", "M", "--into", "R", "--average", "nan", "--output", "O"),
        ("generate", "R", "--prompt", "a", "--temperature", "nan"),
        ("generate", "R", "--prompt", "a", "--temperature", "1e300"),
        ("generate", "R", "--prompt", "a", "--temperature", "1", "--top-p", "nan"),
        ("finetune", "R", "--data", "D", "--workdir", "W", "--epochs", "nan"),
        ("finetune", "R", "--data", "D", "--workdir", "W", "--lr", "inf"),
        ("bench", "train", "--config", "C", "--memory", "nan"),
    ],
)
def test_numbers_that_are_none(refused, argv):
    assert "is no finite number (see emo" in refused(2, *argv)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("select", "R", "--data", "D", "--examples", BIG, "--output", "O"), "whole numbers"),
        (("select", "R", "--data", "D", "--keep-per-layer", BIG, "--output", "O"), "whole numbers"),
        (("export", "R", "--output", "O", "--gguf-ids"), "--gguf-ids: is of --gguf"),
        (("export", "R", "--output", "O", "--gguf-type", "q8_0"), "--gguf-type: is of --gguf"),
        (("finetune", "R", "--data", "D", "--workdir", "a/b", "--output", "a/../a/b"), "--workdir"),
        (("export", "a\nb\x1b[31m\u2028c", "--output", "O"), r"a\nb\x1b[31m\u2028c: no such"),
    ],
)
def test_one_short_line_and_nothing_started(refused, tmp_path, monkeypatch, argv, said):
    monkeypatch.chdir(tmp_path)
    line = refused(2, *argv)
    assert said in line and len(line) < 2200 and "--debug" not in line
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_too_long(refused, tmp_path):
    name = "x" * 300
    line = refused(1, "import", "R", "--workdir", tmp_path / name)
    assert f"{name}: File name too long; mend that" in line and "Error" not in line


@pytest.mark.parametrize("by", [MemoryError("1 TiB"), RuntimeError("RESOURCE_EXHAUSTED: 1 TiB")])
def test_no_memory(refused, monkeypatch, by):
    def fail(folder, workdir, quiet):
        raise by

    monkeypatch.setattr("emo_jax.import_", fail)
    line = refused(1, "import", "R", "--workdir", "W")
    assert line.startswith("emo: out of memory: ") and "1 TiB; ask for less" in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--batch-size", 10**30), "emo: config.train.batch_size = "),
        (("--epochs", "1e30"), "emo: --epochs 1e+30: must be above 0, at most 1000000"),
    ],
)
def test_finetuning_with_numbers_that_no_run_has(refused, finished_run, tmp_path, options, said):
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "a", "answer": "b"}\n')
    argv = ("finetune", finished_run, "--data", data, "--workdir", tmp_path / "run")
    assert refused(2, *argv, *options).startswith(said)
    assert list(tmp_path.iterdir()) == [data]


def test_adding_more_experts_than_any_model_has(refused, finished_run, tmp_path):
    argv = ("extend", finished_run, "--output", tmp_path / "out", "--add")
    for add in (0, 4097, 10**12):
        assert f"--add {add}: must be in 1..4096" in refused(2, *argv, add)

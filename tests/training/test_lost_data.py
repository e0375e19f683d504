"""A store that goes away while a run trains on it."""

import re
import shutil
import signal
import threading

import pytest
import runs

from emo_jax.checkpoint.reading import restore_params


@pytest.fixture
def own_store(store, tmp_path):
    return shutil.copytree(store, tmp_path / "store")


CHANGES = {
    "deleted": (lambda file: file.unlink(), r"damaged \(missing\)"),
    "cut": (lambda file: file.write_bytes(file.read_bytes()[:-9]), r"damaged \(\d+ bytes, should"),
    "changed": (runs.flip_byte, r"damaged \(content differs from its checksum\)"),
}


@pytest.mark.parametrize("name", ["train/tokens/c/0", "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("how", CHANGES)
def test_changed_since_it_was_prepared_is_named_before_step_1(
    own_store, tmp_path, how, name, capsys, monkeypatch
):
    change, why = CHANGES[how]
    change(own_store / name)
    large = name.startswith("tokenizer") or how != "changed"  # found without reading the chunks
    if large:
        monkeypatch.setattr("emo_jax.data.store.VERIFY_BELOW_BYTES", 1)
    assert runs.emo_here(*runs.train_argv(own_store, tmp_path / "run", train__batch_size=8)) == 1
    line = capsys.readouterr().err
    assert re.fullmatch(rf"emo: {own_store}/{name}: {why}.*; copy the store again.*\n", line), line
    assert runs.steps_logged(tmp_path / "run") == 0


@pytest.fixture
def slow(env):
    """An environment in which a run has to wait for its data: nothing is read ahead for long."""
    return env | {"EMO_READ_WAIT": "60"}


def _same_as(reference, workdir):
    assert runs.log_as_written(workdir) == runs.log_as_written(reference)
    params, extra, step = restore_params(workdir)
    expected, expected_extra, expected_step = restore_params(reference)
    assert (step, extra["windows"]) == (expected_step, expected_extra["windows"])
    assert runs.equal_trees(params, expected)


@pytest.mark.system
def test_away_for_good_ends_in_one_line_with_the_state_saved(own_store, tmp_path, env):
    workdir, log = tmp_path / "run", tmp_path / "log"
    process = runs.start(runs.train_argv(own_store, workdir), env | {"EMO_READ_WAIT": "1"}, log)
    runs.wait_until(lambda: "step 3/" in log.read_text(), process, log)
    own_store.rename(tmp_path / "away")
    assert process.wait(timeout=60) == 1, log.read_text()
    text = log.read_text()
    last, step = text.splitlines()[-1], runs.steps_logged(workdir)
    assert last.startswith(f"emo: {own_store}/") and last.endswith(
        "is not there any more (waited 1 s); bring the store back and run the same command again;"
        f" step {step} is saved in {workdir}"
    ), text
    assert text.count("waiting up to 1 s for it") == 1 and "Traceback" not in text
    assert 3 <= step < 40 and step in runs.checkpoints(workdir)


@pytest.mark.system
def test_away_for_two_seconds_and_no_token_is_another(own_store, finished_run, tmp_path, slow):
    workdir, log = tmp_path / "run", tmp_path / "log"
    process = runs.start(runs.train_argv(own_store, workdir), slow, log)
    runs.wait_until(lambda: "step 3/" in log.read_text(), process, log)
    own_store.rename(tmp_path / "away")
    back = threading.Timer(2, lambda: (tmp_path / "away").rename(own_store))
    back.start()
    assert process.wait(timeout=120) == 0, log.read_text()
    back.join()
    assert "waiting up to 60 s for it" in log.read_text()
    _same_as(finished_run, workdir)


@pytest.mark.system
def test_told_to_stop_while_it_waits(own_store, finished_run, tmp_path, slow):
    """And the same command goes on when the store is back, to the same bits."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    argv = runs.train_argv(own_store, workdir)
    process = runs.start(argv, slow, log)
    runs.wait_until(lambda: "step 3/" in log.read_text(), process, log)
    own_store.rename(tmp_path / "away")
    runs.wait_until(lambda: "waiting up to 60 s" in log.read_text(), process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75, log.read_text()
    step = runs.steps_logged(workdir)
    assert f"emo: stopped by a signal; step {step} is saved in {workdir}" in log.read_text()
    assert step in runs.checkpoints(workdir)
    (tmp_path / "away").rename(own_store)
    done = runs.emo(argv, slow)
    assert done.returncode == 0 and f"resumed at step {step}\n" in done.stderr, done.stderr
    _same_as(finished_run, workdir)

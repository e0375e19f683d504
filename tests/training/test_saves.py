"""Saves that fail: said at once, counted, and the next one happens."""

import json
import resource

import numpy as np
import pytest
import runs

from emo_jax.checkpoint import checkpointer as checkpoint
from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.checkpoint.local import LocalCheckpointer
from emo_jax.config import CheckpointConfig
from emo_jax.errors import CheckpointError, TakenOverError
from emo_jax.training.saves import Saves


def state(step):
    return {"params": {"w": np.full(8, step, np.float32)}, "step": np.int32(step)}


@pytest.fixture
def fails(monkeypatch):
    """Steps whose manifest cannot be written."""
    steps: set[int] = set()
    publish = checkpoint.publish

    def failing(folder, head):
        if head["step"] in steps:
            raise OSError(28, "No space left on device")
        publish(folder, head)

    monkeypatch.setattr(checkpoint, "publish", failing)
    return steps


@pytest.fixture
def checkpointer(tmp_path):
    with Checkpointer(tmp_path, CheckpointConfig(save_every=1, keep_last=2)) as found:
        yield found


def test_a_failed_save_is_said_once_and_the_next_one_happens(checkpointer, fails):
    fails |= {2, 3}
    lines = []
    saves = Saves(checkpointer, most=2, show=lines.append)
    for step in range(1, 6):
        saves.start(step, state(step), {})
        while checkpointer.busy:
            saves.look()
        saves.look()  # in the step after it has failed
        assert len([line for line in lines if f"step {step} was not" in line]) == (step in fails)
    saves.wait()
    assert saves.failed == 2 and checkpointer.steps() == [4, 5]
    assert [line for line in lines if "still being saved" not in line] == [
        lines[0],
        lines[-1],
    ]
    assert "No space left on device; step 1 is the last good one" in lines[0]


def test_one_too_many_ends_the_run(checkpointer, fails):
    fails |= {1, 3, 4, 5}
    saves = Saves(checkpointer, most=2, show=lambda line: None)
    for step in range(1, 6):  # 2 succeeds, after which it counts anew
        saves.start(step, state(step), {})
    with pytest.raises(CheckpointError, match="step 5 was not saved"):
        saves.start(6, state(6), {})
    assert saves.failed == 4


def test_a_run_that_is_taken_over_touches_nothing_more(tmp_path):
    """Its own failed saves are removed; what the other run writes at the same steps is not."""
    others = []

    def check_ours():
        if others:
            raise TakenOverError("taken over")

    config = CheckpointConfig(save_every=1, keep_last=1)
    with Checkpointer(tmp_path, config, check_ours=check_ours) as checkpointer:
        saves = Saves(checkpointer, most=99, show=lambda line: None)
        saves.start(1, state(1), {})
        saves.wait()
        others.append("another run")
        with pytest.raises(TakenOverError):
            saves.start(2, state(2), {})
        with pytest.raises(TakenOverError):
            checkpointer.drop_after(0)
        others.clear()
        checkpointer.save(2, state(2), {})
        others.append("another run, while it is written")
        with pytest.raises(TakenOverError):
            saves.start(3, state(3), {})
        assert checkpointer.steps() in ([1], [2]) and (tmp_path / "checkpoints/2/data").is_dir()


def test_the_last_save_must_succeed(checkpointer, fails):
    fails |= {1, 3}
    saves = Saves(checkpointer, most=2, show=lambda line: None)
    saves.start(1, state(1), {})
    saves.finish(2, state(2), {})  # though the one before has failed
    assert checkpointer.steps() == [2]
    with pytest.raises(CheckpointError, match="step 3 was not saved"):
        saves.finish(3, state(3), {})


def test_a_slow_save_is_said(checkpointer, monkeypatch):
    publish, lines = checkpoint.publish, []

    def slow(folder, head):
        while head["step"] == 1 and not lines:
            pass
        publish(folder, head)

    monkeypatch.setattr(checkpoint, "publish", slow)
    saves = Saves(checkpointer, most=0, show=lines.append)
    saves.start(1, state(1), {})
    saves.start(2, state(2), {})
    assert lines == [
        "step 1 is still being saved; step 2 waits for it: save less often"
        " (checkpoint.save_every), or to a faster disk"
    ]


@pytest.mark.system
def test_a_run_outlives_a_disk_that_is_full_for_a_while(env, store, finished_run, tmp_path):
    """No file of it may grow beyond what its log needs, which fails as a full disk does."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    argv = runs.train_argv(store, workdir)
    process = runs.start(argv, env, log)
    runs.wait_until(lambda: (workdir / "checkpoints/10/manifest.json").exists(), process, log)
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 << 16, hard))
    runs.wait_until(lambda: "was not saved" in log.read_text(), process, log)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    assert process.wait(timeout=200) == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    trained = {row["step"]: row for row in rows if "loss" in row}
    assert trained[40]["failed_saves"] >= 1 and "failed_saves" not in trained[10]
    ours, theirs = runs.state_of(workdir, 40), runs.state_of(finished_run, 40)
    assert runs.equal_trees(ours, theirs)


def test_the_last_save_is_tried_however_many_have_failed(checkpointer, fails):
    fails |= {1, 2}
    saves = Saves(checkpointer, most=0, show=lambda line: None)
    saves.start(1, state(1), {})
    saves.finish(3, state(3), {})
    assert checkpointer.steps() == [3] and saves.failed == 1


def test_a_disk_of_a_host_that_fails_is_said_and_costs_nothing_else(tmp_path, caplog, fails):
    """Neither the next save there, nor how the run ends."""
    fails.add(1)
    config = CheckpointConfig(save_every=9, local=str(tmp_path / "disk"), local_every=1)
    (tmp_path / "run").mkdir()
    local = LocalCheckpointer(tmp_path / "run", config)
    with Checkpointer(tmp_path / "run", config) as shared:
        saves = Saves(shared, most=0, show=pytest.fail, local=local)
        for step in (1, 2):
            saves.keep(step, state(step), {"windows": 8 * step})
        saves.keep(3, state(3), {"windows": 24})
        fails.add(4)
        saves.keep(4, state(4), {"windows": 32})
        local.close()
    said = [r.getMessage() for r in caplog.records if "was not saved" in r.getMessage()]
    assert [f"step {n}" in line for n, line in zip((1, 4), said, strict=True)] == [True, True]
    wanted = {"params": {"w": np.zeros(8, np.float32)}, "step": np.int32(0)}
    assert local.find(wanted, lambda extra: True).step == 3
    assert runs.equal_trees(local.restore(wanted, 3), state(3))

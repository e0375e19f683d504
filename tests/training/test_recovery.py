"""Bad steps that a run goes on from: what is passed over, and that it stays so after a kill."""

import json
import re
import subprocess

import bad_batches
import numpy as np
import pytest
import runs

from emo_jax.errors import UsageError
from emo_jax.training.passed import Passed, PassedWindows
from emo_jax.training.trace import Trace

FIELDS = {
    "train__steps": 24,
    "train__eval_every": 6,
    "checkpoint__save_every": 8,
    "checkpoint__keep_every": 0,
}


def train(env, store, workdir, kind, bad, *, die="-", **fields):
    reads = workdir.with_name(f"{workdir.name}.reads")
    argv = runs.train_argv(store, workdir, **{**FIELDS, **fields})
    command = bad_batches.command(argv, kind, bad, die=die, reads=reads)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert reads.exists(), done.stderr
    return done, [int(line) for line in reads.read_text().split()]


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same(workdir, other):
    assert runs.log_as_written(workdir) == runs.log_as_written(other)
    ours, theirs = runs.state_of(workdir, 24), runs.state_of(other, 24)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def passed(workdir):
    return [list(p)[:4] for p in PassedWindows.read(workdir).all]


# (kind, windows of bad batches of 4, fields, what is passed over: first, end, after, bad step)
CASES = {
    # Step 13 is bad; the batch after it too, which is then step 13's.
    "skip": ("nan", [48, 52], {"train__on_nan": "skip"}, [[48, 52, 12, 13], [52, 56, 12, 13]]),
    # Step 13 is bad: back to 8, whose next batch begins at 32. Then step 11, which reads at 60.
    "rollback": (
        "nan",
        [48, 60],
        {"train__on_nan": "rollback"},
        [[32, 52, 8, 13], [52, 64, 8, 11]],
    ),
    # Before there is a checkpoint: to the fresh state.
    "rollback to the start": ("nan", [16], {"train__on_nan": "rollback"}, [[0, 20, 0, 5]]),
    "spike": (
        "spike",
        [48],
        {
            "train__on_spike": "rollback",
            "optimizer__skip_window": 16,
            "optimizer__skip_sigma": 12,
        },
        [[32, 52, 8, 13]],
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.system if n == "rollback" else pytest.mark.slow)
        for n in CASES
    ],
)
def test_a_run_that_was_killed_after_it_passed_windows_over_equals_one_that_was_not(
    env, store, tmp_path, name
):
    kind, bad, fields, expected = CASES[name]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done, reads = train(env, store, whole, kind, bad, **fields)
    assert done.returncode == 0, done.stderr
    assert passed(whole) == expected
    gone = {w for first, end, *_ in expected for w in range(first, end)}
    last = 24 * 4 + len(gone)
    kept = [w for w in range(0, last, 4) if w not in gone]
    assert reads[-1] == last - 4 and len(kept) == 24
    counts = {r["step"]: r.get("passed_windows", 0) for r in records(whole) if "loss" in r}
    assert list(counts) == list(range(1, 25))
    assert counts == {s: sum(w < kept[s - 1] for w in gone) for s in counts}
    for one in PassedWindows.read(whole).all:
        assert f"step {one.bad}: {one.why}; " in done.stderr
        assert f"windows {one.first}..{one.end - 1} are passed over" in done.stderr

    # Two kills: at the first step after all is passed over, and after the next checkpoint.
    at = max(gone) + 1
    for die in (at + 4, at + 44):
        done, _ = train(env, store, killed, kind, bad, die=die, **fields)
        assert done.returncode == -9, done.stderr
    done, reads = train(env, store, killed, kind, bad, **fields)
    assert done.returncode == 0 and "resumed at step" in done.stderr, done.stderr
    assert_same(killed, whole)
    assert passed(killed) == expected

    # What a step read is what the trace says.
    trace = Trace.open(whole)
    assert [int(trace.places(step)[0]) for step in range(1, 25)] == kept


@pytest.mark.system
def test_a_killed_run_begins_before_what_it_passed_over(env, store, tmp_path):
    """Its newest checkpoint is damaged: it reads the same windows again, and no others."""
    kind, bad, fields, _ = CASES["skip"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(env, store, whole, kind, bad, **fields)[0].returncode == 0
    done, _ = train(env, store, killed, kind, bad, die=80, **fields)
    assert done.returncode == -9 and runs.checkpoints(killed) == [8, 16]
    runs.damage_checkpoint(killed, 16)
    (tmp_path / "killed.reads").unlink()
    done, reads = train(env, store, killed, "nan", [], **fields)  # the batches are good now
    assert done.returncode == 0 and "resumed at step 8\n" in done.stderr, done.stderr
    assert reads == [*range(32, 48, 4), *range(56, 104, 4)]
    assert_same(killed, whole)


@pytest.mark.slow
def test_one_that_stopped_passes_over_what_it_stopped_at(env, store, tmp_path):
    """The policy may change when a run resumes."""
    kind, bad, fields, _ = CASES["skip"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(env, store, whole, kind, bad, **fields)[0].returncode == 0
    done, _ = train(env, store, stopped, kind, bad)
    assert done.returncode == 1
    assert "pass over it with --config.train.on_nan=skip" in done.stderr.splitlines()[-1]
    done, _ = train(env, store, stopped, kind, bad, **fields)
    assert done.returncode == 0, done.stderr
    assert_same(stopped, whole)


@pytest.mark.system
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_run_that_does_not_get_better_ends(env, store, tmp_path, policy):
    workdir = tmp_path / "run"
    done, _ = train(env, store, workdir, "nan", list(range(48, 400, 4)), train__on_nan=policy)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    how = "going on from step 12" if policy == "skip" else "rolling back to step 8"
    assert re.search(rf": the loss is nan .*, after {how} 3 times; nothing was updated: ", last)
    assert len(passed(workdir)) == 3


@pytest.mark.system
def test_a_mixture_is_read_further(env, store, tmp_path):
    """What is passed over of a mixture is made up for by windows that its plan did not have."""
    fields = {
        "data.store": "",
        "data.sources": json.dumps([{"store": str(store), "weight": 1.0}]),
        "train__on_nan": "skip",
    }
    done, reads = train(env, store, tmp_path / "run", "nan", [48], **fields)
    assert done.returncode == 0, done.stderr
    assert reads[-1] == 96 and 48 in reads
    assert int(Trace.open(tmp_path / "run").places(24)[0]) == 96


# --- windows that are passed over ----------------------------------------------------------------

TWO = [Passed(8, 12, 2, 3, "x"), Passed(12, 20, 2, 5, "y"), Passed(40, 44, 8, 9, "z")]


def test_windows_by_number():
    found = PassedWindows(reversed(TWO))
    read = [w for w in range(60) if not 8 <= w < 20 and not 40 <= w < 44]
    assert [found.place(n) for n in range(len(read))] == read
    for window in range(60):
        assert found.following(window) == min(w for w in [*read, 60] if w >= window)
        assert found.before(window) == window - sum(w < window for w in read)
    assert found.total == 16 and found.after(2) == 2 and found.after(3) == 0


def test_a_later_rollback_covers_earlier_ones(tmp_path):
    """To an older checkpoint than before, as the newer one was damaged."""
    found = PassedWindows(TWO)
    found.add(tmp_path, Passed(32, 60, 5, 11, "w"))
    assert [tuple(p)[:2] for p in found.all] == [(8, 12), (12, 20), (32, 60)]
    found.add(tmp_path, Passed(8, 32, 2, 4, "v"))
    assert [tuple(p)[:2] for p in found.all] == [(8, 12), (12, 20), (20, 32), (32, 60)]
    assert PassedWindows.read(tmp_path).all == found.all


def test_the_file_and_the_checkpoint_complete_each_other(tmp_path):
    extra = {"passed": [TWO[0]._asdict(), TWO[1]._asdict()]}
    assert PassedWindows.read(tmp_path).all == []
    assert PassedWindows.read(tmp_path, extra).all == TWO[:2]
    PassedWindows(TWO[:1]).add(tmp_path, TWO[2])
    assert PassedWindows.read(tmp_path, extra).all == TWO


def test_what_the_file_has_merged_does_not_come_back_from_an_older_checkpoint(tmp_path):
    old = Passed(44, 48, 11, 12, "w")
    PassedWindows([old]).add(tmp_path, Passed(32, 60, 8, 15, "v"))
    found = PassedWindows.read(tmp_path, {"passed": [old._asdict()]})
    assert [tuple(p)[:2] for p in found.all] == [(32, 60)] and found.total == 28


def test_a_checkpoint_of_an_abandoned_branch_is_refused():
    """It read windows that the run passes over by now; one of before, or of after, did not."""
    found = PassedWindows([Passed(32, 60, 8, 15, "v")])
    for windows, passed, agrees in (
        (32, [], True),
        (44, [], False),
        (60, [], False),
        (64, [{**Passed(32, 60, 8, 15, "v")._asdict()}], True),
        (64, [{**Passed(44, 48, 11, 12, "w")._asdict()}], False),
    ):
        extra = {"windows": windows, "passed": passed}
        assert found.agree_with(extra) == agrees
        assert (found.refuses(extra) is None) == agrees
    assert found.refuses({"windows": 44}) is None  # made before this was recorded
    assert not found.agree_with({"windows": 44, "passed": [{"first": "x"}]})


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"passed": 1}', '{"passed": [{"first": 3, "end": 3, "after": 0, "bad": 1}]}'],
)
def test_a_damaged_file_is_refused(tmp_path, text):
    (tmp_path / "passed.json").write_text(text)
    with pytest.raises(UsageError, match=r"passed\.json: .*; bring it back from a copy"):
        PassedWindows.read(tmp_path)

"""Every moment of a start has one cause: the devices' where they are busy, the host's otherwise."""

import json
import logging
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from emo_jax.errors import EmoError, NotFiniteError, PreemptedError
from emo_jax.run import goodput
from emo_jax.run.goodput import GOODPUT_FILE, HEARTBEAT_FILE, account, read_marks
from emo_jax.training.stopwatch import Stopwatch


class Step:
    """What a step gives: there when it is told to be."""

    def __init__(self):
        self._there = threading.Event()

    def block_until_ready(self):
        self._there.wait(10)

    def finish(self):
        self._there.set()


def _nap(seconds):
    """Sleeps; returns how long it was on a busy machine."""
    begun = time.monotonic()
    time.sleep(seconds)
    return time.monotonic() - begun


def _watch(workdir, *, first=0, error=None, work=lambda times: None):
    leaving = pytest.raises(type(error)) if error else None
    if leaving is None:
        with Stopwatch(workdir, first=first, began=time.monotonic()) as times:
            work(times)
        return
    with leaving, Stopwatch(workdir, first=first, began=time.monotonic()) as times:
        work(times)
        raise error


def test_a_batch_that_is_waited_for_behind_a_step_costs_nothing(tmp_path):
    naps = []

    def work(times):
        step = Step()
        times.enter("input_wait")
        naps.append(_nap(0.2))
        times.enter("steps")
        times.started(1, step)
        times.enter("input_wait")
        naps.append(_nap(0.3))
        step.finish()
        naps.append(_nap(0.25))
        times.enter("other")

    began = time.monotonic()
    _watch(tmp_path, work=work)
    took = time.monotonic() - began
    last = read_marks(tmp_path)[-1]
    assert last.seconds["steps"] == pytest.approx(naps[1], abs=0.1)
    assert last.seconds["input_wait"] == pytest.approx(naps[0] + naps[2], abs=0.1)
    assert last.step == 1 and last.outcome == "finished"
    assert 0 <= took - last.total < 1.2  # all of it, but for the end of the threads


def test_two_steps_on_the_devices_are_busy_until_the_last(tmp_path):
    naps = []

    def work(times):
        steps = [Step(), Step()]
        for number, step in enumerate(steps, 1):
            times.started(number, step)
        times.enter("evaluation")
        for step in steps:
            step.finish()
            naps.append(_nap(0.25))

    _watch(tmp_path, work=work)
    last = read_marks(tmp_path)[-1]
    assert last.seconds["steps"] == pytest.approx(naps[0], abs=0.1)
    assert last.seconds["evaluation"] == pytest.approx(naps[1], abs=0.1)


def test_steps_of_jax_are_waited_for(tmp_path):
    @jax.jit
    def slow(x):
        return jax.lax.fori_loop(0, 400, lambda _, y: jnp.tanh(y @ y), x)[0, 0]

    x = jnp.eye(256)
    slow(x).block_until_ready()
    taken = []

    def work(times):
        times.enter("other")
        begun = time.monotonic()
        output = slow(x)
        times.started(1, output)
        output.block_until_ready()
        taken.append(time.monotonic() - begun)
        time.sleep(0.3)

    _watch(tmp_path, work=work)
    (took,), last = taken, read_marks(tmp_path)[-1]
    assert last.step == 1
    assert last.seconds["steps"] + last.seconds["other"] == pytest.approx(took + 0.3, abs=0.1)
    assert last.seconds["other"] >= 0.29


def test_each_save_is_a_mark_and_going_back_is_lost_work(tmp_path):
    naps = []

    def work(times):
        for number in (1, 2):
            step = Step()
            times.started(number, step)
            naps.append(_nap(0.25))
            step.finish()
            time.sleep(0.1)
            if number == 1:
                times.saves(1)
        times.went_back(1)

    _watch(tmp_path, work=work)
    marks = read_marks(tmp_path)
    assert [mark.step for mark in marks] == [0, 1, 1, 1]
    assert marks[-1].seconds["steps"] == pytest.approx(marks[1].seconds["steps"], abs=0.002)
    assert marks[-1].seconds["lost_work"] == pytest.approx(naps[1], abs=0.1)


@pytest.mark.parametrize(
    ("error", "outcome", "said"),
    [
        (None, "finished", ""),
        (PreemptedError("stopped; run it again"), "stopped", "stopped; run it again"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt: "),
        (NotFiniteError("step 3: the loss is nan"), "halted", "step 3: the loss is nan"),
        (EmoError("no room\x1b[31m"), "failed", "no room\\x1b[31m"),
        (ValueError("two\nlines"), "failed", "ValueError: two\\nlines"),
    ],
)
def test_how_it_ended_is_kept_and_nothing_else_is_left(tmp_path, error, outcome, said):
    _watch(tmp_path, error=error)
    last = read_marks(tmp_path)[-1]
    assert (last.outcome, last.said) == (outcome, said)
    assert [path.name for path in tmp_path.iterdir()] == [GOODPUT_FILE]


def test_a_live_one_beats_and_a_later_one_silences_it(tmp_path, monkeypatch):
    monkeypatch.setattr(goodput, "BEAT_SECONDS", 0.05)
    beat = tmp_path / HEARTBEAT_FILE

    def beaten():
        return json.loads(beat.read_text())

    with Stopwatch(tmp_path, first=0, began=time.monotonic()) as old:
        old.enter("input_wait")
        time.sleep(0.4)
        first = beaten()
        time.sleep(0.4)
        second = beaten()
        assert second["seconds"]["input_wait"] > first["seconds"]["input_wait"] + 0.2
        assert second["cause"] == "input_wait" and second["since_step"] > first["since_step"]
        with Stopwatch(tmp_path, first=0, began=time.monotonic()):
            time.sleep(0.4)
            assert beaten()["start"] == 1
            old.saves(0)
            old.end()
            assert beaten()["start"] == 1
    starts = [(mark.start, mark.outcome) for mark in read_marks(tmp_path)]
    assert [start for start in starts if start[0] == 0] == [(0, "running")] * 2
    assert starts[-1] == (1, "finished") and not beat.exists()


def test_shares_go_on_from_earlier_starts(tmp_path):
    def work(times):
        step = Step()
        times.enter("compile")
        times.started(1, step)
        naps.append(_nap(0.2))
        step.finish()
        time.sleep(0.1)
        found.append((times.shares(), account(read_marks(tmp_path)).seconds["lost_work"]))

    found, naps = [], []
    for error in (EmoError("once"), EmoError("twice"), None):
        _watch(tmp_path, work=work, error=error)
    walls = [shares["wall_seconds"] for shares, _ in found]
    assert walls == sorted(walls) and walls[2] > walls[0] + 0.4
    for n, (shares, lost) in enumerate(found):
        parts = [share for name, share in shares.items() if name != "wall_seconds"]
        assert sum(parts) == pytest.approx(1, abs=1e-4) and min(parts) >= 0
        # None of the earlier ones saved anything.
        assert shares["badput/lost_work"] * shares["wall_seconds"] == pytest.approx(lost, abs=1e-3)
        assert lost == pytest.approx(sum(naps[:n]), abs=0.1 * n)
    times = account(read_marks(tmp_path))
    assert times.wall == pytest.approx(found[-1][0]["wall_seconds"], abs=0.5)


def test_what_cannot_be_written_is_said_once_and_ends_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(goodput, "BEAT_SECONDS", 0.02)
    (tmp_path / GOODPUT_FILE).mkdir()
    (tmp_path / HEARTBEAT_FILE).mkdir()
    with caplog.at_level(logging.WARNING):
        _watch(tmp_path, work=lambda times: (times.saves(0), time.sleep(0.2)))
    (line,) = [r.getMessage() for r in caplog.records if "goodput" in r.getMessage()]
    assert line.startswith(f"goodput: not kept in {tmp_path}: ")


@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_written_where_a_link_leads(tmp_path, caplog, there):
    workdir, target = tmp_path / "run", tmp_path / "mine"
    workdir.mkdir()
    if there:
        target.write_text("mine")
    for name in (GOODPUT_FILE, HEARTBEAT_FILE):
        (workdir / name).symlink_to(target)
    with caplog.at_level(logging.WARNING):
        _watch(workdir, work=lambda times: (times.saves(0), time.sleep(0.2)))
    assert "goodput: not kept in" in caplog.text and "link" in caplog.text
    assert target.read_text() == "mine" if there else not target.exists()


def test_other_processes_measure_and_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def work(times):
        times.started(1, None)
        times.saves(1)
        times.went_back(0)
        times.enter("evaluation")
        assert times.shares() == {}

    before = threading.active_count()
    _watch(None, work=work, error=EmoError("x"))
    assert list(tmp_path.iterdir()) == [] and threading.active_count() == before

"""The timeline of a run: what adds up, what is lost, and files as kills and clocks leave them."""

import dataclasses
import json
import logging

import pytest

from emo_jax.run import goodput
from emo_jax.run.goodput import BADPUT, CAUSES, GOODPUT_FILE, HEARTBEAT_FILE, Mark, account

NOON = 1_795_000_000.0


def _mark(start, first, step, at, outcome="running", **seconds):
    """A mark at so many seconds after noon."""
    return Mark(
        start=start, first=first, step=step, time=NOON + at, seconds=seconds, outcome=outcome
    )


def _seconds(times):
    return {name: round(s, 6) for name, s in times.seconds.items() if s}


FIRST = [  # 10 steps of 2 s, then a kill in the 14th
    _mark(0, 0, 0, 5, startup=5.0),
    _mark(0, 0, 10, 40, startup=5.0, compile=10.0, steps=20.0, input_wait=5.0),
    _mark(0, 0, 13, 47, startup=5.0, compile=10.0, steps=26.5, input_wait=5.0, save_stall=0.5),
]
SECOND = [  # which was noticed a minute later
    _mark(1, 10, 10, 110, startup=3.0),
    _mark(1, 10, 20, 140, "finished", startup=3.0, compile=9.0, steps=20.0, evaluation=1.0),
]


def test_one_start():
    times = account(FIRST)
    assert _seconds(times) == dict(FIRST[-1].seconds)
    assert times.wall == 47.0 and times.goodput == pytest.approx(26.5 / 47)
    assert account([]).goodput is None and account([]).shares() == {}
    assert account([_mark(0, 0, 0, 0)]).goodput is None


def test_a_restart_costs_the_time_between_and_the_steps_that_are_done_again():
    times = account([*FIRST, *SECOND])
    down = 110 - 3 - 47
    assert _seconds(times) == {
        "steps": 40.0,
        "startup": 5.0,
        "restart": down + 3.0,
        "compile": 19.0,
        "input_wait": 5.0,
        "save_stall": 0.5,
        "evaluation": 1.0,
        "lost_work": 6.5,
    }
    assert times.wall == 140.0  # from the beginning to the last mark
    assert [(s.begins, s.ends, s.down) for s in times.spans] == [(0, 47, 0), (47, 140, down)]
    shares = times.shares()
    assert set(shares) == {"goodput", "wall_seconds", *(f"badput/{name}" for name in BADPUT)}
    assert sum(shares.values()) - shares["wall_seconds"] == pytest.approx(1, abs=1e-5)


def test_an_older_checkpoint_loses_work_of_several_starts():
    """The second start is killed too, and its checkpoint is damaged: the third begins at 5."""
    third = _mark(2, 5, 5, 200, startup=2.0)
    times = account([*FIRST, *SECOND[:1], _mark(1, 10, 12, 120, startup=3.0, steps=10.0), third])
    assert [span.seconds["lost_work"] for span in times.spans] == [16.5, 10.0, 0]
    assert times.seconds["steps"] == 10.0  # half of what the first ten took
    # One that goes on from a checkpoint that no mark is of: in proportion.
    times = account([*FIRST, dataclasses.replace(SECOND[0], first=12)])
    assert times.seconds["lost_work"] == pytest.approx(6.5 / 3)


def test_a_step_that_was_under_way_is_lost():
    """The last sign is of the 11th step, after the save of the 10th, from which the run goes on."""
    under_way = _mark(0, 0, 10, 42, startup=5.0, compile=10.0, steps=21.5, input_wait=5.0)
    times = account([*FIRST[:2], under_way, *SECOND])
    assert times.seconds["lost_work"] == 1.5


def test_a_start_that_went_back_keeps_what_was_before():
    back = _mark(0, 0, 10, 60, steps=20.0, lost_work=6.5, startup=5.0)
    on = _mark(0, 0, 12, 70, steps=24.0, lost_work=6.5, startup=5.0)
    assert _seconds(account([*FIRST, back, on]))["lost_work"] == 6.5
    assert account([*FIRST, back, on, *SECOND]).spans[0].seconds["lost_work"] == 6.5 + 4.0


@pytest.mark.parametrize("shift", [-1e6, -3600, 0, 3600])
def test_clocks_that_are_set_give_no_negative_time(shift):
    """While a start runs, and between two."""
    moved = [*FIRST[:1], *(dataclasses.replace(m, time=m.time + shift) for m in FIRST[1:])]
    for marks in ([*moved, *SECOND], [*FIRST, *(dataclasses.replace(m, time=0.0) for m in SECOND)]):
        times = account(marks)
        assert all(s >= 0 for span in times.spans for s in (*span.seconds.values(), span.down))
        assert times.wall == pytest.approx(sum(span.ends - span.begins for span in times.spans))
        assert 0 < times.goodput < 1
        assert times.seconds["compile"] == 19.0 and times.seconds["lost_work"] == 6.5


def test_a_heartbeat_is_the_last_mark_until_it_is_kept(tmp_path):
    for mark in FIRST[:2]:
        goodput.append_mark(tmp_path, mark)
    assert goodput.read_marks(tmp_path) == FIRST[:2]
    beat = tmp_path / HEARTBEAT_FILE
    beat.write_text(json.dumps(FIRST[2].to_json()))
    assert goodput.read_marks(tmp_path) == FIRST
    before = (tmp_path / GOODPUT_FILE).read_bytes()
    assert goodput.keep_heartbeat(tmp_path) == FIRST
    assert (tmp_path / GOODPUT_FILE).read_bytes().startswith(before)
    assert goodput.keep_heartbeat(tmp_path) == FIRST == goodput.read_marks(tmp_path)  # once
    for mark in SECOND:
        goodput.append_mark(tmp_path, mark)
    assert goodput.read_marks(tmp_path) == [*FIRST, *SECOND]  # what is left of the first is old
    beat.write_text(json.dumps(SECOND[0].to_json()))
    assert goodput.read_marks(tmp_path) == [*FIRST, *SECOND]
    beat.write_text("{cut")
    assert goodput.read_marks(tmp_path) == [*FIRST, *SECOND]


def test_bad_lines_are_left_out_and_mended(tmp_path, caplog):
    path = tmp_path / GOODPUT_FILE
    good = [json.dumps(mark.to_json()) for mark in FIRST]
    bad = [
        json.dumps(FIRST[0].to_json() | {"seconds": {"steps": -1.0}}),
        json.dumps(FIRST[0].to_json() | {"seconds": {"steps": 1e300}}),
        json.dumps(FIRST[0].to_json() | {"time": None}),
        json.dumps(FIRST[0].to_json() | {"time": 1e300}),
        json.dumps(FIRST[0].to_json() | {"outcome": "bored"}),
        json.dumps({"start": 0}),
        "[]",
    ]
    path.write_text("\n".join([good[0], *bad, *good[1:], '{"start": 1, "fir']))
    with caplog.at_level(logging.WARNING):
        assert goodput.read_marks(tmp_path) == FIRST
    assert "left out: line 2 (seconds.steps must be 0..1e+09, not -1.0)" in caplog.text
    assert goodput.keep_heartbeat(tmp_path) == FIRST
    assert [json.loads(line) for line in path.read_text().splitlines()] == list(
        map(json.loads, good)
    )
    assert (tmp_path / f"{GOODPUT_FILE}.damaged1").exists()


def test_causes_of_a_later_version_still_add_up():
    mark = Mark.of(FIRST[2].to_json() | {"seconds": {"steps": 1.0, "napping": 2.0, "other": 1.0}})
    assert mark.seconds == {"steps": 1.0, "other": 3.0} and set(mark.seconds) <= set(CAUSES)

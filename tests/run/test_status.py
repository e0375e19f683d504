"""`emo status`: what a workdir says of its run, whoever looks, and that looking changes nothing."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import runs

from emo_jax.errors import UsageError
from emo_jax.run import goodput
from emo_jax.run.goodput import GOODPUT_FILE, HEARTBEAT_FILE, Mark
from emo_jax.run.lock import LOCK_FILE, RunLock, _begun
from emo_jax.run.metrics_file import _NEWEST_BYTES, METRICS_FILE, read_metrics, read_newest
from emo_jax.run.status import (
    DEAD_SECONDS,
    STALLED_SECONDS,
    STARTING_SECONDS,
    STATES,
    read_status,
    spoken,
)

NOW = time.time()


@pytest.fixture
def workdir(finished_run, tmp_path):
    """A copy of a run, without anything that says how it ended."""
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    (copy / GOODPUT_FILE).unlink()
    return copy


def _live(
    workdir, *, ago=1.5, lock="here", step=23, cause="steps", since_step=0.0, compiled=9.0, now=NOW
):
    """As a run leaves a workdir while it lives, or when it is killed."""
    seconds = {"startup": 5.0, "compile": compiled, "steps": 10.0, "evaluation": 1.5}
    mark = Mark(
        start=0,
        first=0,
        step=step,
        time=now - ago,
        seconds=seconds,
        cause=cause,
        since_step=since_step,
    )
    (workdir / HEARTBEAT_FILE).write_text(json.dumps(mark.to_json()))
    for name in (HEARTBEAT_FILE, METRICS_FILE):
        os.utime(workdir / name, (now - ago, now - ago))
    owner = {"host": socket.gethostname(), "pid": os.getppid(), "begun": _begun(os.getppid())}
    if lock == "gone":
        owner["begun"] = 1
    if lock == "elsewhere":
        owner["host"] = "elsewhere"
    if lock != "none":
        (workdir / LOCK_FILE).write_text(json.dumps(owner))
        os.utime(workdir / LOCK_FILE, (now - 1e5, now - 1e5))


@pytest.mark.parametrize(
    ("live", "state", "note"),
    [
        ({}, "running", ""),
        ({"lock": "elsewhere"}, "running", ""),
        ({"lock": "none"}, "running", ""),
        ({"compiled": 0.0, "step": 0, "since_step": 400.0}, "starting", ""),
        ({"lock": "gone"}, "dead", "its process is gone, no sign of life for 1 s; run the same"),
        ({"lock": "elsewhere", "ago": DEAD_SECONDS + 31}, "dead", "no sign of life for 2 min; run"),
        ({"lock": "none", "ago": 4 * 3600 + 1}, "dead", "no sign of life for 4 h; run the same"),
        ({"ago": DEAD_SECONDS + 31}, "stalled", "no sign of life for 2 min, but its process is"),
        (
            {"since_step": STALLED_SECONDS, "cause": "input_wait"},
            "stalled",
            "no step was done for 5 min (input wait); see its log",
        ),
        ({"since_step": STALLED_SECONDS - 2}, "running", ""),
        ({"ago": -3600.0}, "running", ""),  # the clock there is ahead
    ],
)
def test_a_live_or_dead_run(workdir, live, state, note):
    (workdir / "checkpoints/30").rename(workdir / "checkpoints/22")
    shutil.rmtree(workdir / "checkpoints/40")
    _live(workdir, **live)
    found = read_status(workdir, now=NOW)
    assert found.state == state and found.note.startswith(note) and bool(found.note) == bool(note)
    assert found.step == live.get("step", 23) and found.steps == 40
    assert found.saved_step == 22 and found.saved_seconds_ago >= 0
    assert ("from step 22" in found.note) == (state in ("dead", "stalled"))
    assert found.exit_code == {"dead": 75, "stalled": 1}.get(state, 0)
    if state == "running":
        assert found.seconds_left == pytest.approx((40 - 23) * 11.5 / 23)
    assert found.goodput == pytest.approx(10 / found.wall_seconds)


@pytest.mark.parametrize("outcome", ["running", "stopped"])
def test_a_run_that_was_started_again_reads_its_checkpoint(workdir, outcome):
    """For minutes, without a sign of its own; what is there is of the start before."""
    _live(workdir, lock="gone", ago=3600.0)
    if outcome == "stopped":
        beat = json.loads((workdir / HEARTBEAT_FILE).read_text())
        goodput.append_mark(workdir, Mark.of(beat | {"outcome": outcome}))
    lock = workdir / LOCK_FILE

    def seen(**changes):
        owner = {"host": socket.gethostname(), "pid": os.getppid(), "begun": _begun(os.getppid())}
        lock.write_text(json.dumps(owner | changes))
        os.utime(lock, (NOW - 600, NOW - 600))
        found = read_status(workdir, now=NOW)
        return found.state, found.note

    assert seen() == seen(host="elsewhere") == ("starting", "")
    assert seen(begun=1)[0] == "dead" and "gone before the first step" in seen(begun=1)[1]
    seen(host="elsewhere")
    late = read_status(workdir, now=NOW + STARTING_SECONDS)
    assert late.state == "dead" and "it was started on elsewhere 40 min ago" in late.note


def test_a_steady_run_of_slow_steps_is_not_stalled(workdir):
    _live(workdir, step=1, since_step=STALLED_SECONDS)
    assert read_status(workdir, now=NOW).state == "stalled"
    slow = json.loads((workdir / HEARTBEAT_FILE).read_text())
    slow["seconds"]["steps"] = 120.0
    (workdir / HEARTBEAT_FILE).write_text(json.dumps(slow))
    assert read_status(workdir, now=NOW).state == "running"


@pytest.mark.parametrize(
    ("outcome", "said", "code"),
    [
        ("finished", "", 0),
        ("stopped", "stopped by a signal; step 23 is saved", 75),
        ("halted", "step 24: the loss is nan; nothing was updated", 1),
        ("failed", "store: was replaced", 1),
    ],
)
def test_one_that_said_how_it_ended(workdir, outcome, said, code):
    mark = Mark(start=0, first=0, step=23, time=NOW - 1e6, seconds={"steps": 1.0})
    end = {"outcome": outcome, "said": said}
    goodput.append_mark(workdir, Mark.of(mark.to_json() | end))
    found = read_status(workdir, now=NOW)
    assert (found.state, found.note, found.exit_code) == (outcome, said, code)
    assert found.seconds_left is None and found.doing == ""
    # The same command was given again, and has not come to its first step.
    RunLock(workdir).acquire()
    assert read_status(workdir, now=NOW).state == "starting"


def test_runs_that_kept_no_times(workdir, tmp_path):
    """Of an earlier version, or imported, or killed before the first step."""
    found = read_status(workdir, now=NOW)
    assert (found.state, found.step, found.goodput, found.starts) == ("finished", 40, None, 1)
    assert found.loss == read_metrics(workdir)[-2]["ce_loss"]
    assert found.heldout_loss == read_metrics(workdir)[-1]["heldout_loss"]
    kept = (workdir / METRICS_FILE).read_text().splitlines(keepends=True)[:7]
    (workdir / METRICS_FILE).write_text("".join(kept))
    found = read_status(workdir, now=NOW)
    assert (found.state, found.step) == ("stopped", 7) and "is not recorded" in found.note
    (workdir / METRICS_FILE).unlink()
    assert read_status(workdir, now=NOW).state == "new"
    (workdir / LOCK_FILE).write_text(
        json.dumps({"host": socket.gethostname(), "pid": os.getppid(), "begun": 1})
    )
    assert read_status(workdir, now=NOW).state == "dead"
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(workdir / "config.json", new)
    found = read_status(new, now=NOW)
    unknown = found.loss, found.devices, found.sign_seconds_ago, found.saved_step
    assert found.state == "new" and unknown == (None,) * 4


def test_the_end_of_a_long_log_is_enough(workdir):
    """Of a file of any size, the last part is read, which may begin in the middle of a line."""
    last = json.dumps(read_metrics(workdir)[-2])
    line = json.dumps({"step": 1, "ce_loss": 9.0, "filler": "x" * 997}) + "\n"
    (workdir / METRICS_FILE).write_text(line * (3 * _NEWEST_BYTES // len(line)) + last + "\n{cut")
    newest = read_newest(workdir)
    assert newest[-1] == json.loads(last)
    assert len(newest) in (_NEWEST_BYTES // len(line), _NEWEST_BYTES // len(line) - 1)
    begun = time.monotonic()
    found = read_status(workdir, now=NOW)
    assert found.step == 40 and found.loss == json.loads(last)["ce_loss"]
    assert time.monotonic() - begun < 5


def test_refusals(workdir, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, said in (
        (tmp_path / "no", "no such workdir; give the --workdir of a run"),
        (empty, r"not a workdir \(no config.json\); give the --workdir"),
        (f"{workdir}@20", "the status is of the run; give .*, without @20"),
    ):
        with pytest.raises(UsageError, match=said):
            read_status(path)
    (workdir / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"broken JSON .*; restore it from"):
        read_status(workdir)
    (workdir / "config.json").write_text('{"train": {}}')
    with pytest.raises(UsageError, match=r"no field train\.steps"):
        read_status(workdir)


def test_times_as_people_say_them():
    said = {0: "0 s", 59.9: "59 s", 60: "1 min", 3599: "59 min", 3600: "1 h", 7500: "2 h 5 min"}
    said |= {86400: "1 d", 90000: "1 d 1 h"}
    assert {seconds: spoken(seconds) for seconds in said} == said


# --- the command ---------------------------------------------------------------------------------


def test_the_command_shows_one_run_as_lines_and_several_as_a_table(finished_run, workdir, capsys):
    assert runs.emo_here("status", finished_run) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["run"] == "emo_tiny: finished" and lines["step"] == "40 of 40, 100.0 %"
    assert {"loss", "speed", "goodput"} <= set(lines) and lines["last"].endswith(" ago")
    _live(workdir, lock="gone")
    assert runs.emo_here("status", finished_run, workdir) == 75
    out = capsys.readouterr().out
    assert out.count("finished") == 1 and f"{workdir}: its process is gone" in out
    assert runs.emo_here("status", finished_run, workdir.parent, workdir) == 2
    shown = capsys.readouterr()
    assert f"{workdir.parent}: not a workdir" in shown.err and "dead" in shown.out
    assert runs.emo_here("status", workdir.parent) == 2
    assert runs.emo_here("status") == 2


def test_all_figures_as_json(finished_run, workdir, tmp_path, capsys):
    _live(workdir, now=time.time())
    file = tmp_path / "status.json"
    assert runs.emo_here("status", workdir, finished_run, "--json", file) == 0
    (first, second) = json.loads(file.read_text())["runs"]
    assert (first["state"], second["state"]) == ("running", "finished")
    assert set(first) == set(read_status(workdir).to_json()) == set(second)
    assert sum(first["seconds"].values()) == pytest.approx(first["wall_seconds"])
    assert runs.emo_here("status", workdir, "--json", file) == 2  # never over another
    capsys.readouterr()
    assert runs.emo_here("status", workdir, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["step"] == 23


_QUIET = """
import sys
from emo_jax.cli import main
try:
    main()
except SystemExit as e:
    loaded = {"jax", "jaxlib", "orbax", "flax", "matplotlib"} & set(sys.modules)
    print("exit", e.code, "loaded", sorted(loaded))
"""


def test_it_needs_no_accelerator_and_changes_nothing(finished_run, env):
    before = {p: p.stat().st_mtime_ns for p in finished_run.rglob("*")}
    command = [sys.executable, "-c", _QUIET, "status", str(finished_run)]
    done = subprocess.run(
        command, env=env | {"JAX_PLATFORMS": "tpu"}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "exit 0 loaded []", done.stderr
    assert {p: p.stat().st_mtime_ns for p in finished_run.rglob("*")} == before


@pytest.mark.system
def test_a_run_from_its_first_second_to_its_end(env, store, tmp_path):
    """Seen while it lives, suspended, killed, started again, stopped and finished."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    fields = {"train__steps": 4000, "checkpoint__save_every": 20, "train__eval_every": 0}
    argv = runs.train_argv(store, workdir, **fields)
    begun = time.time()
    process = runs.start(argv, env, log)
    runs.wait_until((workdir / HEARTBEAT_FILE).exists, process, log)
    assert read_status(workdir).state in ("starting", "running")
    runs.wait_until(lambda: runs.steps_logged(workdir) > 45, process, log)
    time.sleep(goodput.BEAT_SECONDS + 1)
    found = read_status(workdir)
    assert found.state == "running" and 0 < found.step < 4000 and found.seconds_left > 0
    assert found.pid == process.pid and found.sign_seconds_ago < 60 and found.goodput > 0
    # Steps after the last mark are counted as down: suspended when a mark has steps to lose.
    for _ in range(300):
        process.send_signal(signal.SIGSTOP)
        beat, found = goodput.read_heartbeat(workdir), read_status(workdir)
        if beat is not None and found.saved_step is not None and beat.step > found.saved_step:
            break
        process.send_signal(signal.SIGCONT)
        time.sleep(0.1)
    else:
        pytest.fail("no heartbeat of a step after the newest checkpoint in 30 s")
    logged = runs.steps_logged(workdir)
    found = read_status(workdir, now=time.time() + DEAD_SECONDS + 20)
    assert found.state == "stalled" and "its process is there" in found.note
    process.kill()
    process.wait()
    found, killed = read_status(workdir), time.time()
    assert found.state == "dead" and found.exit_code == 75 and found.saved_step >= 40
    # A kill loses at most the last few seconds of what was kept.
    assert found.wall_seconds > killed - begun - goodput.BEAT_SECONDS - 5
    time.sleep(2)

    process = runs.start(argv, env, log)
    runs.wait_until(lambda: f"resumed at step {found.saved_step}" in log.read_text(), process, log)
    runs.wait_until(lambda: runs.steps_logged(workdir) > logged + 20, process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    found, marks = read_status(workdir), goodput.read_marks(workdir)
    assert found.state == "stopped" and "is saved in" in found.note and found.exit_code == 75
    assert found.step == found.saved_step and found.starts == 2
    # All of the wall time has a cause: by a clock that the seconds are not from.
    first = marks[0].time - marks[0].total
    assert found.wall_seconds == pytest.approx(marks[-1].time - first, abs=0.5)
    assert 0 < first - begun < 30
    assert found.seconds["restart"] > 2 and found.seconds["lost_work"] > 0
    assert all(value >= 0 for value in found.seconds.values())
    last = [record for record in read_metrics(workdir) if "goodput" in record][-1]
    assert last["badput/lost_work"] * last["wall_seconds"] == pytest.approx(
        found.seconds["lost_work"], abs=0.05
    )
    assert set(STATES) > {"running", "dead", "stalled", "stopped"}

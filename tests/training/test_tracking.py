"""Where the records of a run go: the interface with a fake, and what is refused."""

import contextlib
import dataclasses
import json
import logging
import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import runs
import tiny

from emo_jax.config import TrackingConfig, from_config_dict, to_dict
from emo_jax.errors import ConfigError, PreemptedError, UsageError
from emo_jax.run import run_info
from emo_jax.run.metrics_file import METRICS_FILE, number_in, read_metrics
from emo_jax.training import trackers, tracking
from emo_jax.training.tracking import Tracker, scalars

# --- names ---------------------------------------------------------------------------------------


def test_names_that_trackers_get():
    record = {
        "step": 7,
        "loss": 2,
        "mfu": None,
        "note": "text",
        "experts_used_by_layer": [5.0, 6.0],
        "heldout_loss": 1.5,
        "heldout_loss/law": 1.25,
        "heldout_loss (pool=16)": 1.0,
        "heldout_loss/law (pool=16)": 0.5,
    }
    found = scalars({"step": 7, "loss": None, "ce_loss": math.nan, "entropy_by_layer": [1, None]})
    assert set(found) == {"loss", "ce_loss", "entropy/layer_00", "entropy/layer_01"}
    assert [name for name, value in found.items() if not math.isnan(value)] == ["entropy/layer_00"]
    assert scalars(record) == {
        "loss": 2.0,
        "experts_used/layer_00": 5.0,
        "experts_used/layer_01": 6.0,
        "heldout_loss": 1.5,
        "heldout_loss/law": 1.25,
        "heldout_loss_pool16": 1.0,
        "heldout_loss_pool16/law": 0.5,
    }


# --- the interface -------------------------------------------------------------------------------


class Recorder:
    """Remembers all it is told."""

    name = where = "recorder"

    def __init__(self, *, has: int = 0, failing: tuple[str, ...] = ()):
        self.has, self.failing = has, failing
        self.calls: list = []

    def _take(self, kind: str, value) -> None:
        self.calls.append((kind, value))
        if kind in self.failing:
            raise OSError(f"no room to {kind}\nsecond line")

    def start(self, run):
        self._take("start", run.start)
        return self.has

    def write(self, record):
        self._take("write", record)

    def close(self, outcome):
        self._take("close", outcome)

    @property
    def written(self) -> list[int]:
        return [value["step"] for kind, value in self.calls if kind == "write"]


def _info(workdir: Path, *, start: int = 0) -> run_info.RunInfo:
    config = dataclasses.replace(tiny.tiny_config(), tracking=TrackingConfig(tensorboard=True))
    return run_info.describe_run(workdir, config, start, fingerprint="f00d")


def _tracked(workdir: Path, *writers, start: int = 0, steps=range(1, 4), error=None) -> None:
    """A run of a few records, left with `error`."""
    leaving = pytest.raises(type(error)) if error else contextlib.nullcontext()
    with leaving, Tracker(_info(workdir, start=start), writers, show=lambda line: None) as tracker:
        for step in steps:
            tracker.write({"step": step, "loss": 1.0 / step})
        if error:
            raise error


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_tracker_is_started_again_where_python_fails(tmp_path, caplog, failures):
    """CPython below 3.13: threads that parse source at once get a SystemError."""
    left = [SystemError("AST constructor recursion depth mismatch")] * failures

    class Unlucky(Recorder):
        def start(self, run):
            if left:
                raise left.pop()
            return super().start(run)

    tracker = Unlucky()
    _tracked(tmp_path, tracker)
    assert tracker.written == ([1, 2, 3] if failures < 3 else [])
    assert ("AST constructor" in caplog.text) == (failures == 3)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "finished"),
        (RuntimeError("a bug"), "failed"),
        (PreemptedError("saved"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_a_tracker_starts_once_gets_all_in_order_and_is_closed(tmp_path, error, outcome):
    fake = Recorder()
    _tracked(tmp_path, fake, error=error)
    kinds = [kind for kind, _ in fake.calls]
    assert kinds == ["start", "write", "write", "write", "close"]
    assert fake.calls[0][1] == 0 and fake.written == [1, 2, 3] and fake.calls[-1][1] == outcome
    written = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert [value for kind, value in fake.calls if kind == "write"] == written


def test_every_line_is_json_whatever_the_loss(tmp_path):
    fake = Recorder()
    with Tracker(_info(tmp_path), [fake], show=lambda line: None) as tracker:
        tracker.write({"step": 1, "heldout_loss": math.nan, "heldout_loss/law": -math.inf})
    (line,) = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert line == '{"step": 1, "heldout_loss": null, "heldout_loss/law": null}'
    _tracked(tmp_path, fake, start=1, steps=range(2, 4))  # what was null is read as it was
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]
    assert fake.written == [1, 1, 2, 3]
    assert math.isnan(number_in(read_metrics(tmp_path)[0], "heldout_loss"))


def test_a_resumed_tracker_gets_what_it_lacks_and_nothing_twice(tmp_path):
    _tracked(tmp_path, steps=range(1, 9))  # killed at 8, and restored at 5
    behind, ahead, new = Recorder(has=3), Recorder(has=7), Recorder()
    _tracked(tmp_path, behind, ahead, new, start=5, steps=range(6, 10))
    assert behind.written == [4, 5, 6, 7, 8, 9]
    assert ahead.written == [8, 9]
    assert new.written == list(range(1, 10))
    logged = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == list(range(1, 10))


@pytest.mark.parametrize(
    ("failing", "calls", "lost"),
    [
        (("start",), ["start"], 0),
        (("write",), ["start", "write", "write", "write", "close"], 3),
        (("close",), ["start", "write", "write", "write", "close"], 0),
    ],
)
def test_a_tracker_that_fails_costs_a_line(tmp_path, caplog, failing, calls, lost):
    bad, good = Recorder(failing=failing), Recorder()
    with caplog.at_level(logging.WARNING):
        _tracked(tmp_path, bad, good)
    assert [kind for kind, _ in bad.calls] == calls
    assert good.written == [1, 2, 3] and good.calls[-1] == ("close", "finished")
    first, *rest = [record.getMessage() for record in caplog.records]
    assert first.startswith("tracking: recorder fails, the run goes on without it: ")
    assert f"no room to {failing[0]} second line" in first and "\n" not in first
    count = f"tracking: {lost} records did not reach recorder; metrics.jsonl has them"
    assert rest == ([count] if lost else [])
    assert len((tmp_path / METRICS_FILE).read_text().splitlines()) == 3


class Stuck(Recorder):
    """Hangs in its first write, as on a network that is gone."""

    def __init__(self):
        super().__init__()
        self.free = threading.Event()

    def write(self, record):
        self.free.wait(60)
        super().write(record)


def test_a_slow_tracker_holds_neither_a_step_nor_the_end(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(tracking, "QUEUE_RECORDS", 10)
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.2)
    stuck = Stuck()
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        _tracked(tmp_path, stuck, steps=range(1, 101))
    assert time.monotonic() - started < 10
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "tracking: recorder fails, the run goes on without it: it is too slow",
        "tracking: recorder has not taken all records within 0 s; the run goes on without"
        " (metrics.jsonl has them)",
    ]
    assert len((tmp_path / METRICS_FILE).read_text().splitlines()) == 100
    stuck.free.set()


def test_the_file_failing_is_an_error(tmp_path):
    (tmp_path / METRICS_FILE).mkdir()
    wrong = rf"{METRICS_FILE}: cannot be read \(not a regular file\); mend or remove it"
    with pytest.raises(UsageError, match=wrong), Tracker(_info(tmp_path), [], show=print):
        pass


# --- a run and its trackers ----------------------------------------------------------------------


# A run with a fake tracker, which says what it was told, and stops the run at a step.
_FAKE = """
import json, os, signal, sys
from emo_jax.cli import main
from emo_jax.training import trackers

class Fake:
    name = where = "fake"
    def say(self, *call):
        print(json.dumps(call), flush=True)
    def start(self, run):
        self.say("start", run.start)
        return run.start
    def write(self, record):
        self.say("write", record)
        if record["step"] == int(os.environ["STOP_AT"]):
            os.kill(os.getpid(), signal.SIGTERM)
    def close(self, outcome):
        self.say("close", outcome)

trackers._make = lambda config: [Fake()]
main()
"""


def _with_fake(env, argv, *, stop_at: int) -> tuple[int, list]:
    command = [sys.executable, "-c", _FAKE, *map(str, argv)]
    env = env | {"STOP_AT": str(stop_at)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.system
def test_a_run_gives_its_trackers_what_is_in_its_file(env, store, tmp_path):
    """It is stopped, goes on, and ends."""
    workdir = tmp_path / "run"
    argv = runs.train_argv(store, workdir)
    code, first = _with_fake(env, argv, stop_at=3)
    stopped = runs.steps_logged(workdir)
    assert (code, first[0], first[-1]) == (75, ["start", 0], ["close", "stopped"])
    code, second = _with_fake(env, argv, stop_at=0)
    assert (code, second[0], second[-1]) == (0, ["start", stopped], ["close", "finished"])
    told = [value for kind, value in [*first, *second] if kind == "write"]
    assert told == [json.loads(line) for line in (workdir / METRICS_FILE).open()]
    assert [r["step"] for r in told] == [*range(1, 21), 20, *range(21, 41), 40]  # held-out losses


def test_only_process_0_writes(monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    assert trackers.make_trackers(TrackingConfig(tensorboard=True)) == []
    monkeypatch.setattr("jax.process_index", lambda: 0)
    made = trackers.make_trackers(TrackingConfig(tensorboard=True))
    assert [type(tracker) for tracker in made] == [trackers.TensorBoard]


# --- what is refused before a run starts ---------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "fields"),
    [
        ("tensorboard", {"tracking__tensorboard": True}),
        ("wandb", {"tracking__wandb_project": "p", "tracking__wandb_mode": "offline"}),
        ("mlflow", {"tracking__mlflow_uri": "https://host"}),
        ("sqlalchemy", {"tracking__mlflow_uri": "sqlite:///x.db"}),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    module, fields, store, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, module, None)
    assert runs.emo_here(*runs.train_argv(store, tmp_path / "run", **fields)) == 2
    extra = {"sqlalchemy": "mlflow"}.get(module, module)
    line = capsys.readouterr().err
    assert line == (
        f"emo: config.tracking wants {extra}, and the package {module} is not installed; run"
        f" pip install 'emo-jax[{extra}]'\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.system
def test_wandb_online_without_a_login_is_refused(env, store, tmp_path):
    empty = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    clean = {k: v for k, v in env.items() if not k.startswith("WANDB")} | empty
    argv = runs.train_argv(store, tmp_path / "run", tracking__wandb_project="p")
    done = runs.emo(argv, clean)
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        "emo: Weights & Biases: nobody is logged in; run wandb login, or set WANDB_API_KEY, or give"
        " --config.tracking.wandb_mode=offline\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"wandb_project": "a/b"}, "config.tracking.wandb_project = 'a/b': must be at most 128"),
        ({"wandb_mode": "offline"}, "wandb_mode = 'offline': must be 'online' without"),
        ({"wandb_entity": "team"}, "wandb_entity = 'team': must be '' without"),
        ({"wandb_project": "p", "wandb_mode": "ofline"}, "did you mean 'offline'?"),
        ({"mlflow_uri": "mlruns"}, "mlflow_uri = 'mlruns': must be http://HOST"),
        ({"mlflow_experiment": "e"}, "mlflow_experiment = 'e': must be 'emo_jax' without"),
        ({"mlflow_uri": "https://h", "mlflow_experiment": ""}, "mlflow_experiment = '': must be"),
        ({"mlflow_uri": "https://me:pass@h/x"}, "mlflow_uri: must not hold a user or password"),
    ],
)
def test_bad_values(values, said):
    config = to_dict(tiny.tiny_config()) | {"tracking": values}
    with pytest.raises(ConfigError) as raised:
        from_config_dict(config)
    assert said in str(raised.value) and "pass@" not in str(raised.value)


# --- what a run was started with -----------------------------------------------------------------


def _git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_state_of_the_code(tmp_path, monkeypatch):
    assert run_info.git_state(tmp_path) is None  # no repository
    _git(tmp_path, "init", "--quiet")
    assert run_info.git_state(tmp_path) is None  # no commit
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_text("1")
    (tmp_path / "other").mkdir()
    _git(tmp_path, "add", "kept")
    _git(tmp_path, "commit", "--quiet", "-m", "first")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "other/file").write_text("not tracked")
    assert run_info.git_state(tmp_path) == {"commit": commit, "dirty": False}
    assert run_info.git_state(tmp_path / "kept") == {"commit": commit, "dirty": False}
    assert run_info.git_state(tmp_path / "other") is None  # as site-packages would be
    (tmp_path / "kept/file").write_text("2")
    assert run_info.git_state(tmp_path) == {"commit": commit, "dirty": True}
    # Its settings and attributes name programs, of which none runs.
    _git(tmp_path, "config", "core.fsmonitor", f"touch {tmp_path}/ran; false")
    _git(tmp_path, "config", "filter.a=b.clean", f"touch {tmp_path}/ran; cat")
    (tmp_path / ".git/info").mkdir(exist_ok=True)
    (tmp_path / ".git/info/attributes").write_text("file filter=a=b\n")
    assert run_info.git_state(tmp_path) == {"commit": commit, "dirty": True}
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("PATH", str(tmp_path))  # git is not installed
    assert run_info.git_state(tmp_path) is None

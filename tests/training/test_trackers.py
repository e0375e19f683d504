"""TensorBoard, Weights & Biases, MLflow for real: a run that is killed and goes on, read back."""

import contextlib
import dataclasses
import json
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
import tiny
import wandb_file

from emo_jax.config import TrackingConfig, flatten, from_config_dict
from emo_jax.data.store import TokenStore
from emo_jax.run import run_info
from emo_jax.run.metrics_file import METRICS_FILE
from emo_jax.training import trackers
from emo_jax.training.tracking import Tracker, scalars

pytestmark = pytest.mark.system

_LOOK = """
import sys
from emo_jax.cli import main
try:
    main()
except SystemExit as e:
    # Not pandas, which wandb and mlflow import, nor boto3, which tensorboard does: see test_loop.
    heavy = {"tensorflow", "torch", "transformers", "datasets", "google.cloud.storage"}
    print("exit", e.code, "imported", sorted(heavy & set(sys.modules)))
"""
SECRET = "not-to-be-seen-anywhere"


@dataclasses.dataclass
class Tracked:
    """A run with every tracker, killed behind step 24 and resumed from step 20."""

    workdir: Path
    mlflow_uri: str
    connections: int
    output: str

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in (self.workdir / METRICS_FILE).open()]

    def expected(self) -> dict[str, dict[int, float]]:
        """What every tracker is to have, by name and step."""
        found: dict[str, dict[int, float]] = {}
        for record in self.records:
            for name, value in scalars(record).items():
                assert record["step"] not in found.setdefault(name, {})
                found[name][record["step"]] = value
        return found

    def segments(self) -> list[Path]:
        return sorted(self.workdir.glob("wandb/offline-run-*/run-*.wandb"))


def _mlflow_steps(file: Path) -> int:
    """Read past MLflow, which would make tables in a file that is not there yet."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            asked = "SELECT MAX(step) FROM metrics WHERE key = 'loss'"
            return database.execute(asked).fetchone()[0] or 0
    except sqlite3.OperationalError:
        return 0


def _wandb_steps(workdir: Path) -> int:
    files = list(workdir.glob("wandb/offline-run-*/run-*.wandb"))
    return max((row["_step"] for row in wandb_file.history(files[0])), default=0) if files else 0


@pytest.fixture(scope="module")
def tracked(env, store, tmp_path_factory) -> Tracked:
    folder = tmp_path_factory.mktemp("tracked")
    workdir, uri = folder / "run", f"sqlite:///{folder / 'mlflow.db'}"
    argv = runs.train_argv(
        *(store, workdir),
        tracking__tensorboard=True,
        tracking__wandb_project="tests",
        tracking__wandb_mode="offline",
        tracking__mlflow_uri=uri,
        tracking__mlflow_experiment="tests",
    )
    # Whoever tries the network knocks here.
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.01)
        here = f"http://127.0.0.1:{server.getsockname()[1]}"
        proxies = {name: here for name in ("http_proxy", "https_proxy", "ALL_PROXY")}
        quiet = {k: v for k, v in env.items() if k.lower() != "no_proxy"}
        watched = quiet | proxies | {"WANDB_BASE_URL": here, "EMO_TEST_SECRET": SECRET}
        watched["WANDB_API_KEY"] = SECRET.ljust(40, "x")
        log = folder / "log"
        with log.open("w") as stream:
            command = runs.stalled(argv, step=26)  # to be killed there
            process = subprocess.Popen(
                command, env=watched, stdout=stream, stderr=stream, cwd=folder
            )
        runs.wait_until(lambda: runs.steps_logged(workdir) == 24, process, log)
        runs.wait_until(lambda: _wandb_steps(workdir) == 23, process, log)  # it holds back one
        runs.wait_until(lambda: _mlflow_steps(folder / "mlflow.db") == 24, process, log)
        process.kill()
        process.wait()
        done = subprocess.run(
            [sys.executable, "-c", _LOOK, *argv],
            env=watched,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert "resumed at step 20\n" in done.stderr, done.stderr
        knocks = 0
        with contextlib.suppress(TimeoutError):
            while True:
                server.accept()[0].close()
                knocks += 1
    made = sorted(path.name for path in folder.iterdir())
    assert made == ["log", "mlflow.db", "run"]  # nothing beside what was named
    return Tracked(workdir, uri, knocks, done.stdout + done.stderr)


def test_a_tracked_run_is_the_same_run(tracked, finished_run):
    assert runs.log_as_written(tracked.workdir) == runs.log_as_written(finished_run)
    assert "tracking:" not in tracked.output  # no warning


def test_nothing_heavy_is_imported_and_no_network_is_tried(tracked):
    assert "exit 0 imported []" in tracked.output
    assert tracked.connections == 0


def test_tensorboard_has_every_step_once(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(
        str(tracked.workdir / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}
    ).Reload()
    expected = tracked.expected()
    assert set(events.Tags()["scalars"]) == set(expected)
    for name, values in expected.items():
        found = events.Scalars(name)
        assert [event.step for event in found] == sorted(values), name
        if not runs.is_time(name):  # measured anew
            assert [e.value for e in found] == [np.float32(values[e.step]) for e in found], name
    configs, starts = events.Tensors("config"), events.Tensors("run")
    assert [event.step for event in configs] == [event.step for event in starts] == [0, 20]
    text = configs[0].tensor_proto.string_val[0].decode()
    assert json.loads(text) == json.loads((tracked.workdir / "config.json").read_text())


def test_wandb_has_every_step_in_files_of_one_run(tracked):
    first, second = tracked.segments()
    run_id = json.loads((tracked.workdir / "tracking.json").read_text())["wandb"]["run_id"]
    assert first.name == second.name == f"run-{run_id}.wandb"
    rows = [wandb_file.history(path) for path in (first, second)]
    assert [row["_step"] for row in rows[0]] == list(range(1, 24))  # killed behind it
    assert [row["_step"] for row in rows[1]] == list(range(21, 41))
    found = {row["_step"]: row for row in [*rows[0], *rows[1]]}
    for name, values in tracked.expected().items():
        if not runs.is_time(name):
            assert {s: row[name] for s, row in found.items() if name in row} == values, name
    config = wandb_file.config(second)
    assert config["model"]["num_layers"] == 2 and config["name"] == "emo_tiny"
    assert config["start_at_step_20"]["data"]["fingerprint"]


def test_mlflow_has_every_step_once(tracked):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=tracked.mlflow_uri)
    experiment = client.get_experiment_by_name("tests")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "emo_tiny")
    expected = tracked.expected()
    assert set(run.data.metrics) == set(expected)
    for name, values in expected.items():
        history = client.get_metric_history(run.info.run_id, name)
        assert len(history) == len({metric.step for metric in history}), name
        if not runs.is_time(name):  # measured anew
            assert {metric.step: metric.value for metric in history} == values, name
    config = flatten(from_config_dict(json.loads((tracked.workdir / "config.json").read_text())))
    assert set(run.data.params) == set(config)
    assert run.data.params["model.num_layers"] == "2"
    for step in (0, 20):
        assert run.data.tags[f"start_at_step_{step}.environment.devices"] == "1"


def test_every_start_is_described(tracked, store):
    starts = run_info.read_run_info(tracked.workdir)
    assert [start["step"] for start in starts] == [0, 20]
    for start in starts:
        assert start["data"]["fingerprint"] == TokenStore.open(store).fingerprint
        assert start["config"]["tracking"]["tensorboard"] is True
        assert start["environment"]["platform"] == "cpu"
        assert {"jax", "flax", "numpy"} <= set(start["environment"]["libraries"])
    assert starts[0]["time"] < starts[1]["time"]


def test_no_variable_of_the_environment_is_kept(tracked):
    files = [path for path in tracked.workdir.parent.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path


def test_a_workdir_that_is_moved_to_another_project_gets_another_run(tracked, tmp_path):
    info = run_info.RunInfo(workdir=tracked.workdir, config=tiny.tiny_config(), start=40, facts={})
    known = trackers._remembered(info, "wandb", "/tests")
    assert known and trackers._remembered(info, "wandb", "/others") is None


def test_a_tracker_that_was_off_for_a_while_gets_what_it_missed(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    off, on = TrackingConfig(), TrackingConfig(tensorboard=True, wandb_project="p")
    for start, end, tracking in ((0, 3, on), (3, 6, off), (6, 8, on)):
        config = dataclasses.replace(tiny.tiny_config(), tracking=tracking)
        info = run_info.describe_run(tmp_path, config, start, fingerprint="f00d")
        writers = [trackers.TensorBoard()] if tracking.tensorboard else []
        with Tracker(info, writers, show=print) as tracker:
            for step in range(start + 1, end + 1):
                tracker.write({"step": step, "loss": 1.0 / step})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 9))
    # Files of Weights & Biases that are not sent cannot be asked either.
    until = {
        name: trackers._on_until(info, trackers.Wandb(c)._is_on)
        for name, c in {
            "same": on,
            "another": dataclasses.replace(on, wandb_project="q"),
        }.items()
    }
    assert until == {"same": 3, "another": 0}


def test_a_number_that_is_not_finite_reaches_all(tmp_path):
    """Live, and out of the file, where it is null."""
    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    on = TrackingConfig(tensorboard=True, wandb_project="p", wandb_mode="offline", mlflow_uri=uri)
    for start, tracking in ((0, TrackingConfig()), (1, on)):
        config = dataclasses.replace(tiny.tiny_config(), tracking=tracking)
        info = run_info.describe_run(tmp_path, config, start, fingerprint="f00d")
        with Tracker(info, trackers.make_trackers(tracking), show=print) as tracker:
            record = {"step": start + 1, "loss": 1.0, "heldout_loss": float("nan"), "mfu": None}
            tracker.write(record | {"token_entropy_by_layer": [0.5, float("nan")]})
    expected = {"heldout_loss", "token_entropy/layer_01"}
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (segment,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    rows = wandb_file.history(segment)
    run_id = json.loads((tmp_path / "tracking.json").read_text())["mlflow"]["run_id"]
    client = MlflowClient(tracking_uri=uri)
    assert [row["_step"] for row in rows] == [1, 2]
    for name in expected:
        assert [np.isnan(event.value) for event in events.Scalars(name)] == [True, True]
        assert all(np.isnan(float(row[name])) for row in rows)  # "NaN" or NaN, by version
        history = client.get_metric_history(run_id, name)
        assert sorted((m.step, np.isnan(m.value)) for m in history) == [(1, True), (2, True)]
    assert "mfu" not in events.Tags()["scalars"] and "mfu" not in rows[0]


def test_mlflow_takes_the_names_of_all_stores(tmp_path):
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracking = TrackingConfig(mlflow_uri=uri)
    config = dataclasses.replace(tiny.tiny_config(), tracking=tracking)
    info = run_info.describe_run(tmp_path, config, 0, fingerprint="f00d")
    stores = ["s3://corpus/web", "/data/web", "../web", "./web/", "gsm/*.npy", "web"]
    shown: list[str] = []
    with Tracker(info, trackers.make_trackers(tracking), show=shown.append) as tracker:
        tracker.write({"step": 1, "loss": 1.0} | {f"source_share/{s}": 0.5 for s in stores})
    run_id = json.loads((tmp_path / "tracking.json").read_text())["mlflow"]["run_id"]
    kept = MlflowClient(tracking_uri=uri).get_run(run_id).data.metrics
    names = ["s3:/_/corpus/web", "_/data/web", "__/web", "_/web/_", "gsm/_.npy", "web"]
    assert {f"source_share/{name}" for name in names} <= set(kept), shown

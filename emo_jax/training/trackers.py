"""TensorBoard, Weights & Biases and MLflow as `MetricWriter`s.

None of their packages is imported before `start`, and none of them pulls in TensorFlow or torch:
for TensorBoard only the record format is used, which needs neither (tensorboardX imports torch, and
clu TensorFlow, if installed). WORKDIR/tracking.json connects a workdir with its runs elsewhere.
"""

import importlib.util
import itertools
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from etils import epath

from emo_jax.config import TrackingConfig, flatten, to_dict
from emo_jax.errors import DataError, UsageError, one_line
from emo_jax.files import trees
from emo_jax.files.atomic import write_atomic
from emo_jax.files.inside import check_own_files
from emo_jax.files.json_files import dumps, read_object
from emo_jax.run.run_info import RunInfo, read_run_info
from emo_jax.run.workdir import all_succeed
from emo_jax.training.tracking import MetricWriter, Outcome, Record, scalars

TENSORBOARD_FOLDER = "tensorboard"
TRACKING_FILE = "tracking.json"
_FILE_LOCK = threading.Lock()


def make_trackers(config: TrackingConfig) -> list[MetricWriter]:
    """Returns the trackers that the config enables, checked but not started; only on process 0.

    Called by every process.

    Raises:
      UsageError: a package is missing, or nobody is logged in.
    """
    made: list[MetricWriter] = []
    first = jax.process_index() == 0
    all_succeed(lambda: made.extend(_make(config)) if first else None, UsageError)
    return made


def _make(config: TrackingConfig) -> list[MetricWriter]:
    made: list[MetricWriter] = []
    if config.tensorboard:
        _need("tensorboard", "tensorboard")
        made.append(TensorBoard())
    if config.wandb_project and config.wandb_mode != "disabled":
        _need("wandb", "wandb")
        if config.wandb_mode == "online":
            _check_login()
        made.append(Wandb(config))
    if config.mlflow_uri:
        _need("mlflow", "mlflow")
        if config.mlflow_uri.startswith("sqlite:"):
            _need("sqlalchemy", "mlflow")
        made.append(MLflow(config))
    return made


def _need(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UsageError(
            f"config.tracking wants {extra}, and the package {module} is not installed; run"
            f" pip install 'emo-jax[{extra}]'"
        )


def _check_login() -> None:
    wandb = _import_wandb()
    try:
        known = wandb.login(prompt=False, verify=False)
    except Exception as error:
        raise UsageError(f"Weights & Biases: {one_line(error)}") from error
    if not known:
        raise UsageError(
            "Weights & Biases: nobody is logged in; run wandb login, or set WANDB_API_KEY, or give"
            " --config.tracking.wandb_mode=offline"
        )


# --- what ties a workdir to its runs elsewhere ---------------------------------------------------


def _remembered(run: RunInfo, tracker: str, place: str) -> str | None:
    """Returns the id that this run has at a place, if it was there before."""
    found = _known(run.workdir / TRACKING_FILE).get(tracker)
    if not isinstance(found, dict) or found.get("place") != place:
        return None
    run_id = found.get("run_id")
    return run_id if isinstance(run_id, str) else None


def _known(path: Path) -> dict[str, Any]:
    check_own_files(path.parent, [path.name], error=DataError)
    if not path.exists():
        return {}
    return read_object(path, advice="restore it, or delete it for new runs in the trackers")


def _remember(run: RunInfo, tracker: str, place: str, run_id: str) -> None:
    path = run.workdir / TRACKING_FILE
    with _FILE_LOCK:  # trackers start concurrently
        known = _known(path)
        known[tracker] = {"place": place, "run_id": run_id}
        write_atomic(epath.Path(path), dumps(known, indent=2) + "\n")


def _on_until(run: RunInfo, is_on: Callable[[dict[str, Any]], Any]) -> int:
    """Returns the step up to which a place that cannot be queried has every record of a run.

    That is where the run continued without it after the last start with it, at most this start.
    """
    last = 0
    for start, next_start in itertools.pairwise(read_run_info(run.workdir)):
        if is_on(start["config"]["tracking"]):
            last = next_start["step"]
    return min(last, run.start)


# --- the three -----------------------------------------------------------------------------------


class TensorBoard:
    """Event files in WORKDIR/tensorboard: one more for each start.

    A resumed run begins with a session mark, at which TensorBoard drops the later steps that were
    logged before.
    """

    name, where = "tensorboard", ""

    def start(self, run: RunInfo) -> int:
        """Opens a new file, and logs the config and the facts about the start as text."""
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder = run.workdir / TENSORBOARD_FOLDER
        folder.mkdir(exist_ok=True)
        last = 0
        if any(folder.iterdir()):  # records reach the disk immediately
            last = _on_until(run, lambda tracking: tracking.get("tensorboard"))
        # TensorBoard reads a folder's files by name.
        name = f"events.out.tfevents.{time.time_ns() // 1000:017d}.{run.start}"
        self._file = RecordWriter((folder / name).open("xb"))
        self._put(0, file_version="brain.Event:2")
        mark = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._put(last + 1, session_log=mark)
        values = []
        for tag, facts in (("config", to_dict(run.config)), ("run", run.facts)):
            # Four spaces make it code in Markdown.
            text = "\n".join(f"    {line}" for line in dumps(facts, indent=2).splitlines())
            plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
            tensor = tensor_pb2.TensorProto(
                dtype=DT_STRING,
                string_val=[text.encode()],
                tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
            )
            metadata = summary_pb2.SummaryMetadata(plugin_data=plugin)
            values.append(self._summary.Value(tag=tag, metadata=metadata, tensor=tensor))
        # At the next step, or the next start would drop the text too.
        self._put(run.start, summary=self._summary(value=values))
        self._file.flush()
        self.where = str(folder)
        return last

    def write(self, record: Record) -> None:
        """Writes one event with all values."""
        values = [self._summary.Value(tag=k, simple_value=v) for k, v in scalars(record).items()]
        self._put(record["step"], summary=self._summary(value=values))
        self._file.flush()

    def close(self, outcome: Outcome) -> None:
        """Closes the file."""
        self._file.close()

    def _put(self, step: int, **content: Any) -> None:
        event = self._event(wall_time=time.time(), step=step, **content)
        self._file.write(event.SerializeToString())


def _import_wandb() -> Any:
    # A training machine sends no error reports to others unless told to.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    return wandb


class Wandb:
    """A run of a Weights & Biases project; a resumed run continues it."""

    name, where = "wandb", ""

    def __init__(self, config: TrackingConfig):
        self._config = config

    def start(self, run: RunInfo) -> int:
        """Opens the run by its id. Our facts contain what wandb would find out by itself."""
        wandb, config = _import_wandb(), self._config
        place = f"{config.wandb_entity}/{config.wandb_project}"
        known = _remembered(run, self.name, place)
        run_id = known or uuid.uuid4().hex[:8]
        _remember(run, self.name, place, run_id)
        self._run = wandb.init(
            project=config.wandb_project,
            entity=config.wandb_entity or None,
            mode=config.wandb_mode,
            dir=str(run.workdir),
            name=run.config.name,
            id=run_id,
            resume="allow",
            settings=wandb.Settings(
                silent=True,
                init_timeout=_WANDB_SECONDS,
                finish_timeout=_WANDB_SECONDS,
                finish_timeout_raises=True,
                console="off",
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                x_disable_meta=True,  # host, user, command line
                x_transaction_log_flush_interval=1.0,  # seconds that a kill may lose offline
            ),
        )
        values = {**to_dict(run.config), f"start_at_step_{run.start}": run.facts}
        self._run.config.update(values, allow_val_change=True)
        if config.wandb_mode == "offline":
            self.where = f"{Path(self._run.dir).parent} (wandb sync sends it)"
            return _on_until(run, self._is_on) if known else 0
        self.where = str(self._run.url)
        return self._run.step - 1

    def _is_on(self, tracking: dict[str, Any]) -> bool:
        """Whether a start of the run was logged to the same project."""
        ours, names = self._config, ("wandb_entity", "wandb_project")
        same = all(tracking.get(name) == getattr(ours, name) for name in names)
        return same and tracking.get("wandb_mode") != "disabled"

    def write(self, record: Record) -> None:
        """Logs the values of a step."""
        self._run.log(scalars(record), step=record["step"])

    def close(self, outcome: Outcome) -> None:
        """Waits until everything is sent."""
        if outcome == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code={"finished": 0, "stopped": 75, "failed": 1}[outcome])


class MLflow:
    """A run of an MLflow experiment; a resumed run continues it."""

    name, where = "mlflow", ""

    def __init__(self, config: TrackingConfig):
        self._config = config

    def start(self, run: RunInfo) -> int:
        """Opens the run. Parameters are fixed at its first start; tags describe every start."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # the next record tries again
        from mlflow import entities
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # hides messages about new tables
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # hides messages about each attempt
        self._metric = entities.Metric
        uri, name = self._config.mlflow_uri, self._config.mlflow_experiment
        self._client = client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
        place = f"{uri} {name}"
        known = _remembered(run, self.name, place)
        if known:
            self._run_id = known
            client.update_run(known, status="RUNNING")
        else:
            self._run_id = client.create_run(experiment_id, run_name=run.config.name).info.run_id
            _remember(run, self.name, place, self._run_id)
            params = [entities.Param(k, _text(v)) for k, v in flatten(run.config).items()]
            for i in range(0, len(params), _MLFLOW_PARAMS):
                client.log_batch(self._run_id, params=params[i : i + _MLFLOW_PARAMS])
        tags = trees.flatten({f"start_at_step_{run.start}": run.facts}, ".")
        client.log_batch(self._run_id, tags=[entities.RunTag(k, _text(v)) for k, v in tags.items()])
        self.where = f"run {self._run_id} of experiment {name} at {uri}"
        history = client.get_metric_history(self._run_id, "loss") if known else []
        return max((metric.step for metric in history), default=0)

    def write(self, record: Record) -> None:
        """Logs the values of a step."""
        values = {_mlflow_name(k): v for k, v in scalars(record).items()}
        now = int(time.time() * 1000)
        metrics = [self._metric(k, v, now, record["step"]) for k, v in values.items()]
        for i in range(0, len(metrics), _MLFLOW_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[i : i + _MLFLOW_METRICS])

    def close(self, outcome: Outcome) -> None:
        """Marks the run as ended."""
        status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[outcome]
        self._client.set_terminated(self._run_id, status)


_WANDB_SECONDS = 25.0  # below tracking.CLOSE_SECONDS, so that the reason is reported
_MLFLOW_NAME = re.compile(r"[^\w\-. /:]")  # characters that MLflow does not allow in a metric name
_MLFLOW_NO_PARTS = ("", ".", "..")  # nor parts of one: it is a path to MLflow
_MLFLOW_PARAMS, _MLFLOW_METRICS = 100, 1000  # its limits per call


def _mlflow_name(name: str) -> str:
    parts = _MLFLOW_NAME.sub("_", name).split("/")
    return "/".join("_" * max(len(part), 1) if part in _MLFLOW_NO_PARTS else part for part in parts)


def _text(value: Any) -> str:
    return str(value) if value != "" else '""'  # servers refuse an empty value

"""What a run has logged, as series over its steps."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from emo_jax.errors import UsageError, one_line
from emo_jax.files.json_files import Fields, read_object
from emo_jax.run.goodput import Account, account, read_marks
from emo_jax.run.metrics_file import METRICS_FILE, number_in, numbers_in, read_metrics
from emo_jax.run.run_info import read_run_info
from emo_jax.run.workdir import CONFIG_FILE, split_step

_WAY = re.compile(r" \((pool|keep)=\d+\)$")
Points = tuple[list[int], list[float]]  # steps, values


class Run(NamedTuple):
    """A workdir that has been read."""

    path: Path
    config: dict[str, Any]
    records: list[dict[str, Any]]  # logged steps and evaluations, by step
    starts: list[dict[str, Any]]  # from run_info.jsonl
    times: Account = Account()  # where the wall time went

    @property
    def last_step(self) -> int:
        """Steps done when the last record was written."""
        return self.records[-1]["step"]

    @property
    def last_evaluation(self) -> int | None:
        """Steps done when the held-out loss was last measured."""
        steps = self.points("heldout_loss")[0]
        return steps[-1] if steps else None

    @property
    def first_step(self) -> int:
        """Steps that the run took over from another when it started."""
        return min((start["step"] for start in self.starts), default=0)

    @property
    def tokens(self) -> int:
        """Tokens of the steps since `first_step`, each with the batch size it last ran with."""
        tokens, end = 0, self.last_step
        # From the last start backwards: steps of an earlier start beyond it were redone.
        for start in reversed(self.starts or [{"step": 0, "config": self.config}]):
            config = start["config"]
            window = config["data"]["seq_len"]
            tokens += max(0, end - start["step"]) * config["train"]["batch_size"] * window
            end = min(end, start["step"])
        return tokens

    def points(self, name: str) -> Points:
        """Returns the steps and values of `name`; NaN where it was not finite."""
        found = [(r["step"], x) for r in self.records if (x := number_in(r, name)) is not None]
        return [step for step, _ in found], [value for _, value in found]

    def last(self, name: str) -> float | None:
        """Returns the last value; None if it was never logged."""
        values = self.points(name)[1]
        return values[-1] if values else None

    def layers(self, name: str) -> dict[str, Points]:
        """Returns a series per layer for a value that is logged by layer."""
        key = f"{name}_by_layer"
        found = [(r["step"], x) for r in self.records if (x := numbers_in(r, key))]
        count = min((len(x) for _, x in found), default=0)
        steps, values = [step for step, _ in found], [value for _, value in found]
        return {f"layer {n}": (steps, [value[n] for value in values]) for n in range(count)}

    def domains(self, name: str = "heldout_loss", way: str = "") -> dict[str, Points]:
        """Returns a series per domain of `NAME/DOMAIN WAY`; a way is `(pool=16)` or `(keep=8)`.

        An empty `way` means the values without one.
        """
        start, end = f"{name}/", f" {way}" if way else ""
        found: dict[str, Points] = {}
        for record in self.records:  # one pass: there may be thousands of domains
            for key in record:
                if not key.startswith(start) or not key.endswith(end):
                    continue
                domain, value = key[len(start) : len(key) - len(end)], number_in(record, key)
                if value is not None and (way or not _WAY.search(domain)):
                    steps, values = found.setdefault(domain, ([], []))
                    steps.append(record["step"])
                    values.append(value)
        return found

    def ways(self, kind: str) -> list[int]:
        """Returns the sizes of the `(pool=N)` or `(keep=N)` losses, largest first."""
        pattern = re.compile(rf"heldout_loss \({kind}=(\d+)\)")
        keys = {key for record in self.records for key in record}
        return sorted((int(m[1]) for key in keys if (m := pattern.fullmatch(key))), reverse=True)


def read_run(workdir: str | Path) -> Run:
    """Reads a run's records, config and starts.

    Raises:
      UsageError: it is not a workdir, or nothing has been logged yet.
    """
    path = Path(workdir)
    folder, step = split_step(workdir)
    if step is not None:
        raise UsageError(f"{workdir}: a report is of the whole run; give {folder}, without @{step}")
    if not (path / METRICS_FILE).is_file():
        raise UsageError(f"{path}: no {METRICS_FILE} here; give the workdir of a run")
    try:
        records = sorted(read_metrics(path), key=lambda record: record["step"])
        if not records:
            raise UsageError(f"{path / METRICS_FILE}: nothing was logged yet")
        advice = "restore it from the newest checkpoint's manifest.json"
        config = read_object(path / CONFIG_FILE, error=UsageError, advice=advice)
        for section, name in (("train", "steps"), ("train", "batch_size"), ("data", "seq_len")):
            Fields(config).inner(section).integer(name)
        starts = read_run_info(path)
        times = account(read_marks(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as a workdir ({one_line(error)})") from error
    return Run(path, config, records, starts, times)

"""What a run was started with: versions, devices, the state of the code, the data.

Kept as one line a start in WORKDIR/run_info.jsonl and given to every tracker. No variable of the
environment, host name, user or command line is in it.
"""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from etils import epath

import emo_jax
from emo_jax.config import Config, to_dict
from emo_jax.files.atomic import write_atomic
from emo_jax.files.json_files import Fields
from emo_jax.files.json_lines import json_line, mend_lines, read_lines, warn_of_bad

RUN_INFO_FILE = "run_info.jsonl"
_LIBRARIES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorstore", "tokamax"),
    *("tokenizers", "numpy", "ml_collections"),
)
_GIT_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """One start of a run.

    Args:
      workdir: its folder.
      config: in full.
      start: steps done before; the records that follow are of later steps. 0: a fresh run.
      facts: JSON values: `time`, `environment`, `git`, `data`.
    """

    workdir: Path
    config: Config
    start: int
    facts: dict[str, Any]


def describe_run(workdir: Path, config: Config, start: int, *, fingerprint: str) -> RunInfo:
    """The facts of a start; `fingerprint` is of the data the run reads."""
    facts = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "git": git_state(Path(emo_jax.__file__).parent) or git_state(Path.cwd()),
        "data": {"store": config.data.store, "fingerprint": fingerprint},
    }
    return RunInfo(workdir=workdir, config=config, start=start, facts=facts)


def environment() -> dict[str, Any]:
    """Versions and devices."""
    device = jax.devices()[0]
    return {
        "emo_jax": emo_jax.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device_kind": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "libraries": {name: v for name in _LIBRARIES if (v := _version(name))},
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, and whether tracked files were changed; None where `folder` is not in a repository.

    A folder that its repository does not track, such as site-packages, is not in it.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or not _git(folder, "ls-tree", "HEAD"):
        return None
    looks = ("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
    changed = _git(folder, *looks, env=_without_programs(folder))
    return {"commit": commit, "dirty": bool(changed) if changed is not None else None}


def _without_programs(folder: Path) -> dict[str, str]:
    """Variables by which git runs nothing that a repository's settings name to look at its files.

    A folder of somebody else may be one.
    """
    filters = _git(folder, "config", "-z", "--name-only", "--get-regexp", r"^filter\.")
    settings = {"core.fsmonitor": "false"} | dict.fromkeys((filters or "").split("\0"), "")
    settings.pop("", None)
    first = os.environ.get("GIT_CONFIG_COUNT", "")
    start = int(first) if first.isdecimal() else 0
    found = {"GIT_CONFIG_COUNT": str(start + len(settings))}
    for n, (name, value) in enumerate(settings.items(), start):
        found |= {f"GIT_CONFIG_KEY_{n}": name, f"GIT_CONFIG_VALUE_{n}": value}
    return found


def _git(
    folder: Path, *arguments: str, env: Mapping[str, str] = MappingProxyType({})
) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0", **env},  # looking takes no lock
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None  # no git, no repository, not ours: a run does not need it
    return done.stdout.strip()


def append_run_info(run: RunInfo) -> None:
    """Adds this start to those before it."""
    path = run.workdir / RUN_INFO_FILE
    record = {"step": run.start, **run.facts, "config": to_dict(run.config)}
    if not path.exists():
        write_atomic(epath.Path(path), json_line(record))
        return
    lines = read_lines(path, _check)
    mend_lines(path, lines, [*lines.records, record])


def read_run_info(workdir: Path) -> list[dict[str, Any]]:
    """Every start of a run, oldest first; what is no record is left out, and named in the log."""
    path = workdir / RUN_INFO_FILE
    if not path.exists():
        return []
    lines = read_lines(path, _check)
    warn_of_bad(path, lines)
    return lines.records


def _check(record: dict[str, Any]) -> None:
    """Of what is read of a start later."""
    fields = Fields(record)
    fields.integer("step")
    fields.text("time")
    fields.inner("config").inner("data").integer("seq_len")
    fields.inner("config").inner("train").integer("batch_size")
    fields.inner("config").inner("tracking")
    machine = fields.inner("environment")
    for name in ("devices", "processes"):
        machine.integer(name)
    for name in ("device_kind", "emo_jax", "python"):
        machine.text(name)
    machine.inner("libraries")
    if record.get("git") is not None:
        fields.inner("git").text("commit")
    data = fields.inner("data")
    for name in ("store", "fingerprint"):
        data.text(name)

"""How a run was started: versions, devices, the state of the code, the data.

It is recorded as one line per start in WORKDIR/run_info.jsonl and sent to every tracker. It has no
environment variables, host name, user or command line.
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
      workdir: folder of the run.
      config: the full config.
      start: steps done before; later records are for later steps. 0: a fresh run.
      facts: JSON values: `time`, `environment`, `git`, `frozen`, `data`.
    """

    workdir: Path
    config: Config
    start: int
    facts: dict[str, Any]


def describe_run(
    workdir: Path, config: Config, start: int, *, fingerprint: str, frozen: str | None = None
) -> RunInfo:
    """The facts about a start.

    Args:
      workdir, config, start: as in `RunInfo`.
      fingerprint: that of the data the run reads.
      frozen: the folder below WORKDIR/frozen that has the code and the libraries of this start.
    """
    facts = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "git": git_state(Path(emo_jax.__file__).parent) or git_state(Path.cwd()),
        "frozen": frozen,
        "data": {"store": ", ".join(config.data.stores), "fingerprint": fingerprint},
    }
    return RunInfo(workdir=workdir, config=config, start=start, facts=facts)


def environment() -> dict[str, Any]:
    """Versions and devices."""
    import jax  # not needed to read a run's

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
    """Commit, and whether tracked files were changed; None if `folder` is not in a repository.

    A folder that its repository does not track, such as site-packages, does not count.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or not _git(folder, "ls-tree", "HEAD"):
        return None
    looks = ("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
    changed = _git(folder, *looks, env=_without_programs(folder))
    return {"commit": commit, "dirty": bool(changed) if changed is not None else None}


def _without_programs(folder: Path) -> dict[str, str]:
    """Environment variables that keep git from running programs named in a repository's settings.

    The folder may be someone else's repository.
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
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0", **env},  # only reads, so takes no lock
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None  # no git, no repository, or not ours: a run does not need it
    return done.stdout.strip()


def append_run_info(run: RunInfo) -> None:
    """Appends this start to the earlier ones."""
    path = run.workdir / RUN_INFO_FILE
    record = {"step": run.start, **run.facts, "config": to_dict(run.config)}
    if not path.exists():
        write_atomic(epath.Path(path), json_line(record))
        return
    lines = read_lines(path, _check)
    mend_lines(path, lines, [*lines.records, record])


def read_run_info(workdir: Path) -> list[dict[str, Any]]:
    """Every start of a run, oldest first; lines that are not records are skipped and logged."""
    path = workdir / RUN_INFO_FILE
    if not path.exists():
        return []
    lines = read_lines(path, _check)
    warn_of_bad(path, lines)
    return lines.records


def _check(record: dict[str, Any]) -> None:
    """Checks the fields of a record that are read later."""
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

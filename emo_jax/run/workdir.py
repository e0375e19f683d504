"""The folder of a run, and who may use it.

A workdir contains `config.json` (the full config, written first), `tokenizer/` and `checkpoints/`;
one that started from another run's checkpoint also has `init.json`, written before that. A folder
with anything else is not ours and is left alone.
"""

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from etils import epath

from emo_jax.config import Config, differences, from_config_dict, may_change, to_dict
from emo_jax.errors import (
    EXIT_FAILED,
    EXIT_USAGE,
    ConfigError,
    EmoError,
    UsageError,
    one_line,
)
from emo_jax.files.atomic import finished_name, write_atomic
from emo_jax.files.inside import check_own_files
from emo_jax.files.json_files import parse, read_regular
from emo_jax.parallel import processes

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"  # in a workdir: a folder per step
MANIFEST = "manifest.json"  # in a step's folder, written last
INIT_FILE = "init.json"  # in a workdir: the checkpoint that its run started from
TOKENIZER_FOLDER = "tokenizer"  # in a workdir, and in a token store
TOKEN_FILE = ".token"  # in a workdir: what only the processes of its run know, see token.py
INDEX_FOLDER = "data_index"  # in a workdir: where documents are, for data that does not say

_RECIPE = ("train", "optimizer")  # sections that may change if the run continues in a new workdir


def all_succeed(action: Callable[[], None], kind: type[EmoError] = EmoError) -> None:
    """Runs `action` on every process; raises on all of them if it fails on any.

    Those where it succeeded raise `kind`, or UsageError if that is what the first one did;
    otherwise they would hang at the next collective.
    """
    error: Exception | None = None
    try:
        action()
    except Exception as e:
        error = e
    ours = 0 if error is None else getattr(error, "exit_code", EXIT_FAILED)
    codes = processes.gather(ours)
    if error is not None:
        raise error
    if any(codes):
        index = next(i for i, code in enumerate(codes) if code)
        bad_usage = codes[index] == EXIT_USAGE
        raise (UsageError if bad_usage else kind)(f"process {index} failed; see its log")


def unusable(workdir: Path, text: str) -> EmoError:
    """Returns the error for a workdir that cannot be read or written.

    Launchers do not start a job again after bad usage. A run that is there was right once: its disk
    is away or full, and may come back.
    """
    return (EmoError if (workdir / CONFIG_FILE).is_file() else UsageError)(text)


def refused_changes(config: Config, theirs: Config) -> list[str]:
    """The differences not allowed in a resumed run, as `field: theirs -> ours`."""
    return [line for line in differences(config, theirs) if not is_free(line)]


def claim_workdir(
    workdir: str | os.PathLike[str],
    config: Config,
    check: Callable[[], None] | None = None,
    *,
    refused: Callable[[Config, Config], list[str]] = refused_changes,
    files: Mapping[str, str] | None = None,
) -> bool:
    """Claims a new or empty folder for this run, or resumes the existing run in it.

    Called by every process with the same arguments; process 0 does the work.

    Args:
      workdir: the folder.
      config: config of this run.
      check: checks an existing run before anything in it is overwritten; raises to refuse.
      refused: maps (config, existing config) to the differences that make it a different run.
      files: names and texts of files written before the config, so that every run has them.

    Returns:
      True if the workdir already belongs to this run (resume).

    Raises:
      UsageError: the folder belongs to another experiment, or is not a workdir. Nothing is
        overwritten.
    """
    folder = epath.Path(workdir)
    resumes = (folder / CONFIG_FILE).exists()
    # Every process must have looked before process 0 writes.
    all_succeed(lambda: None)
    import jax  # not needed to read a workdir

    first = jax.process_index() == 0
    claim = partial(_claim, folder, config, check, refused, files or {})
    all_succeed(lambda: claim() if first else None)
    return resumes


def refuse_foreign(folder: epath.Path) -> None:
    """Raises UsageError if there is something in a folder without a config that is not of a run.

    The remains of an interrupted claim still count as an empty workdir.
    """
    if not folder.exists():
        return
    names = sorted(entry.name for entry in folder.iterdir())
    others = [n for n in names if not _is_of_claim(n)]
    if others and CONFIG_FILE not in names:
        raise UsageError(
            f"{folder}: not empty and not a workdir (no {CONFIG_FILE}; it holds"
            f" {', '.join(others[:3])}{', …' if len(others) > 3 else ''}); give a new or"
            " empty folder"
        )


def _is_of_claim(name: str) -> bool:
    """Whether a claim, or the processes that meet before it, writes a file of this name first."""
    finished = name in (INIT_FILE, INDEX_FOLDER) or finished_name(name) in (CONFIG_FILE, INIT_FILE)
    return finished or name.startswith(TOKEN_FILE)


def is_free(difference: str) -> bool:
    """Whether a line of `differences` is about a field that does not alter what a run computes."""
    return may_change(difference.partition(":")[0]) == "resume"


def split_step(path: str | os.PathLike[str]) -> tuple[Path, int | None]:
    """The folder and step in `WORKDIR@STEP`; an existing folder of that name takes precedence.

    The step is None if not given, which usually means the newest.
    """
    text = os.fspath(path)
    folder, at, step = text.rpartition("@")
    if at and folder and step.isdecimal() and not Path(text).exists():
        return Path(folder), int(step)
    return Path(text), None


def _claim(
    folder: epath.Path,
    config: Config,
    check: Callable[[], None] | None,
    refused: Callable[[Config, Config], list[str]],
    files: Mapping[str, str],
) -> None:
    text = json.dumps(to_dict(config), indent=2) + "\n"
    try:
        if not (folder / CONFIG_FILE).exists():
            refuse_foreign(folder)
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                write_atomic(folder / name, content)
            write_atomic(folder / CONFIG_FILE, text)
            return
        theirs = read_workdir_config(folder)
        changed = refused(config, theirs)
        if changed:
            more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise UsageError(
                f"{folder} belongs to a run with another config ({'; '.join(changed[:5])}{more});"
                f" {_way_on(folder, changed)}"
            )
        if check is not None:
            check()
        for name, content in files.items():
            write_atomic(folder / name, content)
        if theirs != config:
            # Commands that read the workdir later need to know where the store is now.
            write_atomic(folder / CONFIG_FILE, text)
    except OSError as e:
        text = f"{folder}: cannot be used as a workdir: {one_line(e)}"
        raise unusable(Path(folder), text) from e


def _way_on(folder: epath.Path, changed: list[str]) -> str:
    """Advice for a config that differs from that of the run in a folder."""
    names = [line.partition(":")[0] for line in changed]
    other = "another workdir, or the config that run was started with"
    if any(line.startswith("data.order: 'grain' -> ") for line in changed):
        other += (
            " (--config.data.order=grain: the order of runs that began before it could be chosen)"
        )
    if not all(name.partition(".")[0] in _RECIPE for name in names):
        return f"give {other}"
    return (
        "to go on from where it is with this config, give another workdir and --init-from"
        f" {folder} --config.init.expected_changes={','.join(names)}; or give {other}"
    )


def read_workdir_config(workdir: str | os.PathLike[str]) -> Config:
    """The config of the run in a workdir.

    Raises:
      UsageError: no such folder, not a workdir, or its config cannot be read.
    """
    folder = epath.Path(workdir)
    path = folder / CONFIG_FILE
    try:
        if not folder.exists():
            raise UsageError(f"{folder}: no such workdir; a run makes it with emo train --workdir")
        if "://" not in str(folder):
            check_own_files(folder, [CONFIG_FILE], error=UsageError)
        if not path.exists():
            raise UsageError(f"{folder}: not a workdir (no {CONFIG_FILE}); give a run's --workdir")
        values = parse(read_regular(path))
        if isinstance(values, dict) and isinstance(data := values.get("data"), dict):
            data.setdefault("order", "grain")  # before there was a choice
        return from_config_dict(values)
    except (OSError, ValueError, AttributeError, TypeError) as e:
        raise UsageError(f"{path}: cannot be read as a run's config: {one_line(e)}") from e
    except ConfigError as e:
        raise UsageError(f"{path}: of another version of emo_jax, or edited: {e}") from e

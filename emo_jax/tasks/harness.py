"""Tasks out of lm-evaluation-harness: by name, or from YAML files of its format.

lm_eval is imported here when it is needed, and nowhere else without this.
"""

import difflib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emo_jax.errors import DataError, UsageError, one_line

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

EXTRA = "pip install 'emo-jax[tasks]'"
_LOCAL = (
    "to use local files, write a task with dataset_path: json and"
    " dataset_kwargs: {data_files: …}, and give --include-path FOLDER"
)
_OFFLINE = ("offline", "connect", "resolve", "network", "timed out", "max retries", "reach")


def require() -> None:
    """Imports the harness, which shows nothing but warnings of ours from then on.

    Raises:
      UsageError: it is not installed.
    """
    # Its bars have no switch; tqdm reads this when it is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        import lm_eval
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise UsageError(f"tasks need lm-evaluation-harness ({one_line(error)}): {EXTRA}") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.getLogger("datasets").setLevel(logging.ERROR)


def is_file(name: str) -> bool:
    """Whether a task is given by its YAML file, and not by a name."""
    return name.endswith((".yaml", ".yml")) or "/" in name


class TaskSource:
    """Loads tasks, groups and tags of the harness, and those of folders.

    A name that a folder has is taken from there. The harness's own 14 000 tasks are looked at only
    if a name is in no folder.

    Args:
      folders: with YAML files, and folders of them.

    Raises:
      UsageError: lm_eval is not installed, or there is no such folder.
    """

    def __init__(self, folders: Sequence[str | os.PathLike[str]] = ()):
        require()
        self._folders = [Path(folder) for folder in folders]
        for folder in self._folders:
            if not folder.is_dir():
                raise UsageError(f"--include-path {folder}: no such folder")
        self._managers: dict[bool, TaskManager] = {}

    def _manager(self, *, all_tasks: bool) -> "TaskManager":
        from lm_eval.tasks import TaskManager

        if all_tasks not in self._managers:
            self._managers[all_tasks] = TaskManager(
                include_path=list(self._folders), include_defaults=all_tasks
            )
        return self._managers[all_tasks]

    def load(self, name: str, changes: Mapping[str, Any] | None = None) -> "list[Task]":
        """The tasks of a name (of a task, a group or a tag), or of a YAML file.

        Args:
          name: a name of the harness or of a folder, or the path of a YAML file.
          changes: fields of the tasks' YAML that are replaced.

        Raises:
          UsageError: no such task or file; the nearest names are listed.
          DataError: the task's data cannot be read, or it has no items.
        """
        local = self._manager(all_tasks=False)
        if is_file(name):
            if not Path(name).is_file():
                raise UsageError(f"--tasks {name}: no such file; give a task's YAML, or its name")
            manager, spec = local, self._of_file(name, changes)
        else:
            manager = local if name in local.task_index else self._manager(all_tasks=True)
            if name not in manager.task_index:
                near = difflib.get_close_matches(name, manager.all_tasks, n=4, cutoff=0.6)
                hint = f" (did you mean {', '.join(near)}?)" if near else ""
                raise UsageError(
                    f"--tasks {name}: no such task{hint}; give a name of lm-evaluation-harness"
                    f" {_version()}, or a YAML file, or its folder with --include-path"
                )
            # The form in which a group's YAML changes fields of tasks that there are.
            changed = {"task": name, **(changes or {})}
            spec = {"group": f"{name} changed", "task": [changed]} if changes else name
        return _reading(name, manager, lambda: list(manager.load([spec])["tasks"].values()))

    def _of_file(self, name: str, changes: Mapping[str, Any] | None) -> Any:
        if not changes:
            return name
        from lm_eval.tasks._yaml_loader import load_yaml

        return {**load_yaml(Path(name)), **changes}


_NO_ITEMS = "corresponds to no data"  # as `datasets` says of a split of an empty file


def _reading(name: str, manager: "TaskManager", load: Callable[[], Any]) -> Any:
    """What `load` returns; whatever it raises becomes one line."""
    try:
        return load()
    except (UsageError, DataError, KeyboardInterrupt):
        raise
    except Exception as error:
        if isinstance(error, IndexError | StopIteration) or _NO_ITEMS in str(error):
            raise DataError(f"{name}: a split has no items; give data that has some") from error
        entry = manager.task_index.get(name)
        where = (entry.cfg or {}).get("dataset_path") if entry is not None else None
        named = f" (data set {where})" if where else ""
        reason = one_line(error)
        if isinstance(error, ImportError):
            raise DataError(
                f"{name}{named}: its code needs what is not installed ({reason}); install that, or"
                " give a task of your own with --include-path FOLDER"
            ) from error
        offline = isinstance(error, ConnectionError) or any(
            word in reason.lower() for word in _OFFLINE
        )
        advice = _LOCAL if offline or where not in (None, "json") else "mend it"
        raise DataError(f"{name}{named}: cannot be loaded ({reason}); {advice}") from error


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")

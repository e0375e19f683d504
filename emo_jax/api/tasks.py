"""Tasks from Python: `emo_jax.evaluate_tasks`."""

import dataclasses
import importlib.metadata
import os
from collections.abc import Sequence

from emo_jax.checkpoint.manifest import versions
from emo_jax.evals.by_domain import eval_mesh
from emo_jax.files.progress import Progress
from emo_jax.saved.load import LoadedModel, load_model
from emo_jax.selection.budgets import keep_items
from emo_jax.selection.variants import within_documents
from emo_jax.tasks.table import TaskResults


def evaluate_tasks(
    model: str | os.PathLike[str] | LoadedModel,
    tasks: str | Sequence[str] = (),
    *,
    suite: str | Sequence[str] = (),
    include_path: str | Sequence[str] = (),
    few_shot: int | None = None,
    limit: int | None = None,
    keep: int | str | Sequence[int | str] = (),
    method: str = "layerwise",
    choose_on: str = "task",
    examples: int | Sequence[int | None] | None = 100,
    max_tokens: int = 1_000_000,
    allow_fewer: bool = False,
    seed: int = 0,
    trust: bool = False,
    quiet: bool = True,
) -> TaskResults:
    """Measures a model on tasks of lm-evaluation-harness, whole or with a part of its experts.

    Needs `pip install 'emo-jax[tasks]'`. There is no pool.

    Args:
      model: a `Model`, or a path as in `load`.
      tasks: names of the harness's tasks, groups and tags, and YAML files of its format.
      suite: the paper's tasks by word: "mc9", "gen5", "gsm8k", "mmlu", "mmlu_pro", or "emo" for all
        of them; MMLU and MMLU-Pro by category, with a module for each.
      include_path: folders with YAML files of tasks; a name that they have is taken from there.
      few_shot: number of examples in a prompt; None: as each task says.
      limit: number of items of each task to measure on; None: all.
      keep: measure with only this many experts per layer, shared ones included, chosen for each
        task: a count (16), a share ("25%"), or several; "100%" is the whole model.
      method: how the experts are chosen, see `select`.
      choose_on: "task": on items of each task that are not measured on; or on the split "select" of
        a token store, `STORE:DOMAIN` or `STORE`.
      examples: number of examples to choose by; None: all; several make a module each.
      max_tokens: maximum number of tokens in all examples.
      allow_fewer: allow `keep` to be below the number of experts that a token uses.
      seed: for the order of a task's items to choose by, and for "random".
      trust: allow a tokenizer whose file names code to import, see `load`.
      quiet: show no progress.

    Returns:
      The scores; they print as tables and convert to JSON.

    Raises:
      UsageError: the harness is not installed; no such model, task, folder or word; or the model
        does not allow this `keep` or `method`.
      DataError: a task's data cannot be read or has no items.
      CheckpointError, HfFormatError: the model cannot be read, see `load`.
    """
    from emo_jax.tasks.harness import require

    require()
    from emo_jax.tasks.run import RunSettings, run_tasks

    several = lambda given: (given,) if isinstance(given, str) else tuple(given)  # noqa: E731
    numbers = examples if isinstance(examples, Sequence) else (examples,)
    loaded = model if isinstance(model, LoadedModel) else load_model(os.fspath(model), trust=trust)
    config = loaded.config
    settings = RunSettings(
        tasks=several(tasks),
        suite=several(suite),
        include_path=several(include_path),
        few_shot=few_shot,
        limit=limit,
        keeps=keep_items(keep),
        method=method,
        choose_on=choose_on,
        examples=tuple(numbers),
        max_tokens=max_tokens,
        allow_fewer=allow_fewer,
        seed=seed,
    )
    mesh = eval_mesh(within_documents(config))
    with Progress("tasks", enabled=not quiet) as shown:
        rows, notes = run_tasks(
            *(config, loaded.params, loaded.need_tokenizer(), mesh, settings), progress=shown.show
        )
    step = "" if loaded.step is None else f", step {loaded.step}"
    about = {
        "model": {"name": loaded.name, "path": loaded.path, "step": loaded.step},
        "settings": dataclasses.asdict(settings),
        "window_tokens": config.data.seq_len,
        "compute_dtype": config.model.compute_dtype,
        "devices": mesh.size,
        "platform": mesh.devices.flat[0].platform,
        "versions": versions() | {"lm_eval": importlib.metadata.version("lm_eval")},
    }
    return TaskResults(tuple(rows), tuple(notes), about, f"{loaded.name}{step}: tasks", config)

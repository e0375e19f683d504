"""Documents out of seqio tasks and mixtures; the only place that imports seqio, and TensorFlow.

It is for preparing data (the extra `prepare`): training reads the token store that comes of it.
"""

import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

from emo_jax.errors import DataError, UsageError

PREFIX = "seqio:"
_FEATURE = "targets"


def check(spec: str) -> tuple[str, str]:
    """(module, task) of a `seqio:MODULE:TASK`.

    Raises:
      UsageError: spelt otherwise, or seqio is not installed.
    """
    module, _, task = spec.removeprefix(PREFIX).partition(":")
    if not module or not task:
        raise UsageError(f"{spec}: must be {PREFIX}MODULE:TASK, e.g. {PREFIX}my_tasks:wiki")
    if importlib.util.find_spec("seqio") is None:
        raise UsageError(f"{spec}: seqio is not installed; pip install 'emo-jax[prepare]'")
    return module, task


def read(spec: str) -> Iterator[tuple[str, str, str]]:
    """(text, id, domain) of every training example, in a fixed order and each once.

    The text is the feature "targets" before the task turned it into ids, or, where the task does
    not keep that, what its vocabulary makes of the ids. The domain is the name of the task; a
    mixture gives those of all its tasks, whatever their rates.

    Raises:
      UsageError: no such module or task.
      DataError: the task has no "targets".
    """
    module, name = check(spec)
    import seqio

    try:
        importlib.import_module(module)
        found = seqio.get_mixture_or_task(name)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{spec}: {error}; the module must register the task") from error
    tasks = found.tasks if isinstance(found, seqio.Mixture) else [found]
    for task in sorted(tasks, key=lambda t: t.name):
        if _FEATURE not in task.output_features:
            raise DataError(f"{spec}: task {task.name!r} has no feature {_FEATURE!r}; add it")
        examples = task.get_dataset(sequence_length=None, split="train", shuffle=False)
        for i, example in enumerate(examples.as_numpy_iterator()):
            yield _text(example, task), f"{task.name}:{i}", task.name


def _text(example: dict[str, Any], task: Any) -> str:
    kept = example.get(f"{_FEATURE}_pretokenized", example[_FEATURE])
    if isinstance(kept, bytes):
        return kept.decode("utf-8", "replace")
    vocabulary = task.output_features[_FEATURE].vocabulary
    return vocabulary.decode([int(i) for i in kept])

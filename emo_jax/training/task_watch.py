"""Tasks during training: accuracy, and bits a byte of gold answers, beside the held-out loss.

They read the parameters, and change nothing of the run.

Legend: L layers, M tasks, R routed experts.
"""

import time
from typing import Any

import numpy as np

from emo_jax.batch import Batch
from emo_jax.config import Config
from emo_jax.data.store import TokenStore
from emo_jax.data.stream import TokenSource
from emo_jax.errors import ConfigError
from emo_jax.evals.heldout import evaluate, make_eval_step
from emo_jax.evals.keep import by_router
from emo_jax.model.functions import ModelFunctions
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.parallel import processes
from emo_jax.parallel.rows import global_batch, own_rows
from emo_jax.selection.examples import pack
from emo_jax.selection.variants import within_documents
from emo_jax.tasks.encoding import Encoder
from emo_jax.tasks.harness import TaskSource
from emo_jax.tasks.items import TaskItems
from emo_jax.tasks.likelihoods import Likelihoods

_CHOOSING = 32  # items of a task, at most
_CHOOSING_WINDOWS = 4  # of tokens of a task, at most


class TaskWatch:
    """Measures `train.eval_tasks`; every process calls it.

    With `train.eval_keep`, experts are chosen for each task by the router's probabilities on items
    that are not measured on.

    Attributes:
      note: what is read each time.
    """

    def __init__(self, config: Config, model: ModelFunctions, source: TokenSource):
        train = config.train
        if not isinstance(source, TokenStore):
            raise ConfigError(
                f"config.train.eval_tasks = {train.eval_tasks!r}: must be () unless"
                " config.data.store is one token store, whose tokenizer reads the texts"
            )
        tokenizer = source.tokenizer()
        tokenizer.ready()
        found = TaskSource()
        tasks = [task for name in train.eval_tasks for task in found.load(name)]
        self._keeps = train.eval_keep if config.moe is not None else ()
        self._items = TaskItems(
            tasks,
            Encoder(tokenizer),
            config.data.seq_len,
            train.task_items,
            choosing=bool(self._keeps),
        )
        self._config = within_documents(config)
        assert model.mesh is not None
        self._model = ModelFunctions(self._config, model.mesh)
        self._sharding = mesh_lib.windows_sharding(model.mesh)
        self._likelihoods = Likelihoods(
            self._model, tokenizer.pad_id, compiled=processes.compile_together
        )
        self._choosing: list[Batch] = []
        if self._keeps:
            self._step = make_eval_step(self._config, self._model, len(tasks))
            self._choosing = self._chosen_by(tokenizer.pad_id)
        tokens = sum(len(r.prompt) + len(r.continuation) for r in self._items.requests)
        ways = 1 + len(self._keeps)
        self.note = (
            f"{len(tasks)} tasks: {len(self._items.requests):,} requests of {tokens:,} tokens"
            f" before prompts are shared, {ways} times each time"
        )

    @classmethod
    def of(cls, config: Config, model: ModelFunctions, source: TokenSource) -> "TaskWatch | None":
        """Returns a run's watch; None if there are no tasks."""
        return cls(config, model, source) if config.train.eval_tasks else None

    def measure(self, params: Any, step: int) -> tuple[dict[str, Any], str]:
        """Returns a record for the log, and a line to show."""
        begun = time.monotonic()
        record: dict[str, Any] = {"step": step}
        shown = []
        kept: dict[int, np.ndarray] = {}
        if self._keeps:
            processes.compile_together(self._step, params, self._placed(0), None, pool_size=0)
            batches = (self._placed(n) for n in range(len(self._choosing)))
            probs_LMR = evaluate(self._step, params, batches).router_probs_LMR
            assert probs_LMR is not None
            choice = by_router(self._config, probs_LMR)
            kept = {keep: choice.kept(keep) for keep in self._keeps}
        whole_LMR = None
        if kept:  # the same program as with a part of the experts
            whole_LMR = np.ones_like(next(iter(kept.values())))
        for keep, keep_LMR in {0: whole_LMR, **kept}.items():
            processes.pulse.beat()
            found = self._likelihoods.of(params, self._items.requests, keep_LMR=keep_LMR)
            suffix = f" (keep={keep})" if keep else ""
            for name, scores in self._items.scores(found).items():
                for what, value in scores.items():
                    record[f"task_{what}/{name}{suffix}"] = value
                if not keep:
                    accuracy = scores.get("accuracy")
                    right = "" if accuracy is None else f"accuracy {accuracy:.3f}, "
                    shown.append(f"{name} {right}{scores['bits_per_byte']:.3f} bits a byte")
        seconds = time.monotonic() - begun
        return record, f"step {step}: {'; '.join(shown)} ({seconds:.1f} s)"

    def _chosen_by(self, pad_id: int) -> list[Batch]:
        """Batches to choose experts by, on the host; the domain of a token is its task."""
        S, size = self._config.data.seq_len, self._size
        made = []
        documents = self._items.choosing(_CHOOSING, _CHOOSING_WINDOWS * S)
        for number, some in enumerate(documents):
            for batch in pack(some, S, size, pad_id):
                there = batch.segment_ids >= 0
                made.append(batch._replace(domain_ids=np.where(there, number, -1).astype(np.int32)))
        return made

    @property
    def _size(self) -> int:
        train = self._config.train
        return train.batch_size // train.micro_batches

    def _placed(self, number: int) -> Batch:
        rows = own_rows(self._sharding, self._size, self._config.data.seq_len)
        batch = Batch(*(np.asarray(field)[rows] for field in self._choosing[number]))
        return global_batch(batch, rows, self._sharding, self._size)

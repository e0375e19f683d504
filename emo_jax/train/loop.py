"""The training loop: data, step, log, save; resumed from the newest good checkpoint.

Order of a start: 1. the workdir is claimed, unless its run was trained on another corpus; 2. the
newest good checkpoint is restored if there is one; 3. else a fresh state is made. Step k-1 is
logged while step k runs, so the device never waits for the log.
"""

import contextlib
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emo_jax import config as config_lib
from emo_jax.batch import Batch
from emo_jax.checkpoint import Checkpointer
from emo_jax.config import Config
from emo_jax.data.loader import Loader, heldout_batches
from emo_jax.data.store import TokenStore
from emo_jax.data.stream import TokenSource
from emo_jax.data.tokenizers import load_tokenizer
from emo_jax.data.windows import Windows, open_source, open_windows
from emo_jax.errors import CheckpointError, ConfigError, DataError, PreemptedError, UsageError
from emo_jax.evals.heldout import HeldOut, evaluate, make_eval_step
from emo_jax.model.transformer import ModelFunctions
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.train import flops
from emo_jax.train.metrics import MetricsFile, summarize
from emo_jax.train.optimizer import make_optimizer
from emo_jax.train.progress import TrainProgress
from emo_jax.train.state import TrainState, abstract_state, init_state
from emo_jax.train.step import jit_train_step
from emo_jax.workdir import TOKENIZER_FOLDER, all_succeed, claim_workdir, one_line

HELD_OUT_SPLIT = "select"  # watched while training; "test" stays unseen until the end


class _StopRequest:
    """True once SIGTERM or SIGINT came; the step that runs is finished first.

    Args:
      every: steps from one agreement of several processes to the next; each waits for all.
    """

    def __init__(self, every: int) -> None:
        self.requested = False
        self._every = every
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "_StopRequest":
        with contextlib.suppress(ValueError):  # not in the main thread: signals stay as they are
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: Any) -> None:
        self.requested = True

    def __exit__(self, *exc: Any) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)

    def agreed(self, step: int) -> bool:
        """Whether any process was asked: all must save the same step."""
        if jax.process_count() == 1:
            return self.requested
        if step % self._every:
            return False
        from jax.experimental import multihost_utils

        return bool(multihost_utils.process_allgather(np.asarray(self.requested)).any())


class Trainer:
    """One run. `run` trains to the end, or raises `PreemptedError` with the state saved.

    Args:
      config: of the run.
      workdir: its folder; a run that is there is resumed.
      quiet: show nothing.

    Raises:
      UsageError, ConfigError, DataError: before anything is started.
    """

    def __init__(self, config: Config, workdir: str | Path, *, quiet: bool = False):
        if not config.data.store:
            raise ConfigError(
                "config.data.store = '': must be a token store (make one with emo prepare, then "
                "give --config.data.store=STORE)"
            )
        self.config, self.workdir, self.quiet = config, Path(workdir).absolute(), quiet
        self.mesh = mesh_lib.make_mesh(config.mesh)
        mesh_lib.check_batch(self.mesh, config.train.batch_size // config.train.micro_batches)
        self.source = source = open_source(config.data.store)
        self.windows = open_windows(config.data, source=source)
        check_vocab(config, source)
        self.heldout: Windows | None = None
        has_split = isinstance(source, TokenStore) and source.count(HELD_OUT_SPLIT)
        if config.train.eval_windows and has_split:
            self.heldout = open_windows(config.data, split=HELD_OUT_SPLIT, source=source)
        self.model = ModelFunctions(config, self.mesh)
        self.optimizer = make_optimizer(config)
        self._batch_sharding = mesh_lib.windows_sharding(self.mesh)
        self._eval_step = None
        if self.heldout is not None:
            self._eval_step = make_eval_step(
                config, self.model, len(self.heldout.domains), router_probs=False
            )
        self.train_step = jit_train_step(config, self.model, self.optimizer)

    def run(self) -> TrainState:
        """Trains from where the workdir stands to `train.steps`; returns the final state."""
        config, steps = self.config, self.config.train.steps
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(_StopRequest(config.train.log_every))
            checkpointer = stack.enter_context(Checkpointer(self.workdir, config.checkpoint))
            claim_workdir(self.workdir, config, lambda: self._check_source(checkpointer))
            state, start, window = self._start(checkpointer)
            progress = TrainProgress(
                config.name, total=steps, done=start, enabled=not self.quiet and _is_first()
            )
            stack.callback(progress.close)
            if start:
                progress.line(f"resumed at step {start}")
            if start >= steps:
                progress.line(f"already finished at step {start}; nothing to do")
                return state
            if start == 0:
                all_succeed(lambda: self._keep_tokenizer() if _is_first() else None)
            if stop.agreed(0):
                raise PreemptedError(
                    "stopped before the first step; run the same command again to go on"
                )
            log = MetricsFile(self.workdir, resume_step=start) if _is_first() else None
            if log:
                stack.callback(log.close)
            state = self._train(state, start, window, checkpointer, progress, log, stop)
            checkpointer.wait()
            return state

    def _check_source(self, checkpointer: Checkpointer) -> None:
        """Refuses to go on with other tokens, or ids of another tokenizer, than the run has had.

        Checkpoints made before the store was recorded are taken as they are.
        """
        own, source = self.workdir / TOKENIZER_FOLDER, self.source
        if isinstance(source, TokenStore) and (own / "tokenizer.json").exists():
            try:
                source.check_tokenizer(load_tokenizer(own).fingerprint)
            except DataError as e:
                raise UsageError(f"{self.workdir} has a tokenizer of its own; {e}") from e
        for step in reversed(checkpointer.steps()):
            try:
                extra = checkpointer.read_extra(step)
            except CheckpointError:
                continue  # damaged: the one before it will be restored
            if extra.get("store", source.fingerprint) != source.fingerprint:
                raise UsageError(
                    f"{self.workdir} was trained on another store than"
                    f" {self.config.data.store} ({extra['store'][:12]}, then at"
                    f" {extra['config']['data']['store']}, is not {source.fingerprint[:12]}); give"
                    " that store with --config.data.store=STORE, or another workdir"
                )
            return

    def _keep_tokenizer(self) -> None:
        """Copies the store's tokenizer into the workdir: an export needs it, a store may move."""
        folder = self.workdir / TOKENIZER_FOLDER
        if folder.exists() or not isinstance(self.source, TokenStore):
            return
        unfinished = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            self.source.tokenizer().save(unfinished)
            unfinished.rename(folder)
        except OSError as e:
            raise UsageError(f"{folder}: cannot be written: {one_line(e)}") from e

    def _start(self, checkpointer: Checkpointer) -> tuple[TrainState, int, int]:
        if checkpointer.latest_step() is None:
            # A fresh state is not saved: it is a function of the config.
            return init_state(self.model, self.optimizer, self.config.seed), 0, 0
        abstract = abstract_state(self.model, self.optimizer)
        state, extra, step = checkpointer.restore(abstract)
        return state, step, int(extra["windows"])

    def _train(
        self,
        state: TrainState,
        start: int,
        window: int,
        checkpointer: Checkpointer,
        progress: TrainProgress,
        log: MetricsFile | None,
        stop: _StopRequest,
    ) -> TrainState:
        train, save_every = self.config.train, self.config.checkpoint.save_every
        clock = _Clock(self.config)
        pending: tuple[int, dict[str, Any]] | None = None

        def flush(*, early: bool = False) -> None:
            """Logs the step before: its values are ready, the device is busy with the next.

            `early` waits for the step that was just started; nothing runs meanwhile.
            """
            nonlocal pending
            if pending is None:
                return
            step, metrics = pending
            pending = None
            record = {"step": step, **summarize(self.config, jax.device_get(metrics))}
            record |= clock.speed(step, early=early)
            progress.record(record)
            if log:
                log.write(record)

        batches = self._batches(window)
        try:
            for step in range(start + 1, train.steps + 1):
                window, batch = next(batches)
                with jax.transfer_guard("disallow"):
                    state, metrics = self.train_step(state, batch)
                progress.step(step - 1)
                flush()
                checkpointer.check()
                logged = step % train.log_every == 0 or step in (start + 1, train.steps)
                pending = (step, metrics) if logged else None
                last = step == train.steps
                if last or (train.eval_every and step % train.eval_every == 0):
                    flush(early=True)
                    self._evaluate(state, step, progress, log)
                    clock.restart(step)
                if last or step % save_every == 0:
                    flush(early=True)  # a run killed after the save goes on behind this step
                    checkpointer.save(step, state, self._extra(step, window))
                if stop.agreed(step) and not last:
                    flush(early=True)
                    checkpointer.save(step, state, self._extra(step, window))
                    checkpointer.wait()
                    raise PreemptedError(
                        f"stopped by a signal; step {step} is saved in {self.workdir}: run the "
                        "same command again to go on"
                    )
            progress.step(train.steps)
        finally:
            batches.close()
        return state

    def _extra(self, step: int, window: int) -> dict[str, Any]:
        return {
            "config": config_lib.to_dict(self.config),
            "windows": window,
            "store": self.source.fingerprint,
        }

    def _put(self, batch: Batch) -> Batch:
        """This process's rows as part of the global arrays."""
        return Batch(
            *(jax.make_array_from_process_local_data(self._batch_sharding, a) for a in batch)
        )

    def _batches(self, window: int) -> Any:
        loader = Loader(
            self.windows,
            batch_size=self.config.train.batch_size,
            seed=self.config.data.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            prefetch=self.config.data.prefetch,
        )

        def generate() -> Iterator[tuple[int, Batch]]:
            with contextlib.closing(loader.iterate(window)) as batches:
                for consumed, batch in batches:
                    yield consumed, self._put(batch)

        return generate()

    def _evaluate(
        self, state: TrainState, step: int, progress: TrainProgress, log: MetricsFile | None
    ) -> None:
        if self.heldout is None or self._eval_step is None:
            return
        moe = self.config.moe
        record: dict[str, Any] = {"step": step}
        for pool_size in sorted({0, moe.pool.eval_size if moe else 0}):
            result = evaluate(
                self._eval_step, state.params, self._heldout_batches(), pool_size=pool_size
            )
            record |= held_out_record(result, self.heldout.domains, pool_size)
        progress.line(f"step {step}: held-out loss {record['heldout_loss']:.4f}")
        if log:
            log.write(record)

    def _heldout_batches(self) -> Iterator[Batch]:
        assert self.heldout is not None
        batches = heldout_batches(
            self.heldout,
            batch_size=self.config.train.batch_size // self.config.train.micro_batches,
            max_windows=self.config.train.eval_windows,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return (self._put(batch) for batch in batches)


def held_out_record(result: HeldOut, domains: tuple[str, ...], pool_size: int) -> dict[str, Any]:
    """Names for the log: `heldout_loss`, `heldout_loss/law`, and with a pool `… (pool=16)`."""
    suffix = f" (pool={pool_size})" if pool_size else ""
    record = {f"heldout_loss{suffix}": result.loss}
    for name, loss in zip(domains, result.loss_M, strict=True):
        if np.isfinite(loss):
            record[f"heldout_loss/{name}{suffix}"] = float(loss)
    return record


def check_vocab(config: Config, source: TokenSource) -> None:
    """Raise when the store's ids do not fit the model.

    Raises:
      UsageError: with both numbers.
    """
    if source.vocab_size > config.model.vocab_size:
        raise UsageError(
            f"{config.data.store}: its tokenizer has {source.vocab_size} ids, "
            f"config.model.vocab_size = {config.model.vocab_size}; give "
            f"--config.model.vocab_size={source.vocab_size}"
        )


class _Clock:
    """Tokens a second and MFU between two logged steps, without the first (compiling) step."""

    def __init__(self, config: Config):
        self._config = config
        self._tokens = config.train.batch_size * config.data.seq_len
        self._mark: tuple[int, float] | None = None

    def restart(self, step: int) -> None:
        """Forgets the time so far: something else than training ran."""
        self._mark = (step, time.perf_counter())

    def speed(self, step: int, *, early: bool = False) -> dict[str, float | None]:
        """Since the last call; empty on the first, and for a single step that was logged early."""
        now, mark = time.perf_counter(), self._mark
        if early and mark is not None and step - mark[0] < 2:
            return {}  # the step before was logged late: the time between says nothing
        self._mark = (step, now)
        if mark is None or step <= mark[0]:
            return {}
        tokens_per_second = (step - mark[0]) * self._tokens / (now - mark[1])
        return {
            "tokens_per_second": round(tokens_per_second, 1),
            "mfu": flops.mfu(self._config, tokens_per_second, jax.devices()),
        }


def _is_first() -> bool:
    return jax.process_index() == 0

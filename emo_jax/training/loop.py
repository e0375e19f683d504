"""The training loop: data, step, log, save.

A start has three stages: 1. decide where the run begins (`start.py`); 2. claim the workdir, unless
it belongs to another run; 3. read or make the state. Step k-1 is checked and logged while step k
runs, so the device never waits for the log.
"""

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from emo_jax.batch import Batch
from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.config import Config, to_dict
from emo_jax.data.loader import Loader
from emo_jax.data.run_windows import open_run_windows
from emo_jax.data.sources import MixedSource, open_data
from emo_jax.data.store import TokenStore
from emo_jax.data.stream import TokenSource
from emo_jax.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PreemptedError,
    UsageError,
    one_line,
)
from emo_jax.files.json_files import dumps
from emo_jax.files.waiting import wait_unless
from emo_jax.model.functions import ModelFunctions
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.parallel import processes
from emo_jax.parallel.rows import global_batch, own_rows
from emo_jax.run.frozen import freeze
from emo_jax.run.lock import RunLock
from emo_jax.run.run_info import describe_run
from emo_jax.run.workdir import (
    INDEX_FOLDER,
    INIT_FILE,
    TOKENIZER_FOLDER,
    all_succeed,
    claim_workdir,
)
from emo_jax.training import halt
from emo_jax.training.clock import Clock
from emo_jax.training.heldout_watch import HeldOutWatch
from emo_jax.training.init_from import InitFrom, windows_of
from emo_jax.training.labels import LabelWatch
from emo_jax.training.metrics import summarize
from emo_jax.training.optimizer import make_optimizer
from emo_jax.training.progress import TrainProgress
from emo_jax.training.start import plan_start
from emo_jax.training.state import TrainState
from emo_jax.training.step import jit_train_step
from emo_jax.training.stop import StopRequest
from emo_jax.training.trackers import make_trackers
from emo_jax.training.tracking import Tracker


class _Running(NamedTuple):
    """A step that has started and has not been checked yet."""

    step: int
    window: int  # windows consumed before it
    batch: Batch
    metrics: dict[str, Any]
    logged: bool


class Trainer:
    """One run. `run` trains to the end, or raises `PreemptedError` with the state saved.

    Args:
      config: config of the run.
      workdir: its folder; an existing run is resumed.
      init_from: the checkpoint of another run to start from; not read if the run resumes.
      stop: a stop request that already handles signals.
      quiet: show nothing.

    Raises:
      UsageError, ConfigError, DataError: before anything is started.
    """

    def __init__(
        self,
        config: Config,
        workdir: str | Path,
        *,
        init_from: InitFrom | None = None,
        stop: StopRequest | None = None,
        quiet: bool = False,
    ):
        if not config.data.stores:
            raise ConfigError(
                "config.data.store = '': must be a token store (make one with emo prepare, then "
                "give --config.data.store=STORE)"
            )
        self.config, self.workdir, self.quiet = config, Path(workdir).absolute(), quiet
        self._init_from, self._stop = init_from, stop or StopRequest()
        self._origin: dict[str, Any] | None = None
        self._trackers = make_trackers(config.tracking)
        self.mesh = mesh_lib.make_mesh(config.mesh)
        mesh_lib.check_batch(
            self.mesh, config.train.batch_size // config.train.micro_batches, config.data.seq_len
        )
        cache = self.workdir / INDEX_FOLDER
        self.source = source = open_data(config.data, cache=cache)
        self.windows = open_run_windows(config, source, cache=cache)
        check_vocab(config, source)
        planned = self.windows.fingerprint_at(config.train.steps * config.train.batch_size)
        processes.compare({"tokens of config.data": planned})
        self.model = ModelFunctions(config, self.mesh)
        self._watch = HeldOutWatch.of(config, self.model, source)
        self.optimizer = make_optimizer(config)
        self._batch_sharding = mesh_lib.windows_sharding(self.mesh)
        self.train_step = jit_train_step(config, self.model, self.optimizer)

    def run(self) -> TrainState:
        """Trains from where the workdir's run stopped to `train.steps`; returns the final state."""
        config, steps = self.config, self.config.train.steps
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(self._stop)
            if jax.process_count() == 1:  # else they agree first
                stack.enter_context(wait_unless(lambda: stop.requested))
            checkpointer = stack.enter_context(Checkpointer(self.workdir, config.checkpoint))
            lock = RunLock(self.workdir)
            all_succeed(lambda: lock.check() if _is_first() else None, UsageError)
            begin = plan_start(
                self.workdir,
                config,
                self._init_from,
                checkpointer=checkpointer,
                source=self.source,
                windows=self.windows,
                model=self.model,
                optimizer=self.optimizer,
            )
            self._origin = begin.record
            files = {} if begin.record is None else {INIT_FILE: dumps(begin.record) + "\n"}
            claim_workdir(
                self.workdir,
                config,
                lambda: self._check_source(checkpointer),
                refused=begin.refused,
                files={} if begin.resumes else files,
            )
            all_succeed(lambda: lock.acquire() if _is_first() else None, UsageError)
            stack.callback(lock.release)
            shown = not self.quiet and _is_first()
            for line in begin.lines if shown else ():  # reading the state may take minutes
                print(f"{config.name}: {line}", file=sys.stderr, flush=True)
            state, start, window = begin.make()
            progress = TrainProgress(config.name, total=steps, done=start, enabled=shown)
            stack.callback(progress.close)
            progress.line(", ".join(f"{k}: {v}" for k, v in self.model.choices().items()))
            for line in self.windows.notes(config.train.batch_size):
                progress.line(line)
            if self._watch is not None and self._watch.note:
                progress.line(f"held-out losses: {self._watch.note}")
            if start and begin.resumes:
                progress.line(f"resumed at step {start}")
            if start >= steps:
                progress.line(f"already finished at step {start}; nothing to do")
                return state
            if start == 0 or not begin.resumes:
                all_succeed(lambda: self._keep_tokenizer() if _is_first() else None)
            if stop.agreed():
                raise PreemptedError(
                    "stopped before the first step; run the same command again to go on"
                )
            log = None
            if _is_first():
                fingerprint = self.source.fingerprint
                frozen = freeze(self.workdir)
                run = describe_run(
                    self.workdir, config, start, fingerprint=fingerprint, frozen=frozen
                )
                log = stack.enter_context(Tracker(run, self._trackers, show=progress.line))
            # Tell the other processes of an error first: cleanup may wait for them.
            stack.push(lambda kind, error, trace: processes.leave(error))
            labels = LabelWatch(
                config,
                epoch=self.windows.epoch,
                window=window,
                resumes=start > 0 and begin.resumes,
            )
            state = self._train(state, start, window, checkpointer, progress, log, stop, labels)
            checkpointer.wait()
            return state

    def _check_source(self, checkpointer: Checkpointer) -> None:
        """Refuses to resume with other tokens, or another tokenizer's ids, than the run has had.

        Checkpoints made before the store was recorded are accepted as they are.
        """
        source = self.source
        if isinstance(source, TokenStore | MixedSource):
            try:
                source.check_tokenizer_in(self.workdir / TOKENIZER_FOLDER)
            except DataError as e:
                raise UsageError(f"{self.workdir} has a tokenizer of its own; {e}") from e
        for step in reversed(checkpointer.steps()):
            try:
                extra = checkpointer.read_extra(step)
            except CheckpointError:
                continue  # damaged: an earlier one will be restored
            ours = self.windows.fingerprint_at(windows_of(extra, f"{self.workdir}: step {step}"))
            if (theirs := extra.get("store", ours)) != ours:
                raise self._other_tokens(extra, theirs, ours)
            return

    def _other_tokens(self, extra: dict[str, Any], theirs: str, ours: str) -> UsageError:
        """Returns the error for a run that has read something else than this one would have."""
        data = self.config.data
        if data.sources:
            return UsageError(
                f"{self.workdir}: its {extra['windows']} windows so far are not those of this"
                f" config.data.sources ({theirs[:12]} is not {ours[:12]}); give the stores and"
                " weights it began with, in the same order, and add what is to change with"
                " from_step, or give another workdir"
            )
        return UsageError(
            f"{self.workdir} was trained on another store than {data.store} ({theirs[:12]}, then"
            f" at {extra['config']['data']['store']}, is not {ours[:12]}); give that store with"
            " --config.data.store=STORE, or another workdir"
        )

    def _keep_tokenizer(self) -> None:
        """Copies the store's tokenizer into the workdir: an export needs it, a store may move."""
        folder = self.workdir / TOKENIZER_FOLDER
        source = self.source
        store = source.tokenizer_store() if isinstance(source, MixedSource) else source
        if folder.exists() or not isinstance(store, TokenStore):
            return
        unfinished = folder.with_name(f".{folder.name}.tmp")
        try:
            if unfinished.is_symlink():  # made by someone else: do not write to its target
                unfinished.unlink()
            shutil.rmtree(unfinished, ignore_errors=True)
            store.tokenizer().save(unfinished)
            unfinished.rename(folder)
        except OSError as e:
            raise UsageError(f"{folder}: cannot be written: {one_line(e)}") from e

    def _train(
        self,
        state: TrainState,
        start: int,
        window: int,
        checkpointer: Checkpointer,
        progress: TrainProgress,
        log: Tracker | None,
        stop: StopRequest,
        labels: LabelWatch,
    ) -> TrainState:
        train, save_every = self.config.train, self.config.checkpoint.save_every
        clock = Clock(self.config)
        running: _Running | None = None

        def settle(*, early: bool = False) -> None:
            """Checks the previous step and logs it, while the device is busy with the next one.

            `early` waits for the step that has just started; nothing else runs meanwhile.
            """
            nonlocal running
            if running is None:
                return
            done, running = running, None
            if halt.is_halted(done.metrics):
                self._fail(done, state, start, checkpointer)
            if not done.logged:
                return
            step, metrics = done.step, done.metrics
            record = {"step": step, **summarize(self.config, jax.device_get(metrics))}
            record |= clock.speed(step, early=early)
            shares = self.windows.shares(done.window + train.batch_size)
            record |= {f"source_share/{name}": share for name, share in shares.items()}
            progress.record(record)
            if log:
                log.write(record)

        def leave() -> str:
            """Saves the state before the run ends early; says where."""
            if done == start:
                return "nothing was done yet"
            settle(early=True)
            checkpointer.save(done, state, self._extra(done, window))
            checkpointer.wait()
            return f"step {done} is saved in {self.workdir}"

        done, alone = start, jax.process_count() == 1
        # Several processes stop together, between steps.
        stopped = (lambda: stop.requested) if alone else (lambda: False)
        batches = self._batches(window, stopped, labels)
        try:
            for step in range(start + 1, train.steps + 1):
                before, (window, batch) = window, next(batches, (window, None))
                if batch is None:
                    raise PreemptedError(
                        f"stopped by a signal; {leave()}: run the same command again to go on"
                    )
                if step == start + 1:
                    processes.compile_together(self.train_step, state, batch)
                with jax.transfer_guard("disallow"):
                    state, metrics = self.train_step(state, batch)
                done = step
                progress.step(step - 1)
                settle()
                checkpointer.check()
                logged = step % train.log_every == 0 or step in (start + 1, train.steps)
                running = _Running(step, before, batch, metrics, logged)
                last = step == train.steps
                labels.check(window, last=last)
                if last or (train.eval_every and step % train.eval_every == 0):
                    settle(early=True)
                    if self._watch is not None:
                        record, line = self._watch.measure(state.params, step)
                        progress.line(line)
                        if log:
                            log.write(record)
                    clock.restart(step)
                if last or step % save_every == 0:
                    settle(early=True)  # a run killed after the save resumes after this step
                    checkpointer.save(step, state, self._extra(step, window))
                if stop.agreed() and not last:
                    raise PreemptedError(
                        f"stopped by a signal; {leave()}: run the same command again to go on"
                    )
            progress.step(train.steps)
        except DataError as e:
            # With several processes, only this one knows; the others are in their next step.
            if not alone:
                raise
            if stop.requested:  # which is why nothing was waited for
                raise PreemptedError(
                    f"stopped by a signal; {leave()}: run the same command again to go on"
                ) from e
            raise DataError(f"{e}; {leave()}") from e
        finally:
            batches.close()
        return state

    def _fail(
        self, bad: _Running, state: TrainState, start: int, checkpointer: Checkpointer
    ) -> None:
        """Saves the state before a step that was not finite, and its batch; raises an error."""
        good = bad.step - 1
        batch_file = halt.keep_batch(self.workdir, bad.step, bad.batch)
        # The state that the run began from is saved already.
        if good > start or good not in checkpointer.steps():
            checkpointer.save(good, halt.go_on(state), self._extra(good, bad.window))
            checkpointer.wait()
        kept = f"the state before is step {good} in {self.workdir}"
        raise halt.failure(bad.step, jax.device_get(bad.metrics), batch_file, kept)

    def _extra(self, step: int, window: int) -> dict[str, Any]:
        origin = {} if self._origin is None else {"init": self._origin}
        return {
            "config": to_dict(self.config),
            "windows": window,
            "store": self.windows.fingerprint_at(window),
        } | origin

    def _batches(self, window: int, stopped: Callable[[], bool], labels: LabelWatch) -> Any:
        size, data, where = self.config.train.batch_size, self.config.data, self._batch_sharding
        rows = own_rows(where, size, data.seq_len)
        loader = Loader(self.windows, batch_size=size, rows=rows, prefetch=data.prefetch)

        def generate() -> Iterator[tuple[int, Batch]]:
            iterating = contextlib.closing(loader.iterate(window, stopped=stopped))
            with loader, iterating as batches:
                for consumed, batch in batches:
                    labels.see(batch)
                    yield consumed, global_batch(batch, rows, where, size)

        return generate()


def check_vocab(config: Config, source: TokenSource) -> None:
    """Raises an error if the store's ids do not fit the model.

    Raises:
      UsageError: states both sizes.
    """
    if source.vocab_size > config.model.vocab_size:
        raise UsageError(
            f"{', '.join(config.data.stores[:3])}: its tokenizer has {source.vocab_size} ids, "
            f"config.model.vocab_size = {config.model.vocab_size}; give "
            f"--config.model.vocab_size={source.vocab_size}"
        )


def _is_first() -> bool:
    return jax.process_index() == 0

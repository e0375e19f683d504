"""The training loop: data, step, log, save.

A start has three stages: 1. decide where the run begins (`start.py`); 2. claim the workdir, unless
it belongs to another run; 3. read or make the state. Step k-1 is checked and logged while step k
runs, so the device never waits for the log.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from emo_jax.batch import Batch
from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.checkpoint.local import LocalCheckpointer
from emo_jax.config import Config, to_dict
from emo_jax.data.loader import Loader
from emo_jax.data.run_windows import open_run_windows
from emo_jax.data.sources import open_data
from emo_jax.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PreemptedError,
    UsageError,
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
    all_succeed,
    claim_workdir,
)
from emo_jax.training.clock import Clock
from emo_jax.training.heldout_watch import HeldOutWatch
from emo_jax.training.hosts import HostWatch
from emo_jax.training.init_from import InitFrom
from emo_jax.training.label_pools import with_labels
from emo_jax.training.labels import LabelWatch
from emo_jax.training.metrics import summarize
from emo_jax.training.optimizer import make_optimizer
from emo_jax.training.passed import PassedWindows
from emo_jax.training.phases import Phases
from emo_jax.training.progress import TrainProgress
from emo_jax.training.recovery import BadStepError, Recovery, Running
from emo_jax.training.run_source import check_source, check_vocab, keep_tokenizer
from emo_jax.training.saves import Saves
from emo_jax.training.start import Start, from_local_disks, plan_start
from emo_jax.training.state import TrainState
from emo_jax.training.step import jit_train_step
from emo_jax.training.stop import StopRequest
from emo_jax.training.stopwatch import Stopwatch
from emo_jax.training.task_watch import TaskWatch
from emo_jax.training.trackers import make_trackers
from emo_jax.training.tracking import Tracker
from emo_jax.training.watchdog import Watchdog


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
        self._passed = PassedWindows()
        self._trackers = make_trackers(config.tracking)
        self.mesh = mesh_lib.make_mesh(config.mesh)
        mesh_lib.check_batch(
            self.mesh, config.train.batch_size // config.train.micro_batches, config.data.seq_len
        )
        cache = self.workdir / INDEX_FOLDER
        self.source = source = open_data(config.data, cache=cache)
        self.config = config = with_labels(config, source)
        self.windows = open_run_windows(config, source, cache=cache)
        check_vocab(config, source)
        planned = self.windows.fingerprint_at(config.train.steps * config.train.batch_size)
        processes.compare({"tokens of config.data": planned})
        self.model = ModelFunctions(config, self.mesh)
        self._watch = HeldOutWatch.of(config, self.model, source)
        self._tasks = TaskWatch.of(config, self.model, source)
        self.optimizer = make_optimizer(config, self.model.param_shardings())
        self._batch_sharding = mesh_lib.windows_sharding(self.mesh)
        self.train_step = jit_train_step(config, self.model, self.optimizer)

    def run(self) -> TrainState:
        """Trains from where the workdir's run stopped to `train.steps`; returns the final state."""
        config, steps = self.config, self.config.train.steps
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(self._stop)
            if jax.process_count() == 1:  # else they agree first
                stack.enter_context(wait_unless(lambda: stop.requested))
            lock = RunLock(self.workdir)
            checkpointer = stack.enter_context(
                Checkpointer(self.workdir, config.checkpoint, check_ours=lock.check_still_ours)
            )
            all_succeed(lambda: lock.check() if _is_first() else None, UsageError)
            begin = self._plan(checkpointer)
            self._origin = begin.record
            files = {} if begin.record is None else {INIT_FILE: dumps(begin.record) + "\n"}
            claim_workdir(
                self.workdir,
                config,
                lambda: check_source(
                    *(self.workdir, config, self.source, self.windows),
                    self._newest_extra(checkpointer),
                ),
                refused=begin.refused,
                files={} if begin.resumes else files,
            )
            all_succeed(lambda: lock.acquire() if _is_first() else None)
            stack.callback(lock.release)
            shown = not self.quiet and _is_first()
            for line in begin.lines if shown else ():  # reading the state may take minutes
                print(f"{config.name}: {line}", file=sys.stderr, flush=True)
            stack.enter_context(Watchdog(self.workdir, config.train.stall_timeout))
            processes.pulse.at("read", 0)
            self._passed = PassedWindows.read(self.workdir, self._newest_extra(checkpointer))
            self._passed.compare()
            local = made = None
            if config.checkpoint.local:
                local = LocalCheckpointer(self.workdir, config.checkpoint)
                stack.callback(local.close)
                made = from_local_disks(
                    local, self.model, self.optimizer, self.windows, self._passed
                )
            resumes = begin.resumes or made is not None
            state, start, window = made or begin.make()
            progress = TrainProgress(config.name, total=steps, done=start, enabled=shown)
            stack.callback(progress.close)
            progress.line(", ".join(f"{k}: {v}" for k, v in self.model.choices().items()))
            for line in self.windows.notes(config.train.batch_size):
                progress.line(line)
            if self._watch is not None and self._watch.note:
                progress.line(f"held-out losses: {self._watch.note}")
            if self._tasks is not None:
                progress.line(self._tasks.note)
            if start and resumes:
                where = "" if made is None else f", from {config.checkpoint.local} of each host"
                progress.line(f"resumed at step {start}{where}")
            if start >= steps:
                progress.line(f"already finished at step {start}; nothing to do")
                return state
            if start == 0 or not resumes:
                all_succeed(
                    lambda: keep_tokenizer(self.workdir, self.source) if _is_first() else None
                )
            if stop.agreed():
                raise PreemptedError(
                    "stopped before the first step; run the same command again to go on"
                )
            kept = self.workdir if _is_first() else None
            times = stack.enter_context(Stopwatch(kept, first=start, began=stop.began))
            processes.ending.last_words = times.end
            stack.callback(setattr, processes.ending, "last_words", None)
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
                resumes=start > 0 and resumes,
            )
            most = config.checkpoint.max_failed_saves
            saves = Saves(checkpointer, most=most, show=progress.line, local=local)
            recovery = Recovery(
                config,
                self.workdir,
                self._passed,
                extra=self._extra,
                restart=lambda: self._plan(checkpointer).make(),
            )
            while True:
                saves.begin(start)
                try:
                    state = self._train(
                        *(state, start, window, saves, progress),
                        *(log, stop, labels, recovery, times),
                    )
                    break
                except BadStepError as found:
                    bad = found.with_traceback(None)  # its frames hold the state
                Phases(times).at("restore", bad.running.step)
                (state, start, window), line = recovery.after(bad, start, saves)
                times.went_back(start)
                progress.line(line)
                if log:
                    log.rewind(start)
            return state

    def _plan(self, checkpointer: Checkpointer) -> Start:
        return plan_start(
            self.workdir,
            self.config,
            self._init_from,
            checkpointer=checkpointer,
            source=self.source,
            windows=self.windows,
            model=self.model,
            optimizer=self.optimizer,
            refuses=lambda extra: self._passed.refuses(extra),
        )

    def _newest_extra(self, checkpointer: Checkpointer) -> dict[str, Any]:
        for step in reversed(checkpointer.steps()):
            try:
                return checkpointer.read_extra(step)
            except CheckpointError:
                continue  # damaged: an earlier one will be restored
        return {}

    def _train(
        self,
        state: TrainState,
        start: int,
        window: int,
        saves: Saves,
        progress: TrainProgress,
        log: Tracker | None,
        stop: StopRequest,
        labels: LabelWatch,
        recovery: Recovery,
        times: Stopwatch,
    ) -> TrainState:
        train, kept = self.config.train, self.config.checkpoint
        clock, hosts, phases = Clock(self.config), HostWatch(), Phases(times)
        running: Running | None = None

        def settle(*, early: bool = False) -> None:
            """Checks the previous step and logs it, while the device is busy with the next one.

            `early` waits for the step that has just started; nothing else runs meanwhile.
            """
            nonlocal running
            if running is None:
                return
            done, running = running, None
            recovery.check(done, state)
            if not done.logged:
                return
            step, metrics = done.step, done.metrics
            record = {"step": step, **summarize(self.config, jax.device_get(metrics))}
            record |= clock.speed(step, early=early) | times.shares()
            shares = self.windows.shares(done.window + train.batch_size)
            record |= {f"source_share/{name}": share for name, share in shares.items()}
            if saves.failed:
                record["failed_saves"] = saves.failed
            if passed := self._passed.before(done.window):
                record["passed_windows"] = passed
            record |= hosts.spread()
            progress.record(record)
            if log:
                log.write(record)
            hosts.note_slow(step, log, progress)

        def save(step: int, how: Callable[[int, TrainState, dict[str, Any]], None]) -> None:
            settle(early=True)  # a run killed after the save resumes after this step
            times.saves(step)
            phases.at("save", step)
            how(step, state, self._extra(step, window))

        def leave() -> str:
            """Saves the state before the run ends early; says where."""
            if done == start:
                return "nothing was done yet"
            save(done, saves.finish)
            return f"step {done} is saved in {self.workdir}"

        done, alone = start, jax.process_count() == 1
        # Several processes stop together, between steps.
        stopped = (lambda: stop.requested) if alone else (lambda: False)
        batches = self._batches(window, stopped, labels)
        try:
            for step in range(start + 1, train.steps + 1):
                phases.at("data", step)
                window, batch = next(batches, (window, None))
                if batch is None:
                    raise PreemptedError(
                        f"stopped by a signal; {leave()}: run the same command again to go on"
                    )
                phases.at("compile" if step == start + 1 else "step", step)
                if step == start + 1:
                    processes.compile_together(self.train_step, state, batch)
                with jax.transfer_guard("disallow"):
                    state, metrics = self.train_step(state, batch)
                phases.at("step", step)
                times.started(step, metrics["halted"])
                done = step
                progress.step(step - 1)
                settle()
                saves.look()
                logged = step % train.log_every == 0 or step in (start + 1, train.steps)
                running = Running(step, window - train.batch_size, batch, metrics, logged)
                last = step == train.steps
                labels.check(window, last=last)
                watches: list[tuple[HeldOutWatch | TaskWatch | None, int]] = [
                    (self._watch, train.eval_every),
                    (self._tasks, train.tasks_every),
                ]
                due = [w for w, every in watches if last or (every and step % every == 0)]
                if due:
                    settle(early=True)
                    phases.at("evaluation", step)
                    for watch in due:
                        if watch is not None:
                            record, line = watch.measure(state.params, step)
                            progress.line(line)
                            if log:
                                log.write(record)
                    clock.restart(step)
                if last or step % kept.save_every == 0:
                    save(step, saves.finish if last else saves.start)
                elif kept.local_every and step % kept.local_every == 0:
                    save(step, saves.keep)
                phases.at("agree", step)
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

    def _extra(self, step: int, window: int) -> dict[str, Any]:
        origin = {} if self._origin is None else {"init": self._origin}
        return {
            "config": to_dict(self.config),
            "windows": window,
            "store": self.windows.fingerprint_at(window),
            "passed": self._passed.to_json(),
        } | origin

    def _batches(self, window: int, stopped: Callable[[], bool], labels: LabelWatch) -> Any:
        size, data, where = self.config.train.batch_size, self.config.data, self._batch_sharding
        rows = own_rows(where, size, data.seq_len)
        needed = self.config.train.steps + -(-self._passed.total // size)
        windows = self.windows.longer(needed)
        loader = Loader(windows, batch_size=size, rows=rows, prefetch=data.prefetch)
        following = self._passed.following

        def generate() -> Iterator[tuple[int, Batch]]:
            iterating = contextlib.closing(
                loader.iterate(window, stopped=stopped, following=following)
            )
            with loader, iterating as batches:
                for consumed, batch in batches:
                    labels.see(batch)
                    yield consumed, global_batch(batch, rows, where, size)

        return generate()


def _is_first() -> bool:
    return jax.process_index() == 0

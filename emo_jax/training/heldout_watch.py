"""Held-out losses during training."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from emo_jax.batch import Batch
from emo_jax.config import Config
from emo_jax.data.loader import heldout_batches
from emo_jax.data.sources import MixedSource
from emo_jax.data.store import TokenStore
from emo_jax.data.stream import TokenSource
from emo_jax.data.windows import Windows, open_windows
from emo_jax.evals.heldout import HeldOut, evaluate, make_eval_step
from emo_jax.evals.keep import in_halves, keep_curve
from emo_jax.model.functions import ModelFunctions
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.parallel import processes
from emo_jax.parallel.rows import global_batch, own_rows

HELD_OUT_SPLIT = "select"  # evaluated during training; "test" stays unseen until the end


class HeldOutWatch:
    """Evaluates the split `select`, by domain; every process calls it.

    Attributes:
      windows: at most `train.eval_windows` of them are evaluated.
      note: says which domains are merged; empty if none are.
    """

    def __init__(self, config: Config, model: ModelFunctions, windows: Windows, note: str = ""):
        assert model.mesh is not None
        self.windows, self.note, self._config = windows, note, config
        self._sharding = mesh_lib.windows_sharding(model.mesh)
        domains = len(windows.domains)
        self._step = make_eval_step(config, model, domains, router_probs=False)
        self._keep_step = None
        if config.train.eval_keep:  # twice the domains: see `keep_curve`
            self._keep_step = make_eval_step(config, model, 2 * domains, router_probs=True)

    @classmethod
    def of(
        cls, config: Config, model: ModelFunctions, source: TokenSource
    ) -> "HeldOutWatch | None":
        """Returns a run's watch; None if its source has no such split, or evaluation is off."""
        if not config.train.eval_windows or not isinstance(source, TokenStore | MixedSource):
            return None
        if not source.count(HELD_OUT_SPLIT):
            return None
        held = source.grouped()
        note = "" if held.groups is None else held.groups.note
        windows = open_windows(config.data, split=HELD_OUT_SPLIT, source=held)
        return cls(config, model, windows, note)

    def measure(self, params: Any, step: int) -> tuple[dict[str, Any], str]:
        """Returns a record for the log, and a line to show."""
        config, domains = self._config, self.windows.domains
        moe = config.moe
        record: dict[str, Any] = {"step": step}
        bad_M = np.zeros(len(domains), bool)
        for pool_size in sorted({0, moe.pool.eval_size if moe else 0}):
            result = _measure(self._step, params, self._batches(), pool_size=pool_size)
            record |= held_out_record(result, domains, pool_size)
            bad_M |= result.broken_M
        if self._keep_step is not None:
            keep_step = self._keep_step

            def run(keep_LMR: np.ndarray | None) -> HeldOut:
                halves = in_halves(self._batches(), len(domains))
                return _measure(keep_step, params, halves, keep_LMR=keep_LMR)

            record |= keep_curve(config, run, domains, config.train.eval_keep)
        broken = [d for d, bad in zip(domains, bad_M, strict=True) if bad]
        more = f", not finite: {', '.join(broken[:5])}" if broken else ""
        return record, f"step {step}: held-out loss {record['heldout_loss']:.4f}{more}"

    def _batches(self) -> Iterator[Batch]:
        train, where = self._config.train, self._sharding
        size = train.batch_size // train.micro_batches
        rows = own_rows(where, size, self._config.data.seq_len)
        batches = heldout_batches(
            self.windows, batch_size=size, max_windows=train.eval_windows, rows=rows
        )
        for batch in batches:
            processes.pulse.beat()
            yield global_batch(batch, rows, where, size)


def _measure(
    eval_step: Callable[..., dict[str, Any]],
    params: Any,
    batches: Iterator[Batch],
    *,
    keep_LMR: np.ndarray | None = None,
    pool_size: int = 0,
) -> HeldOut:
    """Runs `evaluate`, compiled on all processes before any of them runs it."""
    first = next(batches)
    processes.compile_together(eval_step, params, first, keep_LMR, pool_size=pool_size)
    batches = itertools.chain([first], batches)
    return evaluate(eval_step, params, batches, keep_LMR=keep_LMR, pool_size=pool_size)


def held_out_record(result: HeldOut, domains: tuple[str, ...], pool_size: int) -> dict[str, Any]:
    """Returns losses by log name: `heldout_loss`, `heldout_loss/law`, with a pool `… (pool=16)`.

    Every domain that has labels is included, even if its loss is not finite.
    """
    suffix = f" (pool={pool_size})" if pool_size else ""
    record = {f"heldout_loss{suffix}": result.loss}
    for name, loss, labels in zip(domains, result.loss_M, result.labels_M, strict=True):
        if labels:
            record[f"heldout_loss/{name}{suffix}"] = float(loss)
    return record

"""What each domain loses when only a part of the experts is kept.

Legend: L layers, M domains, R routed experts.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from emo_jax.batch import Batch
from emo_jax.config import Config
from emo_jax.evals.heldout import evaluate
from emo_jax.model.params import Params
from emo_jax.selection.budgets import keep_experts


@dataclass(frozen=True, kw_only=True)
class KeepTable:
    """Test losses, nats a token, no pool but in `pool_loss_M`.

    NaN where nothing was measured: of a domain without test tokens, and in `kept` of one without
    select tokens. Any other NaN is what the model gives.
    """

    domains: list[str]
    full_M: np.ndarray
    kept: dict[int, np.ndarray]  # experts kept, shared included -> loss (M,)
    pool_size: int  # 0: not measured
    pool_loss_M: np.ndarray | None
    tested_M: np.ndarray  # domains with test tokens
    unseen_M: np.ndarray  # without select tokens
    scores_LMR: np.ndarray | None = None  # that experts were chosen by

    @property
    def complete_M(self) -> np.ndarray:
        """Domains of which every loss was measured."""
        return self.tested_M & ~self.unseen_M if self.kept else self.tested_M

    def rows(self) -> list[tuple[str, list[float]]]:
        """(domain, [full, (pool,) loss at each keep …]); the last row is the mean.

        The mean is over the domains of which every loss was measured, so that its columns compare.
        """
        columns = [self.full_M]
        if self.pool_loss_M is not None:
            columns.append(self.pool_loss_M)
        columns += list(self.kept.values())
        table_MC = np.stack(columns, axis=1)
        complete = table_MC[self.complete_M]
        mean_C = complete.mean(axis=0) if len(complete) else np.full(len(columns), np.nan)
        rows = [(name, table_MC[i].tolist()) for i, name in enumerate(self.domains)]
        return [*rows, ("mean", mean_C.tolist())]

    def to_json(self) -> dict[str, Any]:
        """Losses by domain, and the mean rise at each keep; null for NaN, which JSON has not."""
        rises_M = {keep: loss_M - self.full_M for keep, loss_M in self.kept.items()}
        return {
            "domains": self.domains,
            "full": _numbers(self.full_M),
            "kept": {str(keep): _numbers(loss_M) for keep, loss_M in self.kept.items()},
            "pool_size": self.pool_size,
            "pool": None if self.pool_loss_M is None else _numbers(self.pool_loss_M),
            "mean_rise": {
                str(keep): _numbers([np.mean(rise_M[self.complete_M])])[0]
                if self.complete_M.any()
                else None
                for keep, rise_M in rises_M.items()
            },
        }


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def select_scores(
    eval_step: Callable[..., dict[str, Any]], params: Params, batches: Iterable[Batch]
) -> tuple[np.ndarray, np.ndarray]:
    """Summed router probabilities (L,M,R), and which domains (M,) have no tokens to choose by."""
    scores_LMR = evaluate(eval_step, params, batches).router_probs_LMR
    assert scores_LMR is not None
    return scores_LMR, scores_LMR.sum(axis=(0, 2)) == 0


def keep_table(
    config: Config,
    eval_step: Callable[..., dict[str, Any]],
    params: Params,
    *,
    domains: Sequence[str],
    select_batches: Sequence[Batch],
    test_batches: Sequence[Batch],
    keeps: Sequence[int],
    progress: Callable[[str], None] = lambda _: None,
) -> KeepTable:
    """Losses with all experts and with the best `keeps` of them for each domain.

    Experts are chosen on the select split by summed router probability (SPEC 7.2, method 4) and
    judged on the test split; each domain's tokens see that domain's experts only, as in a pruned
    model. A domain that is not in the select split has nothing to choose by: its losses are NaN.

    Args:
      eval_step: made for a config whose attention stays within the document: a pruned model serves
        one document at a time.
      progress: told what is being measured.
    """
    assert config.moe is not None
    params, select_batches, test_batches = jax.device_put(
        (params, list(select_batches), list(test_batches))
    )
    progress("router probabilities on the select split")
    scores_LMR, unseen_M = select_scores(eval_step, params, select_batches)
    progress("test loss with all experts")
    full = evaluate(eval_step, params, test_batches)
    full_M = full.loss_M
    pool_size, pool_loss_M = config.moe.pool.eval_size, None
    if pool_size:
        progress(f"test loss with pools of {pool_size}")
        pool_loss_M = evaluate(eval_step, params, test_batches, pool_size=pool_size).loss_M
    kept = {}
    for keep in keeps:
        progress(f"test loss with {keep} of {config.moe.num_experts} experts")
        keep_LMR = keep_experts(scores_LMR, config, keep)
        loss_M = evaluate(eval_step, params, test_batches, keep_LMR=keep_LMR).loss_M
        kept[keep] = np.where(unseen_M, np.nan, loss_M)
    return KeepTable(
        domains=list(domains),
        full_M=full_M,
        kept=kept,
        pool_size=pool_size,
        pool_loss_M=pool_loss_M,
        tested_M=full.labels_M > 0,
        unseen_M=unseen_M,
        scores_LMR=scores_LMR,
    )

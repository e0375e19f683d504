"""What each domain loses when only a part of the experts is kept.

Legend: L layers, M domains, R routed experts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from emo_jax.batch import Batch
from emo_jax.config import Config
from emo_jax.evals.heldout import evaluate
from emo_jax.model.transformer import Params
from emo_jax.modularity.select import keep_experts


@dataclass(frozen=True)
class KeepTable:
    """Test losses, nats a token, no pool but in `pool_loss_M`."""

    domains: list[str]
    full_M: np.ndarray
    kept: dict[int, np.ndarray]  # experts kept, shared included -> loss (M,)
    pool_size: int  # 0: not measured
    pool_loss_M: np.ndarray | None

    def rows(self) -> list[tuple[str, list[float]]]:
        """(domain, [full, (pool,) loss at each keep …]); the last row is the mean of domains."""
        columns = [self.full_M]
        if self.pool_loss_M is not None:
            columns.append(self.pool_loss_M)
        columns += list(self.kept.values())
        rows = [(name, [float(c[i]) for c in columns]) for i, name in enumerate(self.domains)]
        return [*rows, ("mean", [float(np.nanmean(c)) for c in columns])]

    def to_json(self) -> dict[str, Any]:
        """Losses by domain, and the mean rise at each keep."""
        return {
            "domains": self.domains,
            "full": self.full_M.tolist(),
            "kept": {str(k): v.tolist() for k, v in self.kept.items()},
            "pool_size": self.pool_size,
            "pool": None if self.pool_loss_M is None else self.pool_loss_M.tolist(),
            "mean_rise": {str(k): float(np.nanmean(v - self.full_M)) for k, v in self.kept.items()},
        }


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
    model.

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
    scores_LMR = evaluate(eval_step, params, select_batches).router_probs_LMR
    assert scores_LMR is not None
    progress("test loss with all experts")
    full_M = evaluate(eval_step, params, test_batches).loss_M
    pool_size, pool_loss_M = config.moe.pool.eval_size, None
    if pool_size:
        progress(f"test loss with pools of {pool_size}")
        pool_loss_M = evaluate(eval_step, params, test_batches, pool_size=pool_size).loss_M
    kept = {}
    for keep in keeps:
        progress(f"test loss with {keep} of {config.moe.num_experts} experts")
        keep_LMR = keep_experts(scores_LMR, config.moe, keep)
        kept[keep] = evaluate(eval_step, params, test_batches, keep_LMR=keep_LMR).loss_M
    return KeepTable(list(domains), full_M, kept, pool_size, pool_loss_M)

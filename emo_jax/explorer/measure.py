"""The losses on the page: with part of the experts, and without one of them.

Legend: B windows, L layers, M domains, R routed experts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from emo_jax.batch import Batch
from emo_jax.config import Config
from emo_jax.evals.heldout import HeldOut, evaluate, make_eval_step
from emo_jax.evals.keep import DEFAULT_METHOD, choose, losses_kept
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params
from emo_jax.selection.budgets import experts_there

SHARES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.0625)  # shares of experts, for the curve
MIN_SHARE = 0.01  # share of a domain's tokens that must pick an expert to measure without it


def keeps_of(config: Config) -> list[int]:
    """Returns the numbers of experts for the curve, starting with all, none below top-k."""
    moe = config.moe
    assert moe is not None
    counts = {int(moe.num_experts * share) for share in SHARES}
    return sorted((n for n in counts if n >= moe.fewest_experts), reverse=True)


def keep_curves(
    model: ModelFunctions,
    params: Params,
    domains: Sequence[str],
    select: Sequence[Batch],
    test: Sequence[Batch],
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Returns each domain's loss with fewer and fewer experts, and the order in which they go.

    None is used for a loss that has no tokens or is not finite (`not_finite` names its domains),
    and for the order in a domain without select windows.
    """
    config = model.config
    keeps = keeps_of(config)
    M = len(domains)
    params, select, test = jax.device_put((params, list(select), list(test)))
    progress("router probabilities on the select split")
    choice = choose(model, params, select, M)
    step = make_eval_step(config, model, M, router_probs=False)
    progress("test loss with all experts")
    full = evaluate(step, params, test)
    left = iter(keeps[1:])

    def judge(keep_LMR: np.ndarray) -> HeldOut:
        progress(f"test loss with {next(left)} of {keeps[0]} experts")
        return evaluate(step, params, test, keep_LMR=keep_LMR)

    kept = losses_kept(choice, keeps[1:], judge)
    assert choice.scores_LMR is not None
    measured_M = (full.labels_M > 0) & ~(choice.unseen_M if kept else False)
    losses = np.stack([full.loss_M, *(one.loss_M for one in kept.values())], axis=1)
    order_LMR = np.argsort(-choice.scores_LMR, axis=-1, kind="stable")
    rank_LMR = np.argsort(order_LMR, axis=-1)
    seen_M = ~choice.unseen_M
    return {
        "method": DEFAULT_METHOD,
        "keeps": keeps,
        "loss": [[round(float(x), 4) if np.isfinite(x) else None for x in row] for row in losses],
        "not_finite": [
            name
            for name, row, measured in zip(domains, losses, measured_M, strict=True)
            if measured and not np.isfinite(row).all()
        ],
        "rank": [
            [
                rank_R.tolist() if seen else None
                for rank_R, seen in zip(rank_MR, seen_M, strict=True)
            ]
            for rank_MR in rank_LMR
        ],
    }


def rises_without(
    model: ModelFunctions,
    params: Params,
    domains: Sequence[str],
    test: Sequence[Batch],
    picked_LMR: np.ndarray,
    *,
    most: int,
    progress: Callable[[str], None] = lambda _: None,
) -> list[list[dict[str, float] | None]]:
    """Measures how much domains' losses rise without an expert (nats/token), by layer and expert.

    The `most` picked experts of every domain and layer are measured, one per pass: a domain's
    tokens skip only that domain's expert, so one pass measures one expert for each domain.

    Args:
      picked_LMR: share of a domain's tokens that pick an expert.

    Returns:
      None for an expert that was not measured for any domain.
    """
    config, M = model.config, len(domains)
    L, R = config.model.stacked_layers, picked_LMR.shape[-1]
    step = make_eval_step(config, model, M, router_probs=False)
    params = jax.device_put(params)
    full_M = evaluate(step, params, test).loss_M
    there_LMR = np.repeat(experts_there(config)[:, None], M, axis=1)
    order_LMR = np.argsort(-picked_LMR, axis=-1, kind="stable")
    found: list[list[dict[str, float]]] = [[{} for _ in range(R)] for _ in range(L)]
    for layer in range(L):
        for n in range(min(most, R)):
            progress(f"without an expert: layer {layer + 1} of {L}, {n + 1} of {most}")
            out_M = order_LMR[layer, :, n]
            keep_LMR = there_LMR.copy()
            keep_LMR[layer, np.arange(M), out_M] = False
            rise_M = evaluate(step, params, test, keep_LMR=keep_LMR).loss_M - full_M
            for m, (expert, rise) in enumerate(zip(out_M.tolist(), rise_M.tolist(), strict=True)):
                if picked_LMR[layer, m, expert] >= MIN_SHARE and np.isfinite(rise):
                    found[layer][expert][domains[m]] = round(rise, 4)
    return [[card or None for card in of_layer] for of_layer in found]

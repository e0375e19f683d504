"""Losses with some of the experts: chosen for each domain on some windows, judged on others.

Each domain's tokens see only that domain's experts, as in a pruned model. During training, one pass
does both (`in_halves`): experts are chosen on every other held-out window and judged on the rest,
so that a lucky choice does not look like modularity. In a small split these windows are neighbours,
and a document may be in both kinds.

Legend: B windows, L layers, M domains, R routed experts.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from emo_jax.batch import Batch
from emo_jax.config import Config
from emo_jax.config.names import METHODS_WITHOUT_DATA, Method
from emo_jax.evals.heldout import HeldOut, evaluate, make_eval_step
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params
from emo_jax.selection.budgets import Budget, budget_of, keep_experts, routed_budgets
from emo_jax.selection.scores import choose_experts

# One pass over the windows, whatever the numbers of experts. `emo select`, which has whole
# documents of one domain, uses "layerwise".
DEFAULT_METHOD: Method = "global"
Keep = TypeVar("Keep", int, Budget, int | Budget)


@dataclasses.dataclass(frozen=True)
class ExpertChoice:
    """The experts that each domain keeps, for any number of experts.

    Attributes:
      kept: maps a number of experts in every layer, shared ones included, or a budget to (L,M,R)
        bool.
      unseen_M: bool, domains without a token to choose by; nothing was chosen for them.
      scores_LMR: the scores that decide, if they do not depend on the number; None: they do.
    """

    kept: Callable[[int | Budget], np.ndarray]
    unseen_M: np.ndarray
    scores_LMR: np.ndarray | None = None


def by_router(
    config: Config, router_probs_LMR: np.ndarray, *, allow_fewer: bool = False
) -> ExpertChoice:
    """Chooses by router probabilities summed over a domain's tokens (SPEC 7.2, method 4)."""

    def kept(keep: int | Budget) -> np.ndarray:
        return keep_experts(
            *(router_probs_LMR, config, keep), mass_LMR=router_probs_LMR, allow_fewer=allow_fewer
        )

    return ExpertChoice(kept, router_probs_LMR.sum(axis=(0, 2)) == 0, router_probs_LMR)


def choose(
    model: ModelFunctions,
    params: Params,
    batches: Iterable[Batch],
    num_domains: int,
    *,
    method: str = DEFAULT_METHOD,
    allow_fewer: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> ExpertChoice:
    """Chooses experts for every domain, by its tokens in some windows.

    Args:
      model: a model with attention within documents, since a pruned model serves one document at a
        time.
      params: its parameters, on the devices.
      batches: the windows, read once. All methods except "global" keep them on the devices, with
        their hidden states.
      num_domains: M.
      method: see `emo_jax.selection.scores.choose_experts`.
      allow_fewer: allow keeping fewer than top-k.
      progress: called with lines about the progress.
    """
    config = model.config

    def routed_mass(batches: Iterable[Batch]) -> np.ndarray:
        step = make_eval_step(config, model, num_domains)
        router_probs_LMR = evaluate(step, params, batches).router_probs_LMR
        assert router_probs_LMR is not None
        return router_probs_LMR

    if method == "global":
        return by_router(config, routed_mass(batches), allow_fewer=allow_fewer)
    held, seen_M = [], np.zeros(num_domains + 1, np.int64)
    for batch in batches:
        ids_N = np.asarray(batch.domain_ids).ravel() + 1
        seen_M += np.bincount(ids_N, minlength=num_domains + 1)
        held.append(batch)
    mass: list[np.ndarray] = []  # measured once, for the budgets that need it

    def kept(keep: int | Budget) -> np.ndarray:
        budget = budget_of(keep)
        if budget.needs_mass and not mass:
            mass.append(routed_mass(held))
        routed_LM = routed_budgets(
            config, budget, mass[0] if mass else None, allow_fewer=allow_fewer
        )
        return choose_experts(
            *(method, model, params, held, routed_LM),
            num_domains=num_domains,
            progress=lambda line: progress(f"keep {keep}, {line}"),
        ).kept_LMR

    return ExpertChoice(kept, (seen_M[1:] == 0) & (method not in METHODS_WITHOUT_DATA))


def losses_kept(
    choice: ExpertChoice, keeps: Sequence[Keep], judge: Callable[[np.ndarray], HeldOut]
) -> dict[Keep, HeldOut]:
    """What `judge` measures with the experts kept (L,M,R), by number kept; NaN where unseen."""
    found: dict[Keep, HeldOut] = {}
    for keep in dict.fromkeys(keeps):
        measured = judge(choice.kept(keep))
        ce_sum_M = np.where(choice.unseen_M, np.nan, measured.ce_sum_M)
        found[keep] = dataclasses.replace(measured, ce_sum_M=ce_sum_M)
    return found


# --- during training ------------------------------------------------------------------------------


def in_halves(batches: Iterable[Batch], num_domains: int) -> Iterator[Batch]:
    """Yields the batches with domain m renumbered as m + M in every second window."""
    first = 0
    for batch in batches:
        B = batch.domain_ids.shape[0]
        yield batch._replace(domain_ids=_halved(batch.domain_ids, first % 2, num_domains))
        first += B


@jax.jit
def _halved(ids_BS: jax.Array, first: int, num_domains: int) -> jax.Array:
    second_B1 = (first + jnp.arange(ids_BS.shape[0])[:, None]) % 2 == 1
    return jnp.where(second_B1 & (ids_BS >= 0), ids_BS + num_domains, ids_BS)


def keep_curve(
    config: Config,
    run: Callable[[np.ndarray | None], HeldOut],
    domains: Sequence[str],
    keeps: Sequence[int],
) -> dict[str, float]:
    """Losses and rises, nats per token, by name: `heldout_rise (keep=16)`, `heldout_rise/law …`.

    A rise is relative to the loss with all experts on the same windows. Means are over the domains
    that occur in windows of both kinds, equally weighted.

    Args:
      config: config of the model.
      run: `evaluate` on batches from `in_halves`, with a step for 2·M domains and router
        probabilities; called with the experts to keep (L,2M,R), or None.
      domains: names of the M domains.
      keeps: numbers of experts to keep, shared ones included.
    """
    M = len(domains)
    full = run(None)
    assert full.router_probs_LMR is not None
    choice = by_router(config, full.router_probs_LMR[:, :M])
    judged = full.of_domains(slice(M, None))
    both = np.flatnonzero((full.labels_M[:M] > 0) & (judged.labels_M > 0))

    def judge(keep_LMR: np.ndarray) -> HeldOut:
        return run(np.concatenate([keep_LMR, keep_LMR], axis=1)).of_domains(slice(M, None))

    record: dict[str, float] = {}
    for keep, kept in losses_kept(choice, keeps, judge).items():
        loss_M = kept.loss_M
        rise_M = loss_M - judged.loss_M
        if not len(both):
            continue
        record[f"heldout_loss (keep={keep})"] = float(loss_M[both].mean())
        record[f"heldout_rise (keep={keep})"] = float(rise_M[both].mean())
        for m in both.tolist():
            record[f"heldout_rise/{domains[m]} (keep={keep})"] = float(rise_M[m])
    return record

"""What a run's model would lose with a part of its experts, watched while it trains.

Experts are chosen on every other held-out window and judged on the others, so that a lucky choice
does not look like modularity; in a small split they are neighbours, and a document may be in both.
One pass gives both: a domain's tokens in the windows of the second kind count as another domain.
Attention is the run's own.

Legend: B windows, L layers, M domains, R routed experts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from emo_jax.batch import Batch
from emo_jax.config import Config
from emo_jax.evals.heldout import HeldOut
from emo_jax.selection.budgets import keep_experts


def in_halves(batches: Iterable[Batch], num_domains: int) -> Iterator[Batch]:
    """Batches in which domain m of every second window is m + M."""
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
    """Losses and rises, nats a token, by name: `heldout_rise (keep=16)`, `heldout_rise/law …`.

    The rise is over the loss with all experts on the same windows; means are over the domains that
    are in windows of both kinds, each of the same weight.

    Args:
      run: `evaluate` on batches of `in_halves` with a step for 2·M domains and router
        probabilities; is given the experts to keep (L,2M,R), or None.
    """
    M = len(domains)
    full = run(None)
    assert full.router_probs_LMR is not None
    chosen_M, judged_M = full.labels_M[:M] > 0, full.labels_M[M:] > 0
    record: dict[str, float] = {}
    for keep in keeps:
        keep_LMR = keep_experts(full.router_probs_LMR[:, :M], config, keep)
        kept = run(np.concatenate([keep_LMR, keep_LMR], axis=1))
        loss_M = kept.loss_M[M:]
        rise_M = loss_M - full.loss_M[M:]
        both = np.flatnonzero(chosen_M & judged_M)
        if not len(both):
            continue
        record[f"heldout_loss (keep={keep})"] = float(loss_M[both].mean())
        record[f"heldout_rise (keep={keep})"] = float(rise_M[both].mean())
        for m in both.tolist():
            record[f"heldout_rise/{domains[m]} (keep={keep})"] = float(rise_M[m])
    return record

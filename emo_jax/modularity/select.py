"""Which experts to keep for a domain, from what the router says of its tokens (SPEC 7.2).

Legend: L layers, M domains, R routed experts.
"""

import numpy as np

from emo_jax.config import MoeConfig
from emo_jax.errors import UsageError


def keep_experts(scores_LMR: np.ndarray, moe: MoeConfig, keep: int) -> np.ndarray:
    """(L,M,R) bool: the routed experts with the largest scores, by domain and layer.

    Method 4 of SPEC 7.2 when the scores are router probabilities summed over a domain's tokens in
    one pass of the whole model. Of equals the lower index is kept.

    Args:
      scores_LMR: larger is better.
      keep: experts to keep, the shared ones included (SPEC 7.1).

    Raises:
      UsageError: fewer than top-k, or more than there are.
    """
    if not moe.top_k <= keep <= moe.num_experts:
        raise UsageError(
            f"keep {keep} experts: must be {moe.top_k}..{moe.num_experts} "
            f"(moe.top_k..moe.num_experts, shared experts included)"
        )
    order_LMR = np.argsort(-np.asarray(scores_LMR), axis=-1, kind="stable")
    kept = np.zeros(order_LMR.shape, bool)
    np.put_along_axis(kept, order_LMR[..., : keep - moe.num_shared_experts], True, axis=-1)
    return kept

"""What a step sets in the router without gradients: the score bias, and learned label pools.

They are leaves of the parameters, so that whatever reads, saves or exports a model has them; the
optimizer never sees them (`freeze`), and they have no weight decay.

Legend: L layers, E experts, R routed experts, M labels, J bins.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emo_jax.config import Config, routed_by_layer
from emo_jax.model.params import Params
from emo_jax.moe.labels import next_favour
from emo_jax.moe.router import RouterStats
from emo_jax.moe.score_bias import quantile_bias, sign_bias

# Sums over the step that only the next router state is made from: no metrics of a run.
SUMS = ("margins_LRJ", "label_probs_LMR")


def sums_of(config: Config, stats: RouterStats) -> dict[str, Any]:
    """What a micro-batch contributes, besides the expert counts, which are metrics."""
    moe = config.moe
    assert moe is not None
    sums = {}
    if stats.margins_RJ is not None:
        sums["margins_LRJ"] = stats.margins_RJ
    if moe.pool.kind == "label_learned":
        sums["label_probs_LMR"] = stats.domain_probs_MR
    return sums


def next_router_state(
    config: Config, params: Params, metrics: dict[str, Any], hold: jax.Array | bool
) -> Params:
    """The parameters with the bias and the table that the next step uses; others are unchanged.

    Args:
      metrics: of the step: `expert_counts` (L,E), and `SUMS`.
      hold: true where the step is skipped, and changes nothing.
    """
    moe, frozen = config.moe, set(config.optimizer.frozen)
    if moe is None or "router" in frozen:
        return params
    new: dict[str, jax.Array] = {}
    router = params["layers"]["mlp"]["router"]
    R, E, K = moe.num_routed_experts, moe.num_experts, moe.num_routed_picks
    if moe.score_bias != "none":
        bias_LR = router["bias"][:, :R]
        if moe.score_bias == "sign":
            there_L = np.array(routed_by_layer(config))
            there_LR = jnp.asarray(np.arange(R) < there_L[:, None])
            by_sign: Any = jax.vmap(partial(sign_bias, rate=moe.bias_rate))
            next_LR = by_sign(bias_LR, metrics["expert_counts"][:, :R], there_LR)
        else:
            by_quantile: Any = jax.vmap(partial(quantile_bias, num_picks=K))
            next_LR = by_quantile(bias_LR, metrics["margins_LRJ"])
        if "old_experts" in frozen:
            new_R = jnp.arange(R) >= R - moe.pool.forced_experts
            next_LR = jnp.where(new_R, next_LR, bias_LR)
        new["bias"] = jnp.pad(next_LR, ((0, 0), (0, E - R)))
    if moe.pool.kind == "label_learned":
        new["favour"] = next_favour(
            router["favour"], metrics["label_probs_LMR"], moe.pool.label_rate
        )
    if not new:
        return params
    held = {name: jnp.where(hold, router[name], value) for name, value in new.items()}
    layers = params["layers"]
    mlp = {**layers["mlp"], "router": {**router, **held}}
    return {**params, "layers": {**layers, "mlp": mlp}}

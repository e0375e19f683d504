"""How many experts each layer keeps, when all layers together keep a given number.

From the least number in every layer, one expert after the other goes to the layer l with the
largest priority, of those that have more experts; ties go to the lower layer. With n experts kept
in it so far, and m_l(n) the share of the layer's routed mass that its n best experts hold:

    increasing   w_l / (2n + 1),  w_l = ½ + l/(L−1)     half the mean at first, 1½ of it at last
    decreasing   w_l / (2n + 1),  w_l = 3/2 − l/(L−1)
    mass         −m_l(n)                                makes the smallest m_l as large as it can be
    greedy       m_l(n+1) − m_l(n)                      makes the sum of all m_l so

The first two are Webster's method of apportionment. An expert's routed mass is its router
probability in the whole model, summed over a domain's tokens.

Legend: L layers, M domains, R routed experts.
"""

from collections.abc import Callable, Sequence

import numpy as np

from emo_jax.config.names import KeepSchedule

NEED_MASS: tuple[KeepSchedule, ...] = ("mass", "greedy")


def spread(
    schedule: KeepSchedule,
    total: int,
    least_L: Sequence[int],
    most_L: Sequence[int],
    mass_LR: np.ndarray | None = None,
) -> list[int]:
    """Routed experts to keep in each layer, `total` in all.

    Args:
      schedule: one of those above.
      total: from the sum of `least_L` to that of `most_L`.
      least_L, most_L: bounds of each layer.
      mass_LR: routed mass, 0 for experts that a layer lacks; only for those in `NEED_MASS`.
    """
    kept_L = list(least_L)
    priority = _priority(schedule, len(kept_L), mass_LR)
    for _ in range(total - sum(kept_L)):
        open_L = [layer for layer, n in enumerate(kept_L) if n < most_L[layer]]
        kept_L[max(open_L, key=lambda layer: priority(layer, kept_L[layer]))] += 1
    assert sum(kept_L) == total, (total, least_L, most_L)
    return kept_L


def _priority(
    schedule: KeepSchedule, L: int, mass_LR: np.ndarray | None
) -> Callable[[int, int], float]:
    if schedule in NEED_MASS:
        assert mass_LR is not None
        mass_LR = np.asarray(mass_LR, np.float64)
        total_L1 = np.maximum(mass_LR.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        share_LR = -np.sort(-mass_LR / total_L1, axis=1)
        if schedule == "greedy":
            return lambda layer, n: float(share_LR[layer, n])
        held_LR = np.cumsum(share_LR, axis=1)
        return lambda layer, n: -float(held_LR[layer, n - 1]) if n else 0.0
    place_L = np.linspace(0, 1, L) if L > 1 else np.full(1, 0.5)
    weight_L = {
        "uniform": np.ones(L),
        "increasing": 0.5 + place_L,
        "decreasing": 1.5 - place_L,
    }[schedule]
    return lambda layer, n: float(weight_L[layer] / (2 * n + 1))

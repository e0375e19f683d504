"""Which hidden neurons of a dense feed-forward go to which expert.

Every method divides a layer's neurons into groups of one size, each neuron in exactly one, as
LLaMA-MoE's neuron-independent and residual constructions do (arXiv 2406.16554, section 3). Where
that code solves a min-cost flow for clusters of equal size, the closest pairs are matched first
here.

Legend: F neurons, N groups (those of the shared experts last), n neurons of a group, R routed
groups, s shared ones, P features, T tokens.
"""

import numpy as np

ROUNDS = 30  # of k-means


def random_groups(F: int, N: int, seed: int) -> np.ndarray:
    """(N,n) neurons of each group, drawn by the seed; here and below each row ascends."""
    return np.sort(np.random.default_rng(seed).permutation(F).reshape(N, -1), axis=1)


def assign(scores_FN: np.ndarray, size: int) -> np.ndarray:
    """The group of each neuron, (F,): pairs by falling score, as long as both are free.

    Args:
      scores_FN: larger is better; ties go to the first neuron, then to the first group.
      size: neurons of a group; F is at most N·size.
    """
    F, N = scores_FN.shape
    groups_F, free = [-1] * F, [size] * N
    left = F
    for pair in np.argsort(-scores_FN, axis=None, kind="stable").tolist():
        neuron, group = divmod(pair, N)
        if groups_F[neuron] < 0 and free[group]:
            groups_F[neuron] = group
            free[group] -= 1
            left -= 1
            if not left:
                break
    return np.asarray(groups_F)


def clustered(rows_FP: np.ndarray, N: int, seed: int) -> np.ndarray:
    """(N,n) neurons of clusters of one size, by cosine: k-means in which a cluster may be full.

    The first centres are rows drawn by k-means++; it ends when no neuron moves, or after `ROUNDS`.

    Args:
      rows_FP: what is known of each neuron; only directions count.
      N: number of clusters, a divisor of F.
      seed: seed for the first centres.
    """
    F, rows_FP = len(rows_FP), _unit(rows_FP)
    rng = np.random.default_rng(seed)
    chosen = [int(rng.integers(F))]
    away_F = np.full(F, np.inf)
    while len(chosen) < N:
        away_F = np.minimum(away_F, np.maximum(1.0 - rows_FP @ rows_FP[chosen[-1]], 0.0))
        away_F[chosen] = 0.0
        total = away_F.sum()
        free_F = ~np.isin(np.arange(F), chosen)
        chances_F = away_F / total if total > 0 else free_F / free_F.sum()
        chosen.append(int(rng.choice(F, p=chances_F)))
    centres_NP, groups_F = rows_FP[chosen], np.full(F, -1)
    for _ in range(ROUNDS):
        new_F = assign(rows_FP @ centres_NP.T, F // N)
        if np.array_equal(new_F, groups_F):
            break
        groups_F = new_F
        centres_NP = _unit(np.stack([rows_FP[groups_F == n].sum(axis=0) for n in range(N)]))
    return members(groups_F, N)


def members(groups_F: np.ndarray, N: int) -> np.ndarray:
    """(N,n) neurons of each group."""
    return np.stack([np.flatnonzero(groups_F == n) for n in range(N)])


def coactive(active_FT: np.ndarray, R: int, s: int, seed: int) -> np.ndarray:
    """(R+s,n): neurons that are active for the same tokens go together.

    The cosine of two rows of zeros and ones is the number of tokens for which both are active over
    the geometric mean of their own numbers: the graph of MoEfication (arXiv 2110.01786), clustered
    rather than cut. Shared experts get the neurons that are active most often (CMoE, arXiv
    2502.04416).

    Args:
      active_FT: whether a neuron is among the most active ones of a token.
    """
    F = len(active_FT)
    n = F // (R + s)
    order_F = np.argsort(-active_FT.sum(axis=1), kind="stable")
    shared, rest = np.sort(order_F[: s * n]), np.sort(order_F[s * n :])
    routed = rest[clustered(active_FT[rest].astype(np.float32), R, seed)]
    return np.concatenate([routed, shared.reshape(s, n)])


def important(importance_RF: np.ndarray, s: int) -> np.ndarray:
    """(R+s,n): neurons go to the expert whose texts need them most; those that all need are shared.

    LLaMA-MoE's construction with a residual block: each routed expert picks the n neurons with
    the largest importance; those picked by most experts are set aside for the shared experts, and
    the experts pick again, until these are full. What is left is assigned by falling importance.

    Args:
      importance_RF: importance of each neuron for the texts of each routed expert, 0 or more.
      s: number of shared experts.
    """
    R, F = importance_RF.shape
    n = F // (R + s)
    left_F = np.ones(F, bool)
    shared: list[int] = []
    while len(shared) < s * n:
        rest = np.flatnonzero(left_F)
        picks_Rn = np.argsort(-importance_RF[:, rest], axis=1, kind="stable")[:, :n]
        times_F = np.bincount(rest[picks_Rn].reshape(-1), minlength=F)
        most = np.flatnonzero(times_F == times_F.max())[: s * n - len(shared)]
        shared += most.tolist()
        left_F[most] = False
    rest = np.flatnonzero(left_F)
    routed = rest[members(assign(importance_RF[:, rest].T, n), R)]
    return np.concatenate([routed, np.sort(np.asarray(shared, int)).reshape(s, n)])


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)

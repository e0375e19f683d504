"""The router's variants written out a second time: NumPy, float64, a loop over tokens.

`check` holds `emo_jax.moe.router` to it: the weight of every expert for every token, the losses,
and the derivatives of an objective with all of them, as finite differences of the slow one.

Legend: B windows, S tokens, D width, R routed experts, K picks.
"""

import jax
import jax.numpy as jnp
import numpy as np

from emo_jax.moe.router import RouterTokens, choose, statistics
from emo_jax.moe.switch import within_capacity

STEP = 1e-6  # of a finite difference
BALANCE, Z = 0.3, 0.2  # weights of the losses in the objective


def scores_of(logits_R, gate):
    if gate == "sigmoid":
        return 1 / (1 + np.exp(-logits_R))
    e_R = np.exp(logits_R - logits_R.max())
    return e_R / e_R.sum()


def slow(x_BSD, kernel_DE, moe, ids_BS, *, bias_R=None, label_BSR=None, rows=0):
    """Weights (B,S,R), 0 for experts a token does not use, and (load balance, z) losses.

    Args:
      rows: picks that an expert takes of a window; 0: all.
    """
    R, K = moe.num_routed_experts, moe.num_routed_picks
    B, S = ids_BS.shape
    weights_BSK, picks_BSK = np.zeros((B, S, K)), np.full((B, S, K), R)
    counts_R, probs_R, z, documents = np.zeros(R), np.zeros(R), 0.0, {}
    valid = (ids_BS >= 0).sum()
    for b, s in np.argwhere(ids_BS >= 0):
        logits_R = x_BSD[b, s] @ kernel_DE[:, :R]
        logits_R[1:] += moe.expert_bias
        all_R = logits_R
        if label_BSR is not None:
            logits_R = logits_R + label_BSR[b, s]
        with np.errstate(over="ignore"):
            p_R = scores_of(logits_R, moe.gate)
        choice_R = p_R if bias_R is None else np.where(logits_R > -np.inf, p_R + bias_R, -np.inf)
        picks_K = np.argsort(-choice_R, kind="stable")[:K]
        picks_BSK[b, s] = picks_K
        weights_BSK[b, s] = p_R[picks_K] / (p_R[picks_K].sum() if moe.normalize_picks else 1.0)
        counts_R[picks_K] += 1
        seen_R = logits_R if moe.aux_scope == "pool" else all_R
        with np.errstate(over="ignore"):
            q_R = scores_of(seen_R, moe.gate)
        probs_R += q_R / q_R.sum() / valid
        z += np.log(np.exp(seen_R).sum()) ** 2
        document = documents.setdefault((b, ids_BS[b, s]), [np.zeros(R), np.zeros(R), 0, 0])
        document[0][picks_K] += 1
        document[1] += p_R / p_R.sum()
        document[2] += 1
        document[3] = (logits_R > -np.inf).sum()
    combine_BSR = np.zeros((B, S, R))
    for b in range(B):
        taken_R = np.zeros(R)
        for k in range(K):
            for s in range(S):
                if (e := picks_BSK[b, s, k]) < R:
                    if not rows or taken_R[e] < rows:
                        combine_BSR[b, s, e] = weights_BSK[b, s, k]
                    taken_R[e] += 1
    balance = R / K * (counts_R / valid * probs_R).sum()
    if moe.balance_scope == "document":
        of_each = [d / K * (N_R / n * P_R / n).sum() for N_R, P_R, n, d in documents.values()]
        balance = np.mean(of_each)
    return combine_BSR, (balance, z / valid)


def fast(x_BSD, kernel_DE, moe, ids_BS, *, rows=0, **options):
    """The same by `emo_jax.moe.router`."""
    routing, probs = choose(x_BSD, kernel_DE, moe, ids_BS, **options)
    if rows:
        routing = within_capacity(routing, moe.num_routed_experts, rows)
    stats = statistics(routing, probs, moe, RouterTokens(ids_BS, (ids_BS >= 0).sum()))
    one_hot = jax.nn.one_hot(routing.indices_BSK, moe.num_routed_experts)
    combine_BSR = jnp.sum(one_hot * routing.weights_BSK[..., None], axis=2)
    return combine_BSR, (stats.load_balance_loss, stats.router_z_loss)


def two_documents(B, S, padded):
    """(B,S): two documents a window; the last `padded` tokens are none."""
    ids_BS = np.where(np.arange(S) < S // 2, 0, 1) * np.ones((B, 1), int)
    ids_BS[-1, S - padded :] = -1
    return ids_BS


def check(moe, *, B=2, S=10, D=6, padded=3, **options):
    """Compares the two for random tokens; `options` are those of `slow`. Returns the weights."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(B, S, D)), rng.normal(size=(D, moe.num_experts))
    ids_BS = two_documents(B, S, padded)
    weight = rng.normal(size=(B, S, moe.num_routed_experts))

    def objective(of, xp, x, kernel):
        combine, (balance, z) = of(x, kernel, moe, ids_BS, **options)
        return xp.sum(combine * weight) + BALANCE * balance + Z * z, (combine, balance, z)

    _, wanted = objective(slow, np, x, kernel)
    with jax.enable_x64(True):
        grads, found = jax.jit(
            jax.grad(lambda *a: objective(fast, jnp, *a), argnums=(0, 1), has_aux=True)
        )(jnp.asarray(x), jnp.asarray(kernel))
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(found[0]) > 0, wanted[0] > 0)
    for _ in range(4):
        dx, dkernel = rng.normal(size=x.shape), rng.normal(size=kernel.shape)
        ahead, behind = (
            objective(slow, np, x + sign * STEP * dx, kernel + sign * STEP * dkernel)[0]
            for sign in (1, -1)
        )
        ours = np.vdot(grads[0], dx) + np.vdot(grads[1], dkernel)
        np.testing.assert_allclose(ours, (ahead - behind) / (2 * STEP), rtol=1e-4)
    return wanted[0]

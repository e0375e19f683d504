"""The router's variants written out a second time: NumPy, float64, a loop over tokens.

`check` holds `emo_jax.moe.router` to it: the weight of every expert for every token, the losses, and
the derivatives of an objective with all of them, as finite differences of the slow one.

Legend: B windows, S tokens, D width, R routed experts, K picks.
"""

import jax
import jax.numpy as jnp
import numpy as np

from emo_jax.moe.router import RouterTokens, choose, statistics

STEP = 1e-6  # of a finite difference
BALANCE, Z = 0.3, 0.2  # weights of the losses in the objective


def softmax(z_R):
    e_R = np.exp(z_R - z_R.max())
    return e_R / e_R.sum()


def slow(x_BSD, kernel_DE, moe, ids_BS):
    """Weights (B,S,R), 0 for experts a token does not use, and (load balance, z) losses."""
    R, K = moe.num_routed_experts, moe.num_routed_picks
    B, S = ids_BS.shape
    combine_BSR, counts_R, probs_R, z = np.zeros((B, S, R)), np.zeros(R), np.zeros(R), 0.0
    valid = (ids_BS >= 0).sum()
    for b in range(B):
        for s in range(S):
            if ids_BS[b, s] < 0:
                continue
            logits_R = x_BSD[b, s] @ kernel_DE[:, :R]
            p_R = softmax(logits_R)
            picks_K = np.argsort(-p_R, kind="stable")[:K]
            total = p_R[picks_K].sum() if moe.normalize_picks else 1.0
            combine_BSR[b, s, picks_K] = p_R[picks_K] / total
            counts_R[picks_K] += 1
            probs_R += p_R / valid
            z += np.log(np.exp(logits_R).sum()) ** 2
    return combine_BSR, (R / K * (counts_R / valid * probs_R).sum(), z / valid)


def fast(x_BSD, kernel_DE, moe, ids_BS):
    """The same by `emo_jax.moe.router`."""
    routing, probs = choose(x_BSD, kernel_DE, moe, ids_BS)
    stats = statistics(routing, probs, moe, RouterTokens(ids_BS, (ids_BS >= 0).sum()))
    one_hot = jax.nn.one_hot(routing.indices_BSK, moe.num_routed_experts)
    combine_BSR = jnp.sum(one_hot * routing.weights_BSK[..., None], axis=2)
    return combine_BSR, (stats.load_balance_loss, stats.router_z_loss)


def check(moe, *, B=2, S=10, D=6, padded=3, slow=slow, fast=fast, **options):
    """Compares the two for random tokens of which the last `padded` are none."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(B, S, D)), rng.normal(size=(D, moe.num_experts))
    ids_BS = np.where(np.arange(S) < S // 2, 0, 1) * np.ones((B, 1), int)
    ids_BS[-1, S - padded :] = -1
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

"""The router against the PyTorch reference's numbers, gradients too (golden/router.npz)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.config import MoeConfig, PoolConfig
from emo_jax.moe.pools import Pools
from emo_jax.moe.router import RouterTokens, choose, statistics

GOLDEN = Path(__file__).parents[1] / "golden" / "router.npz"
LIMIT = 1e-5


def _cases() -> dict[str, dict[str, np.ndarray]]:
    cases: dict[str, dict[str, np.ndarray]] = {}
    with np.load(GOLDEN) as arrays:
        for key in arrays.files:
            case, field = key.rsplit("/", 1)
            cases.setdefault(case, {})[field] = arrays[key]
    return cases


CASES = _cases()


def relative_error(ours, ref) -> float:
    ours, ref = np.asarray(ours, np.float64), np.asarray(ref, np.float64)
    return float(np.linalg.norm(ours - ref) / np.linalg.norm(ref))


def test_all_cases_are_here():
    assert set(CASES) == {
        "fixed7_shared1",
        "fixed7_shared0",
        "eval8_shared1",
        "all_shared1",
        "mixed_shared1",
        "mixed_shared2",
        "mixed_forced2",
    }


@pytest.mark.parametrize("name", sorted(CASES))
def test_router_equals_the_reference(name):
    case = CASES[name]
    E, s = int(case["num_experts"]), int(case["num_shared_experts"])
    moe = MoeConfig(
        num_experts=E,
        top_k=int(case["top_k"]),
        expert_dim=1,
        num_shared_experts=s,
        pool=PoolConfig(kind="fixed", size=E, forced_experts=int(case["num_forced_experts"])),
    )
    train = bool(case["train"])

    def objective(x_BSD, router_weight_ED):
        ids_BS = jnp.asarray(case["segment_ids"])
        sizes_BG = jnp.asarray(case["pool_size"], jnp.int32)
        pools = Pools(sizes_BG, forced_experts=moe.pool.forced_experts)
        routing, probs = choose(x_BSD, router_weight_ED.T, moe, ids_BS, pools=pools)
        tokens = RouterTokens(ids_BS, loss_tokens=ids_BS.size)
        stats = statistics(routing, probs, moe, tokens)
        one_hot = jax.nn.one_hot(routing.indices_BSK, E - s)
        combine = jnp.sum(one_hot * routing.weights_BSK[..., None], axis=2)
        combine = jnp.concatenate([combine, jnp.ones((*combine.shape[:2], s))], axis=-1)
        aux = case["lb_weight"] * stats.load_balance_loss + case["z_weight"] * stats.router_z_loss
        total = jnp.sum(combine * case["cotangent"]) + (aux if train else 0.0)
        return total, (combine, stats, aux)

    (grad_x, grad_w), (combine, stats, aux) = jax.jit(
        jax.grad(objective, argnums=(0, 1), has_aux=True)
    )(case["x"], case["router_weight"])

    assert relative_error(combine, case["combine"]) < LIMIT
    np.testing.assert_array_equal(np.asarray(stats.counts_E), case["counts"])
    assert relative_error(grad_x, case["grad_x"]) < LIMIT
    assert relative_error(grad_w, case["grad_router_weight"]) < LIMIT
    if s:  # the shared rows are dead
        assert not np.asarray(grad_w)[-s:].any()
    if train:
        assert relative_error(stats.load_balance_loss, case["lb_loss"]) < LIMIT
        assert relative_error(stats.router_z_loss, case["z_loss"]) < LIMIT
        assert relative_error(aux, case["aux_loss"]) < LIMIT


def test_a_pool_counts_the_experts_that_its_layer_has():
    moe = MoeConfig(num_experts=9, top_k=3, expert_dim=1, experts_per_layer=(9, 6))
    there_R = jnp.arange(8) < 5
    x_BSD, kernel_DE = jax.random.normal(jax.random.key(0), (1, 6, 4)), jnp.ones((4, 9))
    ids_BS = jnp.zeros((1, 6), jnp.int32)
    for pools, size in (
        (None, 5),
        (Pools(jnp.full((1, 1), 7)), 5),
        (Pools(jnp.full((1, 1), 3)), 3),
    ):
        routing, probs = choose(x_BSD, kernel_DE, moe, ids_BS, pools=pools, allowed_BSR=there_R)
        stats = statistics(routing, probs, moe, RouterTokens(ids_BS), allowed_BSR=there_R)
        assert stats.pool_size_sum == 6 * size

"""Ghost experts against the reference's open branch `emo_extend`, gradients too."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_batch, tiny_config

from emo_jax.config import MeshConfig, MoeConfig, PoolConfig
from emo_jax.errors import ConfigError
from emo_jax.model.functions import ModelFunctions
from emo_jax.moe.experts import ExpertWeights, experts
from emo_jax.moe.ghosts import add_ghosts
from emo_jax.moe.pools import Pools
from emo_jax.moe.router import RouterTokens, choose, statistics

# Of twolevel_batchlb_reducedp_sharedexp_randpool_ghost_router.py with random weights and documents
# that end at `ends`; outputs of experts and ghosts by a product for each, written out.
GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden" / "ghosts.npz"))
(B, S, D), E, K, SIZE, F = GOLDEN["x"].shape, len(GOLDEN["w"]), 2, 4, 5
IDS_BS = np.stack([np.searchsorted(ends, np.arange(S), "right") for ends in GOLDEN["ends"]])
WEIGHTS = ExpertWeights(*(jnp.asarray(GOLDEN[name]) for name in ("gate", "up", "down")))


def _moe(ghosts="usage", **fields):
    pool = PoolConfig(kind="fixed", size=SIZE)
    return MoeConfig(
        num_experts=E, top_k=K + 1, expert_dim=F, **(dict(pool=pool, ghosts=ghosts) | fields)
    )


def _layer(x_BSD, w_ED, weights, moe, ids_BS=IDS_BS):
    """Output of the mixture, its losses, and the ghosts."""
    pools = Pools(jnp.full(ids_BS.shape, SIZE))
    routing, probs = choose(x_BSD, w_ED.T, moe, ids_BS, pools=pools)
    stats = statistics(routing, probs, moe, RouterTokens(ids_BS, (ids_BS >= 0).sum()))
    routing, ghosts = add_ghosts(routing, probs, moe, ids_BS)
    out_BSD, _ = experts(x_BSD, routing, weights, moe, ghosts=ghosts)
    aux = 0.3 * stats.load_balance_loss + 0.2 * stats.router_z_loss
    return out_BSD, aux, ghosts


@pytest.mark.parametrize("backend", ["blocked", "ragged_dot"])
@pytest.mark.parametrize("mode", ["usage", "uniform", "detached"])
def test_equal_to_the_reference(mode, backend):
    detach = mode == "detached"
    moe = _moe("usage" if detach else mode, ghost_detach=detach, backend=backend)

    def objective(x_BSD, w_ED, weights):
        out_BSD, aux, ghosts = _layer(x_BSD, w_ED, weights, moe)
        total = (out_BSD * GOLDEN["weight"]).sum() + aux
        return total, {"y": out_BSD, "aux": aux, "gates": ghosts.gates_BS}

    run = jax.jit(jax.grad(objective, argnums=(0, 1, 2), has_aux=True))
    (dx, dw, dweights), found = run(GOLDEN["x"], GOLDEN["w"], WEIGHTS)
    found |= dict(zip(("x", "w", "gate", "up", "down"), (dx, dw, *dweights), strict=True))
    for name, ours in found.items():
        theirs = GOLDEN[f"{mode}/{name}"]
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5, err_msg=name)


def test_random_ones_are_means_of_some_of_the_pool():
    pools = Pools(jnp.full(IDS_BS.shape, SIZE))

    def coefficients(moe, seeds_B=None):
        routing, probs = choose(GOLDEN["x"], GOLDEN["w"].T, moe, IDS_BS, pools=pools)
        return add_ghosts(routing, probs, moe, IDS_BS, seeds_B)[1].coefficients_BSR

    draw = jax.jit(functools.partial(coefficients, _moe("random", ghost_sample=2)))
    drawn = []
    for seed in range(40):
        seeds_B = jnp.arange(B, dtype=jnp.uint32) + 2 * seed
        coefficients_BSR = np.asarray(draw(seeds_B))
        for b in range(B):
            for document in range(3):
                mine = coefficients_BSR[b, IDS_BS[b] == document]
                assert (mine == mine[0]).all()
                assert sorted(mine[0])[-3:] == pytest.approx([0, 0.5, 0.5])
        drawn.append(coefficients_BSR[0, 0] > 0)
    uniform = np.asarray(coefficients(_moe("uniform")))[0, 0] > 0
    shares = np.mean(drawn, 0)
    assert (shares[~uniform] == 0).all()
    # Half of the pool each time: 40 draws of a coin stay within 0.2 to 0.8 but for one in 10⁵.
    assert ((shares[uniform] > 0.2) & (shares[uniform] < 0.8)).all()


def test_padding_has_none_and_many_documents_are_as_few():
    """More documents than the loop takes at a time, with padding, against one after the other."""
    ids_BS = np.repeat(np.arange(S // 2), 2)[None] * np.ones((B, 1), int)
    ids_BS[1, -3:] = -1
    x, w = jnp.asarray(GOLDEN["x"]), jnp.asarray(GOLDEN["w"])
    out_BSD, _, ghosts = _layer(x, w, WEIGHTS, _moe(), ids_BS)
    assert (np.asarray(ghosts.gates_BS)[ids_BS < 0] == 0).all()
    alone = np.zeros(x.shape)
    for b in range(B):
        for document in range(S // 2):
            mine = ids_BS == np.where(np.arange(B)[:, None] == b, document, -2)
            found = _layer(x, w, WEIGHTS, _moe(), np.where(mine, 0, -1))[0]
            alone[mine] = np.asarray(found)[mine]
    there = ids_BS >= 0
    np.testing.assert_allclose(np.asarray(out_BSD)[there], alone[there], rtol=1e-4, atol=1e-5)


def test_they_act_in_training_alone():
    config = tiny_config()
    ghosts = dataclasses.replace(config, moe=dataclasses.replace(config.moe, ghosts="usage"))
    batch, params = tiny_batch(config), ModelFunctions(config).init(0)
    B, S = batch.tokens.shape
    pools = Pools(jnp.full((config.model.num_layers, B, S), 4))
    plain, theirs, trained = (
        ModelFunctions(c).hidden(params, batch, pools=pools, training=training)[0]
        for c, training in ((config, True), (ghosts, False), (ghosts, True))
    )
    np.testing.assert_array_equal(plain, theirs)
    assert np.abs(trained - plain).max() > 1e-3


@pytest.mark.parametrize(
    "fields",
    [
        dict(gate="sigmoid"),
        dict(normalize_picks=True),
        dict(score_bias="sign", bias_rate=0.1),
        dict(extension_experts=2),
        dict(pool=PoolConfig()),
        dict(pool=PoolConfig(kind="fixed", size=SIZE, penalty=1.0)),
        dict(pool=PoolConfig(kind="fixed", size=SIZE, renormalize=False)),
    ],
)
def test_where_they_have_no_meaning(fields):
    with pytest.raises(ConfigError, match=r"moe\.ghosts = 'usage': must be 'none' except"):
        _moe(**fields)


def test_other_settings():
    for ghosts, fields, name in (
        ("random", {}, "ghost_sample = 0"),
        ("random", dict(ghost_sample=99), "ghost_sample = 99"),
        ("usage", dict(ghost_sample=2), "ghost_sample = 2"),
        ("uniform", dict(ghost_detach=True), "ghost_detach = True"),
    ):
        with pytest.raises(ConfigError, match=rf"moe\.{name}"):
            _moe(ghosts, **fields)
    config = tiny_config()
    with pytest.raises(ConfigError, match=r"mesh\.expert = 2: must be 1 where moe\.ghosts"):
        dataclasses.replace(
            config,
            moe=dataclasses.replace(config.moe, ghosts="usage"),
            mesh=MeshConfig(expert=2),
        )

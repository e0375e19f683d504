"""Dense models made into mixtures of experts: the same function, and which neurons go where.

Legend: B windows, S tokens, L layers, E experts, F neurons, n neurons of an expert.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import REPO, emo_here, train_argv
from tiny import dense_config, tiny_batch

from emo_jax.config import MoeConfig
from emo_jax.files.trees import flatten, unflatten
from emo_jax.hf import export_model
from emo_jax.hf.sources import TreeSource
from emo_jax.model.functions import ModelFunctions
from emo_jax.modules import neurons
from emo_jax.modules.neuron_data import ACTIVE, NeuronData
from emo_jax.modules.upcycle import Upcycled
from emo_jax.run.metrics_file import read_metrics
from emo_jax.saved.load import load_model
from emo_jax.selection.examples import examples_of

DENSE = dense_config()  # 24 neurons in each of two layers
ROUTER = "layers/mlp/router/kernel"


@pytest.fixture(scope="module")
def params():
    return jax.device_get(jax.jit(ModelFunctions(DENSE).init, static_argnums=0)(3))


def _config(experts, top_k, shared=0, copies=False):
    F = DENSE.model.mlp_dim
    moe = MoeConfig(
        num_experts=experts,
        top_k=top_k,
        expert_dim=F if copies else F // experts,
        num_shared_experts=shared,
        normalize_picks=True,
    )
    return dataclasses.replace(DENSE, model=dataclasses.replace(DENSE.model, mlp_dim=0), moe=moe)


def _whole(source):
    return {
        path: source.read(path, tuple(slice(0, n) for n in shape))
        for path, shape in source.shapes.items()
    }


def _made(params, config, groups_LEn, **options):
    return _whole(Upcycled(TreeSource(flatten(params)), config, groups_LEn, **options))


def _assert_same_function(params, config, leaves, tolerance):
    batch = tiny_batch(DENSE)
    wanted = np.asarray(ModelFunctions(DENSE).logits(params, batch))
    found = np.asarray(ModelFunctions(config).logits(unflatten(leaves), batch))
    there = np.isfinite(wanted)  # padded ids are not
    there &= (batch.segment_ids >= 0)[..., None]  # routed experts compute nothing for padding
    assert np.abs(wanted[there]).max() > 1
    np.testing.assert_allclose(found[there], wanted[there], atol=tolerance)


def _random(experts, layers=2):
    return [neurons.random_groups(DENSE.model.mlp_dim, experts, layer) for layer in range(layers)]


@pytest.mark.parametrize(("experts", "shared"), [(4, 0), (8, 0), (6, 2)])
def test_a_split_with_all_experts_chosen_is_the_dense_model(params, experts, shared):
    config = _config(experts, experts, shared)
    leaves = _made(params, config, _random(experts), scale=experts - shared)
    assert not leaves[ROUTER].any()  # nothing to choose: equal weights
    _assert_same_function(params, config, leaves, 1e-5)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_copies_are_the_dense_model_whatever_is_chosen(params, top_k):
    config = _config(4, top_k, copies=True)
    leaves = _made(params, config, None, seed=5)
    assert leaves[ROUTER].any() == (top_k < 4)
    for name in ("gate", "up", "down"):
        for expert in range(4):
            np.testing.assert_array_equal(
                leaves[f"layers/mlp/experts/{name}"][:, expert], params["layers"]["mlp"][name]
            )
    _assert_same_function(params, config, leaves, 1e-5)


def test_a_split_is_what_numpy_makes_of_it(params):
    """Two of four routed experts beside a shared one, token by token."""
    config, groups_LEn = _config(6, 3, 2), _random(6)
    leaves = _made(params, config, groups_LEn, scale=1.5, seed=5)
    mlp = {name: np.asarray(a, np.float64) for name, a in params["layers"]["mlp"].items()}
    layer, rng = 1, np.random.default_rng(0)
    x_ND = rng.normal(size=(7, DENSE.model.embed_dim)).astype(np.float32)

    def neurons_of(x_D, chosen_n):
        gate, up = (x_D @ mlp[name][layer][:, chosen_n] for name in ("gate", "up"))
        return (gate / (1 + np.exp(-gate)) * up) @ mlp["down"][layer][chosen_n]

    wanted = []
    for x_D in x_ND.astype(np.float64):
        scores_R = np.exp(x_D @ leaves[ROUTER][layer][:, :4])
        picked = np.argsort(-scores_R)[:1]
        y = sum(1.5 * neurons_of(x_D, groups_LEn[layer][e]) for e in picked)  # one pick: weight 1
        wanted.append(y + sum(neurons_of(x_D, groups_LEn[layer][e]) for e in (4, 5)))
    model = ModelFunctions(config).bind(jax.device_put(unflatten(leaves)))
    from emo_jax.model.moe_mlp import PerLayer
    from emo_jax.moe.router import RouterTokens

    tokens = RouterTokens(jnp.zeros((1, 7), jnp.int32))
    found = model.layer(layer).mlp(jnp.asarray(x_ND)[None], tokens, PerLayer())[0][0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_any_block_is_part_of_the_whole(params):
    source = Upcycled(TreeSource(flatten(params)), _config(6, 3, 2), _random(6), scale=2.0, seed=1)
    whole = _whole(source)
    for path, shape in source.shapes.items():
        block = tuple(slice(n // 3, max(n // 3 + 1, n * 2 // 3)) for n in shape)
        np.testing.assert_array_equal(source.read(path, block), whole[path][block], err_msg=path)
    for path, leaf in flatten(params).items():
        if "/mlp/" not in path:
            np.testing.assert_array_equal(whole[path], leaf, err_msg=path)


# --- which neurons -------------------------------------------------------------------------------


def _slow_assign(scores, size):
    scores, groups = scores.astype(float).copy(), {}
    while len(groups) < len(scores):
        neuron, group = np.unravel_index(np.argmax(scores), scores.shape)
        groups[neuron] = group
        scores[neuron] = -np.inf
        if list(groups.values()).count(group) == size:
            scores[:, group] = -np.inf
    return [groups[n] for n in range(len(scores))]


@pytest.mark.parametrize("ties", [False, True])
def test_pairs_are_matched_from_the_closest(ties):
    scores = np.random.default_rng(0).normal(size=(12, 4))
    scores = np.round(scores) if ties else scores
    assert neurons.assign(scores, 3).tolist() == _slow_assign(scores, 3)


def test_clusters_are_found_and_have_one_size():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 16))
    order = rng.permutation(20)
    rows = centres[order % 4] * rng.uniform(1, 3, (20, 1)) + 0.1 * rng.normal(size=(20, 16))
    found = neurons.clustered(rows.astype(np.float32), 4, seed=1)
    assert found.shape == (4, 5)
    assert sorted(map(tuple, found)) == sorted(
        tuple(np.flatnonzero(order % 4 == n)) for n in range(4)
    )
    # Rows that are all alike are divided too.
    assert sorted(neurons.clustered(np.ones((6, 3), np.float32), 3, 0).reshape(-1)) == [*range(6)]


def test_neurons_that_are_active_together_go_together():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 3, 90)  # of three kinds
    order = rng.permutation(12)
    active = (order[:, None] % 3 == tokens) & (order[:, None] < 9)
    active |= order[:, None] >= 9  # three neurons are active for all
    found = neurons.coactive(active, 3, 1, seed=0)
    assert set(found[3]) == set(np.flatnonzero(order >= 9))
    assert sorted(map(tuple, found[:3])) == sorted(
        tuple(np.flatnonzero((order % 3 == n) & (order < 9))) for n in range(3)
    )


def _slow_important(importance, s):
    """One neuron at a time, with Python's own sort."""
    R, F = importance.shape
    n, shared = F // (R + s), []
    while len(shared) < s * n:
        left = [f for f in range(F) if f not in shared]
        votes = dict.fromkeys(left, 0)
        for row in importance:
            for f in sorted(left, key=lambda f: -row[f])[:n]:
                votes[f] += 1
        for f in [f for f in left if votes[f] == max(votes.values())]:
            if len(shared) < s * n:
                shared.append(f)
    left = [f for f in range(F) if f not in shared]
    groups = [[] for _ in range(R)]
    for _, f, e in sorted((-importance[e, f], f, e) for f in left for e in range(R)):
        if len(groups[e]) < n and not any(f in group for group in groups):
            groups[e].append(f)
    return [sorted(group) for group in groups], sorted(shared)


@pytest.mark.parametrize("s", [0, 1, 2])
def test_neurons_go_where_they_are_needed(s):
    importance = np.random.default_rng(s).exponential(size=(4, 12 + 3 * s)) ** 2
    found = neurons.important(importance, s)
    routed, shared = _slow_important(importance, s)
    assert found[:4].tolist() == routed and sorted(found[4:].reshape(-1)) == shared


def _measured(params):
    documents = [np.arange(1, 12), np.arange(5, 40), np.full(7, 3), np.arange(20, 30)]
    return documents, NeuronData(DENSE, params, examples_of(documents, "here"), pad_id=0)


def _slow_hidden(params, tokens):
    """Hidden neurons (L,T,F) of one document alone, by the model's own layers."""
    from emo_jax.batch import from_documents
    from emo_jax.model.transformer import ForwardInputs
    from emo_jax.moe.router import RouterTokens

    model = ModelFunctions(DENSE).bind(params)
    padded = np.zeros((1, 32), int)
    padded[0, : len(tokens)] = tokens
    batch = from_documents(padded, np.where(np.arange(32) < len(tokens), 0, -1)[None])
    inputs = ForwardInputs(batch.segment_ids, batch.positions, RouterTokens(batch.pool_ids))
    x, found = model.embedded(batch), []
    for n in range(2):
        layer = model.layer(n)
        h = layer.mlp_norm(layer.attend(x, inputs)[0])
        gate, up = h @ layer.mlp.gate[...], h @ layer.mlp.up[...]
        found.append(np.asarray(gate * jax.nn.sigmoid(gate) * up)[0, : len(tokens)])
        x = layer(x, inputs, None)[0]
    return np.stack(found)


def test_activity_is_that_of_each_document_alone(params):
    documents, measured = _measured(params)
    active_LFT = measured.active_LFT()
    count = round(ACTIVE * 24)
    assert active_LFT.shape == (2, 24, sum(map(len, documents)))
    assert (active_LFT.sum(axis=1) == count).all()
    # The first document is at the beginning of a window, at the same positions as alone.
    hidden_LTF = np.abs(_slow_hidden(params, documents[0]))
    least = np.sort(hidden_LTF, axis=-1)[..., -count][..., None]
    np.testing.assert_array_equal(active_LFT[:, :, :11], (hidden_LTF >= least).swapaxes(1, 2))


def test_importance_is_the_change_of_the_loss(params):
    """Against differences of the loss, one neuron of one token changed at a time."""
    documents = [np.arange(1, 12)]
    measured = NeuronData(DENSE, params, examples_of(documents, "here"), pad_id=0)
    found_LF = measured.importance_LCF(1, seed=0)[:, 0]
    assert found_LF.shape == (2, 24) and (found_LF >= 0).all()

    (batch,) = measured._batches("")
    rows, S = batch.tokens.shape

    # |h · ∂loss/∂h| of a token, by differences of the loss in a factor of that token's neuron.
    @jax.jit
    def loss(params, factor_LBSF):
        hidden, _ = measured._forward(params, batch, factor_LBSF)
        model = measured._model
        return model.label_losses(params, hidden, batch.labels, batch.loss_mask).sum()

    for layer, neuron in ((0, 3), (1, 20)):
        total = 0.0
        for token in range(11):
            factor = np.ones((2, rows, S, 24), np.float32)
            change = []
            for sign in (1, -1):
                factor[layer, 0, token, neuron] = 1 + sign * 0.05
                change.append(float(loss(measured._params, factor)))
            total += abs(change[0] - change[1]) / 0.1
        np.testing.assert_allclose(found_LF[layer, neuron], total / 11, rtol=2e-2, atol=1e-6)


def test_the_hidden_states_are_those_of_the_model(params):
    _, measured = _measured(params)
    for batch in measured._batches(""):
        ours, _ = measured._forward(measured._params, batch, None)
        theirs, _ = measured._model.hidden(measured._params, batch)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dense_run(make_model, tmp_path_factory):
    """A dense model as a workdir."""
    folder = tmp_path_factory.mktemp("dense")
    export_model(*make_model(dense=True, vocab=259), folder / "llama")
    assert emo_here("import", folder / "llama", "--workdir", folder / "run") == 0
    return folder / "run"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--experts", 7, "--top-k", 2), "does not divide the hidden size 24 of .*; 6 or 8 does"),
        (("--experts", 1, "--top-k", 1), "--experts 1: must be in 2..4096"),
        (("--experts", 8, "--top-k", 9), "--top-k 9: must be in 1..8"),
        (("--experts", 8, "--top-k", 0), "--top-k 0: must be in 1..8"),
        (("--experts", 8, "--top-k", 1, "--shared", 1), "--top-k 1: must be in 2..8"),
        (("--experts", 8, "--top-k", 8, "--shared", 7), "--shared 7: must be in 0..6"),
        (("--experts", 8, "--top-k", 2, "--data", "x"), "split-random does not read it"),
        (
            ("--experts", 8, "--top-k", 2, "--method", "split-importance"),
            "needs texts; give --data",
        ),
        (
            ("--experts", 8, "--top-k", 2, "--shared", 1, "--method", "copy"),
            "--shared 1: not with --method copy",
        ),
        (
            ("--experts", 8, "--top-k", 2, "--scale", 2, "--method", "copy"),
            "copies are not scaled",
        ),
    ],
)
def test_what_cannot_be_made(dense_run, tmp_path, capfd, options, said):
    method = () if "--method" in options else ("--method", "split-random")
    argv = ["upcycle", dense_run, *method, *options, "--workdir", tmp_path / "out"]
    assert emo_here(*argv) == 2
    err = capfd.readouterr().err
    assert re.search(said, err) and err.count("\n") == 1, err
    assert not list(tmp_path.iterdir())


def test_neither_experts_nor_an_existing_folder(dense_run, finished_run, tmp_path, capfd):
    options = ["--method", "split-random", "--experts", "8", "--top-k", "2", "--workdir"]
    assert emo_here("upcycle", finished_run, *options, tmp_path / "out") == 2
    assert "has experts already; give a dense model" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("")
    assert emo_here("upcycle", dense_run, *options, tmp_path / "there") == 2
    assert "there" in capfd.readouterr().err


@pytest.mark.system
@pytest.mark.parametrize(
    "method", [pytest.param("split-random", marks=pytest.mark.slow), "split-importance"]
)
def test_a_run_goes_on_from_it(dense_run, store, tmp_path, capfd, method):
    made, run = tmp_path / "made", tmp_path / "run"
    options = ["--data", str(store)] if method == "split-importance" else []
    argv = ["upcycle", str(dense_run), "--method", method, *options, "--workdir", str(made)]
    assert emo_here(*argv, "--experts", 8, "--top-k", 3, "--shared", 1) == 0
    assert "8 experts a layer of hidden size 3" in capfd.readouterr().out
    dense, split = load_model(str(dense_run)), load_model(f"{made}@0")
    gate_END = split.params["layers"]["mlp"]["experts"]["gate"][0].swapaxes(1, 2)
    dense_FD = dense.params["layers"]["mlp"]["gate"][0].T
    # Every neuron is there once.
    assert sorted(map(tuple, gate_END.reshape(24, -1))) == sorted(map(tuple, dense_FD))
    shape = {
        "model__num_heads": 4,
        "model__head_dim": 8,
        "model__norm_eps": 1e-5,
        "model__rope_theta": 30_000.0,
        "moe__expert_dim": 3,
        "moe__num_shared_experts": 1,
        "data__seq_len": 48,
    }
    steps = {"train__steps": 6, "train__batch_size": 8, "optimizer__warmup_steps": 2}
    argv = train_argv(store, run, **shape, **steps, train__eval_windows=0)
    argv[argv.index("--config") + 1] = str(REPO / "experiments/split_tiny.py:emo")
    assert emo_here(*argv, "--init-from", f"{made}@0", "--init", "weights") == 0
    assert read_metrics(run)[-1]["step"] == 6


def test_a_llama_folder(make_model, tmp_path):
    params, config = make_model(dense=True, kv_heads=2)
    folder = export_model(params, config, tmp_path / "llama")
    argv = ["upcycle", str(folder), "--method", "copy", "--experts", "4", "--top-k", "2"]
    assert emo_here(*argv, "--workdir", str(tmp_path / "made")) == 0
    made = load_model(str(tmp_path / "made"))
    assert made.config.model.num_kv_heads == 2 and made.config.moe.expert_dim == 24
    np.testing.assert_array_equal(
        made.params["layers"]["mlp"]["experts"]["down"][:, 3], params["layers"]["mlp"]["down"]
    )

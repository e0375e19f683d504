"""A pruned model is the masked one; its folders are whole, and what cannot be is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from cases import few
from runs import emo_here
from tiny import NO_POOL, UNIFORM, tiny_batch, tiny_config

from emo_jax.batch import PADDING_ID
from emo_jax.data.store import TokenStore
from emo_jax.files.trees import flatten, unflatten
from emo_jax.hf import import_model
from emo_jax.hf.export import export_leaves
from emo_jax.hf.sources import TreeSource
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import count_parameters
from emo_jax.modules.assemble import Assembled, Part, pruned
from emo_jax.saved.load import load_model
from emo_jax.saved.selection_file import fingerprint, read_selection
from emo_jax.selection.examples import pack, split_location, store_examples


def _params(config, seed=3):
    return jax.jit(ModelFunctions(config).init, static_argnums=0)(seed)


def _logits(config, params, batch, **options):
    return np.asarray(jax.jit(ModelFunctions(config).logits)(params, batch, **options))


def _whole(source):
    return unflatten(
        {
            path: source.read(path, tuple(slice(0, n) for n in shape))
            for path, shape in source.shapes.items()
        }
    )


def _kept(config, counts, seed=0):
    R = config.moe.num_routed_experts
    rng = np.random.default_rng(seed)
    kept = np.zeros((len(counts), R), bool)
    for layer, count in enumerate(counts):
        kept[layer, rng.permutation(R)[:count]] = True
    return kept


@pytest.mark.parametrize(
    "counts",
    [(3, 3), (7, 7), (2, 5), (1, 1), (1, 4)],
    ids=["equal", "all", "per layer", "fewer than top-k", "fewer in one layer"],
)
@pytest.mark.parametrize("shared", few([1, 0]))
def test_pruned_is_masked(counts, shared):
    config = tiny_config(pool=UNIFORM, num_experts=7 + shared, num_shared_experts=shared)
    params, kept_LR = _params(config), _kept(config, counts)
    batch = tiny_batch(config)
    keep_LMR = kept_LR[:, None]
    masked = _logits(config, params, batch, keep_LMR=keep_LMR)
    source, smaller = pruned(TreeSource(flatten(params)), config, kept_LR)
    assert smaller.moe.top_k == min(config.moe.top_k, min(counts) + shared)
    ours = _logits(smaller, _whole(source), batch)
    valid = batch.segment_ids != PADDING_ID
    if min(counts) == max(counts) or min(counts) >= 2:
        np.testing.assert_allclose(ours[valid], masked[valid], rtol=1e-5, atol=1e-5)
    else:
        # Top-k is one number for all layers: that of the smallest (SPEC 7.2, method 5).
        moe = dataclasses.replace(config.moe, top_k=smaller.moe.top_k, pool=NO_POOL)
        fewer = dataclasses.replace(config, moe=moe)
        masked = _logits(fewer, params, batch, keep_LMR=keep_LMR)
        np.testing.assert_allclose(ours[valid], masked[valid], rtol=1e-5, atol=1e-5)


def test_keeping_all_experts_keeps_every_bit():
    config = tiny_config(pool=NO_POOL)
    params = _params(config)
    source, smaller = pruned(TreeSource(flatten(params)), config, _kept(config, (7, 7)))
    assert smaller.moe == config.moe
    for path, leaf in flatten(_whole(source)).items():
        np.testing.assert_array_equal(leaf, np.asarray(flatten(params)[path]), err_msg=path)


@pytest.mark.parametrize(
    ("layout", "counts"), [("qwen2_moe", (3, 3)), ("emo", (3, 3)), ("emo", (2, 5))]
)
def test_a_pruned_folder_comes_back(tmp_path, layout, counts):
    config = tiny_config(pool=NO_POOL, num_shared_experts=1)
    params = _params(config)
    source, smaller = pruned(TreeSource(flatten(params)), config, _kept(config, counts))
    expected = _whole(source)
    folder = export_leaves(source, smaller, tmp_path / "hf", layout=layout)
    found, found_config = import_model(folder)
    assert found_config == smaller
    batch = tiny_batch(config)
    np.testing.assert_array_equal(
        _logits(smaller, found, batch),
        _logits(smaller, expected, batch),
    )
    shards = list(folder.glob("*.safetensors"))
    weights = sum(f.stat().st_size for f in shards)
    stored = count_parameters(smaller)[0] * 4
    # Headers aside; an expert of one layer is 1536 bytes.
    headers = sum(8 + int.from_bytes(f.read_bytes()[:8], "little") for f in shards)
    extra = 0 if layout == "emo" else 2 * 4 * 16 * 4  # shared gate and biases, less dead rows
    assert abs(weights - headers - stored) <= extra
    if layout == "emo" and counts == (2, 5):
        hf = json.loads((folder / "config.json").read_text())
        assert hf["num_experts_per_layer"] == [3, 6] and hf["num_experts"] == 3
        del hf["emo_jax"]  # as another tool would write it
        (folder / "config.json").write_text(json.dumps(hf))
        assert import_model(folder)[1].moe.experts_per_layer == (3, 6)


def test_load_balance_of_a_layer_is_over_its_own_experts():
    """Equal probabilities give 1, however many experts a layer has."""
    config = tiny_config(pool=NO_POOL)
    params = jax.tree.map(np.array, _params(config))
    params["layers"]["mlp"]["router"]["kernel"][:] = 0.0
    source, smaller = pruned(TreeSource(flatten(params)), config, _kept(config, (2, 5)))
    batch = tiny_batch(smaller)
    valid = float((batch.segment_ids != PADDING_ID).sum())
    run = jax.jit(lambda p, d: ModelFunctions(smaller).hidden(p, d, loss_tokens=valid)[1])
    balance_L = np.asarray(run(_whole(source), batch).load_balance_loss)
    np.testing.assert_allclose(balance_L, 1.0, rtol=1e-5)


def test_what_a_run_watched_does_not_stop_it_from_being_cut():
    config = tiny_config(pool=NO_POOL)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, eval_keep=(8, 4)))
    _, smaller = pruned(TreeSource(flatten(_params(config))), config, _kept(config, (3, 3)))
    assert smaller.moe.num_experts == 4 and smaller.train.eval_keep == ()


def test_parts_are_weighted():
    config = tiny_config(pool=NO_POOL)
    a, b = (TreeSource(flatten(_params(config, seed))) for seed in (0, 1))
    places = [[[Part(0, r, 0.25), Part(1, r, 0.75)] for r in range(7)]] * 2
    mixed = flatten(_whole(Assembled([a, b], config, places, rest=(0.5, 0.5))))
    whole_a, whole_b = flatten(_whole(a)), flatten(_whole(b))
    for path, leaf in mixed.items():
        x, y = whole_a[path], whole_b[path]
        routed = {"layers/mlp/router/kernel": np.s_[:, :, :7]}.get(path, np.s_[:, :7])
        if "/experts/" in path or "router" in path:
            expected = 0.25 * x[routed] + 0.75 * y[routed]
            np.testing.assert_allclose(leaf[routed], expected, rtol=1e-6, atol=1e-8)
        else:
            np.testing.assert_allclose(leaf, (x + y) / 2, rtol=1e-6, atol=1e-8)
    assert fingerprint(a, config) == fingerprint(a, config) != fingerprint(b, config)


# --- the command ----------------------------------------------------------------------------------


def test_select_writes_a_model_that_says_what_it_is(finished_run, store, tmp_path, capsys):
    argv = ("select", finished_run, "--data", f"{store}:law", "--examples", "1,3,all")
    assert emo_here(*argv, "--keep", "4", "--output", tmp_path / "law") == 0
    said = capsys.readouterr().out
    assert "4 experts a layer" in said and "1 examples choose" in said
    selection = read_selection(tmp_path / "law")
    about = selection.about
    assert about["method"] == "layerwise" and about["data"].endswith("domain law")
    assert [len(kept) for kept in selection.kept] == [3, 3] and selection.num_routed == 7
    assert set(about["overlap_of_fewer_examples"]) == {"1", "3"}
    for kept, scores in zip(selection.kept, selection.scores, strict=True):
        best = sorted(range(7), key=lambda e: -scores[e])[:3]
        assert list(kept) == sorted(best)
    loaded = load_model(str(tmp_path / "law"))
    assert loaded.config.moe.num_experts == 4 and loaded.config.moe.pool.kind == "none"
    assert loaded.tokenizer is not None
    parent = load_model(str(finished_run))
    gate = np.asarray(parent.params["layers"]["mlp"]["experts"]["gate"])
    kept = np.array([[*k, 7] for k in selection.kept])
    np.testing.assert_array_equal(
        loaded.params["layers"]["mlp"]["experts"]["gate"],
        np.take_along_axis(gate, kept[:, :, None, None], axis=1),
    )
    # It is a model like any other.
    assert emo_here("eval", tmp_path / "law", "--data", store, "--windows", "4") == 0
    assert emo_here("generate", tmp_path / "law", "--prompt", "court", "--max-tokens", "4") == 0
    again = ("--keep", "50%", "--output", tmp_path / "again")
    assert emo_here("select", tmp_path / "law", "--data", store, *again, "--allow-fewer") == 0


@pytest.mark.parametrize("method", few(["global", "easy_ep", "random"], 1))
def test_several_keeps_make_several_models(finished_run, store, tmp_path, method):
    argv = ("--keep", "4,75%", "--method", method, "--output", tmp_path / "parts")
    assert emo_here("select", finished_run, "--data", store, *argv) == 0
    kept = [read_selection(tmp_path / "parts" / f"keep-{k}").kept for k in (4, 6)]
    for fewer, many in zip(*kept, strict=True):
        assert set(fewer) < set(many)


def test_budgets_by_layer(finished_run, store, tmp_path, capsys):
    argv = ("select", finished_run, "--data", store, "--keep-per-layer", "6,4")
    assert emo_here(*argv, "--output", tmp_path / "emo") == 0
    assert load_model(str(tmp_path / "emo")).config.moe.experts_per_layer == (6, 4)
    assert "6, 4 experts a layer" in (said := capsys.readouterr().out) and "layout emo: " in said
    assert emo_here(*argv, "--layout", "qwen2_moe", "--output", tmp_path / "qwen2_moe") == 0
    assert "next best" in capsys.readouterr().out
    assert load_model(str(tmp_path / "qwen2_moe")).config.moe.num_experts == 6
    emo, qwen2 = (read_selection(tmp_path / name).kept for name in ("emo", "qwen2_moe"))
    assert set(emo[1]) < set(qwen2[1]) and emo[0] == qwen2[0]
    about = read_selection(tmp_path / "qwen2_moe").about
    assert about["keep_per_layer"] == [6, 4] and "keep_schedule" not in about


@pytest.mark.parametrize(
    ("schedule", "method"), few([("greedy", "reap"), ("increasing", "aimer"), ("mass", "random")])
)
def test_a_schedule_keeps_as_many_in_all(finished_run, store, tmp_path, schedule, method):
    out = tmp_path / "out"
    argv = (
        "--keep",
        "4,6",
        "--keep-per-layer",
        schedule,
        "--method",
        method,
        "--examples",
        "1,all",
    )
    assert emo_here("select", finished_run, "--data", store, *argv, "--output", out) == 0
    for keep in (4, 6):
        folder = out / f"keep-{keep}"
        moe = load_model(str(folder)).config.moe
        selection = read_selection(folder)
        assert sum(moe.experts_in(n) for n in range(2)) == 2 * keep
        assert sum(map(len, selection.kept)) == 2 * (keep - 1)
        assert selection.about["keep_schedule"] == schedule
        assert selection.about["method"] == method
        of_data = method == "reap" or schedule == "mass"
        assert (selection.about["examples"] > 0, selection.about["tokens"] > 0) == (of_data,) * 2


def test_a_file_of_documents(finished_run, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"text": "judge court appeal"}\n{"text": "statute judge"}\n')
    argv = ("select", finished_run, "--data", file, "--keep", "4", "--output", tmp_path / "out")
    assert emo_here(*argv) == 0
    about = read_selection(tmp_path / "out").about
    assert about["examples"] == 2 and about["tokens"] == len("judge court appealstatute judge") + 2


def test_examples_of_other_seeds_are_others(store):
    found = TokenStore.open(store)
    assert found.count("select", "documents") > 8
    drawn = [
        store_examples(found, "select", number=3, max_tokens=10**6, seed=seed).documents
        for seed in (0, 1, 2, 3)
    ]
    firsts = {documents[0].tobytes() for documents in drawn}
    assert len(firsts) >= 3
    few = store_examples(found, "select", number=1, max_tokens=10**6, seed=2)
    np.testing.assert_array_equal(few.documents[0], drawn[2][0])
    within = store_examples(found, "select", max_tokens=50, seed=2)
    assert within.tokens <= 50 and len(within.documents) >= 1


def test_a_location_may_name_a_domain():
    there = {"odd:store"}
    for location, parts in {
        "store:law": ("store", "law"),
        "odd:store": ("odd:store", None),
        "odd:store:law": ("odd:store", "law"),
        "gs://bucket/store": ("gs://bucket/store", None),
        "gs://bucket/store:law": ("gs://bucket/store", "law"),
        ":law": (":law", None),
    }.items():
        assert split_location(location, there.__contains__) == parts


def test_long_documents_are_chosen_by_as_a_whole():
    ids = np.arange(70, dtype=np.int32)
    (batch,) = pack([ids, ids[:5]], 32, 4, pad_id=0)
    np.testing.assert_array_equal(batch.tokens[:2].ravel(), ids[:64])
    np.testing.assert_array_equal(batch.tokens[2, :11], [*ids[64:], *ids[:5]])
    np.testing.assert_array_equal(batch.segment_ids[2, :12], [0] * 6 + [1] * 5 + [-1])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--keep", "9"], "--keep 9: must be 3..8 experts"),
        (["--keep", "2"], "give --allow-fewer"),
        (["--keep", "half"], "a count like 16 or a share like 25%"),
        ([], "give --keep, or --keep-per-layer"),
        (["--keep-per-layer", "4,4,4"], "3 counts, and the model has 2 layers"),
        (["--keep-per-layer", "4,x"], "whole numbers with commas"),
        (["--keep-per-layer", "mass"], "spreads what --keep gives in all"),
        (["--keep", "4", "--keep-per-layer", "linear"], "one of uniform, increasing, decreasing,"),
        (["--keep", "4", "--keep-per-layer", "4,6"], "10 experts in all, and --keep 4 is 8 in 2"),
        (["--keep-per-layer", "4,9"], "--keep-per-layer 9: must be 3..8 experts"),
        (["--keep", "4", "--examples", "0"], "numbers above 0, or all"),
        (["--keep", "4", "--examples", "9999"], "documents, not 9999"),
        (["--keep", "4", "--min-tokens", "99999"], "of at least 99999 tokens"),
    ],
)
def test_refusals(finished_run, store, tmp_path, capsys, argv, said):
    out = tmp_path / "out"
    assert emo_here("select", finished_run, "--data", store, *argv, "--output", out) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1] and lines[-1].startswith("emo: ")
    assert not out.exists()


def test_refused_data_and_outputs(finished_run, store, tmp_path, capsys):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"text": "judge court appeal"}\n')
    for data, output, said in (
        (f"{file}:law", "out", "a file of documents has no domains to choose from"),
        (f"{store}:lore", "out", "no domain 'lore'; it has cooking, law"),
        (tmp_path / "none", "out", "no such token store or file of documents"),
        (store, "there", "is there already"),
    ):
        (tmp_path / "there").mkdir(exist_ok=True)
        (tmp_path / "there/mine").write_text("mine")
        argv = ("--data", data, "--keep", "4", "--output", tmp_path / output)
        assert emo_here("select", finished_run, *argv) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

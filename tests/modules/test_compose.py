"""Modules put together and put back: identities, unions, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from runs import emo_here
from tiny import NO_POOL, dense_config, tiny_batch, tiny_config

from emo_jax.files.trees import flatten, unflatten
from emo_jax.hf import export_model, import_model
from emo_jax.hf.sources import TreeSource
from emo_jax.model.functions import ModelFunctions
from emo_jax.modules.folder import write_selected
from emo_jax.saved.load import load_model
from emo_jax.saved.selection_file import (
    Selection,
    experts_digest,
    fingerprint,
    read_selection,
)
from emo_jax.tokenizer.load import train_bpe


@pytest.fixture(scope="module")
def config():
    return tiny_config(pool=NO_POOL, vocab_multiple=1)


@pytest.fixture(scope="module")
def parent(config, tmp_path_factory):
    """A whole model as a folder, and its parameters."""
    params = jax.tree.map(np.asarray, jax.jit(ModelFunctions(config).init, static_argnums=0)(3))
    return export_model(
        params, config, tmp_path_factory.mktemp("whole") / "parent", layout="emo"
    ), params


def _select(config, params, kept, folder, *, layout="emo"):
    source = TreeSource(flatten(params))
    kept_LR = np.zeros((2, 7), bool)
    for layer, experts in enumerate(kept):
        kept_LR[layer, list(experts)] = True
    rng = np.random.default_rng(len(str(folder)))
    selection = Selection(
        parent={"name": "parent", "path": "parent", "step": None},
        parent_fingerprint=fingerprint(source, config),
        num_routed=7,
        top_k=config.moe.top_k,
        kept=tuple(map(tuple, kept)),
        about={"method": "by hand"},
        scores=tuple(tuple(rng.random(7)) for _ in kept),
    )
    return write_selected(source, config, kept_LR, folder, selection, layout=layout)[0]


def _logits(config, params, batch, **options):
    return np.asarray(jax.jit(ModelFunctions(config).logits)(params, batch, **options))


def _finetuned(folder, output, seed=0):
    """The module with other weights everywhere."""
    params, config = import_model(folder)
    rng = np.random.default_rng(seed)
    moved = jax.tree.map(
        lambda a: (a + 0.01 * rng.standard_normal(a.shape)).astype(np.float32), params
    )
    made = export_model(moved, config, output, layout="emo")
    selection = dataclasses.replace(
        read_selection(folder), experts=experts_digest(TreeSource(flatten(moved)), config)
    )
    (made / "selection.json").write_text(selection.text())
    return made


def test_composed_is_the_union(config, parent, tmp_path, capsys):
    _, params = parent
    _select(config, params, [(0, 2, 4), (1, 5)], tmp_path / "a")
    _select(config, params, [(2, 3, 4), (5, 6)], tmp_path / "b")
    argv = ("compose", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "c")
    assert emo_here(*argv) == 2
    assert "--fill-from PARENT" in capsys.readouterr().err
    assert emo_here(*argv, "--layout", "emo") == 0
    assert "5, 4 experts" in capsys.readouterr().out
    selection = read_selection(tmp_path / "c")
    assert selection.kept == ((0, 2, 3, 4), (1, 5, 6))
    found, composed = import_model(tmp_path / "c")
    keep_LMR = np.zeros((2, 1, 7), bool)
    for layer, kept in enumerate(selection.kept):
        keep_LMR[layer, 0, list(kept)] = True
    batch = tiny_batch(config)
    valid = batch.segment_ids >= 0
    np.testing.assert_allclose(
        _logits(composed, found, batch)[valid],
        _logits(config, params, batch, keep_LMR=keep_LMR)[valid],
        atol=1e-5,
    )


def test_layers_are_filled_up_from_the_parent(config, parent, tmp_path):
    folder, params = parent
    _select(config, params, [(0, 2, 4), (1, 5)], tmp_path / "a")
    _select(config, params, [(2, 3, 4), (5, 6)], tmp_path / "b")
    argv = ("compose", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "c")
    assert emo_here(*argv, "--fill-from", folder) == 0
    kept = read_selection(tmp_path / "c").kept
    assert kept[0] == (0, 2, 3, 4) and len(kept[1]) == 4 and {1, 5, 6} < set(kept[1])
    found = load_model(str(tmp_path / "c"))
    np.testing.assert_array_equal(
        found.params["layers"]["mlp"]["experts"]["up"][1, :4],
        params["layers"]["mlp"]["experts"]["up"][1, list(kept[1])],
    )


def test_nothing_is_filled_up_by_scores_that_say_nothing(config, parent, tmp_path, capsys):
    folder, params = parent
    parts = [_select(config, params, [(n, 4), (5,)], tmp_path / f"{n}") for n in range(3)]
    argv = ("compose", "--layout", "emo", "--output")
    assert emo_here(*argv, tmp_path / "once", *parts[:2]) == 0
    assert emo_here(*argv, tmp_path / "twice", tmp_path / "once", parts[2]) == 0
    shares = [np.asarray(read_selection(p).scores[1]) for p in parts]
    shares = [row / row.sum() for row in shares]
    np.testing.assert_allclose(
        read_selection(tmp_path / "twice").scores[1],
        (shares[0] / 2 + shares[1] / 2 + shares[2]) / 2,
    )
    for part in parts:
        file = part / "selection.json"
        file.write_text(file.read_text().replace('"by hand"', '"random"'))
    out = tmp_path / "filled"
    assert emo_here(*argv, out, *parts[:2], "--fill-from", folder) == 2
    assert "chosen by nothing that says which" in capsys.readouterr().err and not out.exists()
    # Nor does the refusal of another layout advise it.
    _select(config, params, [(0, 2, 4), (1, 5)], other := tmp_path / "other")
    (other / "selection.json").write_text(
        (other / "selection.json").read_text().replace('"by hand"', '"random"')
    )
    assert emo_here("compose", "--output", out, parts[0], other) == 2
    line = capsys.readouterr().err
    assert "give layout emo" in line and "--fill-from" not in line


def test_finetuned_modules_are_averaged_where_asked(config, parent, tmp_path, capsys):
    _, params = parent
    a = _select(config, params, [(0, 2), (1, 5)], tmp_path / "a")
    b = _finetuned(_select(config, params, [(2, 3), (5, 6)], tmp_path / "b"), tmp_path / "tuned")
    argv = ("compose", a, b, "--layout", "emo", "--output", tmp_path / "c")
    assert emo_here(*argv) == 2
    assert "give --average" in capsys.readouterr().err and not (tmp_path / "c").exists()
    assert emo_here(*argv, "--average") == 0
    (x, _), (y, _), (found, _) = (import_model(f) for f in (a, b, tmp_path / "c"))
    for path, leaf in flatten(found).items():
        if "experts" in path:
            p, q = flatten(x)[path], flatten(y)[path]
            expected = [p[0, 0], (p[0, 1] + q[0, 0]) / 2, q[0, 1], (p[0, 2] + q[0, 2]) / 2]
            np.testing.assert_allclose(leaf[0], np.stack(expected), atol=1e-7)
        elif "router" not in path:
            np.testing.assert_allclose(leaf, (flatten(x)[path] + flatten(y)[path]) / 2, atol=1e-7)


def test_all_holders_of_an_expert_are_compared(config, parent, tmp_path, capsys):
    """Also those that the first module does not have."""
    _, params = parent
    a = _select(config, params, [(0, 1), (0, 1)], tmp_path / "a")
    b = _select(config, params, [(2, 3), (2, 3)], tmp_path / "b")
    changed = jax.tree.map(np.array, params)
    changed["layers"]["mlp"]["experts"]["up"][1, 3] += 1
    c = _select(config, changed, [(3, 4), (3, 4)], tmp_path / "c")
    argv = ("compose", a, b, c, "--layout", "emo", "--output", tmp_path / "out")
    assert emo_here(*argv) == 2
    assert (
        "b and " in (said := capsys.readouterr().err) and "layers/mlp/experts/up, layer 1" in said
    )
    assert not (tmp_path / "out").exists()


def test_a_union_uses_as_many_experts_as_the_parent(config, parent, tmp_path):
    _, params = parent
    a = _select(config, params, [(0,), (1,)], tmp_path / "a")
    b = _select(config, params, [(2,), (5,)], tmp_path / "b")
    assert load_model(str(a)).config.moe.top_k == 2 < config.moe.top_k
    assert emo_here("compose", a, b, "--output", tmp_path / "c") == 0
    assert load_model(str(tmp_path / "c")).config.moe.top_k == config.moe.top_k == 3


def test_an_unchanged_module_merged_is_the_identity(config, parent, tmp_path):
    folder, params = parent
    module = _select(config, params, [(0, 2, 4), (1, 5, 6)], tmp_path / "a", layout="qwen2_moe")
    for n, more in enumerate(([], ["--router", "--rest"])):
        out = tmp_path / f"merged{n}"
        argv = ("merge", module, "--into", folder, "--layout", "emo", "--output", out)
        assert emo_here(*argv, *more) == 0
        for path, leaf in flatten(import_model(out)[0]).items():
            np.testing.assert_array_equal(leaf, flatten(params)[path], err_msg=path)


@pytest.mark.parametrize("more", [[], ["--router"], ["--rest"], ["--average", "0.25"]])
def test_merging_changes_what_it_says(config, parent, tmp_path, more):
    folder, params = parent
    module = _select(config, params, [(0, 2), (1, 5)], tmp_path / "a")
    tuned, _ = import_model(_finetuned(module, tmp_path / "tuned"))
    share = 0.25 if "--average" in more else 1.0
    argv = ("merge", tmp_path / "tuned", "--into", folder, "--layout", "emo")
    assert emo_here(*argv, *more, "--output", tmp_path / "merged") == 0
    ours, theirs = flatten(params), flatten(tuned)
    expected = {path: np.array(leaf) for path, leaf in ours.items()}
    if "--rest" in more:
        for path in expected:
            if "/experts/" in path:
                expected[path][:, 7] = theirs[path][:, 2]
            elif "router" in path:
                continue
            else:
                expected[path] = theirs[path]
    for layer, kept in enumerate([(0, 2), (1, 5)]):
        for place, expert in enumerate(kept):
            for path in (p for p in expected if "/experts/" in p):
                a, b = ours[path][layer, expert], theirs[path][layer, place]
                expected[path][layer, expert] = (1 - share) * a + share * b
            if "--router" in more:
                kernel = "layers/mlp/router/kernel"
                expected[kernel][layer, :, expert] = theirs[kernel][layer, :, place]
    for path, leaf in flatten(import_model(tmp_path / "merged")[0]).items():
        leaf, wanted = (a[..., :7] if "router" in path else a for a in (leaf, expected[path]))
        np.testing.assert_allclose(leaf, wanted, atol=1e-7, err_msg=path)


def test_refusals(config, parent, tmp_path, capsys):
    folder, params = parent
    a = _select(config, params, [(0, 2), (1, 5)], tmp_path / "a")
    other = jax.tree.map(lambda p: p + 1, params)
    b = _select(config, other, [(0, 2), (1, 5)], tmp_path / "b")
    wide = dataclasses.replace(config, model=dataclasses.replace(config.model, rope_theta=1e4))
    c = _select(wide, params, [(0, 2), (1, 5)], tmp_path / "c")
    plain = dense_config()
    dense = export_model(ModelFunctions(plain).init(0), plain, tmp_path / "dense", layout="llama")
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine").write_text("mine")
    out = ("--output", tmp_path / "out")
    for argv, said in (
        (("compose", a, *out), "two or more"),
        (("compose", a, folder, *out), "no selection.json"),
        (("compose", a, b, *out), "of different parents"),
        (("compose", a, c, *out), "model.rope_theta: 500000.0 and 10000.0"),
        (("compose", a, a, "--output", tmp_path / "there"), "is there already"),
        (("compose", a, a, "--fill-from", _whole(config, other, tmp_path), *out), "not from this"),
        (("compose", a, a, "--fill-from", dense, *out), "is dense, it has no experts"),
        (("merge", a, "--into", dense, *out), "is dense, it has no experts"),
        (("merge", b, "--into", folder, *out), "not from this model"),
        (("merge", folder, "--into", folder, *out), "no selection.json"),
        (("merge", c, "--into", folder, *out), "not a module of this model"),
    ):
        assert emo_here(*argv) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_modules_with_different_tokenizers(tmp_path, capsys):
    config = tiny_config(pool=NO_POOL, vocab_size=262, vocab_multiple=1)
    params = jax.tree.map(np.asarray, jax.jit(ModelFunctions(config).init, static_argnums=0)(3))
    a = _select(config, params, [(0, 2), (1, 5)], tmp_path / "a")
    b = _select(config, params, [(2, 3), (5, 6)], tmp_path / "b")
    argv = ("compose", a, b, "--layout", "emo", "--output", tmp_path / "out")
    train_bpe(["judge court"] * 9, 262).save(a)
    train_bpe(["flour butter"] * 9, 262).save(b)
    assert emo_here(*argv) == 2
    assert f"{a} and {b}: different tokenizers" in capsys.readouterr().err
    # Where a folder cannot hold its tokenizer, selection.json tells which it was.
    for folder, print_of in ((a, "first"), (b, "second")):
        (folder / "tokenizer.json").unlink()
        file = folder / "selection.json"
        file.write_text(file.read_text().replace('"tokenizer": ""', f'"tokenizer": "{print_of}"'))
    assert emo_here(*argv) == 2
    assert "different tokenizers (first and second)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (b / "selection.json").write_text((b / "selection.json").read_text().replace("second", "first"))
    train_bpe(["judge court"] * 9, 262).save(b)
    assert emo_here(*argv) == 0
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (b / "tokenizer.json").read_bytes()


def _whole(config, params, tmp_path):
    return export_model(unflatten(flatten(params)), config, tmp_path / "other", layout="emo")

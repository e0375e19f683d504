"""`selection.json` is held to the weights that it lies beside."""

import json
import shutil

import jax
import numpy as np
import pytest
from runs import emo_here
from tiny import NO_POOL, tiny_config

from emo_jax.errors import UsageError
from emo_jax.files.trees import flatten
from emo_jax.hf import export_model, import_model
from emo_jax.hf.sources import TreeSource
from emo_jax.model.functions import ModelFunctions
from emo_jax.modules.folder import write_selected
from emo_jax.modules.union import open_module
from emo_jax.saved.selection_file import Selection, fingerprint, read_selection

USAGE = 2


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """Two modules of one parent, of as many experts each, and the parent."""
    folder, config = tmp_path_factory.mktemp("modules"), tiny_config(pool=NO_POOL, vocab_multiple=1)
    params = jax.tree.map(np.asarray, jax.jit(ModelFunctions(config).init, static_argnums=0)(3))
    source = TreeSource(flatten(params))
    export_model(params, config, folder / "parent", layout="emo")
    for name, kept in (("a", ((0, 2, 4), (1, 5, 6))), ("b", ((1, 2, 6), (0, 2, 3)))):
        kept_LR = np.zeros((2, 7), bool)
        for layer, row in enumerate(kept):
            kept_LR[layer, list(row)] = True
        selection = Selection(
            parent={"name": "parent", "path": "parent", "step": None},
            parent_fingerprint=fingerprint(source, config),
            num_routed=7,
            top_k=config.moe.top_k,
            kept=kept,
            about={"method": "by hand"},
            scores=((0.5,) * 7,) * 2,
        )
        write_selected(source, config, kept_LR, folder / name, selection, layout="emo")
    return folder


def _copy(modules, tmp_path, **changes):
    """Module a with another `selection.json`."""
    folder = shutil.copytree(modules / "a", tmp_path / "copy")
    file = folder / "selection.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kept": [[0, 2, 2], [1, 5, 6]]}, "kept of layer 0 must be different numbers of 0..6"),
        ({"kept": [[0, 4, 2], [1, 5, 6]]}, "ascending"),
        ({"kept": [[0, 2, 4], [1, 5, 7]]}, "kept of layer 1 must be different numbers of 0..6"),
        ({"kept": [[-1, 2, 4], [1, 5, 6]]}, "kept of layer 0"),
        ({"kept": [[0, 2, 4], []]}, "kept of layer 1"),
        ({"kept": [[0, 2.0, 4], [1, 5, 6]]}, "kept must be lists of whole numbers in a list"),
        ({"kept": [[0, True, 4], [1, 5, 6]]}, "kept must be lists of whole numbers in a list"),
        ({"kept": ["024", "156"]}, "kept must be lists of whole numbers in a list"),
        ({"kept": {"0": [0]}}, "kept must be lists of whole numbers in a list"),
        ({"kept": [[0, 2, 4]], "scores": []}, "which has 2 x 3 routed experts in its layers"),
        ({"kept": [[0, 2, 4], [1, 5]]}, "not 3, 2; select again"),
        ({"scores": [[0.5] * 6] * 2}, "scores must be 2 lists of 7 numbers"),
        ({"scores": [[0.5] * 7] * 3}, "scores must be 2 lists of 7 numbers"),
        ({"scores": [[0.5] * 6 + ["0.5"]] * 2}, "scores must be lists of finite numbers"),
        ({"scores": [[0.5] * 6 + [float("nan")]] * 2}, "scores must be lists of finite numbers"),
        ({"num_routed": 10**9}, "num_routed must be a whole number of 1..1048576"),
        ({"num_routed": 6}, "kept of layer 1 must be different numbers of 0..5"),
        ({"num_routed": 9}, "scores must be 2 lists of 9 numbers"),
        ({"top_k": 99}, "top_k 99 is more than the parent's experts"),
        ({"top_k": "3"}, "top_k must be a whole number"),
        ({"parent": "runs/tiny"}, "parent must be an object"),
        ({"parent": {"path": ["a"]}}, "parent.path must be a string"),
        ({"parent": {"path": "a\nb"}}, "parent.path must be a string of one line"),
        ({"about": {"method": 3}}, "about.method must be a string"),
        ({"parent_fingerprint": None}, "parent_fingerprint must be a string"),
        ({"experts": "0" * 64}, "is of other experts than lie beside it (000000000000 is not"),
        ({"format": "another"}, "another format"),
        ({"more": 1}, "no such field 'more'"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_a_selection_that_cannot_be(modules, tmp_path, changes, named):
    folder = _copy(modules, tmp_path, **changes)
    with pytest.raises(UsageError) as refused:
        open_module(folder)
    said = str(refused.value)
    assert said.startswith(f"{folder}/selection.json: ") and named in said and "\n" not in said


def test_the_selection_of_another_module(modules, tmp_path, capsys):
    """Of the same parent, and of as many experts: its numbers fit the shapes."""
    other = json.loads((modules / "b/selection.json").read_text())
    folder = _copy(modules, tmp_path, **other)
    for argv in (
        ("compose", folder, modules / "b", "--layout", "emo", "--output", tmp_path / "out"),
        ("merge", folder, "--into", modules / "parent", "--output", tmp_path / "out"),
        ("import", folder, "--workdir", tmp_path / "out"),
    ):
        assert emo_here(*argv) == USAGE
        line = capsys.readouterr().err
        assert "selection.json: is of other experts than lie beside it" in line
        assert line.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_selection_without_a_digest_is_read_and_said(modules, tmp_path, caplog):
    """As those of before have none."""
    folder = _copy(modules, tmp_path, experts="")
    assert open_module(folder).selection.kept == ((0, 2, 4), (1, 5, 6))
    assert "has no digest of the experts" in caplog.text
    caplog.clear()
    open_module(modules / "a")
    assert not caplog.text


def test_an_export_says_what_the_experts_have_become(modules, tmp_path):
    """A module is imported, exported, and is what it was; in between it holds no digest."""
    assert emo_here("import", modules / "a", "--workdir", tmp_path / "run") == 0
    assert read_selection(tmp_path / "run").experts == ""
    assert emo_here("export", tmp_path / "run", "--layout", "emo", "--output", tmp_path / "a") == 0
    before, after = read_selection(modules / "a"), read_selection(tmp_path / "a")
    assert after == before and len(after.experts) == 64
    open_module(tmp_path / "a")


@pytest.fixture
def part(modules, tmp_path):
    """A module of module a, with other experts than it."""
    folder, params = tmp_path / "part", import_model(modules / "a")
    source, config = TreeSource(flatten(params[0])), params[1]
    selection = Selection(
        parent={"name": "a", "path": "a", "step": None},
        parent_fingerprint=fingerprint(source, config),
        num_routed=3,
        kept=((0, 1), (1, 2)),
    )
    kept_LR = np.array([[True, True, False], [False, True, True]])
    up = params[0]["layers"]["mlp"]["experts"]["up"]
    up += 1.0  # as after finetuning
    write_selected(source, config, kept_LR, folder, selection, layout="emo")
    return folder


def test_a_module_that_something_is_merged_into_stays_one(modules, part, tmp_path):
    argv = ("merge", part, "--layout", "emo", "--into")
    assert emo_here(*argv, modules / "a", "--output", tmp_path / "merged") == 0
    before, merged = read_selection(modules / "a"), open_module(tmp_path / "merged")
    assert merged.selection.kept == before.kept and len(merged.selection.experts) == 64
    assert merged.selection.experts != before.experts
    # As a run it has no digest, and gets one that is held to its experts when it is read again.
    assert emo_here("import", modules / "a", "--workdir", tmp_path / "run") == 0
    assert emo_here(*argv, tmp_path / "run", "--output", tmp_path / "of_run") == 0
    assert read_selection(tmp_path / "of_run") == merged.selection
    # Into a whole model, it is a whole model.
    out = tmp_path / "whole"
    argv = ("merge", modules / "a", "--into", modules / "parent", "--layout", "emo")
    assert emo_here(*argv, "--output", out) == 0
    assert not (out / "selection.json").exists()


def test_a_module_that_is_extended_is_none_any_more(modules, tmp_path, caplog):
    out = tmp_path / "out"
    argv = ("extend", modules / "a", "--add", 1, "--layout", "emo", "--output", out)
    assert emo_here(*argv) == 0
    assert not (out / "selection.json").exists()
    assert f"{modules / 'a'}: is a module" in caplog.text


def test_the_selection_of_what_is_merged_into_or_extended(modules, part, tmp_path, capsys):
    """Another module's, or a link to a file elsewhere."""
    other = json.loads((modules / "b/selection.json").read_text())
    folder = _copy(modules, tmp_path, **other)
    commands = (
        ("merge", part, "--into", folder, "--layout", "emo", "--output", tmp_path / "out"),
        ("extend", folder, "--add", 1, "--layout", "emo", "--output", tmp_path / "out"),
    )
    for argv in commands:
        assert emo_here(*argv) == USAGE
        line = capsys.readouterr().err
        assert "selection.json: is of other experts than lie beside it" in line
        assert line.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_link_is_no_selection_of_a_run(modules, tmp_path, capsys):
    assert emo_here("import", modules / "a", "--workdir", tmp_path / "run") == 0
    file = tmp_path / "run/selection.json"
    for target, said in (
        (modules / "a/selection.json", "outside of its folder"),
        (tmp_path / "gone", "a link to nothing"),
    ):
        file.unlink()
        file.symlink_to(target)
        assert emo_here("export", tmp_path / "run", "--output", tmp_path / "out") == USAGE
        line = capsys.readouterr().err
        assert f"{file}: " in line and said in line and line.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_a_damaged_selection_in_a_workdir(modules, tmp_path, capsys):
    assert emo_here("import", modules / "a", "--workdir", tmp_path / "run") == 0
    file = tmp_path / "run/selection.json"
    file.write_bytes(file.read_bytes()[:-40])
    assert emo_here("export", tmp_path / "run", "--output", tmp_path / "out") == USAGE
    line = capsys.readouterr().err
    assert f"{file}: broken JSON" in line and line.count("\n") == 1
    assert not (tmp_path / "out").exists()

"""A module chosen by prompts is the one that emo select makes of them, and reads nothing else."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tiny import NO_POOL, tiny_config

import emo_jax
from emo_jax.errors import DataError, UsageError
from emo_jax.files.trees import flatten
from emo_jax.generation.cache import inference_params
from emo_jax.hf import import_model
from emo_jax.hf.export import export_leaves
from emo_jax.hf.sources import TreeSource
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import EXPERTS
from emo_jax.modules.from_prompt import module_for_prompts
from emo_jax.modules.select import select
from emo_jax.saved.load import load_model
from emo_jax.tokenizer.load import byte_tokenizer

PROMPT, OTHER = "The court finds", "la corte"


def _config(**model):
    config = tiny_config(pool=NO_POOL, num_experts=12, vocab_size=300, **model)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, seq_len=64))


def _folder(tmp_path, config, layout, change=lambda leaves: None):
    """A Hugging Face folder with the tokenizer of bytes."""
    leaves = flatten(jax.device_get(jax.jit(ModelFunctions(config).init, static_argnums=0)(5)))
    leaves = {path: np.array(leaf) for path, leaf in leaves.items()}
    change(leaves)
    byte_tokenizer().save(tmp_path / "tokenizer")
    return export_leaves(
        *(TreeSource(leaves), config, tmp_path / "hf"),
        layout=layout,
        tokenizer_dir=tmp_path / "tokenizer",
    )


def _selected(tmp_path, folder, prompts, **options):
    """The folder that emo select makes of the same prompts."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in prompts))
    (made,) = select(folder, file, tmp_path / "selected", **options)
    return made.folder


def _kept(folder, num_routed):
    kept = json.loads((folder / "selection.json").read_text())["kept"]
    return np.array([np.isin(np.arange(num_routed), row) for row in kept])


@pytest.mark.parametrize(
    ("layout", "model", "prompts"),
    [
        ("emo", dict(compute_dtype="bfloat16"), [PROMPT]),
        ("qwen2_moe", {}, [PROMPT, OTHER, PROMPT * 3]),
        ("qwen2_moe", dict(num_layers=3, dense_layers=1, mlp_dim=24), [PROMPT]),
    ],
    ids=["bfloat16", "several prompts", "a dense layer first"],
)
def test_it_is_the_module_of_emo_select(tmp_path, layout, model, prompts):
    folder = _folder(tmp_path, _config(**model), layout)
    part = module_for_prompts(folder, prompts, "50%")
    chosen = _selected(tmp_path, folder, prompts, keep="50%", layout=layout)
    np.testing.assert_array_equal(part.kept_LR, _kept(chosen, 11))
    assert (part.kept_LR.sum(axis=1) == 5).all()  # and the shared one
    written = load_model(str(chosen))
    assert part.model.config.moe == written.config.moe
    theirs = flatten(inference_params(written.config, written.params))
    ours = flatten(inference_params(part.model.config, part.model.params))
    assert ours.keys() == theirs.keys()
    for path, leaf in theirs.items():
        assert ours[path].dtype == leaf.dtype, path
        if path.endswith("router/kernel"):  # no layout but emo stores the shared experts' columns
            ours[path], leaf = ours[path][..., :5], leaf[..., :5]
        np.testing.assert_array_equal(
            np.asarray(ours[path], "float32"), np.asarray(leaf, "float32"), err_msg=path
        )
    assert part.read == sum(leaf.size for leaf in ours.values()) + 2 * 16 < part.whole
    assert part.model.generate(prompts, max_tokens=12) == _texts(chosen, prompts)


def _texts(folder, prompts):
    return emo_jax.load(folder).generate(prompts, max_tokens=12)


def test_layers_with_fewer_experts(tmp_path):
    config = _config()
    moe = dataclasses.replace(config.moe, experts_per_layer=(6, 12))

    def cut(leaves):
        for path in EXPERTS:
            leaves[path][0, 5:11] = 0

    folder = _folder(tmp_path, dataclasses.replace(config, moe=moe), "emo", cut)
    part = module_for_prompts(folder, [PROMPT], 8)
    assert part.kept_LR.sum(axis=1).tolist() == [5, 7]
    chosen = _selected(tmp_path, folder, [PROMPT], keep=8, layout="emo")
    np.testing.assert_array_equal(part.kept_LR, _kept(chosen, 11))
    assert part.model.generate([PROMPT], max_tokens=12) == _texts(chosen, [PROMPT])


def test_what_is_not_chosen_is_not_read(tmp_path):
    """The other experts may be anything."""
    config = _config()
    folder = _folder(tmp_path, config, "qwen2_moe")
    part = module_for_prompts(folder, [PROMPT], 4)
    (tmp_path / "spoilt").mkdir()

    def spoil(leaves):
        for path in EXPERTS:
            leaves[path][:, :11][~part.kept_LR] = np.nan

    spoilt = _folder(tmp_path / "spoilt", config, "qwen2_moe", spoil)
    assert np.isnan(flatten(import_model(spoilt)[0])[EXPERTS[0]]).any()
    again = module_for_prompts(spoilt, [PROMPT], 4)
    np.testing.assert_array_equal(again.kept_LR, part.kept_LR)
    for ours, theirs in zip(
        *map(jax.tree.leaves, (part.model.params, again.model.params)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_workdir_is_read_too(finished_run):
    part = module_for_prompts(finished_run, [PROMPT], "50%")
    whole = load_model(str(finished_run))
    kept_R = np.flatnonzero(part.kept_LR[0])
    np.testing.assert_array_equal(
        np.asarray(part.model.params["layers"]["mlp"]["experts"]["up"])[0, : len(kept_R)],
        whole.params["layers"]["mlp"]["experts"]["up"][0, kept_R],
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder that no test changes."""
    return _folder(tmp_path_factory.mktemp("plain"), _config(), "qwen2_moe")


@pytest.mark.parametrize(
    ("keep", "prompts", "said"),
    [
        ("2", [PROMPT], "--experts-from-prompt 2: must be 3..12 experts"),
        ("200%", [PROMPT], r"--experts-from-prompt 200% \(24 experts\): must be 3..12 experts"),
        ("half", [PROMPT], "--experts-from-prompt half: must be a count"),
        ("50%", ["x" * 64], "prompt 1: 64 tokens, the model's window of 64 allows 63"),
    ],
)
def test_refusals(plain, keep, prompts, said):
    with pytest.raises(UsageError, match=f"^{said}"):
        module_for_prompts(plain, prompts, keep)


def test_weights_that_are_not_finite(tmp_path):
    def spoil(leaves):
        leaves["layers/attention/out"][1] = np.nan

    folder = _folder(tmp_path, _config(), "qwen2_moe", spoil)
    with pytest.raises(DataError, match=r"^layer 1: .* not finite"):
        module_for_prompts(folder, [PROMPT], "50%")

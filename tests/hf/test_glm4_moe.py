"""Models with sigmoid gates as `glm4_moe`: the same bits back, and the same logits elsewhere."""

import json

import numpy as np
import pytest
from logits import compare, our_logits

from emo_jax.errors import HfFormatError, UsageError
from emo_jax.files.trees import flatten
from emo_jax.hf import export_model, import_model
from emo_jax.hf.fields import _BY_MODEL_TYPE
from emo_jax.hf.gguf_export import check_model

SIGN = dict(gate="sigmoid", normalize_picks=True, score_bias="sign", bias_rate=0.01)


def _stored(params, config):
    """What a layout stores: no padding rows, nothing of the router for shared experts."""
    leaves = {path: np.array(leaf) for path, leaf in flatten(params).items()}
    leaves["embed/embedding"][config.model.vocab_size :] = 0
    leaves["lm_head/kernel"][:, config.model.vocab_size :] = 0
    R = config.moe.num_routed_experts
    leaves["layers/mlp/router/kernel"][..., R:] = 0
    if "layers/mlp/router/bias" in leaves:
        leaves["layers/mlp/router/bias"][..., R:] = 0
    return leaves


@pytest.mark.parametrize("shared", [0, 1, 3])
@pytest.mark.parametrize("moe", [SIGN, dict(gate="sigmoid")])
def test_a_model_comes_back(make_model, tmp_path, shared, moe):
    params, config = make_model(shared=shared, **moe)
    again, config_again = import_model(export_model(params, config, tmp_path / "out"))
    assert config_again == config
    expected = _stored(params, config)
    assert flatten(again).keys() == expected.keys()
    for path, leaf in flatten(again).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def _say(folder, **fields):
    path = folder / "config.json"
    said = json.loads(path.read_text())
    del said["emo_jax"]
    path.write_text(json.dumps({k: v for k, v in (said | fields).items() if v is not None}))
    return folder


def test_a_folder_of_others_has_a_bias_that_may_move(make_model, tmp_path):
    params, config = make_model(**SIGN)
    again, found = import_model(_say(export_model(params, config, tmp_path / "out")))
    assert (found.moe.gate, found.moe.score_bias, found.moe.bias_rate) == ("sigmoid", "sign", 0.001)
    bias_LR = flatten(again)["layers/mlp/router/bias"][:, :8]
    np.testing.assert_array_equal(bias_LR, flatten(params)["layers/mlp/router/bias"][:, :8])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("routed_scaling_factor", 2.5),
        ("n_group", 4),
        ("use_qk_norm", True),
        ("partial_rotary_factor", None),  # absent: a half
        ("partial_rotary_factor", 0.5),
    ],
)
def test_another_function_is_refused(make_model, tmp_path, field, value):
    folder = _say(export_model(*make_model(**SIGN), tmp_path / "out"), **{field: value})
    with pytest.raises(HfFormatError, match=field):
        import_model(folder)


@pytest.mark.parametrize(
    ("moe", "layout", "said"),
    [
        (SIGN, "qwen2_moe", "'qwen2_moe' has a softmax .* give layout glm4_moe, or none"),
        (SIGN, "emo", "'emo' has a softmax .* give layout glm4_moe, or none"),
        ({}, "glm4_moe", "'glm4_moe' has a sigmoid .* give layout qwen2_moe or emo, or none"),
        (
            dict(score_bias="sign", bias_rate=0.1),
            None,
            "no bias on a softmax's scores, and 'small' has moe.score_bias = 'sign': no layout",
        ),
    ],
)
def test_no_layout_is_taken_for_another_function(make_model, tmp_path, moe, layout, said):
    with pytest.raises(UsageError, match=said):
        export_model(*make_model(**moe), tmp_path / "out", layout=layout)
    assert not (tmp_path / "out").exists()


def test_gguf_has_no_such_layout(make_model):
    with pytest.raises(UsageError, match=r"llama\.cpp has no layout glm4_moe"):
        check_model(make_model(**SIGN)[1], None)


@pytest.mark.system
@pytest.mark.parametrize(("shared", "moe"), [(1, SIGN), (0, SIGN), (2, dict(gate="sigmoid"))])
def test_transformers_computes_the_same_function(make_model, tmp_path, shared, moe):
    import torch
    from transformers import AutoModelForCausalLM

    params, config = make_model(shared=shared, **moe)
    params["layers"]["mlp"]["experts"]["down"] *= 3  # so that a wrong expert shows in the logits
    folder = export_model(params, config, tmp_path / "out")
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[what], f"{what}: {report[what]}"
    assert type(model).__name__ == "Glm4MoeForCausalLM"
    tokens = np.random.default_rng(1).integers(0, config.model.vocab_size, (2, 40))
    with torch.no_grad():
        got = model.eval()(torch.as_tensor(tokens)).logits.numpy()
    compare(f"glm4_moe, {shared} shared", got, our_logits(params, config, tokens))
    # What it saves again is read back.
    model.save_pretrained(tmp_path / "again")
    again, _ = import_model(tmp_path / "again")
    expected = _stored(params, config)["layers/mlp/router/kernel"]
    np.testing.assert_array_equal(flatten(again)["layers/mlp/router/kernel"], expected)


@pytest.mark.system
def test_absent_fields_are_those_of_transformers():
    from transformers.models.glm4_moe import Glm4MoeConfig

    theirs = Glm4MoeConfig()
    for name, value in _BY_MODEL_TYPE["glm4_moe"].absent.items():
        assert getattr(theirs, name) == value, name
    assert theirs.rope_parameters["partial_rotary_factor"] == 0.5

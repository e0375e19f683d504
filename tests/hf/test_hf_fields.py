"""One function under several names: what config.json may leave out, or say another way."""

import importlib
import json

import numpy as np
import pytest

from emo_jax.batch import from_documents
from emo_jax.errors import HfFormatError
from emo_jax.files.trees import flatten
from emo_jax.hf import export_model, import_model
from emo_jax.hf.fields import _BY_MODEL_TYPE
from emo_jax.model.functions import ModelFunctions

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
ONLY = (  # what a config.json of an old Llama has, and what makes the model small
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"),
    *("rms_norm_eps", "vocab_size"),
)


@pytest.fixture
def dense(make_model, tmp_path):
    """Gives a folder another config.json, without our section; and what an import of it gives."""
    params, config = make_model(dense=True)
    folder = export_model(params, config, tmp_path / "dense")
    said = json.loads((folder / "config.json").read_text())

    def with_config(**fields):
        least = {name: said[name] for name in ONLY}
        (folder / "config.json").write_text(json.dumps(least | fields))
        return folder

    return with_config, flatten(import_model(folder)[0])


def assert_leaves(found, expected):
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


@pytest.mark.parametrize(
    ("fields", "theta", "seq_len"),
    [
        (LLAMA, 10_000.0, 2048),
        (LLAMA | {"architectures": None}, 10_000.0, 2048),
        ({"model_type": "llama"}, 10_000.0, 2048),
        (LLAMA | {"num_key_value_heads": None, "head_dim": None}, 10_000.0, 2048),
        (LLAMA | {"num_key_value_heads": 4, "rope_theta": 500}, 500.0, 2048),
        (LLAMA | {"hidden_act": "swish", "head_dim": 8}, 10_000.0, 2048),
        (LLAMA | {"rope_parameters": {"rope_type": "default"}}, 10_000.0, 2048),
        (LLAMA | {"rope_scaling": {"type": "default", "rope_theta": 7}}, 7.0, 2048),
        (MISTRAL | {"num_key_value_heads": 4, "sliding_window": None}, 10_000.0, 131_072),
        (MISTRAL | {"num_key_value_heads": None, "sliding_window": 131_072}, 10_000.0, 131_072),
        (
            MISTRAL
            | {"num_key_value_heads": 4, "sliding_window": 4096, "max_position_embeddings": 4096},
            10_000.0,
            4096,
        ),
    ],
)
def test_the_same_dense_model(dense, fields, theta, seq_len):
    with_config, expected = dense
    params, config = import_model(with_config(**fields))
    assert config.model.rope_theta == theta
    assert config.data.seq_len == seq_len
    assert (config.model.num_heads, config.model.head_dim) == (4, 8)
    assert_leaves(flatten(params), expected)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (MISTRAL, "sliding_window = 4096 is below max_position_embeddings = 131072"),
        (MISTRAL | {"sliding_window": None}, "num_kv_heads = 8: must be 0, or a divisor of"),
        (MISTRAL | {"num_key_value_heads": 4, "sliding_window": "4096"}, "sliding_window must be"),
        (LLAMA | {"num_key_value_heads": 3}, "num_kv_heads = 3: must be 0, or a divisor of"),
        (
            LLAMA | {"num_key_value_heads": 2},
            "k_proj.weight has shape (32, 32), but the config says (16, 32)",
        ),
        (LLAMA | {"num_key_value_heads": 0}, "num_key_value_heads must be a whole number"),
        (LLAMA | {"num_key_value_heads": 4.0}, "num_key_value_heads must be a whole number"),
        (
            LLAMA | {"head_dim": 16},
            "q_proj.weight has shape (32, 32), but the config says (64, 32)",
        ),
        (LLAMA | {"head_dim": -8}, "head_dim must be a whole number"),
        (LLAMA | {"attention_bias": True}, "attention_bias = True"),
        (LLAMA | {"mlp_bias": True}, "mlp_bias = True"),
        (LLAMA | {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        (LLAMA | {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        (LLAMA | {"sliding_window": 8}, "sliding_window = 8 is below"),
        (LLAMA | {"is_causal": False}, "is_causal = False, but only True"),
        (LLAMA | {"is_causal": 1}, "is_causal = 1, but only True"),
        (LLAMA | {"attention_chunk_size": 8}, "attention_chunk_size = 8, but only None"),
        (LLAMA | {"per_layer_config": {"0": {"rms_norm_eps": 0.5}}}, "per_layer_config"),
        (LLAMA | {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        (LLAMA | {"transformers_weights": "other.safetensors"}, "transformers_weights"),
        # transformers 4 goes by the one, 5 by the other.
        (LLAMA | {"rope_scaling": {"rope_type": "default", "type": "linear"}}, "a scaled rotary"),
        (LLAMA | {"intermediate_size": 0}, "intermediate_size must be a whole number of 1.."),
        (
            MISTRAL
            | {"num_key_value_heads": 4, "sliding_window": None}
            | {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types",
        ),
        (LLAMA | {"hidden_size": "32"}, "hidden_size must be a whole number of 1..2147483647"),
        (LLAMA | {"hidden_size": True}, "hidden_size must be"),
        (LLAMA | {"vocab_size": 0}, "vocab_size must be"),
        (LLAMA | {"num_attention_heads": 0}, "num_attention_heads must be"),
        (LLAMA | {"initializer_range": "small"}, "initializer_range must be"),
        (LLAMA | {"architectures": ["LlamaForSequenceClassification"]}, "supported: "),
        (LLAMA | {"architectures": "LlamaForCausalLM"}, "supported: "),
        ({"model_type": ["llama"], "architectures": None}, "supported: "),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, "mistral (Mistral"),
    ],
)
def test_another_function_or_no_model_at_all(dense, fields, said):
    with_config, _ = dense
    with pytest.raises(HfFormatError) as caught:
        import_model(with_config(**fields))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sliding_window": 16}, "sliding_window = 16 is below max_position_embeddings = 48"),
        ({"num_key_value_heads": 3}, "num_kv_heads = 3: must be 0, or a divisor of"),
        ({"num_experts_per_tok": 9}, "moe.top_k = 9: must be 1..8"),
        ({"num_local_experts": 9}, "num_local_experts = 9, but the tensors are of 8"),
        ({"num_local_experts": 2}, "moe.top_k = 3: must be 1..2"),
        ({"num_local_experts": "8"}, "num_local_experts must be a whole number"),
        ({"intermediate_size": 12}, "w1.weight has shape (16, 32), but the config says (12, 32)"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings = True"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "a scaled rotary embedding"),
    ],
)
def test_a_mixtral_of_a_shape_we_do_not_have(make_model, tmp_path, fields, said):
    params, config = make_model(fits="mixtral")
    path = export_model(params, config, tmp_path / "moe") / "config.json"
    found = json.loads(path.read_text())
    del found["emo_jax"]
    path.write_text(json.dumps(found))
    import_model(path.parent)
    path.write_text(json.dumps(found | fields))
    with pytest.raises(HfFormatError) as caught:
        import_model(path.parent)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_mixture_of_experts_that_leaves_out_what_transformers_takes_so(make_model, tmp_path):
    params, config = make_model()
    folder = export_model(params, config, tmp_path / "moe")
    expected = flatten(import_model(folder)[0])
    said = json.loads((folder / "config.json").read_text())
    least = (
        *("hidden_size", "model_type", "moe_intermediate_size", "num_attention_heads"),
        *("num_experts", "num_experts_per_tok", "num_hidden_layers", "num_key_value_heads"),
        *("shared_expert_intermediate_size", "vocab_size"),
    )
    (folder / "config.json").write_text(json.dumps({name: said[name] for name in least}))
    params, config = import_model(folder)
    assert config.model.norm_eps == 1e-6 and config.model.rope_theta == 10_000.0
    assert config.data.seq_len == 32_768
    assert_leaves(flatten(params), expected)


@pytest.mark.system
@pytest.mark.parametrize("model_type", ["qwen2_moe", "mixtral", "llama", "mistral"])
def test_absent_fields_are_those_of_transformers(model_type):
    """Needs transformers."""
    module = importlib.import_module(f"transformers.models.{model_type}")
    known = _BY_MODEL_TYPE[model_type]
    theirs = getattr(module, known.name.replace("ForCausalLM", "Config"))()
    for name, value in known.absent.items():
        assert getattr(theirs, name) == value, name
    rope = getattr(theirs, "rope_parameters", None) or {"rope_theta": theirs.rope_theta}
    assert rope["rope_theta"] == known.rope_theta
    for name in ("attention_bias", "mlp_bias", "norm_topk_prob", "use_sliding_window"):
        assert not getattr(theirs, name, False), name
    if model_type == "llama":
        assert theirs.num_key_value_heads == theirs.num_attention_heads
    assert getattr(theirs, "head_dim", 128) in (None, 128)
    assert theirs.hidden_act == "silu"


@pytest.mark.system
@pytest.mark.parametrize(
    "fields",
    [
        LLAMA,
        {"model_type": "llama", "hidden_act": "swish"},
        MISTRAL | {"num_key_value_heads": 4, "sliding_window": None},
        MISTRAL | {"num_key_value_heads": 4, "sliding_window": 64, "max_position_embeddings": 64},
    ],
)
def test_transformers_takes_it_for_the_same_function(dense, fields):
    """Needs torch and transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = dense[0](**fields)
    params, config = import_model(folder)
    tokens = np.random.default_rng(1).integers(0, config.model.vocab_size, (2, 64))
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        theirs = model.eval()(torch.as_tensor(tokens)).logits.numpy()
    batch = from_documents(tokens, np.zeros_like(tokens))
    ours = np.asarray(ModelFunctions(config).logits(params, batch))[..., : theirs.shape[-1]]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)

"""GGUF files, read back by the reader of the `gguf` package: every tensor, key and token.

llama.cpp itself runs them in test_llama_cpp.py.
"""

import importlib.util
import json
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
import runs
import tokenizer_kinds

from emo_jax.errors import EmoError, HfFormatError, UsageError
from emo_jax.files.trees import flatten
from emo_jax.hf import export_model, gguf_tensors
from emo_jax.hf.gguf_export import TYPES, export_gguf, gguf_bytes
from emo_jax.hf.gguf_vocabulary import of_tokenizer
from emo_jax.hf.sources import TreeSource
from emo_jax.tokenizer.load import load_tokenizer

FLOAT32 = ("norm", "ffn_gate_inp", "bias")  # whatever the type of the file


@pytest.fixture
def write(make_model, tmp_path):
    """A small model's file, its parameters and config; `tokenizer` is a kind, or None."""

    def make(tokenizer=None, type_name="float32", name="model.gguf", **shape):
        held = None
        if tokenizer is not None:
            folder = tokenizer_kinds.make(tokenizer, tmp_path / "tokenizers" / tokenizer)
            held = load_tokenizer(folder)
            shape.setdefault("vocab", held.vocab_size)
        params, config = make_model(**shape)
        source = TreeSource(flatten(params))
        file = export_gguf(source, config, tmp_path / name, tokenizer=held, type_name=type_name)
        return file, params, config, held

    return make


def keys_of(file: Path) -> dict:
    fields = gguf.GGUFReader(file).fields.items()
    return {name: field.contents() for name, field in fields if not name.startswith("GGUF.")}


def expected(params, config) -> dict[str, np.ndarray]:
    """llama.cpp's names (gguf-py/gguf/constants.py) and what they hold, by hand."""
    leaves, model = flatten(params), config.model
    V, D, H, Dh = model.vocab_size, model.embed_dim, model.num_heads, model.head_dim
    heads_of_keys = model.num_kv_heads or H
    mixtral = config.moe is not None and config.moe.normalize_picks  # llama.cpp's Llama
    out = {
        "token_embd.weight": leaves["embed/embedding"][:V],
        "output_norm.weight": leaves["final_norm/scale"],
        "output.weight": leaves["lm_head/kernel"][:, :V].T,
    }
    for i in range(model.num_layers):
        mlp = (
            {n: leaves[f"layers/mlp/{n}"][i] for n in ("gate", "up", "down")}
            if (config.moe is None)
            else {n: leaves[f"layers/mlp/experts/{n}"][i] for n in ("gate", "up", "down")}
        )
        at = f"blk.{i}."
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
            rows = leaves[f"layers/attention/{ours}"][i].transpose(1, 2, 0)  # (H,Dh,D)
            if (config.moe is None or mixtral) and theirs != "v":
                # Llama's rotary embedding turns rows 2j and 2j + 1 there, j and j + Dh/2 here.
                order = [j + half * Dh // 2 for j in range(Dh // 2) for half in (0, 1)]
                rows = rows[:, order]
            heads = H if theirs == "q" else heads_of_keys
            out[f"{at}attn_{theirs}.weight"] = rows.reshape(heads * Dh, D)
            if config.moe is not None and not mixtral:
                out[f"{at}attn_{theirs}.bias"] = np.zeros(D)
        out[f"{at}attn_output.weight"] = leaves["layers/attention/out"][i].reshape(H * Dh, D).T
        out[f"{at}attn_norm.weight"] = leaves["layers/attention_norm/scale"][i]
        out[f"{at}ffn_norm.weight"] = leaves["layers/mlp_norm/scale"][i]
        if config.moe is None:
            out |= {f"{at}ffn_{n}.weight": value.T for n, value in mlp.items()}
            continue
        R, s = config.moe.num_routed_experts, config.moe.num_shared_experts
        out[f"{at}ffn_gate_inp.weight"] = leaves["layers/mlp/router/kernel"][i][:, :R].T
        if not mixtral:
            out[f"{at}ffn_gate_inp_shexp.weight"] = np.full(D, 2.0**-40)
        for n, value in mlp.items():
            out[f"{at}ffn_{n}_exps.weight"] = value[:R].transpose(0, 2, 1)
            if mixtral:
                continue
            shared = (
                np.concatenate([*value[R:].transpose(0, 2, 1)], 1 if n == "down" else 0)
                if (s)
                else np.zeros((D, 16) if n == "down" else (16, D))
            )
            out[f"{at}ffn_{n}_shexp.weight"] = shared * (2 if n == "down" else 1)
    return {name: np.asarray(value, np.float32) for name, value in out.items()}


def stored_as(value: np.ndarray, kind: str) -> np.ndarray:
    """The float32 values of numbers in a type of ggml, by NumPy."""
    if kind == "Q8_0":  # ggml-quants.c: 32 numbers have one float16 scale, that of the largest
        blocks = value.reshape(-1, 32)
        scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = np.where(scale > 0, 1 / scale, 0)
        whole = np.sign(blocks) * np.floor(np.abs(blocks * inverse) + 0.5)
        return (whole * scale.astype(np.float16).astype(np.float32)).reshape(value.shape)
    dtype = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind]
    return value.astype(dtype).astype(np.float32)


@pytest.mark.parametrize("type_name", list(TYPES))
@pytest.mark.parametrize(
    "shape",
    [
        *({"shared": 0}, {"shared": 1}, {"shared": 3}),
        *({"dense": True}, {"dense": True, "head_dim": 16}, {"dense": True, "kv_heads": 2}),
        {"fits": "mixtral", "kv_heads": 2},
    ],
    ids=str,
)
def test_every_tensor_by_name_and_value(write, type_name, shape, monkeypatch):
    monkeypatch.setattr(gguf_tensors, "WRITE_BYTES", 1000)  # pieces of a few rows
    file, params, config, _ = write(type_name=type_name, **shape)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    wanted = expected(params, config)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        tensor = found[name]
        assert tuple(reversed(tensor.shape.tolist())) == value.shape, name
        kind = tensor.tensor_type.name
        if any(part in name for part in FLOAT32) or type_name == "float32":
            assert kind == "F32", name
        elif type_name == "q8_0" and value.shape[-1] % 32:
            assert kind == "F16", name
        else:
            assert kind == TYPES[type_name], name
        got = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(value.shape)
        np.testing.assert_array_equal(got, stored_as(value, kind), err_msg=name)
    assert sum(tensor.n_bytes for tensor in found.values()) == gguf_bytes(config, type_name)


def test_keys_of_a_mixtral(write):
    said = keys_of(write(fits="mixtral", kv_heads=2)[0])
    assert said["general.architecture"] == "llama"
    counts = {
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "expert_count": 8,
        "expert_used_count": 3,
        "feed_forward_length": 16,
    }
    assert {name: said[f"llama.{name}"] for name in counts} == counts
    assert "llama.expert_shared_feed_forward_length" not in said


def test_keys_of_a_mixture_of_experts(write):
    file, _, config, tokenizer = write("ours", shared=2)
    said = keys_of(file)
    tokenised = {name: value for name, value in said.items() if name.startswith("tokenizer.")}
    assert {name: value for name, value in said.items() if name not in tokenised} == {
        "general.architecture": "qwen2moe",
        "general.type": "model",
        "general.name": "small",
        "general.file_type": 0,
        "general.quantization_version": 2,
        "qwen2moe.block_count": 2,
        "qwen2moe.context_length": 48,
        "qwen2moe.embedding_length": 32,
        "qwen2moe.feed_forward_length": 16,
        "qwen2moe.attention.head_count": 4,
        "qwen2moe.attention.head_count_kv": 4,
        "qwen2moe.attention.key_length": 8,
        "qwen2moe.attention.value_length": 8,
        "qwen2moe.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "qwen2moe.rope.dimension_count": 8,
        "qwen2moe.rope.freq_base": 30_000.0,
        "qwen2moe.vocab_size": config.model.vocab_size,
        "qwen2moe.expert_count": 8,
        "qwen2moe.expert_used_count": 3,
        "qwen2moe.expert_feed_forward_length": 16,
        "qwen2moe.expert_shared_feed_forward_length": 32,
    }
    assert tokenised["tokenizer.ggml.bos_token_id"] == tokenizer.eos_id


@pytest.mark.parametrize("begins", [False, True])
def test_the_tokenizer_is_that_of_the_training(make_model, tmp_path, begins):
    folder = tokenizer_kinds.make("llama", tmp_path / "tok")
    tokenizer = load_tokenizer(folder)
    tokenizer.adds_bos = begins
    params, config = make_model(vocab=tokenizer.vocab_size + 3)
    source = TreeSource(flatten(params))
    said = keys_of(export_gguf(source, config, tmp_path / "m.gguf", tokenizer=tokenizer))
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    in_order = sorted(vocabulary, key=vocabulary.get)
    size = len(in_order)
    assert said["tokenizer.ggml.tokens"][:size] == in_order
    assert len(set(said["tokenizer.ggml.tokens"])) == config.model.vocab_size == size + 3
    kinds = [3 if token in tokenizer_kinds.SPECIAL else 1 for token in in_order]
    assert said["tokenizer.ggml.token_type"] == [*kinds, 5, 5, 5]
    assert said["tokenizer.ggml.merges"] == [" ".join(m) for m in content["model"]["merges"]]
    assert said["tokenizer.ggml.model"] == "gpt2"
    assert said["tokenizer.ggml.add_bos_token"] is begins
    assert said["tokenizer.ggml.add_eos_token"] is False
    named = [said[f"tokenizer.ggml.{n}_token_id"] for n in ("bos", "eos", "padding")]
    assert named == [1 if begins else 2, 2, 3]


@pytest.mark.parametrize("name", list(tokenizer_kinds.SPLITS))
def test_ways_of_splitting_text_by_llama_cpps_name(tmp_path, name):
    tokenizer = load_tokenizer(tokenizer_kinds.make_split(name, tmp_path / "tok"))
    found = of_tokenizer(tokenizer, tokenizer.vocab_size)
    assert found.keys["pre"] == tokenizer_kinds.SPLITS[name][2]


def test_bytes_need_no_way_of_splitting(write):
    file, *_ = write("bytes")
    said = keys_of(file)
    assert len(said["tokenizer.ggml.merges"]) == 1  # of no text: a list may not be empty
    assert said["tokenizer.ggml.tokens"][:4] == ["<pad>", "</s>", "<unk>", "Ā"]


def edited(folder: Path, edit) -> Path:
    content = json.loads((folder / "tokenizer.json").read_text())
    edit(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def _prefix(content):
    content["pre_tokenizer"]["add_prefix_space"] = True


def _whole_words(content):
    content["model"]["ignore_merges"] = True


def _normalizer(content):
    content["normalizer"] = {"type": "NFC"}


def _pattern(content):
    cut = {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False}
    last = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    last |= {"trim_offsets": True}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [cut, last]}


def _no_byte(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["zz"] = vocabulary.pop("Ā")
    content["model"]["merges"] = []


REFUSED = {
    "a Unigram model": ("t5", None),
    "a WordPiece model": ("bert", None),
    "BPE that is not byte-level, or puts a space in front": ("ours", _prefix),
    "text split by": ("ours", _whole_words),
    "the normalizer NFC": ("ours", _normalizer),
    r"text split by '\\\\w\+'": ("ours", _pattern),
    "byte-level BPE without a token for each byte": ("ours", _no_byte),
    "the added token '<|user|>', which takes in": ("added", None),
}


@pytest.mark.parametrize("why", list(REFUSED))
def test_tokenizers_that_llama_cpp_does_not_have(tmp_path, why):
    kind, edit = REFUSED[why]
    folder = tokenizer_kinds.make(kind, tmp_path / "tok")
    tokenizer = load_tokenizer(edited(folder, edit) if edit else folder)
    with pytest.raises(
        UsageError, match=f"--gguf: no file for llama.cpp is made of {why}"
    ) as error:
        of_tokenizer(tokenizer, tokenizer.vocab_size)
    assert "--gguf-ids" in str(error.value) and "\n" not in str(error.value)


def test_a_file_for_token_ids_alone(write):
    file, _, config, _ = write(None)
    said = keys_of(file)
    tokenised = {n: v for n, v in said.items() if n.startswith("tokenizer.")}
    assert tokenised == {"tokenizer.ggml.model": "none"}
    assert said["qwen2moe.vocab_size"] == config.model.vocab_size


def test_nothing_is_overwritten_or_left_half_written(write, tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_text("mine")
    with pytest.raises(UsageError, match="is there already; give a new file"):
        write()
    assert (tmp_path / "model.gguf").read_text() == "mine"
    monkeypatch.setattr(
        "emo_jax.hf.gguf_export.write_at", lambda *_: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(EmoError, match=r"other\.gguf: cannot be written: full"):
        write(name="other.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]


def test_a_model_that_llama_cpp_does_not_have(write):
    with pytest.raises(UsageError, match=r"heads × head_dim equal to the width.*--output"):
        write(head_dim=16)
    with pytest.raises(UsageError, match=r"small has moe.normalize_picks; export it with --output"):
        write(normalize_picks=True)


@pytest.mark.parametrize("type_name", ["float16", "q8_0"])
def test_a_number_that_a_type_does_not_hold(make_model, tmp_path, type_name):
    params, config = make_model()
    params["lm_head"]["kernel"][3, 5] = 1e8
    with pytest.raises(
        HfFormatError, match=r"output\.weight: 100000000\.0 is.* --gguf-type bfloat16"
    ):
        export_gguf(
            TreeSource(flatten(params)),
            config,
            tmp_path / "m.gguf",
            tokenizer=None,
            type_name=type_name,
        )
    assert not list(tmp_path.iterdir())


def test_the_package_is_asked_for(write, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "gguf" else found(n))
    with pytest.raises(UsageError, match=r"pip install 'emo-jax\[gguf\]'"):
        write()


def test_the_command(finished_run, tmp_path, capsys):
    """Of a run, of a Hugging Face folder, and with it; of ids alone."""
    run, hf = str(finished_run), tmp_path / "hf"
    one, both, again = (tmp_path / f"{name}.gguf" for name in ("one", "both", "again"))
    assert runs.emo_here("export", run, "--gguf", one) == 0
    assert f"{one}: float32, 0.00 GB" in capsys.readouterr().out
    assert runs.emo_here("export", run, "--output", hf, "--gguf", both) == 0
    assert (hf / "config.json").is_file() and both.read_bytes() == one.read_bytes()
    assert runs.emo_here("export", hf, "--gguf", again) == 0
    assert again.read_bytes() == one.read_bytes()
    ids = tmp_path / "ids.gguf"
    argv = ("--gguf", ids, "--gguf-ids", "--gguf-type", "q8_0")
    assert runs.emo_here("export", hf, *argv) == 0
    said = keys_of(ids)
    assert (said["tokenizer.ggml.model"], said["general.file_type"]) == ("none", 7)
    capsys.readouterr()
    assert runs.emo_here("export", run, "--gguf", one) == 2
    assert "one.gguf: is there already" in capsys.readouterr().err
    assert runs.emo_here("export", run, "--gguf", ids.with_name("l"), "--layout", "emo") == 2
    assert "--layout: is of --output" in capsys.readouterr().err


def test_what_cannot_be_one_file_makes_no_folder_either(
    finished_run, tmp_path, monkeypatch, capsys
):
    argv = ("export", str(finished_run), "--output", tmp_path / "hf", "--gguf")
    assert runs.emo_here(*argv, tmp_path / "hf") == 2
    assert "is --output too" in capsys.readouterr().err

    def none(tokenizer, size):
        raise UsageError("--gguf: none")

    monkeypatch.setattr("emo_jax.hf.gguf_export.of_tokenizer", none)
    assert runs.emo_here(*argv, tmp_path / "m.gguf") == 2
    assert "--gguf: none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_tokenizer(make_model, tmp_path, capsys):
    params, config = make_model(vocab=400)
    hf = export_model(params, config, tmp_path / "hf")
    file = tmp_path / "m.gguf"
    assert runs.emo_here("export", hf, "--gguf", file) == 2
    line = capsys.readouterr().err
    assert "no tokenizer.json with" in line and "--gguf-ids" in line
    folder = tokenizer_kinds.make("ours", tmp_path / "tok")
    assert runs.emo_here("export", hf, "--gguf", file, "--tokenizer", folder) == 0
    assert keys_of(file)["tokenizer.ggml.pre"] == "trillion"

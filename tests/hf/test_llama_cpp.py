"""GGUF files in llama.cpp: the logits and tokens of emo, and the ids of the training.

`slow`: llama-cpp-python has no wheel on PyPI, and building it takes a core a quarter of an hour.
EMO_LLAMA_PYTHON names a Python that has it; else an environment is made:

pytest -m slow tests/hf/test_llama_cpp.py
"""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import runs
import tokenizer_kinds
from test_transformers import our_logits

from emo_jax.files.trees import flatten
from emo_jax.generation.decode import Generator
from emo_jax.hf.gguf_export import TYPES, export_gguf
from emo_jax.hf.sources import TreeSource
from emo_jax.model.functions import ModelFunctions
from emo_jax.tokenizer.load import load_tokenizer

pytestmark = pytest.mark.slow

PACKAGE = "llama-cpp-python==0.3.36"
NEW = 16
TOLERANCE = 2e-5  # float32 weights and cache; 1.4e-6 was seen
SHAPES = {
    "one shared": {"shared": 1},
    "none shared": {"shared": 0},
    "three shared": {"shared": 3},
    "all picked": {"shared": 1, "routed": 3},
    "dense": {"dense": True},
    "dense, wide heads": {"dense": True, "head_dim": 16},
    "dense, grouped": {"dense": True, "kv_heads": 2},
    "Mixtral": {"fits": "mixtral", "kv_heads": 2},
}
TEXTS = [*tokenizer_kinds.texts(), *tokenizer_kinds.mixed_texts(500)]
# llama.cpp's detokenizer takes the space from before .,?! for these, whatever a file says.
CLEANED = ("cl100k", "tiktoken", "llama3")


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> str:
    """A Python with llama-cpp-python."""
    if "EMO_LLAMA_PYTHON" in os.environ:
        return os.environ["EMO_LLAMA_PYTHON"]
    folder = tmp_path_factory.mktemp("llama")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    built = {**os.environ, "CMAKE_ARGS": "-DGGML_NATIVE=OFF"}
    pip = [str(folder / "bin/pip"), "install", "--quiet", PACKAGE]
    subprocess.run(pip, env=built, check=True)
    return str(folder / "bin/python")


@pytest.fixture
def run(python, tmp_path):
    """What tests/peers/llama_cpp_run.py answers."""

    def ask(request: dict) -> dict:
        (tmp_path / "request.json").write_text(json.dumps(request))
        script = runs.REPO / "tests/peers/llama_cpp_run.py"
        done = subprocess.run(
            [python, str(script), str(tmp_path / "request.json"), str(tmp_path / "answer.json")],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((tmp_path / "answer.json").read_text())

    return ask


def test_logits_and_greedy_tokens(make_model, tmp_path, run):
    request, models = {}, {}
    for name, shape in SHAPES.items():
        params, config = make_model(**shape)
        mlp = params["layers"]["mlp"]
        mlp.get("experts", mlp)["down"] *= 3  # so that a wrong expert shows in the logits
        file = tmp_path / f"{name}.gguf"
        export_gguf(TreeSource(flatten(params)), config, file, tokenizer=None)
        ids = np.random.default_rng(1).integers(0, config.model.vocab_size, (2, 24))
        request[name] = {"file": str(file), "ids": ids.tolist(), "new": NEW}
        models[name] = params, config, ids
    answer = run(request)
    for name, (params, config, ids) in models.items():
        ours, theirs = our_logits(params, config, ids), np.asarray(answer[name]["logits"])
        worst = float(np.abs(theirs - ours).max())
        print(f"{name}: largest logit difference {worst:.1e}, logits to {np.abs(ours).max():.1f}")
        assert worst < TOLERANCE, name  # NaN is not below it either
        rows = Generator(ModelFunctions(config), params, -1).generate(ids.tolist(), NEW)
        assert answer[name]["new"] == [row.tokens for row in rows], name


def test_smaller_types(make_model, tmp_path, run):
    """llama.cpp rounds what it multiplies them with, too: near, and nearer than other models."""
    params, config = make_model(dense=True)
    ids = np.random.default_rng(1).integers(0, config.model.vocab_size, (2, 24))
    request = {}
    for kind in TYPES:
        file = tmp_path / f"{kind}.gguf"
        export_gguf(TreeSource(flatten(params)), config, file, tokenizer=None, type_name=kind)
        request[kind] = {"file": str(file), "ids": ids.tolist()}
    answer, ours = run(request), our_logits(params, config, ids)
    within = {"float32": TOLERANCE, "float16": 0.01, "bfloat16": 0.06, "q8_0": 0.15}
    for kind, limit in within.items():
        worst = float(np.abs(np.asarray(answer[kind]["logits"]) - ours).max())
        print(f"{kind}: largest logit difference {worst:.1e}, logits to {np.abs(ours).max():.1f}")
        assert worst < limit, kind


def test_ids_of_texts_are_those_of_the_training(make_model, tmp_path, run):
    sources = {name: tokenizer_kinds.make_split for name in tokenizer_kinds.SPLITS}
    sources |= {name: tokenizer_kinds.make for name in ("ours", "bytes", "llama", "old merges")}
    request, tokenizers = {}, {}
    for name, make in sources.items():
        tokenizer = load_tokenizer(make(name, tmp_path / "tokenizers" / name))
        tokenizer.adds_bos = name == "llama"
        params, config = make_model(vocab=tokenizer.vocab_size + 2)
        file = export_gguf(
            TreeSource(flatten(params)), config, tmp_path / f"{name}.gguf", tokenizer=tokenizer
        )
        request[name] = {"file": str(file), "texts": TEXTS}
        tokenizers[name] = tokenizer
    answer = run(request)
    for name, tokenizer in tokenizers.items():
        first = [] if tokenizer.first_id is None else [tokenizer.first_id]
        expected = [[*first, *ids.tolist()] for ids in tokenizer.encode_batch(TEXTS)]
        assert not tokenizer_kinds.differing(TEXTS, answer[name]["ids"], expected), name
        begin = tokenizer.bos_token if first else ""
        if name not in CLEANED:
            again = [begin + text for text in TEXTS]
            assert not tokenizer_kinds.differing(TEXTS, answer[name]["again"], again), name
    by_split = [answer[name]["ids"] for name in ("gpt2", "cl100k", "qwen2", "digits")]
    assert all(a != b for a, b in itertools.pairwise(by_split))  # the texts tell

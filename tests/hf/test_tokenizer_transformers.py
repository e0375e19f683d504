"""Exported tokenizers in transformers itself, the newest and 4.57: the ids of the training.

Needs torch and transformers (CI installs them before `-m system`).
"""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest
import runs
import tokenizer_kinds
from test_tokenizer_files import CASES, TEXTS, read, trained_on

from emo_jax.generation.decode import Generator
from emo_jax.hf import export_model, tokenizer_files
from emo_jax.model.functions import ModelFunctions
from emo_jax.saved.load import load_model
from emo_jax.tokenizer.load import load_tokenizer

pytestmark = pytest.mark.system

# What it needs beside what the newest version, and torch, have installed.
OLD = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface-hub==0.36.2")
GENERATE = ("ours False", "llama True", "t5 True")


@pytest.fixture(scope="module", params=["newest", "4.57"])
def version(request, tmp_path_factory) -> dict[str, str]:
    """The environment in which `import transformers` gives this version."""
    if request.param == "newest":
        return {}
    folder = tmp_path_factory.mktemp("transformers")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, *OLD], check=True)
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def answer(version, make_model, tmp_path_factory):
    """What transformers says of an export of each kind, and those."""
    base = tmp_path_factory.mktemp("exported")
    sources, folders = {}, {}
    for kind, begins in CASES:
        if kind not in sources:
            sources[kind] = tokenizer_kinds.make(kind, base / "sources" / kind)
        name = f"{kind} {begins}"
        params, config = make_model(vocab=load_tokenizer(sources[kind]).vocab_size)
        options = {"tokenizer_dir": sources[kind], "adds_bos": begins}
        folders[name] = export_model(params, config, base / "exports" / name, **options)
    request = {
        "folders": {name: str(folder) for name, folder in folders.items()},
        "texts": TEXTS,
        "generate": GENERATE,
        "save": str(base / "saved"),
    }
    (base / "request.json").write_text(json.dumps(request))
    script = runs.REPO / "tests/peers/transformers_ids.py"
    done = subprocess.run(
        [sys.executable, str(script), str(base / "request.json"), str(base / "answer.json")],
        env={**os.environ, **version, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((base / "answer.json").read_text())
    expected = "4.57.6" if version else importlib.metadata.version("transformers")
    assert found["version"] == expected
    return found["folders"], sources, folders, base / "saved"


@pytest.mark.parametrize("kind,begins", CASES)
def test_ids_are_those_of_the_training(answer, kind, begins):
    found, sources, folders, _ = answer
    said, expected = found[f"{kind} {begins}"], trained_on(sources[kind], begins)
    for how in ("one", "encode", "batch"):
        assert not tokenizer_kinds.differing(TEXTS, said[how], expected), how
    assert said["keys"] == ["attention_mask", "input_ids"]
    config = read(folders[f"{kind} {begins}"], "config.json")
    assert said["ids"] == [config[f"{name}_token_id"] for name in ("bos", "eos", "pad")]
    assert said["size"] <= config["vocab_size"]


@pytest.mark.parametrize("name", GENERATE)
def test_the_first_thing_anybody_types(answer, name):
    """model.generate(**tokenizer(text, return_tensors="pt")), and the tokens of emo generate."""
    found, _, folders, _ = answer
    ours = load_model(str(folders[name]))
    first = [] if ours.tokenizer.first_id is None else [ours.tokenizer.first_id]
    prompt = [*first, *ours.tokenizer.encode_batch(["The court"])[0].tolist()]
    (row,) = Generator(ModelFunctions(ours.config), ours.params, -1).generate([prompt], 3)
    assert found[name]["new"] == row.tokens


# Of "plain pad" <s> is in the vocabulary only, and transformers makes an added token of it.
@pytest.mark.parametrize("kind,begins", [case for case in CASES if case != ("plain pad", True)])
def test_saved_again_by_transformers_it_is_the_same(answer, kind, begins):
    """`emo import` of such a folder, then `emo eval --data STORE`."""
    _, sources, folders, saved = answer
    name = f"{kind} {begins}"
    config = (folders[name] / "config.json").read_text()
    (saved / name / "config.json").write_text(config)  # a model that is saved keeps these fields
    again, before = tokenizer_files.load(saved / name), load_tokenizer(sources[kind])
    assert again.fingerprint == before.fingerprint
    assert again.first_id == (before.bos_id if begins else None)

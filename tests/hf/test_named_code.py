"""Code that files of a Hugging Face folder name goes into no workdir, export or repository."""

import json

import pytest

from emo_jax.errors import HfFormatError
from emo_jax.hf import export_model
from emo_jax.hf.named_code import naming_code
from emo_jax.hf.push import push_folder
from emo_jax.saved.transfer import export, import_
from emo_jax.tokenizer.load import byte_tokenizer

CODE = {
    "auto_map": {"AutoTokenizer": ["someone/else--tokenization.Run", None]},
    "trust_remote_code": True,
    "tokenizer_class": "someone/else--Run",
}


@pytest.fixture
def folder(make_model, tmp_path):
    params, config = make_model(vocab=300)
    byte_tokenizer().save(tmp_path / "tokenizer")
    return export_model(params, config, tmp_path / "hf", tokenizer_dir=tmp_path / "tokenizer")


def change(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def names_none(folder):
    for file in folder.rglob("*.json"):
        text = file.read_text()
        assert "auto_map" not in text and "someone" not in text and "remote" not in text, file


def test_an_import_leaves_it_out_and_says_so(folder, tmp_path, caplog):
    for name in ("config.json", "tokenizer_config.json"):
        change(folder / name, **CODE)
    import_(folder, tmp_path / "run")
    for name in ("config.json", "tokenizer_config.json"):
        said = "names code, which is left out: auto_map, trust_remote_code, tokenizer_class"
        assert f"{folder / name}: {said}" in caplog.text
    export(tmp_path / "run", tmp_path / "again")
    assert (tmp_path / "again/tokenizer.json").exists()
    for made in ("run", "again"):
        names_none(tmp_path / made)


def test_an_export_with_the_tokenizer_of_somebody_else_leaves_it_out(folder, make_model, tmp_path):
    change(folder / "tokenizer_config.json", **CODE)
    params, config = make_model(vocab=300)
    names_none(export_model(params, config, tmp_path / "again", tokenizer_dir=folder))


@pytest.mark.parametrize("broken", [False, True])
def test_a_tokenizer_that_is_kept_to_be_mended(folder, tmp_path, caplog, broken):
    """One that names an end that it does not have; or whose settings others read, and not we."""
    change(folder / "tokenizer_config.json", **CODE, eos_token="\ud800" if broken else "<none>")
    import_(folder, tmp_path / "run")
    assert "the tokenizer is kept as it is, to be mended" in caplog.text
    kept = tmp_path / "run/tokenizer"
    assert (kept / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    names_none(tmp_path / "run")
    if not broken:
        assert json.loads((kept / "tokenizer_config.json").read_text())["eos_token"] == "<none>"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_folder_that_names_it_is_not_pushed(folder, monkeypatch, name):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    change(folder / name, auto_map={"AutoModelForCausalLM": "modeling.Run"})
    with pytest.raises(HfFormatError) as refused:
        push_folder(folder, "someone/tiny")
    said = str(refused.value)
    assert said.startswith(f"{folder / name}: names code (auto_map)") and "\n" not in said


def test_a_folder_of_which_a_file_cannot_be_read_is_not_pushed(folder, monkeypatch):
    """By us: others may read it, and what it names."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    change(folder / "tokenizer_config.json", **CODE, eos_token="\ud800")
    with pytest.raises(HfFormatError, match="half of a surrogate pair"):
        push_folder(folder, "someone/tiny")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tokenizer_class": "PreTrainedTokenizerFast", "auto_map": None}, []),
        ({"trust_remote_code": False, "auto_map": {}}, []),
        ({"tokenizer_class": ["LlamaTokenizer", None], "model_type": "qwen2_moe"}, []),
        ({"auto_map": ["a.B", None]}, ["auto_map"]),
        ({"custom_pipelines": {"x": {"impl": "a.B"}}}, ["custom_pipelines"]),
        ({"custom_generate": "a/b"}, ["custom_generate"]),
        ({"tokenizer_class": "module.Class"}, ["tokenizer_class"]),
        ({"processor_class": "a--b/c"}, ["processor_class"]),
    ],
)
def test_what_names_code(fields, named):
    assert naming_code(fields) == named

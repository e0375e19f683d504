"""The tokenizer of an exported folder gives the ids that the model was trained on.

Here with the tokenizers library alone; in transformers: test_tokenizer_transformers.py.
"""

import json
import shutil
from pathlib import Path

import pytest
import tokenizer_kinds
from tokenizers import Tokenizer

from emo_jax.errors import DataError, UsageError
from emo_jax.hf import export_model, tokenizer_files
from emo_jax.saved import transfer
from emo_jax.saved.load import load_model
from emo_jax.tokenizer.load import load_tokenizer

TEXTS = tokenizer_kinds.texts()
CASES = [
    (kind, begins)
    for kind in tokenizer_kinds.KINDS
    for begins in ((False, True) if tokenizer_kinds.has_begin(kind) else (False,))
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """A folder of each kind of tokenizer, as its library saves it."""
    base = tmp_path_factory.mktemp("tokenizers")
    return {kind: tokenizer_kinds.make(kind, base / kind) for kind in tokenizer_kinds.KINDS}


@pytest.fixture
def export(make_model, tmp_path):
    """Exports a small model with a tokenizer; documents began with a token, or did not."""

    def make(source: Path, begins: bool | None, name="hf", **options) -> Path:
        params, config = make_model(vocab=load_tokenizer(source).vocab_size)
        return export_model(
            params, config, tmp_path / name, tokenizer_dir=source, adds_bos=begins, **options
        )

    return make


def trained_on(source: Path, begins: bool) -> list[list[int]]:
    """Ids of `TEXTS` as `emo prepare` makes them, without the end of a document."""
    tokenizer = load_tokenizer(source)
    first = [tokenizer.bos_id] if begins else []
    return [[*first, *ids.tolist()] for ids in tokenizer.encode_batch(TEXTS)]


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind,begins", CASES)
def test_ids_are_those_of_the_training(sources, export, kind, begins):
    source = sources[kind]
    folder, trained = export(source, begins), load_tokenizer(source)
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    settings = read(folder, "tokenizer_config.json")
    theirs.encode_special_tokens = settings["split_special_tokens"]
    found = [encoded.ids for encoded in theirs.encode_batch(TEXTS)]
    assert not tokenizer_kinds.differing(TEXTS, found, trained_on(source, begins))
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert settings["model_max_length"] == 48
    assert settings["eos_token"] == trained.eos_token
    assert settings.get("bos_token") == (trained.bos_token if begins else None)
    for name in ("config.json", "generation_config.json"):
        said = read(folder, name)
        assert said.get("bos_token_id") == (trained.bos_id if begins else None)
        pad_id = trained.eos_id if kind == "plain pad" else trained.pad_id
        assert (said["eos_token_id"], said["pad_token_id"]) == (trained.eos_id, pad_id)


@pytest.mark.parametrize(
    "kind,begins",
    [("ours", False), ("llama", True), ("t5", False), ("added", False), ("plain pad", True)],
)
def test_an_import_knows_the_tokenizer_and_exports_it_alike(
    sources, export, tmp_path, kind, begins
):
    folder, trained = export(sources[kind], begins), load_tokenizer(sources[kind])
    transfer.import_(folder, tmp_path / "run")
    kept = load_tokenizer(tmp_path / "run/tokenizer")
    for again in (kept, load_model(str(folder)).tokenizer):
        assert again.fingerprint == trained.fingerprint
        assert again.adds_bos == begins
        assert (again.first_id, again.eos_id) == (
            trained.bos_id if begins else None,
            trained.eos_id,
        )
    second, _ = transfer.export(tmp_path / "run", tmp_path / "again")
    for name in (*tokenizer_files.WRITTEN, "generation_config.json"):
        assert (second / name).read_bytes() == (folder / name).read_bytes(), name


def test_different_tokenizers_have_different_fingerprints(sources):
    found = {load_tokenizer(folder).fingerprint for folder in sources.values()}
    # Merges in the old way of writing, and what is around a text, make no other ids.
    same = {load_tokenizer(sources[kind]).fingerprint for kind in ("llama", "old merges")}
    assert len(same) == 1 and len(found) == len(sources) - 1


@pytest.mark.parametrize("kind", ["llama", "t5", "added"])
def test_a_change_of_the_ids_changes_the_fingerprint(sources, tmp_path, kind):
    folder = shutil.copytree(sources[kind], tmp_path / "tok")
    before = load_tokenizer(folder).fingerprint
    content = read(folder, "tokenizer.json")
    if kind == "llama":
        content["model"]["merges"].pop()
    elif kind == "t5":
        content["model"]["vocab"][-1][1] -= 1.0
    else:
        content["added_tokens"][-1]["lstrip"] = True
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(folder).fingerprint != before


@pytest.mark.parametrize("kind,begins", [("llama", True), ("roberta", True), ("t5", False)])
def test_a_folder_of_others_begins_as_its_post_processor_does(
    sources, export, tmp_path, kind, begins
):
    """Where nothing else says it: hub folders, and what transformers 5 saves."""
    folder = export(sources[kind], False)
    shutil.copytree(sources[kind], folder, dirs_exist_ok=True)
    said = read(folder, "config.json")
    del said["emo_jax"]
    (folder / "config.json").write_text(json.dumps(said))
    transfer.import_(folder, tmp_path / "run")
    assert load_tokenizer(tmp_path / "run/tokenizer").adds_bos == begins
    assert load_model(str(folder)).tokenizer.adds_bos == begins
    settings = read(folder, "tokenizer_config.json")
    for stated in (True, False):
        (folder / "tokenizer_config.json").write_text(
            json.dumps(settings | {"add_bos_token": stated})
        )
        assert tokenizer_files.load(folder).adds_bos == stated


def test_a_begin_that_only_the_post_processor_names(sources, tmp_path):
    folder = shutil.copytree(sources["llama"], tmp_path / "tok")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    assert load_tokenizer(folder).bos_id is None
    found = tokenizer_files.load(folder)
    assert (found.bos_id, found.bos_token, found.first_id) == (1, "<s>", 1)


def test_exports_of_earlier_versions_are_read_as_their_store_was(sources, export, tmp_path):
    """They copied the files: a post-processor there says nothing of the training."""
    folder = export(sources["llama"], False)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(sources["llama"] / name, folder / name)
    assert load_model(str(folder)).tokenizer.adds_bos is False
    transfer.import_(folder, tmp_path / "run")
    second, _ = transfer.export(tmp_path / "run", tmp_path / "again")
    theirs = Tokenizer.from_file(str(second / "tokenizer.json"))
    assert (
        theirs.encode("The court").ids
        == trained_on(sources["llama"], False)[TEXTS.index("The court")]
    )


def test_a_chat_template_and_the_space_of_a_prefix_are_kept(sources, export):
    folder = export(sources["added"], False)
    settings = read(folder, "tokenizer_config.json")
    assert settings["chat_template"] == "{{ messages }}"
    assert not {"additional_special_tokens", "added_tokens_decoder", "cls_token"} & settings.keys()
    assert settings["add_prefix_space"] is False
    folder = export(sources["roberta"], False, "prefix")
    assert read(folder, "tokenizer_config.json")["add_prefix_space"] is True
    (sources["llama"] / "chat_template.jinja").write_text("{{ messages }}")
    folder = export(sources["llama"], False, "file")
    assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"


def test_a_tokenizer_json_alone_is_enough(sources, export, tmp_path):
    (tmp_path / "tok").mkdir()
    shutil.copyfile(sources["llama"] / "tokenizer.json", tmp_path / "tok/tokenizer.json")
    folder = export(tmp_path / "tok", False)
    assert read(folder, "generation_config.json") == {"eos_token_id": 2, "pad_token_id": 3}
    folder = export(tmp_path / "tok", False, "by id", eos_token_id=1)
    assert read(folder, "tokenizer_config.json")["eos_token"] == "<s>"
    assert read(folder, "generation_config.json") == {"eos_token_id": 1, "pad_token_id": 3}
    assert not (folder / "notes.txt").exists()


def test_what_is_no_tokenizer_of_the_model_is_refused(make_model, sources, tmp_path):
    params, config = make_model(vocab=300)
    with pytest.raises(UsageError, match="has id 399, but the model ends at 299"):
        export_model(params, config, tmp_path / "out", tokenizer_dir=sources["ours"])
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match=r"has no tokenizer\.json"):
        export_model(params, config, tmp_path / "out", tokenizer_dir=tmp_path / "none")
    (tmp_path / "none/tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        export_model(params, config, tmp_path / "out", tokenizer_dir=tmp_path / "none")
    assert not (tmp_path / "out").exists()

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from real_text import texts, train_sentencepiece
from tokenizers import Tokenizer

from emo_jax.data.store import TokenStore
from emo_jax.errors import DataError, UsageError
from emo_jax.preparation.prepare import prepare
from emo_jax.tokenizer import sentencepiece_model
from emo_jax.tokenizer.json_tokenizer import JsonTokenizer
from emo_jax.tokenizer.load import has_tokenizer, load_tokenizer
from emo_jax.tokenizer.sentencepiece_model import PROBES
from emo_jax.tokenizer.vocabularies import KeptTokenizer

QUOTED = "a </s> b <s> <unk> <0x41> c"


def shipped_model() -> Path:
    """A model that comes with seqio: 26 pieces, unigram, nmt_nfkc, with pad 0 and end 1."""
    import seqio

    return Path(seqio.__file__).parent / "test_data/sentencepiece/sentencepiece.model"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Models of every sort that a tokenizer.json can stand for, and one that none can."""
    folder = tmp_path_factory.mktemp("models")
    train_sentencepiece(folder / "bpe.model", user_defined_symbols=["\n\n", "<sep>"])
    train_sentencepiece(folder / "plain.model", byte_fallback=False, vocab_size=300)
    nfkc = {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}
    train_sentencepiece(folder / "nfkc.model", **nfkc)
    train_sentencepiece(folder / "no_prefix.model", add_dummy_prefix=False)
    # The normalizer makes a space of "\n" where it is not a symbol of the user's.
    kept = {"model_type": "unigram", "user_defined_symbols": ["\n\n"], "eos_id": 1, "pad_id": 3}
    train_sentencepiece(folder / "kept.model", **kept, **nfkc, bos_id=-1, byte_fallback=False)
    return folder


def theirs(path: Path, batch: list[str]) -> list[list[int]]:
    return [sentencepiece_model.load_processor(path.read_bytes(), "").EncodeAsIds(t) for t in batch]


@pytest.mark.parametrize("name", ["bpe", "plain", "nfkc", "no_prefix"])
def test_converted_where_the_ids_are_equal(models, tmp_path, name):
    path = models / f"{name}.model"
    found = load_tokenizer(path, sample=texts)
    assert isinstance(found, JsonTokenizer) and not found.notes
    assert (found.eos_id, found.bos_id, found.eos_token) == (2, 1, "</s>")
    found.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == found.fingerprint and again.bos_id == 1
    batch = [*texts(), *PROBES, "\n\nx<sep>y\n\n\n", "  "]
    for tokenizer in (found, again):
        assert [ids.tolist() for ids in tokenizer.encode_batch(batch)] == theirs(path, batch)
        ids = tokenizer.encode_batch([QUOTED])[0]
        assert not np.isin(ids, [0, 1, 2] if name != "plain" else [1, 2]).any()
    if name in ("bpe", "no_prefix"):  # the others are lossy
        for text in (t for t in batch if "▁" not in t):
            assert found.decode(found.encode_batch([text])[0]) == text


def test_the_model_that_seqio_ships():
    found = load_tokenizer(shipped_model(), sample=texts)
    assert isinstance(found, JsonTokenizer)
    assert (found.vocab_size, found.eos_id, found.pad_id) == (26, 1, 0)
    assert not np.isin(found.encode_batch([QUOTED])[0], [0, 1]).any()
    library = Tokenizer.from_str(sentencepiece_model.convert(shipped_model().read_bytes()))
    library.encode_special_tokens = True
    assert not np.isin(library.encode("a </s> <pad>").ids, [0, 1]).any()


def test_kept_where_the_ids_differ(models, tmp_path):
    path = models / "kept.model"
    found = load_tokenizer(path, sample=texts)
    assert isinstance(found, KeptTokenizer)
    assert (
        "kept as a SentencePiece model (no tokenizer.json can stand for it: its" in found.notes[0]
    )
    assert [i.tolist() for i in found.encode_batch(texts())] == theirs(path, texts())
    assert not has_tokenizer(tmp_path / "tokenizer")
    found.save(tmp_path / "tokenizer")
    assert has_tokenizer(tmp_path / "tokenizer")
    again = load_tokenizer(tmp_path / "tokenizer")
    assert again.fingerprint == found.fingerprint
    assert (again.eos_id, again.pad_id, again.bos_id, again.vocab_size) == (1, 3, None, 600)
    ids = again.encode_batch(["two words"])[0]
    assert again.decode([*ids, again.eos_id, again.pad_id]) == "two words"
    (tmp_path / "tokenizer/tokenizer.model").write_bytes((models / "bpe.model").read_bytes())
    with pytest.raises(DataError, match=r"damaged vocabulary .tokenizer\.model is not the one"):
        load_tokenizer(tmp_path / "tokenizer")


def test_a_sample_decides(models):
    """One text of the user's with other ids is enough, and it is named."""
    path = models / "nfkc.model"
    assert isinstance(load_tokenizer(path), JsonTokenizer)
    rare = "two marks on one letter, as in a\u0308\u0323"
    found = load_tokenizer(path, sample=lambda: ["fine", rare])
    assert isinstance(found, KeptTokenizer)
    assert "other ids, first for" in found.notes[0] and "\u0323" in found.notes[0]


def test_kept_when_asked(models):
    found = load_tokenizer(f"sentencepiece:{models / 'bpe.model'}")
    assert isinstance(found, KeptTokenizer) and "as asked for" in found.notes[0]
    assert found.fingerprint != load_tokenizer(models / "bpe.model").fingerprint


@pytest.mark.parametrize("name", ["bpe", "kept"])
def test_store_and_back(models, corpus, tmp_path, name):
    tokenizer = load_tokenizer(models / f"{name}.model", sample=texts)
    store = prepare([corpus], tmp_path / "s", tokenizer).store
    assert store.tokenizer_fingerprint == tokenizer.fingerprint
    remote = TokenStore.open(f"file://{tmp_path}/s")
    for opened in (store, remote):
        document = opened.documents("train", 0, 1)[0].tokens
        assert document[-1] == tokenizer.eos_id and (document == tokenizer.eos_id).sum() == 1
        text = opened.tokenizer().decode(document)
        assert opened.tokenizer().encode_batch([text])[0].tolist() == document[:-1].tolist()


UNINSTALLED = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("sentencepiece", "seqio", "tensorflow", "pyarrow"):
            raise ImportError(name)
sys.meta_path.insert(0, Gone())
from emo_jax.data.store import TokenStore
from emo_jax.tokenizer.load import has_tokenizer, load_tokenizer
store = TokenStore.open(sys.argv[1])
store.check_tokenizer(store.tokenizer().fingerprint)
store.tokenizer().save(sys.argv[2])
print(load_tokenizer(sys.argv[2]).fingerprint == store.tokenizer_fingerprint)
print(store.documents("train", 0, 1)[0].tokens[-1] == store.tokenizer().eos_id)
"""


def test_training_needs_no_sentencepiece(models, corpus, tmp_path):
    """Reading a store, and keeping its tokenizer in a workdir, loads none of the libraries."""
    prepare([corpus], tmp_path / "s", load_tokenizer(models / "kept.model"))
    done = subprocess.run(
        [sys.executable, "-c", UNINSTALLED, str(tmp_path / "s"), str(tmp_path / "t")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_not_installed(models, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'emo-jax\[prepare\]'"):
        load_tokenizer(models / "bpe.model")


@pytest.mark.parametrize("content", [b"", b"no model", b"\x00" * 99])
def test_not_a_model(tmp_path, content):
    (tmp_path / "a.model").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.model: not a SentencePiece model") as caught:
        load_tokenizer(tmp_path / "a.model")
    assert "\n" not in str(caught.value)


def test_no_end_of_document(tmp_path):
    path = train_sentencepiece(tmp_path / "a.model", eos_id=-1, control_symbols=["<end>"])
    with pytest.raises(DataError, match=r"a\.model: no end-of-document token; give --eos-id"):
        load_tokenizer(path)
    found = load_tokenizer(path, eos_id=2)
    assert (found.eos_id, found.eos_token) == (2, "<end>")
    with pytest.raises(UsageError, match=r"--eos-id 600: .*a\.model has ids 0\.\.599"):
        load_tokenizer(path, eos_id=600)


def test_llama_folder(models, tmp_path):
    """A Hugging Face folder with nothing but a `.model`, its settings and tokens added to it."""
    (tmp_path / "tokenizer.model").write_bytes((models / "bpe.model").read_bytes())
    assert load_tokenizer(tmp_path).eos_token == "</s>"
    settings = {
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": {"content": "<|im_end|>"},
        "pad_token": "<pad>",
        "added_tokens_decoder": {
            "2": {"content": "</s>", "special": True},
            "600": {"content": "<|im_end|>", "special": True},
            "601": {"content": "<pad>", "special": True},
        },
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = load_tokenizer(tmp_path, sample=texts)
    assert isinstance(found, JsonTokenizer)
    assert (found.vocab_size, found.eos_id, found.pad_id, found.bos_id) == (602, 600, 601, 1)
    found.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").eos_id == 600
    settings["added_tokens_decoder"]["605"] = {"content": "<far>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    kept = load_tokenizer(tmp_path)
    assert isinstance(kept, KeptTokenizer) and "without a gap" in kept.notes[0]
    assert (kept.vocab_size, kept.eos_id) == (606, 600)
    settings["eos_token"] = "<none>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match="no token '<none>'"):
        load_tokenizer(tmp_path)

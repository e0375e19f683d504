"""Folders as Hugging Face's libraries write them: their settings must not reach the documents."""

import hashlib
import json

import numpy as np
import pytest
from real_text import texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from emo_jax.data.store import TokenStore
from emo_jax.errors import DataError, UsageError
from emo_jax.preparation.prepare import prepare
from emo_jax.tokenizer.load import byte_tokenizer, load_tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def save(folder, tokenizer, config=None, added=()):
    tokenizer.add_tokens(list(added))
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def template(tokenizer):
    """What `add_bos_token` and `add_eos_token` become in a tokenizer.json."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def llama():
    """Byte-level BPE that adds a begin and an end of its own."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(3), trainer)
    return template(tokenizer).to_str()


@pytest.fixture(scope="module")
def t5():
    """A unigram model, which finds the names of special tokens as if they were words."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts(3), trainer)
    return template(tokenizer).to_str()


CONFIG = {
    "add_bos_token": True,
    "add_eos_token": True,
    "bos_token": {"__type": "AddedToken", "content": "<s>"},
    "eos_token": {"content": "</s>", "special": True},
    "pad_token": "<pad>",
}


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_one_end_and_no_beginning_unless_asked(request, corpus, tmp_path, kind):
    folder = save(tmp_path / "tok", Tokenizer.from_str(request.getfixturevalue(kind)), CONFIG)
    lines = corpus.read_text().splitlines()
    quoted = {"text": "quoted <s> twice </s></s> here <pad>", "id": "quoted", "domain": "law"}
    corpus = tmp_path / "a.jsonl"
    corpus.write_text("\n".join([*lines, json.dumps(quoted)]) + "\n")
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id) == (2, 3, 1)
    found = {}
    for add_bos in (False, True):
        name = tmp_path / f"store-{add_bos}"
        prepare([corpus], name, tokenizer, add_bos=add_bos, fractions=(1, 0, 0))
        store = TokenStore.open(name)
        documents = [d.tokens for d in store.documents("train", 0, 10**6)]
        assert len(documents) == 601
        assert all((d == 2).sum() == 1 and d[-1] == 2 for d in documents)
        assert not any((d == 3).any() for d in documents)
        assert store.count("train") == sum(map(len, documents))
        assert store.manifest.get("bos_id") == (1 if add_bos else None)
        assert store.tokenizer().bos_id == 1
        store.tokenizer().save(tmp_path / f"kept-{add_bos}")
        remote = TokenStore.open(f"file://{name}").tokenizer()
        for kept in (store.tokenizer(), remote, load_tokenizer(tmp_path / f"kept-{add_bos}")):
            assert kept.adds_bos == add_bos  # what `emo generate` does with a prompt
        found[add_bos] = documents
    for plain, begun in zip(found[False], found[True], strict=True):
        assert not (plain == 1).any()
        np.testing.assert_array_equal(begun, [1, *plain])


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_names_of_special_tokens_in_a_text(request, tmp_path, kind):
    folder = save(tmp_path / "tok", Tokenizer.from_str(request.getfixturevalue(kind)), CONFIG)
    tokenizer = load_tokenizer(folder)
    for text in ("a </s> b", "</s>", "<s></s><pad></s>"):
        ids = tokenizer.encode_batch([text])[0]
        assert not np.isin(ids, [1, 2, 3]).any()
        if kind == "llama":
            assert tokenizer.decode(ids) == text


def test_other_texts_have_the_ids_of_the_library(t5, tmp_path):
    library = Tokenizer.from_str(t5)
    tokenizer = load_tokenizer(save(tmp_path / "tok", library, CONFIG))
    for text, ids in zip(texts(3), tokenizer.encode_batch(texts(3)), strict=True):
        assert ids.tolist() == library.encode(text, add_special_tokens=False).ids


def test_added_tokens_count(llama, tmp_path):
    folder = save(tmp_path / "tok", Tokenizer.from_str(llama), CONFIG, ["<|user|>", "<|bot|>"])
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocab_size == 402
    assert tokenizer.encode_batch(["a<|user|>b"])[0].max() == 400  # not special: found in a text


def test_end_of_document_by_id(llama, tmp_path):
    folder = save(tmp_path / "tok", Tokenizer.from_str(llama))
    assert load_tokenizer(folder).eos_id == 2  # a usual name
    assert load_tokenizer(folder, eos_id=3).eos_token == "<pad>"
    for none in (400, -1):
        with pytest.raises(UsageError, match=rf"--eos-id {none}: .*tokenizer\.json has no such id"):
            load_tokenizer(folder, eos_id=none)
    with pytest.raises(DataError, match="becomes the end-of-document id"):
        load_tokenizer(folder, eos_id=100)
    renamed = llama.replace("</s>", "<over>")
    (folder / "tokenizer.json").write_text(renamed)
    with pytest.raises(DataError, match=r"no end-of-document token; .* or give --eos-id"):
        load_tokenizer(folder)
    found = load_tokenizer(folder, eos_id=2)
    found.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").eos_token == "<over>"


def test_no_beginning_to_add(corpus, tmp_path):
    with pytest.raises(UsageError, match="--add-bos: the tokenizer names no beginning"):
        prepare([corpus], tmp_path / "s", byte_tokenizer(), add_bos=True)


def test_settings_that_are_not_json(llama, tmp_path):
    folder = save(tmp_path / "tok", Tokenizer.from_str(llama))
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: broken JSON"):
        load_tokenizer(folder)


def test_a_store_of_an_earlier_version_knows_its_tokenizer(llama, corpus, tmp_path):
    """Its manifest names the tokenizer by what is around a text as well."""
    tokenizer = load_tokenizer(save(tmp_path / "tok", Tokenizer.from_str(llama), CONFIG))
    prepare([corpus], tmp_path / "s", tokenizer)
    store = TokenStore.open(tmp_path / "s")
    saved = json.loads((tmp_path / "s/tokenizer/tokenizer.json").read_text())
    canonical = json.dumps(saved, sort_keys=True, separators=(",", ":"))
    store.tokenizer_fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
    assert store.tokenizer_fingerprint != tokenizer.fingerprint
    assert store.tokenizer().fingerprint == tokenizer.fingerprint
    store.check_tokenizer(tokenizer.fingerprint)
    with pytest.raises(DataError, match="the tokenizer is not the store's"):
        store.check_tokenizer(byte_tokenizer().fingerprint)

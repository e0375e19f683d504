import json

import numpy as np
import pytest

from emo_jax.errors import DataError, UsageError
from emo_jax.tokenizer.load import Tokenizer, byte_tokenizer, load_tokenizer, train_bpe

TEXTS = ["", "plain", "a</s>b<pad><unk>", "naïve 日本 🎉\x00\t\n  two", "<|endoftext|> quoted"]


def seqio_ids(texts):
    import seqio  # of the extra `test`; slow to import

    vocabulary = seqio.ByteVocabulary()
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)
    return vocabulary.vocab_size, [vocabulary.encode(t) for t in texts]


def test_bytes_are_those_of_seqio(tmp_path):
    vocab_size, expected = seqio_ids(TEXTS)
    fast = byte_tokenizer()
    fast.save(tmp_path)
    slow = load_tokenizer(tmp_path)  # through tokenizer.json alone
    for tokenizer in (fast, slow):
        assert tokenizer.vocab_size == vocab_size == 259
        assert (tokenizer.pad_id, tokenizer.eos_id) == (0, 1)
        assert [ids.tolist() for ids in tokenizer.encode_batch(TEXTS)] == expected
        assert [tokenizer.decode(ids) for ids in expected] == TEXTS
    assert fast.fingerprint == slow.fingerprint


def test_bytes_fingerprint_is_fixed():
    # Stores name their tokenizer by this number; if it changes, old stores no longer fit.
    assert byte_tokenizer().fingerprint.startswith("8d2d876e4f5e3e04")


@pytest.fixture(scope="module")
def bpe():
    return train_bpe((f"the cat {i} sat on the mat" for i in range(200)), 300)


def test_bpe_is_deterministic_and_bounded(bpe):
    again = train_bpe((f"the cat {i} sat on the mat" for i in range(200)), 300)
    assert again.fingerprint == bpe.fingerprint
    assert bpe.vocab_size <= 300
    assert (bpe.eos_id, bpe.pad_id) == (0, 1)
    assert (bpe.eos_token, bpe.pad_token) == ("<|endoftext|>", "<|padding|>")
    assert len(bpe.encode_batch(["the cat sat"])[0]) < len("the cat sat")


def test_round_trip_of_any_text(bpe):
    for ids, text in zip(bpe.encode_batch(TEXTS), TEXTS, strict=True):
        assert ids.dtype == np.int32
        assert bpe.decode(ids) == text


@pytest.mark.parametrize("make", [byte_tokenizer, lambda: train_bpe(["x" * 9], 258)])
def test_special_tokens_in_a_text_stay_text(make):
    tokenizer = make()
    quoted = f"a{tokenizer.eos_token}{tokenizer.pad_token}b"
    ids = tokenizer.encode_batch([quoted])[0]
    assert not np.isin(ids, [tokenizer.eos_id, tokenizer.pad_id]).any()
    assert tokenizer.decode(ids) == quoted
    assert tokenizer.decode([*ids, tokenizer.eos_id, tokenizer.pad_id]) == quoted


def test_save_and_load(bpe, tmp_path):
    bpe.save(tmp_path)
    for spec in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(spec)
        assert (loaded.fingerprint, loaded.eos_id, loaded.pad_id) == (bpe.fingerprint, 0, 1)
        assert [i.tolist() for i in loaded.encode_batch(TEXTS)] == [
            i.tolist() for i in bpe.encode_batch(TEXTS)
        ]
    other = train_bpe(["something else entirely, quite different"] * 5, 280)
    assert other.fingerprint != bpe.fingerprint


def test_usual_names_without_settings(bpe, tmp_path):
    bpe.save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "special_tokens_map.json").unlink()
    assert load_tokenizer(tmp_path).eos_token == "<|endoftext|>"


def test_missing_and_broken(tmp_path):
    with pytest.raises(UsageError, match="no such tokenizer"):
        load_tokenizer(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="no such tokenizer"):
        load_tokenizer(tmp_path)  # a folder without a tokenizer
    for content in ("{", "{}", "[]", '{"added_tokens": 3}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(DataError, match=r"tokenizer\.json"):
            load_tokenizer(tmp_path)


def change(tokenizer: Tokenizer, folder, edit):
    tokenizer.save(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    edit(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    return folder


def test_no_end_of_document(bpe, tmp_path):
    folder = change(bpe, tmp_path, lambda c: c.update(added_tokens=[]))
    with pytest.raises(DataError, match="no end-of-document token; name one as eos_token"):
        load_tokenizer(folder)


def test_end_of_document_that_a_text_can_spell(bpe, tmp_path):
    def edit(content):
        content["added_tokens"][0]["special"] = False

    with pytest.raises(DataError, match='mark that token as "special": true'):
        load_tokenizer(change(bpe, tmp_path, edit))


def test_training_needs_room_and_text():
    with pytest.raises(UsageError, match="vocab_size = 100: must be at least 258"):
        train_bpe(["x"], 100)
    with pytest.raises(DataError, match="no documents to train a tokenizer on"):
        train_bpe([], 300)


@pytest.mark.system
@pytest.mark.parametrize("make", [byte_tokenizer, lambda: train_bpe(["one two two"] * 9, 280)])
def test_transformers_loads_it(make, tmp_path):
    import transformers

    tokenizer = make()
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    for text in ["plain", "naïve 日本 🎉", "one two"]:
        ids = tokenizer.encode_batch([text])[0].tolist()
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.decode(ids) == text

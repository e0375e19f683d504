"""seqio's vocabularies, in a module of their own as users' are."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from real_text import texts, train_sentencepiece

from emo_jax.data.store import TokenStore
from emo_jax.documents.read import read_documents
from emo_jax.errors import DataError, UsageError
from emo_jax.preparation.prepare import prepare
from emo_jax.tokenizer.load import byte_tokenizer, load_tokenizer
from emo_jax.tokenizer.vocabularies import KeptTokenizer

MODULE = """
import pathlib
import seqio

SHIFT = 5
here = pathlib.Path(__file__).parent


class Letters(seqio.ByteVocabulary):  # a user's own: bytes, moved by SHIFT
    def _encode(self, s):
        return [i + SHIFT for i in super()._encode(s)]

    def _decode(self, ids):
        return super()._decode([i - SHIFT for i in ids])

    @property
    def _base_vocab_size(self):
        return super()._base_vocab_size + 5


def spm():
    return seqio.SentencePieceVocabulary(str(here / "spm.model"), extra_ids=3)


class nested:
    MORE = seqio.ByteVocabulary(extra_ids=10)


PASS = seqio.PassThroughVocabulary(1000, eos_id=9)
ENDLESS = seqio.PassThroughVocabulary(1000)
NUMBER = 5
"""


@pytest.fixture
def module(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("vocabularies")
    (folder / "emo_test_vocabularies.py").write_text(MODULE)
    train_sentencepiece(folder / "spm.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    monkeypatch.syspath_prepend(str(folder))
    yield "seqio:emo_test_vocabularies"
    sys.modules.pop("emo_test_vocabularies", None)


def test_bytes():
    assert load_tokenizer("seqio:seqio:ByteVocabulary").fingerprint == byte_tokenizer().fingerprint
    with pytest.raises(UsageError, match="--eos-id 5: bytes end a document with id 1"):
        load_tokenizer("bytes", eos_id=5)


def test_a_vocabulary_of_the_users(module, corpus, tmp_path):
    tokenizer = load_tokenizer(f"{module}:Letters")
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id) == (264, 1, 0)
    assert tokenizer.encode_batch(["ab"])[0].tolist() == [97 + 8, 98 + 8]
    store = prepare([corpus], tmp_path / "s", tokenizer).store
    again = TokenStore.open(tmp_path / "s", trust=True).tokenizer()
    assert isinstance(again, KeptTokenizer)
    store.check_tokenizer(again.fingerprint)
    document = store.documents("train", 0, 1)[0].tokens
    assert (document == 1).sum() == 1 and document[-1] == 1
    assert again.encode_batch([again.decode(document)])[0].tolist() == document[:-1].tolist()
    sys.modules["emo_test_vocabularies"].SHIFT = 4  # the code is changed later
    with pytest.raises(DataError, match=r"Letters: gives other ids than when .* prepared"):
        TokenStore.open(tmp_path / "s", trust=True).tokenizer().decode([9])


def test_no_file_names_code(module, corpus, tmp_path):
    """The file says which code; without `trust` nothing of it is imported."""
    store = prepare([corpus], tmp_path / "s", load_tokenizer(f"{module}:Letters"))
    name, file = f"{module}:Letters", tmp_path / "s/tokenizer/vocabulary.json"
    sys.modules.pop("emo_test_vocabularies")
    found = store.store.tokenizer()
    assert (found.vocab_size, found.eos_id) == (264, 1)  # all that training needs
    for use in (found.ready, lambda: found.encode_batch(["a"]), lambda: found.decode([9])):
        with pytest.raises(UsageError) as refused:
            use()
        said = str(refused.value)
        assert str(file) in said and name in said and "--trust" in said and "\n" not in said
    with pytest.raises(UsageError, match="--trust"):  # a folder that is typed holds a file too
        prepare([corpus], tmp_path / "t", load_tokenizer(file.parent))
    assert not (tmp_path / "t").exists() and "emo_test_vocabularies" not in sys.modules
    assert load_tokenizer(file.parent, trust=True).encode_batch(["a"])[0].tolist() == [105]
    assert "emo_test_vocabularies" in sys.modules


def test_a_file_that_names_any_function(tmp_path):
    settings = {"format": "emo_jax vocabulary", "kind": "seqio", "source": "seqio:os:getcwd"}
    settings |= {"vocab_size": 300, "eos_id": 1, "pad_id": 0, "fingerprint": "0" * 64}
    (tmp_path / "vocabulary.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match=r"is code, seqio:os:getcwd, .* --trust"):
        load_tokenizer(tmp_path).encode_batch(["a"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kind": "pickle"}, "kind must be one of ids, bytes, sentencepiece, seqio, not 'pickle'"),
        ({"kind": ["ids"]}, "kind must be one of"),
        ({"kind": "bytes", "vocab_size": 258}, "no room for the 256 bytes"),
        ({"kind": "seqio", "source": "os:getcwd"}, "source must be seqio:MODULE:VOCABULARY"),
        ({"vocab_size": 2**40}, "vocab_size must be a whole number of 1..16777216"),
        ({"vocab_size": 1000.0}, "vocab_size must be a whole number"),
        ({"eos_id": 1000}, "eos_id must be a whole number of 0..999, not 1000"),
        ({"pad_id": -1}, "pad_id must be"),
        ({"pad_id": True}, "pad_id must be"),
        ({"bos_id": "1"}, "bos_id must be"),
        ({"adds_bos": "yes"}, "adds_bos must be true or false"),
        ({"fingerprint": 5}, "fingerprint must be a string"),
    ],
)
def test_a_vocabulary_file_that_cannot_be(tmp_path, changes, named):
    settings = {"format": "emo_jax vocabulary", "kind": "ids", "source": "", "vocab_size": 1000}
    settings |= {"eos_id": 9, "pad_id": 9, "bos_id": None, "fingerprint": "0" * 64}
    file = tmp_path / "vocabulary.json"
    file.write_text(json.dumps(settings))
    assert load_tokenizer(tmp_path).eos_id == 9
    file.write_text(json.dumps(settings | changes))
    with pytest.raises(DataError, match=f"{file}: damaged vocabulary .*{named}"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'"\\ud800"', "{}".encode("utf-16")])
def test_a_vocabulary_file_that_is_none(tmp_path, content):
    (tmp_path / "vocabulary.json").write_bytes(content)
    with pytest.raises(DataError, match="damaged vocabulary"):
        load_tokenizer(tmp_path)


def test_ids_outside_the_vocabulary(module, tmp_path):
    """They are the rows of no table; on a device another row is read without a word."""
    with pytest.raises(DataError, match=r"'7 1000': gives ids 7\.\.1000, outside the voc"):
        load_tokenizer(f"{module}:PASS").encode_batch(["5", "7 1000"])


def test_the_end_of_a_kept_vocabulary_is_kept(module, tmp_path):
    load_tokenizer(f"{module}:Letters").save(tmp_path)
    assert load_tokenizer(tmp_path, eos_id=1).eos_id == 1
    with pytest.raises(
        UsageError, match=r"--eos-id 5: .*vocabulary\.json ends a document with id 1"
    ):
        load_tokenizer(tmp_path, eos_id=5)


def test_extra_ids_of_bytes(module, tmp_path):
    import seqio

    theirs, text = seqio.ByteVocabulary(extra_ids=10), "ünï </s>"
    tokenizer = load_tokenizer(f"{module}:nested.MORE")
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (269, 1)
    assert tokenizer.encode_batch([text])[0].tolist() == theirs.encode(text)
    assert (
        tokenizer.decode([*theirs.encode(text), 268, 1])
        == text
        == theirs.decode([*theirs.encode(text), 268])
    )
    # Kept without code; a file of before that names it is the same vocabulary, and needs none.
    tokenizer.save(tmp_path)
    kept = json.loads((tmp_path / "vocabulary.json").read_text())
    assert (kept["kind"], kept["source"]) == ("bytes", "")
    for settings in (kept, kept | {"kind": "seqio", "source": "seqio:none:there"}):
        (tmp_path / "vocabulary.json").write_text(json.dumps(settings))
        again = load_tokenizer(tmp_path)
        assert again.fingerprint == tokenizer.fingerprint
        assert again.encode_batch([text])[0].tolist() == theirs.encode(text)


def test_sentencepiece_with_extra_ids(module):
    import emo_test_vocabularies

    vocabulary = emo_test_vocabularies.spm()
    tokenizer = load_tokenizer(f"{module}:spm", sample=texts)
    assert tokenizer.vocab_size == vocabulary.vocab_size == 603
    assert (tokenizer.eos_id, tokenizer.pad_id) == (1, 0)
    batch = [*texts(), "one <extra_id_0> two"]
    assert [i.tolist() for i in tokenizer.encode_batch(batch)] == [
        vocabulary.encode(t) for t in batch
    ]
    assert tokenizer.encode_batch(["a <extra_id_0>"])[0][-1] == 602


def test_ids_that_are_there_already(module, tmp_path):
    """Text fields of ids, as lists or as numbers with spaces; one end is added where none is."""
    (tmp_path / "a.jsonl").write_text(
        '{"text": [5, 6, 9], "id": "a"}\n{"text": "7 8", "id": "b"}\n{"text": [1.5], "id": "c"}\n'
    )
    pq.write_table(pa.table({"text": [[11, 12]], "id": ["d"]}), tmp_path / "b.parquet")
    tokenizer = load_tokenizer(f"{module}:PASS")
    report = prepare([tmp_path], tmp_path / "s", tokenizer, fractions=(1, 0, 0))
    found = sorted(d.tokens.tolist() for d in report.store.documents("train", 0, 9))
    assert found == [[5, 6, 9], [7, 8, 9], [11, 12, 9]]
    assert dict(report.read.skipped) == {"field 'text' is not a string": 1}
    assert report.store.tokenizer().decode([5, 6, 9]) == "5 6"
    assert report.store.vocab_size == 1000
    for text, named in (([5, 9, 6], "end-of-document id 9; make a"), ([1000], "outside the vocab")):
        (tmp_path / "c.jsonl").write_text(json.dumps({"text": text}))
        with pytest.raises(DataError, match=named):
            prepare([tmp_path / "c.jsonl"], tmp_path / "t", tokenizer)
    (tmp_path / "c.jsonl").write_text('{"text": "words"}')
    with pytest.raises(DataError, match="text 'words': not ids"):
        prepare([tmp_path / "c.jsonl"], tmp_path / "t", tokenizer)
    assert next(read_documents([tmp_path / "c.jsonl"])).text == "words"  # of other tokenizers


def test_no_end_of_document(module):
    with pytest.raises(DataError, match="ENDLESS: no end-of-document token; give --eos-id"):
        load_tokenizer(f"{module}:ENDLESS")
    tokenizer = load_tokenizer(f"{module}:ENDLESS", eos_id=0)
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (0, 0, 1000)
    with pytest.raises(UsageError, match=r"--eos-id 1000: .*ENDLESS has ids 0\.\.999"):
        load_tokenizer(f"{module}:ENDLESS", eos_id=1000)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("Leters", "has no 'Leters'; did you mean 'Letters'"),
        ("nested.LESS", "has no 'LESS'"),
        ("NUMBER", "is a int, not a seqio.Vocabulary"),
        ("nested", "gives a nested, not a seqio.Vocabulary"),
        ("seqio.PassThroughVocabulary", "cannot be called without arguments"),
        ("", "must be seqio:MODULE:VOCABULARY"),
    ],
)
def test_wrong_names(module, name, named):
    with pytest.raises(UsageError, match=named):
        load_tokenizer(f"{module}:{name}")


def test_a_module_that_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "emo_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=r"'emo_broken' cannot be imported .ZeroDivisionError"):
        load_tokenizer("seqio:emo_broken:x")
    with pytest.raises(UsageError, match="'emo_none' cannot be imported"):
        load_tokenizer("seqio:emo_none:x")

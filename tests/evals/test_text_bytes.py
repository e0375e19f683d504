"""Bytes of text behind labels, against the text itself."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from emo_jax.batch import Batch
from emo_jax.data.loader import heldout_batches
from emo_jax.data.windows import Windows
from emo_jax.evals.text_bytes import TextBytes, token_bytes
from emo_jax.preparation.prepare import prepare
from emo_jax.tokenizer.load import load_tokenizer, train_bpe

REPO = Path(__file__).parents[2]
REAL = [path.read_text(encoding="utf-8") for path in sorted((REPO / "docs").glob("*.md"))]
TEXTS = [
    *(paragraph for text in REAL for paragraph in text.split("\n\n") if paragraph.strip()),
    "naïve café – 日本語の文章です。 🎉👩‍👩‍👧 e\u0301 \t\r\n  two  spaces",
    " a leading space",
    "<|endoftext|> and <0x41> as plain text",
]


def _byte_level(folder):
    train_bpe(REAL, 600).save(folder)


def _sentencepiece(folder):
    """BPE with byte pieces, as Llama's: a space before every text, dropped again by the decoder."""
    alphabet = sorted({c for text in REAL for c in text if c.isascii() and c.isprintable()} - {" "})
    byte_pieces = [f"<0x{b:02X}>" for b in range(256)]
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    # Bytes first, as in a SentencePiece model; the trainer would look for them in the text.
    vocab = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", *byte_pieces, "▁", *alphabet])}
    merges = []
    for pair in ("th", "in", "er", "on", "re", "at"):
        vocab[pair] = len(vocab)
        merges.append(tuple(pair))
    for word in ("th", "in"):
        vocab["▁" + word] = len(vocab)
        merges.append(("▁", word))
    backend.model = models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.save(str(folder / "tokenizer.json"))


def _metaspace(folder):
    backend = Backend(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    alphabet = sorted({c for text in TEXTS for c in text})
    trainer = trainers.UnigramTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "</s>"],
        unk_token="<unk>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.save(str(folder / "tokenizer.json"))


def _wordpiece(folder):
    """Tokens with a space before them in some places: only a decoded text knows its bytes."""
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=["[UNK]", "[EOS]"], show_progress=False
    )
    backend.train_from_iterator(REAL, trainer)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "[EOS]"}))


KINDS = {
    "byte level": _byte_level,
    "sentencepiece": _sentencepiece,
    "metaspace": _metaspace,
    "wordpiece": _wordpiece,
}


@pytest.fixture(params=["bytes", *KINDS])
def tokenizer(request, tmp_path):
    if request.param == "bytes":
        return load_tokenizer("bytes")
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    KINDS[request.param](folder)
    return load_tokenizer(folder)


def _size(text):
    return len(text.encode("utf-8"))


def test_the_tokens_of_a_text_add_up_to_its_bytes(tokenizer, request):
    table = token_bytes(tokenizer)
    if "wordpiece" in request.node.callspec.id:
        assert table is None
        return
    assert table.shape == (tokenizer.vocab_size,) and table[tokenizer.eos_id] == 0
    lossless = 0
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        decoded = tokenizer.decode(ids)
        lossless += decoded == text
        whole, first = table[ids].sum(), table[ids[0]]
        # Without its first token, as losses are: that one may have lost a space.
        assert whole - first == _size(decoded) - _size(tokenizer.decode(ids[:1]))
        assert whole - _size(decoded) in (0, 1)
    # So the bytes are those of the documents, but for a space that some begin with.
    assert lossless >= sum(not text.startswith(" ") for text in TEXTS)


@pytest.mark.system
def test_bytes_of_the_labels_of_a_store(tokenizer, tmp_path):
    """Windows cut documents: each part counts what it adds to the text of its first token."""
    corpus = tmp_path / "corpus.jsonl"
    records = [
        {"text": text, "id": str(i), "domain": "ab"[i % 2]} for i, text in enumerate(TEXTS * 3)
    ]
    corpus.write_text("".join(json.dumps(record) + "\n" for record in records))
    store = prepare([str(corpus)], tmp_path / "store", tokenizer).store
    windows = Windows(store, 64, split="train")
    counter = TextBytes(tokenizer)
    found, expected = np.zeros(2, np.int64), np.zeros(2, np.int64)
    for batch in heldout_batches(windows, batch_size=8):
        found += counter.by_domain(batch, 2)
    for i in range(len(windows)):
        window = windows[i]
        for segment in range(window.segment_ids.max() + 1):
            at = np.flatnonzero(window.segment_ids == segment)
            ids = window.tokens[at].tolist()
            expected[window.domain_ids[at[0]]] += _added_bytes(tokenizer, ids)
    np.testing.assert_array_equal(found, expected)
    documents = sum(len(text.encode()) for text in TEXTS * 3)
    assert 0.5 * documents < found.sum() < documents


def _added_bytes(tokenizer, ids):
    """Bytes that a decoder gives for all but the first; where a window cuts a character, counted.

    Then the pieces themselves are looked at, which are bytes in both of the kinds that have them.
    """
    whole, first = tokenizer.decode(ids), tokenizer.decode(ids[:1])
    if "\ufffd" not in whole + first:
        return _size(whole) - _size(first)
    pieces = [tokenizer._json.id_to_token(i) for i in ids[1:] if i != tokenizer.eos_id]
    if any(piece.startswith("<0x") for piece in pieces):
        return sum(1 if p.startswith("<0x") else _size(p.replace("▁", " ")) for p in pieces)
    return sum(map(len, pieces))


def test_padding_masked_windows_and_unknown_domains_count_nothing():
    tokenizer = load_tokenizer("bytes")
    tokens = np.full((1, 6), 70, np.int32)
    batch = Batch(
        tokens=tokens,
        labels=tokens,
        loss_mask=np.ones((1, 6), np.float32),
        segment_ids=np.array([[0, 0, 0, 1, 1, -1]]),
        pool_ids=None,
        positions=None,
        domain_ids=np.array([[0, 0, 0, 1, 1, -1]]),
    )
    counter = TextBytes(tokenizer)
    np.testing.assert_array_equal(counter.by_domain(batch, 2), [2, 1])
    masked = batch._replace(loss_mask=np.zeros((1, 6), np.float32))
    np.testing.assert_array_equal(counter.by_domain(masked, 2), [0, 0])
    unknown = batch._replace(domain_ids=np.array([[0, 0, 0, -1, -1, -1]]))
    np.testing.assert_array_equal(counter.by_domain(unknown, 2), [2, 0])

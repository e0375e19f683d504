"""A long text is encoded in parts, with the ids of the whole."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from emo_jax.tokenizer import splitting
from emo_jax.tokenizer.json_tokenizer import JsonTokenizer

ROOT = Path(__file__).parents[2]
# What the patterns treat in ways of their own, and letters that NFC composes or takes apart.
PIECES = [
    *("flour butter", "don't we'LL 's", "12345 6", "\n", "\n\n", "  ", " ", "\t", "\r\n", "\u00a0"),
    *("é e\u0301", "日本語", "\u0958 \u0958", "\u212b", "👩‍👩‍👧", "?!", ".\n", "_a b_", "x" * 30),
    *("\u2028", "</s>", "<|eos|>", "ſ ŉ", "\u3000", "a\u0301 ", "Ⅷ ", "² "),
]
STEPS = {
    "gpt2": [],
    "digits": [pre_tokenizers.Digits(individual_digits=True)],
    "cl100k": [pre_tokenizers.Split(Regex(splitting.CL100K), "isolated")],
    "qwen2": [pre_tokenizers.Split(Regex(splitting.QWEN2), "removed", invert=True)],
}


def text_of(rng: random.Random, pieces: int) -> str:
    return "".join(rng.choice(PIECES) for _ in range(pieces))


def made(kind: str, nfc: bool = False, **changes) -> JsonTokenizer:
    tokenizer = Tokenizer(models.BPE())
    own = kind in ("cl100k", "qwen2")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not own)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*STEPS[kind], last])
    tokenizer.decoder = decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|eos|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rng = random.Random(0)
    tokenizer.train_from_iterator([text_of(rng, 50) for _ in range(100)], trainer)
    fields = json.loads(tokenizer.to_str()) | changes
    return JsonTokenizer(json.dumps(fields), eos="<|eos|>")


@pytest.mark.parametrize("nfc", [False, True])
@pytest.mark.parametrize("kind", STEPS)
def test_parts_have_the_ids_of_the_whole(kind, nfc, monkeypatch):
    tokenizer, rng = made(kind, nfc), random.Random(1)
    assert tokenizer._can_be_cut
    texts = [text_of(rng, 100) for _ in range(300)]
    whole = tokenizer.encode_batch(texts)
    monkeypatch.setattr(splitting, "PART", 5)
    assert sum(len(list(splitting.parts(text))) for text in texts) > 10 * len(texts)
    assert all("".join(splitting.parts(text)) == text for text in texts)
    for text, ids in zip(texts, whole, strict=True):
        assert tokenizer.encode_batch([text])[0].tolist() == ids.tolist(), text
    many = tokenizer.encode_batch([*texts[:5], "", "a"])
    assert [m.tolist() for m in many[:5]] == [w.tolist() for w in whole[:5]]
    assert not many[5].size and many[5].dtype == many[0].dtype == np.int32


def test_tokenizers_that_may_see_across_a_cut_are_given_the_whole():
    plain = {"id": 999, "content": "a b", "special": False, "normalized": False}
    plain |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    fields = made("gpt2").fields
    assert splitting.can_be_cut(fields)
    assert splitting.can_be_cut(fields | {"added_tokens": [plain | {"content": "ab"}]})
    byte_level = fields["pre_tokenizer"]["pretokenizers"][0]
    for changed in (
        {"added_tokens": [plain]},
        {"added_tokens": [plain | {"content": "ab", "lstrip": True}]},
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "Prepend", "prepend": "▁"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": byte_level | {"add_prefix_space": True}},
        {"pre_tokenizer": byte_level | {"use_regex": False}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"model": fields["model"] | {"dropout": 0.1}},
        {"model": {"type": "Unigram", "vocab": []}},
    ):
        assert not splitting.can_be_cut(fields | changed), changed
    split = {"type": "Split", "pattern": {"Regex": r"\w+ \w+"}, "behavior": "Isolated"}
    steps = [split | {"invert": False}, byte_level | {"use_regex": False}]
    sequence = {"type": "Sequence", "pretokenizers": steps}
    assert not splitting.can_be_cut(fields | {"pre_tokenizer": sequence})


def test_a_text_without_a_place_is_one_part(monkeypatch):
    monkeypatch.setattr(splitting, "PART", 5)
    assert list(splitting.parts("1 2 3 4 " * 20)) == ["1 2 3 4 " * 20]
    assert list(splitting.parts("日本" * 20 + "\n" + "日本" * 20)) == [
        "日本" * 20,
        "\n" + "日本" * 20,
    ]
    assert list(splitting.parts("")) == [""]
    assert list(splitting.parts("\u0958 " * 20)) == ["\u0958 " * 20]  # NFC makes a mark of it


@pytest.mark.system
def test_memory_for_a_long_text():
    """Six million characters; at once they take 700 MB."""
    code = """
import resource
from emo_jax.tokenizer.load import train_bpe
tokenizer = train_bpe(["flour butter salt oven"] * 5, 300)
tokenizer.encode_batch(["a b"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tokenizer.encode_batch(["flour butter salt oven\\n" * 260_000])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 350, done.stdout

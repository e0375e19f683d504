"""Converts SentencePiece `.model` files to a `tokenizer.json`, where that gives equal ids.

The two libraries differ in corner cases (sums of scores in 32 or 64 bits, combining characters,
user-defined symbols), so a conversion is never trusted: `first_difference` compares the ids on real
text.
"""

import base64
import importlib.util
import itertools
import json
import os
import re
from collections.abc import Iterable
from typing import Any

from emo_jax.errors import DataError, UsageError
from emo_jax.tokenizer import backend

_SPACE = "▁"  # how SentencePiece writes a space
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_UNIGRAM, _BPE = 1, 2
_BATCH = 64  # texts compared at once

# Always compared, in addition to the documents that the tokenizer is loaded for.
PROBES = (
    "plain words, and 1234567890 numbers: 3.14 % of $5",
    "  two  leading,   many   inner and two trailing  ",
    "tabs\tand\nlines\n\n\nand\r\nreturns\x00\x1f\x7f",
    "naïve café Ünïcödé e\u0301 \ufb01 ½ ² ™ ＡＢＣ １２３ …",
    "日本語の文章です。 中文，测试！ 한국어 텍스트 ประเทศไทย العربية עברית",
    "emoji 🎉 👩‍👩‍👧‍👦 🏳️‍🌈 e\u200bz\u200dw\u00adx \ufeff \u2028 \u3000 \xa0 .",
    "▁ a ▁▁b <0x0A> [INST] <|endoftext|>",
    "def f(x):\n    return {'a': [x ** 2, -1]}  # !@#$%^&*()_+-=[]{}|;':\",./<>?`~\n",
    "x" * 300 + " " + "ab" * 200 + " " * 50 + "\U00013000\U0001f9ff" * 3,
)


class NotExactError(Exception):
    """A model that no tokenizer.json represents exactly; says why."""


def check_installed(where: str) -> None:
    """Raises UsageError if SentencePiece is not installed."""
    if importlib.util.find_spec("sentencepiece") is None:
        raise UsageError(f"{where}: sentencepiece is not installed; pip install 'emo-jax[prepare]'")


def load_processor(content: bytes, where: str) -> Any:
    """Loads SentencePiece's own tokenizer.

    Raises:
      UsageError: SentencePiece is not installed.
      DataError: not a SentencePiece model.
    """
    check_installed(where)
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
        if not content or not processor.GetPieceSize():
            raise ValueError("no pieces")
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"{where}: not a SentencePiece model ({reason}); copy it again") from error
    return processor


def encode_batch(processor: Any, texts: list[str]) -> list[list[int]]:
    """Returns the ids that SentencePiece gives, using all cores."""
    return processor.EncodeAsIds(texts, num_threads=os.cpu_count() or 1)


def convert(content: bytes, added: dict[int, str] | None = None) -> str:
    """Converts a SentencePiece model (one that `load_processor` accepts) to a tokenizer.json.

    Args:
      content: the `.model` file.
      added: tokens that a Hugging Face folder has in addition to the model's pieces.

    Returns:
      The text of the tokenizer.json.

    Raises:
      NotExactError: the model has something that tokenizer.json cannot express.
    """
    from sentencepiece import sentencepiece_model_pb2 as messages

    proto: Any = getattr(messages, "ModelProto").FromString(content)  # noqa: B009 made at run time
    kind, pieces = proto.trainer_spec.model_type, list(proto.pieces)
    if kind not in (_UNIGRAM, _BPE):
        raise NotExactError("neither a unigram nor a BPE model")
    if any(p.type == _UNUSED for p in pieces):
        raise NotExactError("it has unused pieces")
    if (
        not proto.normalizer_spec.escape_whitespaces
        or proto.trainer_spec.treat_whitespace_as_suffix
    ):
        raise NotExactError("it treats white space in its own way")
    names = [p.piece for p in pieces]
    special = {i: names[i] for i, p in enumerate(pieces) if p.type in (_UNKNOWN, _CONTROL)}
    user = {i: names[i] for i, p in enumerate(pieces) if p.type == _USER}
    added = dict(added or {})
    if sorted(added) != list(range(len(pieces), len(pieces) + len(added))):
        raise NotExactError("its added tokens do not follow the pieces without a gap")
    tokens = [_added_token(i, t, special=True) for i, t in special.items()]
    tokens += [_added_token(i, t, special=False) for i, t in user.items()]
    tokens += [_added_token(i, t, special=True) for i, t in added.items()]
    dummy = proto.normalizer_spec.add_dummy_prefix
    model = _unigram(proto) if kind == _UNIGRAM else _bpe(proto)
    result = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(tokens, key=lambda t: t["id"]),
        "normalizer": _normalizer(proto.normalizer_spec, list(user.values())),
        "pre_tokenizer": _pre_tokenizer(proto, special),
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                _replace(_SPACE, " "),
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if dummy else []),
            ],
        },
        "model": model,
    }
    text = json.dumps(result, ensure_ascii=False)
    try:
        normalizer = backend.load(_without_added(result), "it").normalizer
    except DataError as error:
        raise NotExactError(str(error)) from error
    for symbol in user.values():
        # A symbol that normalizes to nothing makes the library panic.
        if normalizer.normalize_str(symbol) != symbol.replace(" ", _SPACE):
            raise NotExactError(f"its normalizer changes the symbol {symbol!r}")
    return text


def _without_added(result: dict[str, Any]) -> str:
    return json.dumps({**result, "added_tokens": []}, ensure_ascii=False)


def _added_token(i: int, content: str, *, special: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False}
    # User-defined symbols are matched after spaces become "▁", as SentencePiece does.
    return {"id": i, "content": content, **plain, "normalized": not special, "special": special}


def _replace(pattern: str, content: str, *, regex: bool = False) -> dict[str, Any]:
    kind = "Regex" if regex else "String"
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def _normalizer(spec: Any, user: list[str]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        steps += [_replace(" +", " ", regex=True), _replace(r"\A | \z", "", regex=True)]
    if spec.add_dummy_prefix and user:
        # The names of user-defined symbols go through this too, and must not change.
        names = "|".join(re.escape(name) for name in user)
        steps.append(_replace(rf"\A(?!\z)(?!(?:{names})\z)", _SPACE, regex=True))
    elif spec.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": _SPACE})
    steps.append(_replace(" ", _SPACE))
    return {"type": "Sequence", "normalizers": steps}


def _pre_tokenizer(proto: Any, special: dict[int, str]) -> dict[str, Any] | None:
    steps: list[dict[str, Any]] = []
    unigram = proto.trainer_spec.model_type == _UNIGRAM
    found = [p.piece for p in proto.pieces if p.type == _NORMAL]
    if all(piece.rfind(_SPACE) <= 0 for piece in found):
        # No piece continues after a space, so words can be encoded one by one, which is faster.
        steps.append(_split({"String": _SPACE}, "MergedWithNext"))
    if unigram:
        # The library matches the names of special pieces in a text like any other piece.
        if any(len(t) < 2 for t in special.values()):
            raise NotExactError("it has a control symbol of one character")
        cuts = [f"{re.escape(t[0])}(?={re.escape(t[1:])})" for t in special.values()]
        if proto.trainer_spec.byte_fallback:
            cuts.append("<(?=0x[0-9A-F]{2}>)")
        steps.append(_split({"Regex": "|".join(cuts)}, "Isolated"))
    return {"type": "Sequence", "pretokenizers": steps} if steps else None


def _split(pattern: dict[str, str], behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


def _unigram(proto: Any) -> dict[str, Any]:
    normal = [p.score for p in proto.pieces if p.type == _NORMAL]
    if not normal:
        raise NotExactError("it has no ordinary piece")
    # No other piece is ever matched in a text; the unknown's score follows from the lowest.
    lowest = min(normal)
    return {
        "type": "Unigram",
        "unk_id": next(i for i, p in enumerate(proto.pieces) if p.type == _UNKNOWN),
        "vocab": [[p.piece, p.score if p.type == _NORMAL else lowest] for p in proto.pieces],
        "byte_fallback": proto.trainer_spec.byte_fallback,
    }


def _bpe(proto: Any) -> dict[str, Any]:
    vocabulary = {p.piece: i for i, p in enumerate(proto.pieces)}
    scores = {p.piece: p.score for p in proto.pieces if p.type == _NORMAL}
    merges = []
    for piece in sorted(scores, key=lambda p: (-scores[p], vocabulary[p])):
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                merges.append([left, right])
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": next(p.piece for p in proto.pieces if p.type == _UNKNOWN),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": proto.trainer_spec.byte_fallback,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges,
    }


def first_difference(converted: str, processor: Any, texts: Iterable[str]) -> str | None:
    """Returns an excerpt of the first text that the conversion encodes differently, if any."""
    library = backend.load(converted, "the conversion")
    library.encode_special_tokens = True
    batch: list[str] = []

    def compare() -> str | None:
        theirs = encode_batch(processor, batch)
        try:
            with backend.failing_as("it fails on a text", "keep the model"):
                ours = library.encode_batch_fast(batch, add_special_tokens=False)
        except DataError as error:
            raise NotExactError(str(error)) from error
        for text, a, b in zip(batch, theirs, ours, strict=True):
            if list(a) != b.ids:
                return _around(processor, text, list(a), b.ids)
        return None

    for text in itertools.chain(PROBES, texts):
        batch.append(text)
        if len(batch) == _BATCH:
            if found := compare():
                return found
            batch = []
    return compare() if batch else None


def _around(processor: Any, text: str, theirs: list[int], ours: list[int]) -> str:
    """Returns the part of the text where the ids start to differ."""
    same = next(
        (i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b),
        min(len(theirs), len(ours)),
    )
    begin = len(processor.DecodeIds(theirs[: max(same - 3, 0)]))
    return text[begin : begin + 40]

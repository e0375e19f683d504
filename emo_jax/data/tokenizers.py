"""One tokenizer interface, whatever the ids come from; every one of them is a `tokenizer.json`.

A tokenizer is saved beside the tokens, in the files that stock `transformers.AutoTokenizer` reads,
so that training and export need neither seqio nor TensorFlow.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as _Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from emo_jax.errors import DataError, UsageError

EOS_TEXT = "<|endoftext|>"
PAD_TEXT = "<|padding|>"
_EOS_NAMES = (EOS_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]")
_PAD_NAMES = (PAD_TEXT, "<|pad|>", "<pad>", "[PAD]")
_BYTE_OFFSET = 3  # seqio.ByteVocabulary: 0 padding, 1 end, 2 unknown, then the 256 bytes
_BYTE_SPECIAL = {"<pad>": 0, "</s>": 1, "<unk>": 2}


class Tokenizer:
    """Text to ids and back; special-token strings in a text are plain text.

    Args:
      content: the text of a `tokenizer.json`.
      eos: the token that ends a document.
      pad: the token that fills a window; `eos` where there is none.
      where: named in errors.
    """

    def __init__(self, content: str, *, eos: str, pad: str | None = None, where: str = "tokenizer"):
        self._content = content
        try:
            self._json = _Backend.from_str(content)
            canonical = json.dumps(json.loads(content), sort_keys=True, separators=(",", ":"))
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{where}: not a tokenizer.json ({error}); save it again") from error
        self._json.encode_special_tokens = True  # a document may quote "</s>"
        self._json.no_truncation()
        self._json.no_padding()
        self.eos_token, self.pad_token = eos, pad or eos
        self.eos_id, self.pad_id = (
            self._id(token, where) for token in (self.eos_token, self.pad_token)
        )
        # The content as it was saved, not as this version of the library would write it.
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
        # Ids may have gaps: what counts is the size of the table that they index.
        self.vocab_size = max(self._json.get_vocab(with_added_tokens=True).values()) + 1
        if self.eos_id in self._json.encode(f"a{eos}b", add_special_tokens=False).ids:
            raise DataError(
                f"{where}: the text {eos!r} becomes the end-of-document id; mark that token as"
                ' "special": true under added_tokens'
            )

    def _id(self, token: str, where: str) -> int:
        found = self._json.token_to_id(token)
        if found is None:
            raise DataError(f"{where}: no token {token!r}; name one that the vocabulary has")
        return found

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32 and without an end of document; uses all cores."""
        encoded = self._json.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(e.ids, np.int32) for e in encoded]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of some ids; special tokens are left out unless asked for."""
        return self._json.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        special = {"eos_token": self.eos_token, "pad_token": self.pad_token}
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **special,
            "split_special_tokens": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": int(1e30),
        }
        (folder / "tokenizer.json").write_text(self._content, encoding="utf-8")
        for name, value in (
            ("tokenizer_config.json", settings),
            ("special_tokens_map.json", special),
        ):
            (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


class _ByteTokenizer(Tokenizer):
    """The same ids as its `tokenizer.json`, made by an addition instead of a merge table."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [
            np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) + _BYTE_OFFSET
            for text in texts
        ]


def byte_tokenizer() -> Tokenizer:
    """Ids of `seqio.ByteVocabulary()`: byte b is b + 3; 0 pads, 1 ends a document, 2 is unknown."""
    vocabulary = _BYTE_SPECIAL | {c: b + _BYTE_OFFSET for b, c in _byte_chars().items()}
    plain = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
    # Spelt out, so that the fingerprint does not hang on the version of the library.
    content = dict(
        version="1.0",
        truncation=None,
        padding=None,
        added_tokens=[dict(id=i, content=t, **plain) for t, i in _BYTE_SPECIAL.items()],
        normalizer=None,
        pre_tokenizer=byte_level,
        post_processor=None,
        decoder=byte_level,
        model=dict(type="BPE", vocab=vocabulary, merges=[]),
    )
    return _ByteTokenizer(
        json.dumps(content, ensure_ascii=False), eos="</s>", pad="<pad>", where="bytes"
    )


def _byte_chars() -> dict[int, str]:
    """The printable character that the byte-level models write for each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


def train_bpe(texts: Iterable[str], vocab_size: int, *, min_frequency: int = 2) -> Tokenizer:
    """Byte-level BPE of the texts; the same texts in the same order give the same tokenizer.

    The vocabulary holds the 256 bytes, so every text can be encoded; it is smaller than
    `vocab_size` where the texts have too few pairs that occur `min_frequency` times.

    Raises:
      UsageError: `vocab_size` has no room for the bytes and the two special tokens.
      DataError: no text.
    """
    smallest = 256 + 2
    if vocab_size < smallest:
        raise UsageError(f"vocab_size = {vocab_size}: must be at least {smallest} (all bytes)")
    tokenizer = _Backend(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[EOS_TEXT, PAD_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    seen = 0

    def counted() -> Iterator[str]:
        nonlocal seen
        for text in texts:
            seen += 1
            yield text

    tokenizer.train_from_iterator(counted(), trainer)
    if not seen:
        raise DataError("no documents to train a tokenizer on; check the input")
    return Tokenizer(tokenizer.to_str(), eos=EOS_TEXT, pad=PAD_TEXT, where="trained tokenizer")


def load_tokenizer(spec: str | Path) -> Tokenizer:
    """The tokenizer that `spec` names: "bytes", a `tokenizer.json`, or a folder that holds one.

    The end-of-document and padding tokens are those of `tokenizer_config.json` or
    `special_tokens_map.json` beside it, else the first of the usual names that it has.

    Raises:
      UsageError: no such file or folder.
      DataError: not a tokenizer, or none of its tokens can end a document.
    """
    if str(spec) == "bytes":
        return byte_tokenizer()
    path = Path(spec)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(
            f'{spec}: no such tokenizer; give "bytes", a tokenizer.json or a folder with one'
        )
    try:
        content = file.read_text(encoding="utf-8")
        added = [t["content"] for t in json.loads(content).get("added_tokens", [])]
        named = _special_tokens(file.parent)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not a tokenizer.json ({error}); save it again") from error
    eos = named.get("eos_token") or next((t for t in _EOS_NAMES if t in added), None)
    if eos is None:
        raise DataError(
            f"{file}: no end-of-document token; name one as eos_token in a tokenizer_config.json"
            " beside it"
        )
    pad = named.get("pad_token") or next((t for t in _PAD_NAMES if t in added), None)
    return Tokenizer(content, eos=eos, pad=pad, where=str(file))


def _special_tokens(folder: Path) -> dict[str, str]:
    """`eos_token` and `pad_token` of the settings beside a tokenizer, where they are set."""
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            values = json.loads((folder / name).read_text(encoding="utf-8"))
            for key in ("eos_token", "pad_token"):
                token = values.get(key)
                token = token.get("content") if isinstance(token, dict) else token
                if token:
                    found.setdefault(key, token)
    return found

"""A tokenizer defined by a `tokenizer.json`, as Hugging Face's libraries read it."""

import copy
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as _Backend

from emo_jax.errors import DataError, UsageError
from emo_jax.files.json_files import dumps
from emo_jax.tokenizer import backend, splitting
from emo_jax.tokenizer.base import Tokenizer

_ANOTHER = "use another tokenizer"
_PARTS_AT_ONCE = 8  # of a long text: about 200 MB of memory

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# Parts of a tokenizer.json that ids do not depend on; saving it again rewrites them.
_MODEL_DEFAULTS = (  # null or false means the same as absent
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
)
_AROUND = ("post_processor", "truncation", "padding")


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json`.

    Args:
      content: the text of a `tokenizer.json`.
      eos: the token that ends a document.
      pad: the token that fills a window; None: `eos`.
      bos: the token that may begin a document.
      where: used in error messages.
    """

    def __init__(
        self,
        content: str,
        *,
        eos: str,
        pad: str | None = None,
        bos: str | None = None,
        where: str = "tokenizer",
    ):
        self._where, self._json = where, _load(content, where)
        self._fields: dict[str, Any] = json.loads(content)
        self._content = content
        self.eos_token, self.pad_token, self.bos_token = eos, pad or eos, bos
        self.eos_id, self.pad_id = (
            self._id(token, where) for token in (self.eos_token, self.pad_token)
        )
        self.bos_id = self._id(bos, where) if bos else None
        # Ids may have gaps: what counts is the size of the table they index.
        self.vocab_size = max(self._json.get_vocab(with_added_tokens=True).values()) + 1
        failing = backend.failing_as(f"{where}: cannot encode its own tokens", "save it again")
        with failing, backend.silent_panics():
            self._keep_special_text_apart()
            spelt = self._spells(eos, self.eos_id)
        self.fingerprint = _fingerprint(self._fields)
        if spelt:
            raise DataError(
                f"{where}: the text {eos!r} becomes the end-of-document id; mark that token as"
                ' "special": true under added_tokens'
            )

    @property
    def earlier_fingerprint(self) -> str:
        """The fingerprint that older stores record: a hash of the whole content as it was saved."""
        canonical = json.dumps(json.loads(self._content), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _id(self, token: str, where: str) -> int:
        found = self._json.token_to_id(token)
        if found is None:
            raise DataError(f"{where}: no token {token[:60]!r}; name one that the vocabulary has")
        return found

    def _spells(self, text: str, i: int) -> bool:
        return i in self._json.encode(f"a{text}b", add_special_tokens=False).ids

    def _keep_special_text_apart(self) -> None:
        """Cuts special tokens in text in two: Unigram models (T5's) match "</s>" like any piece."""
        special = {t.content: i for i, t in self._json.get_added_tokens_decoder().items()}
        marked = {t.content for t in self._json.get_added_tokens_decoder().values() if t.special}
        found = [t for t in sorted(marked) if len(t) > 1 and self._spells(t, special[t])]
        if found:
            pattern = "|".join(f"{re.escape(t[0])}(?={re.escape(t[1:])})" for t in found)
            cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
            before = self._fields.get("pre_tokenizer") or {}
            steps = before.get("pretokenizers", [before] if before else [])
            sequence = {"type": "Sequence", "pretokenizers": [*steps, cut | {"invert": False}]}
            self._fields["pre_tokenizer"] = sequence
            self._json = _load(dumps(self._fields), self._where)

    @property
    def fields(self) -> dict[str, Any]:
        """The content of a tokenizer.json that gives these ids with any reader.

        Nothing is added to a text except the beginning of a document, if `adds_bos`, and nothing is
        truncated or padded.
        """
        byte_level = [p for p in _steps(self._fields.get("post_processor")) if _is_byte_level(p)]
        around = [*byte_level[:1], *([self._begins()] if self.adds_bos else [])]
        sequence = {"type": "Sequence", "processors": around}
        return self._fields | {
            "truncation": None,
            "padding": None,
            "post_processor": sequence if len(around) > 1 else next(iter(around), None),
        }

    def _begins(self) -> dict[str, Any]:
        """Returns a post-processor that prepends the token that documents begin with."""
        token = self._json.id_to_token(self.bos_id or 0)
        first = {"SpecialToken": {"id": token, "type_id": 0}}
        a, b = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
        return {
            "type": "TemplateProcessing",
            "single": [first, a],
            "pair": [first, a, b],
            "special_tokens": {token: {"id": token, "ids": [self.bos_id], "tokens": [token]}},
        }

    def begin_as_post_processor(self) -> None:
        """Makes documents begin with what the content's post-processor prepends, if anything.

        That token becomes `bos_token` if none is named.
        """
        with backend.failing_as(f"{self._where}: cannot encode a text", _ANOTHER):
            plain = self._json.encode("a", add_special_tokens=False).ids
            around = self._json.encode("a").ids
        self.adds_bos = around[:1] != plain[:1] and self.bos_id in (None, around[0])
        if self.adds_bos:
            self.bos_id, self.bos_token = around[0], self._json.id_to_token(around[0])

    @property
    def settings(self) -> dict[str, Any]:
        """The content of a `tokenizer_config.json` that gives the same ids in transformers 4 and 5.

        Without a class, transformers 5 uses the architecture's own, which splits text its own way;
        this one is known to both versions. Version 4 makes token_type_ids unless told which inputs
        a model takes, and removes the prefix space of `ByteLevel` unless told to keep it.
        """
        before = self._fields.get("pre_tokenizer") or {}
        prefix = before.get("add_prefix_space")
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **self.special_tokens,
            "add_bos_token": self.adds_bos,
            **({} if prefix is None else {"add_prefix_space": prefix}),
            "split_special_tokens": True,  # a document may quote "</s>"
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": int(1e30),
            "padding_side": "left",
        }

    @property
    def special_tokens(self) -> dict[str, str]:
        """The content of a `special_tokens_map.json`."""
        tokens = {"eos_token": self.eos_token, "pad_token": self.pad_token}
        return tokens | ({"bos_token": self.bos_token} if self.bos_token else {})

    def for_others(self) -> "JsonTokenizer":
        """Returns a tokenizer with the same ids, without special tokens that change them elsewhere.

        Evaluation tools prepend a beginning-of-document token if one is named, whatever the
        documents began with; and transformers never matches a named special token in text, although
        a text may spell it.
        """
        decoder = self._json.get_added_tokens_decoder().values()
        plain = {token.content for token in decoder if not token.special}
        made = copy.copy(self)
        if not self.adds_bos or self.bos_token in plain:
            made.bos_token = None
        if self.pad_token in plain:
            made.pad_token, made.pad_id = self.eos_token, self.eos_id
        return made

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, int32 and without an end of document; uses all cores."""
        if any(len(text) > 2 * splitting.PART for text in texts) and self._can_be_cut:
            return [self._encode_long(text) for text in texts]
        return self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        with backend.failing_as(f"{self._where}: cannot encode a text", _ANOTHER):
            encoded = self._json.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(e.ids, np.int32) for e in encoded]

    def _encode_long(self, text: str) -> np.ndarray:
        """Returns the ids of a text, with the memory for a few parts of it."""
        parts, found = splitting.parts(text), [np.zeros(0, np.int32)]
        while some := list(itertools.islice(parts, _PARTS_AT_ONCE)):
            found += self._encode(some)
        return np.concatenate(found)

    @functools.cached_property
    def _can_be_cut(self) -> bool:
        return splitting.can_be_cut(self._fields)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Returns the text of some ids; special tokens are dropped by default."""
        with backend.failing_as(f"{self._where}: cannot decode ids", _ANOTHER):
            return self._json.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`."""
        write_files(folder, self.fields, self.settings, self.special_tokens)


def write_files(folder: str | Path, *values: dict[str, Any]) -> None:
    """Writes the given contents to `FILES`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(FILES, values, strict=True):
        text = dumps(value, indent=2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def _load(content: str, where: str) -> _Backend:
    """Loads the library's tokenizer: no truncation, no padding, no special tokens in a text."""
    made = backend.load(content, where)
    made.encode_special_tokens = True  # a document may quote "</s>"
    made.no_truncation()
    made.no_padding()
    return made


def _steps(processor: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Returns the post-processors in a sequence, a single one as a list, or an empty list."""
    if not processor:
        return []
    return processor["processors"] if processor.get("type") == "Sequence" else [processor]


def _is_byte_level(processor: dict[str, Any]) -> bool:
    """Returns whether it is ByteLevel, which adds no token but trims spaces from word offsets."""
    return processor.get("type") == "ByteLevel"


def _canonical(model: dict[str, Any]) -> dict[str, Any]:
    """Returns a model in the form that every version of the library saves it in."""
    left_out = {k for k in _MODEL_DEFAULTS if model.get(k) in (None, False)}
    kept = {k: v for k, v in model.items() if k not in left_out}
    if "merges" in kept:
        kept["merges"] = [m.split(" ") if isinstance(m, str) else m for m in kept["merges"]]
    if isinstance(kept.get("vocab"), list):  # unigram; reading changes the last bit of a float64
        kept["vocab"] = [[token, float(np.float32(score))] for token, score in kept["vocab"]]
    return kept


def _fingerprint(fields: dict[str, Any]) -> str:
    """Hashes what the ids of a text depend on, not how a library version writes it."""
    counted = fields | {"model": _canonical(fields["model"])} | dict.fromkeys(_AROUND)
    canonical = json.dumps(counted, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def token_of(content: str, i: int, where: str) -> str:
    """Returns the token with id `i`, from the text of a tokenizer.json.

    Raises:
      UsageError: there is no such token.
    """
    found = backend.load(content, where).id_to_token(i) if 0 <= i < 2**32 else None
    if found is None:
        raise UsageError(f"--eos-id {i}: {where} has no such id; give one of its special tokens'")
    return found

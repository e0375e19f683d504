"""A tokenizer that is a `tokenizer.json`, as Hugging Face's libraries read it."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, pre_tokenizers

from emo_jax.data import backend
from emo_jax.data.tokenizer_base import Tokenizer
from emo_jax.errors import DataError, UsageError

_ANOTHER = "use another tokenizer"


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json`.

    Args:
      content: the text of a `tokenizer.json`.
      eos: the token that ends a document.
      pad: the token that fills a window; `eos` where there is none.
      bos: the token that may begin a document.
      where: named in errors.
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
        self._content, self._where = content, where
        self._json = backend.load(content, where)
        canonical = json.dumps(json.loads(content), sort_keys=True, separators=(",", ":"))
        self._json.encode_special_tokens = True  # a document may quote "</s>"
        self._json.no_truncation()
        self._json.no_padding()
        self.eos_token, self.pad_token, self.bos_token = eos, pad or eos, bos
        self.eos_id, self.pad_id = (
            self._id(token, where) for token in (self.eos_token, self.pad_token)
        )
        self.bos_id = self._id(bos, where) if bos else None
        # The content as it was saved, not as this version of the library would write it.
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
        # Ids may have gaps: what counts is the size of the table that they index.
        self.vocab_size = max(self._json.get_vocab(with_added_tokens=True).values()) + 1
        failing = backend.failing_as(f"{where}: cannot encode its own tokens", "save it again")
        with failing, backend.silent_panics():
            self._keep_special_text_apart()
            spelt = self._spells(eos, self.eos_id)
        if spelt:
            raise DataError(
                f"{where}: the text {eos!r} becomes the end-of-document id; mark that token as"
                ' "special": true under added_tokens'
            )

    def _id(self, token: str, where: str) -> int:
        found = self._json.token_to_id(token)
        if found is None:
            raise DataError(f"{where}: no token {token!r}; name one that the vocabulary has")
        return found

    def _spells(self, text: str, i: int) -> bool:
        return i in self._json.encode(f"a{text}b", add_special_tokens=False).ids

    def _keep_special_text_apart(self) -> None:
        """Unigram models (T5's) find "</s>" as they find any piece: such strings are cut in two."""
        special = {t.content: i for i, t in self._json.get_added_tokens_decoder().items()}
        marked = {t.content for t in self._json.get_added_tokens_decoder().values() if t.special}
        found = [t for t in sorted(marked) if len(t) > 1 and self._spells(t, special[t])]
        if found:
            pattern = "|".join(f"{re.escape(t[0])}(?={re.escape(t[1:])})" for t in found)
            cut = pre_tokenizers.Split(Regex(pattern), "isolated")
            before = self._json.pre_tokenizer
            self._json.pre_tokenizer = (
                cut if before is None else pre_tokenizers.Sequence([before, cut])
            )

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32 and without an end of document; uses all cores."""
        with backend.failing_as(f"{self._where}: cannot encode a text", _ANOTHER):
            encoded = self._json.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(e.ids, np.int32) for e in encoded]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of some ids; special tokens are left out unless asked for."""
        with backend.failing_as(f"{self._where}: cannot decode ids", _ANOTHER):
            return self._json.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        special = {"eos_token": self.eos_token, "pad_token": self.pad_token}
        if self.bos_token:
            special["bos_token"] = self.bos_token
        begins = {"add_bos_token": True} if self.adds_bos else {}
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **special,
            **begins,
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


def token_of(content: str, i: int, where: str) -> str:
    """The token with an id, in the text of a tokenizer.json.

    Raises:
      UsageError: there is none.
    """
    found = backend.load(content, where).id_to_token(i) if 0 <= i < 2**32 else None
    if found is None:
        raise UsageError(f"--eos-id {i}: {where} has no such id; give one of its special tokens'")
    return found

"""Vocabularies that no `tokenizer.json` can stand for, kept beside the tokens as they are.

    FOLDER/vocabulary.json   what kind it is, its size and special ids, its fingerprint
    FOLDER/tokenizer.model   of the kind "sentencepiece"

Training reads `vocabulary.json` alone. Only turning text into ids or back loads SentencePiece
("sentencepiece") or imports the module that has the vocabulary ("seqio"); "ids" needs neither.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.data import sentencepiece_model, seqio_vocabulary
from emo_jax.data.tokenizer_base import Tokenizer
from emo_jax.errors import DataError, UsageError

FILE = "vocabulary.json"
MODEL_FILE = "tokenizer.model"
_FORMAT = "emo_jax vocabulary"


def check_eos(eos_id: int, vocab_size: int, where: str) -> None:
    """Raises UsageError where an end-of-document id is no id."""
    if not 0 <= eos_id < vocab_size:
        raise UsageError(
            f"--eos-id {eos_id}: {where} has ids 0..{vocab_size - 1}; give one of them"
        )


class KeptTokenizer(Tokenizer):
    """A vocabulary that is kept as it is; see the top of this file.

    Args:
      settings: the content of `vocabulary.json`.
      model: the `.model` file, of the kind "sentencepiece".
      where: named in errors.
    """

    def __init__(self, settings: dict[str, Any], model: bytes | None, where: str):
        self._settings, self._model, self._where = settings, model, where
        self.kind: str = settings["kind"]
        self.vocab_size = settings["vocab_size"]
        self.eos_id, self.pad_id = settings["eos_id"], settings["pad_id"]
        self.bos_id = settings["bos_id"]
        self.adds_bos = settings.get("adds_bos", False)
        self.fingerprint = settings["fingerprint"]
        self.reads_ids = self.kind == "ids"

    @functools.cached_property
    def _processor(self) -> Any:
        return sentencepiece_model.load_processor(self._model or b"", self._where)

    @functools.cached_property
    def _vocabulary(self) -> Any:
        found = seqio_vocabulary.find(self._settings["source"])
        probed = _fingerprint_of_seqio(found, self._settings["source"])
        if probed != self.fingerprint:
            raise DataError(
                f"{self._settings['source']}: gives other ids than when the documents were"
                " prepared; use the module as it was then"
            )
        return found

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32 and without an end of document."""
        if self.kind == "sentencepiece":
            encoded = sentencepiece_model.encode_batch(self._processor, list(texts))
        elif self.kind == "ids":
            encoded = [_numbers(text) for text in texts]
        else:
            encoded = [_ids(self._vocabulary, text, self._where) for text in texts]
        return [np.asarray(ids, np.int32) for ids in encoded]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of some ids; "ids" gives decimal numbers."""
        special = (self.eos_id, self.pad_id, self.bos_id)
        numbers = [i for i in map(int, ids) if not (skip_special and i in special)]
        if self.kind == "ids":
            return " ".join(map(str, numbers))
        if self.kind == "sentencepiece":
            pieces = self._processor.GetPieceSize()
            return self._processor.DecodeIds([i for i in numbers if i < pieces])
        return str(self._vocabulary.decode(numbers))

    def save(self, folder: str | Path) -> None:
        """Writes `vocabulary.json` and, for SentencePiece, `tokenizer.model`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self._model is not None:
            (folder / MODEL_FILE).write_bytes(self._model)
        settings = self._settings | ({"adds_bos": True} if self.adds_bos else {})
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        (folder / FILE).write_text(text, encoding="utf-8")


def _numbers(text: str) -> list[int]:
    try:
        ids = [int(word) for word in text.split()]
    except ValueError as error:
        raise DataError(
            f"text {text[:30]!r}: not ids ({error}); this vocabulary takes decimal numbers with"
            " spaces between, or lists of numbers"
        ) from error
    if ids and not (min(ids) >= 0 and max(ids) < 2**31):
        raise DataError(f"text {text[:30]!r}: ids must be 0..{2**31 - 1}")
    return ids


def _ids(vocabulary: Any, text: str, where: str) -> list[int]:
    ids = vocabulary.encode(text)
    try:
        return [int(i) for i in ids]
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: does not turn text into ids ({error}); give another vocabulary"
        ) from error


def load(folder: Path) -> KeptTokenizer:
    """What `KeptTokenizer.save` wrote.

    Raises:
      DataError: damaged.
    """
    model = folder / MODEL_FILE
    return from_bytes(
        (folder / FILE).read_bytes(),
        model.read_bytes() if model.is_file() else None,
        str(folder / FILE),
    )


def from_bytes(content: bytes, model: bytes | None, where: str) -> KeptTokenizer:
    """A kept vocabulary out of the content of its files."""
    try:
        settings = json.loads(content)
        if settings["format"] != _FORMAT:
            raise ValueError("another format")
        kept = KeptTokenizer(settings, model, where)
        if kept.kind == "sentencepiece" and _fingerprint(model or b"") != kept.fingerprint:
            raise ValueError(f"{MODEL_FILE} is not the one it was made with")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{where}: damaged vocabulary ({error}); copy it again or prepare the documents again"
        ) from error
    return kept


def of_sentencepiece(
    content: bytes, vocab_size: int, *, eos_id: int, pad_id: int, bos_id: int | None
) -> KeptTokenizer:
    """A SentencePiece model as it is."""
    settings = _describe("sentencepiece", "", vocab_size, eos_id, pad_id, bos_id)
    settings["fingerprint"] = _fingerprint(content)
    return KeptTokenizer(settings, content, "SentencePiece model")


def of_seqio(vocabulary: Any, spec: str, eos_id: int | None) -> KeptTokenizer:
    """A vocabulary of seqio, to be imported again whenever it is needed.

    A `PassThroughVocabulary` has ids for text: it becomes the kind "ids".
    """
    eos = vocabulary.eos_id if eos_id is None else eos_id
    if eos is None or eos < 0:
        raise DataError(f"{spec}: no end-of-document token; give --eos-id")
    size = int(vocabulary.vocab_size)
    check_eos(eos, size, spec)
    passes = seqio_vocabulary.is_pass_through(vocabulary)
    # Where ids are taken as they come, 0 may be any token: only the end is known to be none.
    pad = eos if passes else int(vocabulary.pad_id)
    kind = "ids" if passes else "seqio"
    settings = _describe(kind, "" if passes else spec, size, int(eos), pad, None)
    settings["fingerprint"] = (
        _fingerprint(f"ids {size}".encode()) if passes else _fingerprint_of_seqio(vocabulary, spec)
    )
    return KeptTokenizer(settings, None, spec)


def _describe(
    kind: str, source: str, vocab_size: int, eos_id: int, pad_id: int, bos_id: int | None
) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "kind": kind,
        "source": source,
        "vocab_size": vocab_size,
        "eos_id": eos_id,
        "pad_id": pad_id,
        "bos_id": bos_id,
    }


def _fingerprint(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _fingerprint_of_seqio(vocabulary: Any, spec: str) -> str:
    """Of the ids of some text: code that was changed shows, where the name stays."""
    ids = [_ids(vocabulary, text, spec) for text in sentencepiece_model.PROBES]
    return _fingerprint(json.dumps([int(vocabulary.vocab_size), ids]).encode())

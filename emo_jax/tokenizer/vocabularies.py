"""Vocabularies that no `tokenizer.json` can represent, kept next to the tokens as they are.

    FOLDER/vocabulary.json   what kind it is, its size and special ids, its fingerprint
    FOLDER/tokenizer.model   for the kind "sentencepiece"

Training reads `vocabulary.json` alone. For the kinds "ids", "bytes" and "sentencepiece", converting
text to ids and back needs only these files. A vocabulary of the kind "seqio" is code: its file
names a module and something in it. A data file may come from anywhere, so what it names is imported
only if the caller trusts the file (`--trust`).
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.errors import DataError, UsageError, one_line
from emo_jax.files import json_files, named_code
from emo_jax.files.json_files import Fields, NotReadableError
from emo_jax.tokenizer import sentencepiece_model, seqio_vocabulary
from emo_jax.tokenizer.base import MAX_IDS, Tokenizer

FILE = "vocabulary.json"
MODEL_FILE = "tokenizer.model"
_FORMAT = "emo_jax vocabulary"
_KINDS = ("ids", "bytes", "sentencepiece", "seqio")
_MAX_MODEL_BYTES = 1 << 28  # of a SentencePiece model; the largest common ones have 5 MB
BYTE_OFFSET = 3  # seqio.ByteVocabulary: 0 padding, 1 end, 2 unknown, then the 256 bytes


def check_eos(eos_id: int, vocab_size: int, where: str) -> None:
    """Raises UsageError if an end-of-document id is outside the vocabulary."""
    if not 0 <= eos_id < vocab_size:
        raise UsageError(
            f"--eos-id {eos_id}: {where} has ids 0..{vocab_size - 1}; give one of them"
        )


class KeptTokenizer(Tokenizer):
    """A vocabulary that is kept as it is; see the top of this file.

    Args:
      settings: the content of `vocabulary.json`.
      model: the `.model` file, for the kind "sentencepiece".
      where: used in error messages.
      trust: the code that `settings` names may be imported and called.

    Raises:
      NotReadableError: the settings are invalid.
    """

    def __init__(
        self, settings: dict[str, Any], model: bytes | None, where: str, *, trust: bool = False
    ):
        self._settings, self._model, self._where = settings, model, where
        self._trust = trust
        fields = Fields(settings)
        self.kind = fields.choice("kind", _KINDS)
        self.vocab_size = fields.integer("vocab_size", low=1, high=MAX_IDS)
        last = self.vocab_size - 1
        self.eos_id, self.pad_id = (fields.integer(n, high=last) for n in ("eos_id", "pad_id"))
        bos = settings.get("bos_id")
        self.bos_id = None if bos is None else fields.integer("bos_id", high=last)
        self.adds_bos = fields.flag("adds_bos", False)
        self.fingerprint = fields.text("fingerprint")
        self._source = fields.text("source", "")
        if self.kind == "bytes" and self.vocab_size < BYTE_OFFSET + 256:
            raise NotReadableError(f"vocab_size {self.vocab_size} has no room for the 256 bytes")
        if self.kind == "seqio":
            if not self._source.startswith(named_code.PREFIX):
                raise NotReadableError(f"source must be {named_code.PREFIX}MODULE:VOCABULARY")
            if self.fingerprint == _fingerprint_of_bytes(self.vocab_size):
                self.kind = "bytes"  # written before that kind existed
        self.reads_ids = self.kind == "ids"

    @functools.cached_property
    def _processor(self) -> Any:
        found = sentencepiece_model.load_processor(self._model or b"", self._where)
        if found.GetPieceSize() > self.vocab_size:
            raise DataError(
                f"{self._where}: {MODEL_FILE} has {found.GetPieceSize()} pieces, vocab_size is"
                f" {self.vocab_size}; copy both again or prepare the documents again"
            )
        return found

    @functools.cached_property
    def _vocabulary(self) -> Any:
        if not self._trust:
            raise UsageError(
                f"{self._where}: its vocabulary is code, {self._source}, to be imported and called;"
                " a file of data may name any: give --trust (in Python trust=True) where you know"
                " who made it"
            )
        found = seqio_vocabulary.find(self._source)
        probed = _fingerprint_of_seqio(found, self._source)
        if probed != self.fingerprint:
            raise DataError(
                f"{self._source}: gives other ids than when the documents were"
                " prepared; use the module as it was then"
            )
        return found

    def ready(self) -> None:
        """Loads what converts text to ids and back."""
        if self.kind == "sentencepiece":
            _ = self._processor
        elif self.kind == "seqio":
            _ = self._vocabulary

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, int32 and without an end of document."""
        if self.kind == "sentencepiece":
            encoded = sentencepiece_model.encode_batch(self._processor, list(texts))
        elif self.kind == "ids":
            encoded = [_numbers(text) for text in texts]
        elif self.kind == "bytes":
            encoded = [_byte_ids(text) for text in texts]
        else:
            encoded = [_ids(self._vocabulary, text, self._where) for text in texts]
        for text, ids in zip(texts, encoded, strict=True):
            if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
                raise DataError(
                    f"text {text[:30]!r}: gives ids {min(ids)}..{max(ids)}, outside the vocabulary"
                    f" of {self.vocab_size} ({self._where})"
                )
        return [np.asarray(ids, np.int32) for ids in encoded]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Returns the text of some ids; the kind "ids" gives decimal numbers."""
        special = (self.eos_id, self.pad_id, self.bos_id)
        numbers = [i for i in map(int, ids) if not (skip_special and i in special)]
        if self.kind == "ids":
            return " ".join(map(str, numbers))
        if self.kind == "bytes":
            known = bytes(i - BYTE_OFFSET for i in numbers if 0 <= i - BYTE_OFFSET < 256)
            return known.decode("utf-8", "replace")
        if self.kind == "sentencepiece":
            pieces = self._processor.GetPieceSize()
            return self._processor.DecodeIds([i for i in numbers if 0 <= i < pieces])
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
    return ids


def _byte_ids(text: str) -> list[int]:
    return [byte + BYTE_OFFSET for byte in text.encode("utf-8")]


def _ids(vocabulary: Any, text: str, where: str) -> list[int]:
    ids = vocabulary.encode(text)
    try:
        return [int(i) for i in ids]
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: does not turn text into ids ({error}); give another vocabulary"
        ) from error


def load(folder: Path, *, trust: bool = False) -> KeptTokenizer:
    """Loads what `KeptTokenizer.save` wrote.

    Args:
      trust: the code that the file may name may be imported and called.

    Raises:
      DataError: it is damaged.
    """
    file, model = folder / FILE, folder / MODEL_FILE
    try:
        content = json_files.read_regular(file)
        held = (
            json_files.read_regular(model, max_bytes=_MAX_MODEL_BYTES) if model.exists() else None
        )
    except (OSError, NotReadableError) as error:
        raise _damaged(str(file), error) from error
    return from_bytes(content, held, str(file), trust=trust)


def from_bytes(
    content: bytes, model: bytes | None, where: str, *, trust: bool = False
) -> KeptTokenizer:
    """Makes a kept vocabulary from the content of its files."""
    try:
        settings = json_files.parse(content)
        if Fields(settings).text("format") != _FORMAT:
            raise NotReadableError("another format")
        kept = KeptTokenizer(settings, model, where, trust=trust)
        if kept.kind == "sentencepiece" and _fingerprint(model or b"") != kept.fingerprint:
            raise NotReadableError(f"{MODEL_FILE} is not the one it was made with")
    except NotReadableError as error:
        raise _damaged(where, error) from error
    return kept


def _damaged(where: str, error: Exception) -> DataError:
    return DataError(
        f"{where}: damaged vocabulary ({one_line(error)}); copy it again or prepare the documents"
        " again"
    )


def of_sentencepiece(
    content: bytes, vocab_size: int, *, eos_id: int, pad_id: int, bos_id: int | None
) -> KeptTokenizer:
    """Keeps a SentencePiece model as is."""
    settings = _describe("sentencepiece", "", vocab_size, eos_id, pad_id, bos_id)
    settings["fingerprint"] = _fingerprint(content)
    return KeptTokenizer(settings, content, "SentencePiece model")


def of_seqio(vocabulary: Any, spec: str, eos_id: int | None) -> KeptTokenizer:
    """Keeps a seqio vocabulary, which is imported again whenever it is needed.

    A `PassThroughVocabulary` takes ids as text: it becomes the kind "ids"; a `ByteVocabulary`
    becomes the kind "bytes". Neither needs its code again.
    """
    eos = vocabulary.eos_id if eos_id is None else eos_id
    if eos is None or eos < 0:
        raise DataError(f"{spec}: no end-of-document token; give --eos-id")
    size = int(vocabulary.vocab_size)
    check_eos(eos, size, spec)
    passes = seqio_vocabulary.is_pass_through(vocabulary)
    # If ids are passed through, 0 may be any token: only the end is known not to be text.
    own = vocabulary.pad_id
    pad = eos if passes or own is None or own < 0 else int(own)
    kind = "ids" if passes else "bytes" if seqio_vocabulary.is_bytes(vocabulary) else "seqio"
    source = spec if kind == "seqio" else ""
    settings = _describe(kind, source, size, int(eos), pad, None)
    settings["fingerprint"] = (
        _fingerprint(f"ids {size}".encode()) if passes else _fingerprint_of_seqio(vocabulary, spec)
    )
    try:
        kept = KeptTokenizer(settings, None, spec, trust=True)  # the caller named the code
    except NotReadableError as error:
        raise DataError(f"{spec}: not a vocabulary that can be used ({error})") from error
    if kind == "seqio":
        kept.notes = (
            f"note: {spec} is code: what turns text into ids or back with the store or a model of"
            " it imports that again, and asks for --trust",
        )
    return kept


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
    """Hashes the ids of some texts, which reveals changed code under an unchanged name."""
    ids = [_ids(vocabulary, text, spec) for text in sentencepiece_model.PROBES]
    return _fingerprint_of_ids(int(vocabulary.vocab_size), ids)


def _fingerprint_of_bytes(vocab_size: int) -> str:
    return _fingerprint_of_ids(vocab_size, [_byte_ids(t) for t in sentencepiece_model.PROBES])


def _fingerprint_of_ids(vocab_size: int, ids: list[list[int]]) -> str:
    return _fingerprint(json.dumps([vocab_size, ids]).encode())

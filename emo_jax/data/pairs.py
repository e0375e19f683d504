"""Prompts and answers for finetuning: tokenised and packed once, then windows like any others.

A file of lines `{"prompt": …, "answer": …}` becomes `NAME.pairs.npz`, in which a window holds
several whole pairs. Only the answers, and the end of document after each, count in the loss.

Legend: S tokens of a window, N windows.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emo_jax.batch import PADDING_ID
from emo_jax.data.stream import TRAIN, Span
from emo_jax.documents import input_files
from emo_jax.documents.archives import READ_ERRORS, unreadable
from emo_jax.documents.records import NUM_EXAMPLES
from emo_jax.documents.text_files import json_lines
from emo_jax.errors import DataError, UsageError, one_line
from emo_jax.files import json_files
from emo_jax.files.json_files import Fields, NotReadableError, is_text
from emo_jax.files.npz import read_npz
from emo_jax.tokenizer.base import MAX_IDS, Tokenizer

SUFFIX = ".pairs.npz"
_FORMAT = 1
_ARRAYS = {"tokens": "int32", "segment_ids": "int32", "loss_mask": "uint8"}


class Pair(NamedTuple):
    """One example."""

    where: str  # file and line
    prompt: str
    answer: str


@dataclass(frozen=True)
class Packed:
    """Pairs packed into windows.

    Attributes:
      tokens_NS: int32.
      segment_ids_NS: int32, pair of the token within its window; -1 padding.
      loss_mask_NS: float32, 1 where the next token belongs to an answer or ends it.
      pairs: number of pairs in the windows.
      too_long: locations of pairs that are longer than a window.
      unusable: locations of lines that are not pairs, with the reason.
    """

    tokens_NS: np.ndarray
    segment_ids_NS: np.ndarray
    loss_mask_NS: np.ndarray
    pairs: int
    too_long: tuple[str, ...]
    unusable: tuple[str, ...]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays as they are stored on disk."""
        return {
            "tokens": self.tokens_NS,
            "segment_ids": self.segment_ids_NS,
            "loss_mask": self.loss_mask_NS.astype(np.uint8),
        }

    @property
    def digest(self) -> str:
        """Hash of the windows: the fingerprint of their `PairStore`."""
        return _digest(self.arrays)

    def refuse_unusable(self, file: str) -> None:
        """Raises DataError if lines would have to be skipped, naming the first of them."""
        bad = [*self.unusable, *self.too_long]
        if bad:
            raise DataError(
                f"{file}: {len(self.unusable)} lines that are no pair,"
                f" {len(self.too_long)} pairs longer than a window"
                f" ({_first(bad)}); mend them, or give --skip-unusable"
            )

    def summary(self) -> str:
        """Returns one line that names the first of what was skipped."""
        text = f"{self.pairs} pairs in {len(self.tokens_NS)} windows"
        for what, where in (("longer than a window", self.too_long), ("unusable", self.unusable)):
            if where:
                text += f"; {len(where)} {what} left out ({_first(where)})"
        return text


def _first(bad: Sequence[str]) -> str:
    """Joins the first few of some lines."""
    return ", ".join(bad[:NUM_EXAMPLES]) + (", …" if len(bad) > NUM_EXAMPLES else "")


def read_pairs(
    file: str | Path, *, prompt_field: str = "prompt", answer_field: str = "answer"
) -> Iterator[Pair | str]:
    """Yields the pairs of a JSONL file, compressed or not; for a bad line, where it is and why.

    Raises:
      UsageError: no such file.
      DataError: it cannot be read, or is something else.
    """
    path = Path(file)
    input_files.refuse_foreign(path, input_files.LINES)
    try:
        for number, record, why in json_lines(path):
            where = f"{path.name}:{number}"
            values: list[Any] = [
                record.get(field) if isinstance(record, dict) else None
                for field in (prompt_field, answer_field)
            ]
            missing = [
                field
                for field, value in zip((prompt_field, answer_field), values, strict=True)
                if not isinstance(value, str) or not value.strip()
            ]
            if why:
                yield f"{where}: {why}"
            elif missing:
                yield f"{where}: no {missing[0]!r}"
            elif not all(map(is_text, values)):
                yield f"{where}: half of a surrogate pair"
            else:
                yield Pair(where, *values)
    except READ_ERRORS as error:
        raise unreadable(path, error) from error


def pack_pairs(found: Sequence[Pair | str], tokenizer: Tokenizer, seq_len: int) -> Packed:
    """Packs pairs in order, each whole in one window.

    Prompt and answer are tokenised separately, as when a model is prompted.

    Raises:
      DataError: no pair can be used.
    """
    unusable = tuple(entry for entry in found if isinstance(entry, str))
    good = [entry for entry in found if isinstance(entry, Pair)]
    prompts = tokenizer.encode_batch([pair.prompt for pair in good]) if good else []
    answers = tokenizer.encode_batch([pair.answer for pair in good]) if good else []
    bos = [] if tokenizer.first_id is None else [tokenizer.first_id]
    rows: list[list[tuple[np.ndarray, int]]] = []
    room, too_long = 0, []
    for pair, prompt, answer in zip(good, prompts, answers, strict=True):
        if not len(bos) + len(prompt) or not len(answer):
            unusable = (*unusable, f"{pair.where}: no tokens")
            continue
        ids = np.concatenate([bos, prompt, answer, [tokenizer.eos_id]]).astype(np.int32)
        if len(ids) > seq_len:
            too_long.append(f"{pair.where}: {len(ids)} tokens")
            continue
        if len(ids) > room:
            rows.append([])
            room = seq_len
        rows[-1].append((ids, len(bos) + len(prompt)))
        room -= len(ids)
    if not rows:
        first = next(iter([*unusable, *too_long]), "it is empty")
        raise DataError(f"no pair can be used of {len(found)}; the first: {first}")
    tokens = np.full((len(rows), seq_len), tokenizer.pad_id, np.int32)
    segments = np.full(tokens.shape, PADDING_ID, np.int32)
    mask = np.zeros(tokens.shape, np.float32)
    for n, row in enumerate(rows):
        start = 0
        for number, (ids, answer_at) in enumerate(row):
            end = start + len(ids)
            tokens[n, start:end] = ids
            segments[n, start:end] = number
            mask[n, start + answer_at - 1 : end - 1] = 1.0  # position t predicts token t + 1
            start = end
    return Packed(tokens, segments, mask, sum(map(len, rows)), tuple(too_long), unusable)


class PairStore:
    """Packed pairs on disk, a `TokenSource` with one training stream."""

    domains: tuple[str, ...] = ()

    def __init__(self, path: str, arrays: dict[str, np.ndarray], about: dict):
        self.path = path
        self.vocab_size: int = about["vocab_size"]
        self.eos_id: int = about["eos_id"]
        self.pad_id: int = about["pad_id"]
        self.tokenizer_fingerprint: str = about["tokenizer"]
        self.seq_len: int = about["seq_len"]
        self.fingerprint = _digest(arrays)
        self._stream = PairStream(path, arrays)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "PairStore":
        """Reads what `write_pairs` wrote.

        Raises:
          UsageError: there is no such file.
          DataError: it is damaged.
        """
        location = os.fspath(path)
        try:
            arrays = read_npz(Path(location), {"about": "U", **_ARRAYS})
            about = json_files.parse(str(arrays.pop("about")))
            _check(Fields(about), arrays)
            return cls(location, arrays, about)
        except FileNotFoundError:
            raise UsageError(f"{location}: no such file; run emo finetune again") from None
        except (OSError, NotReadableError) as error:
            raise DataError(
                f"{location}: damaged ({one_line(error)}); run emo finetune again"
            ) from error

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return (TRAIN,)

    def streams(self, split: str) -> list["PairStream"]:
        """Returns the one training stream; none for another split."""
        return [self._stream] if split == TRAIN else []


def _check(about: Fields, arrays: dict[str, np.ndarray]) -> None:
    """Raises NotReadableError if the contents are not those of a pairs file."""
    if about.integer("format") != _FORMAT or about.text("digest") != _digest(arrays):
        raise NotReadableError("its checksum does not fit")
    last = about.integer("vocab_size", low=1, high=MAX_IDS) - 1
    for name in ("eos_id", "pad_id"):
        about.integer(name, high=last)
    about.line("tokenizer")
    tokens = arrays["tokens"]
    if tokens.ndim != 2 or not tokens.size or tokens.shape[1] != about.integer("seq_len"):
        raise NotReadableError("tokens are no windows of seq_len")
    for name, low, high in (
        ("tokens", 0, last),
        ("segment_ids", PADDING_ID, tokens.shape[1]),
        ("loss_mask", 0, 1),
    ):
        found = arrays[name]
        if found.shape != tokens.shape or not low <= found.min() <= found.max() <= high:
            raise NotReadableError(f"{name} must be {low}..{high}, one for each token")


class PairStream:
    """Windows end to end."""

    def __init__(self, name: str, arrays: dict[str, np.ndarray]):
        self.name = name
        self._tokens, self._segments, self._mask = (
            arrays[key].reshape(-1) for key in ("tokens", "segment_ids", "loss_mask")
        )
        self.num_tokens = self._tokens.size

    def read(self, start: int, stop: int) -> Span:
        """Returns tokens [start, stop)."""
        part = slice(start, stop)
        tokens = self._tokens[part]
        nowhere = np.full(tokens.shape, -1, np.int32)
        return Span(tokens, self._segments[part], nowhere, self._mask[part].astype(np.float32))


def write_pairs(path: str | Path, packed: Packed, tokenizer: Tokenizer) -> None:
    """Writes the windows; the file appears once it is complete."""
    path = Path(path)
    about = {
        "format": _FORMAT,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "tokenizer": tokenizer.fingerprint,
        "seq_len": packed.tokens_NS.shape[1],
        "digest": packed.digest,
    }
    unfinished = path.with_name(f".{path.name}.tmp.npz")
    held: dict[str, Any] = {"about": np.array(json.dumps(about)), **packed.arrays}
    np.savez_compressed(unfinished, **held)
    os.replace(unfinished, path)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()

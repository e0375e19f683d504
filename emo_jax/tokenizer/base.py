"""The interface of all tokenizers, whatever they are based on."""

import abc
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

MAX_IDS = 1 << 24  # of a vocabulary: tables of that length are allocated; the largest have 1 M


class Tokenizer(abc.ABC):
    """Converts text to ids and back; special-token strings in a text are plain text.

    Attributes:
      eos_id: ends a document.
      pad_id: fills a window; `eos_id` if there is none.
      bos_id: begins a document, only with `emo prepare --add-bos`; None if unknown.
      adds_bos: the documents that a model was trained on begin with `bos_id`, so prompts do too.
      vocab_size: size of the table that the ids index; ids may have gaps.
      fingerprint: equal for tokenizers that give equal ids.
      reads_ids: the texts are already ids, as decimal numbers.
      notes: what a user should know about how it was loaded.
    """

    eos_id: int
    pad_id: int
    bos_id: int | None = None
    adds_bos: bool = False
    vocab_size: int
    fingerprint: str
    reads_ids: bool = False
    notes: tuple[str, ...] = ()

    def ready(self) -> None:  # noqa: B027 most have nothing to load
        """Loads what converts text to ids and back, unless it is loaded already.

        Raises:
          UsageError: it is code that a data file names and is not trusted, or it is not installed.
        """

    @property
    def first_id(self) -> int | None:
        """The id that documents, and so prompts, begin with; None if they begin with text."""
        return self.bos_id if self.adds_bos else None

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, int32 and without an end of document; uses all cores."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Returns the text of some ids; special tokens are dropped by default."""

    @abc.abstractmethod
    def save(self, folder: str | Path) -> None:
        """Writes the files that `load_tokenizer` reads."""

    def documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text as a document of training, int32: with what begins and ends it."""
        begin = [] if self.first_id is None else [self.first_id]
        return [
            np.concatenate([begin, ids, [self.eos_id]]).astype(np.int32)
            for ids in self.encode_batch(texts)
        ]

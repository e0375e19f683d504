"""Bytes of text behind the labels of a batch: what a loss is divided by for bits per byte.

    bits per byte = total loss in nats / total bytes / ln 2

This makes losses with different tokenizers comparable; losses per token are not. The bytes are
those of the text that the tokens stand for, in UTF-8. A special token has none, but the loss of an
end of document counts. The first token of a document (or of its part in a window) is no label and
adds no bytes. If a tokenizer changes a text before splitting it (a normalizer, an added space), the
bytes are those of the changed text.

Legend: B windows, S tokens, M domains, V ids of the tokenizer.
"""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.batch import Batch
from emo_jax.files.json_files import parse
from emo_jax.tokenizer.load import Tokenizer

_SPACE = "▁"  # how SentencePiece writes a space
_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class TextBytes:
    """Counts bytes of text: with a table by id if the tokenizer allows one, else by decoding."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._table_V = token_bytes(tokenizer)

    def by_domain(self, batch: Batch, num_domains: int) -> np.ndarray:
        """Bytes of the labels that a held-out loss counts (see `heldout`), (M,) int64.

        Args:
          batch: on the host.
          num_domains: M.
        """
        counted_BS = np.zeros(batch.tokens.shape, bool)
        counted_BS[:, :-1] = batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]
        counted_BS &= (batch.loss_mask > 0) & (batch.segment_ids >= 0) & (batch.domain_ids >= 0)
        sums_M = np.zeros(num_domains, np.int64)
        if self._table_V is not None:
            bytes_BS = self._table_V[np.where(counted_BS, batch.labels, 0)]
            np.add.at(sums_M, batch.domain_ids[counted_BS], bytes_BS[counted_BS])
            return sums_M
        for b, t in zip(*np.nonzero(_first_of_run(counted_BS)), strict=True):
            length = int(np.argmin(np.append(counted_BS[b, t:], False)))
            ids = [int(batch.tokens[b, t]), *batch.labels[b, t : t + length].tolist()]
            sums_M[batch.domain_ids[b, t]] += self._decoded(ids) - self._decoded(ids[:1])
        return sums_M

    def _decoded(self, ids: list[int]) -> int:
        return len(self._tokenizer.decode(ids).encode("utf-8", "replace"))


def _first_of_run(counted_BS: np.ndarray) -> np.ndarray:
    """True where a document's counted labels begin; its last token is never counted."""
    before_BS = np.pad(counted_BS[:, :-1], ((0, 0), (1, 0)))
    return counted_BS & ~before_BS


def token_bytes(tokenizer: Tokenizer) -> np.ndarray | None:
    """Bytes of text that each id stands for, wherever it occurs, (V,) int64; None if that varies.

    Byte-level and SentencePiece models have such a table, with or without byte pieces; only the
    first token of a text may give one byte less, if the decoder drops the space before it. In other
    models the bytes of a token depend on where it occurs.
    """
    content = _tokenizer_json(tokenizer)
    vocabulary = (content.get("model") or {}).get("vocab")
    if isinstance(vocabulary, list):  # unigram: [[token, score], …]
        vocabulary = {entry[0]: i for i, entry in enumerate(vocabulary)}
    if not isinstance(vocabulary, dict):
        return None
    decoder = content.get("decoder") or {}
    size: Callable[[str], int]
    if decoder.get("type") == "ByteLevel":
        size = _byte_level_size
    elif _is_sentencepiece(decoder):
        size = _sentencepiece_size
    else:
        return None
    added = content.get("added_tokens", [])
    table_V = np.zeros(tokenizer.vocab_size, np.int64)
    for token, i in (vocabulary | {t["content"]: t["id"] for t in added}).items():
        table_V[i] = size(token)
    special = [t["id"] for t in added if t.get("special")]
    table_V[[*special, tokenizer.eos_id, tokenizer.pad_id]] = 0
    return table_V


def _tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer.json that a tokenizer saves; empty if it saves none."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        file = Path(folder) / "tokenizer.json"
        return parse(file.read_bytes()) if file.exists() else {}


def _byte_level_size(token: str) -> int:
    """One byte per character; a token with any other character (an added one) is plain text."""
    return len(token) if all(c in _BYTE_CHARS for c in token) else len(token.encode())


# The characters that byte-level models use for the 256 bytes (GPT-2's table).
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTE_CHARS = frozenset(map(chr, [*_PRINTABLE, *range(256, 512 - len(_PRINTABLE))]))


def _is_sentencepiece(decoder: dict[str, Any]) -> bool:
    """Whether tokens stand for the same bytes everywhere, except for a space before the first."""
    if decoder.get("type") == "Metaspace":
        return decoder.get("replacement", _SPACE) == _SPACE
    parts = decoder.get("decoders") or []
    kinds = [part.get("type") for part in parts]
    if kinds[:3] != ["Replace", "ByteFallback", "Fuse"] or kinds[3:] not in ([], ["Strip"]):
        return False
    replaces = (parts[0].get("pattern"), parts[0].get("content")) == ({"String": _SPACE}, " ")
    return replaces and all((s.get("content"), s.get("stop")) == (" ", 0) for s in parts[3:])


def _sentencepiece_size(piece: str) -> int:
    if _BYTE_PIECE.fullmatch(piece):
        return 1
    return len(piece.replace(_SPACE, " ").encode())

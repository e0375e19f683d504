"""The text of each token of a document, and the token types that stand out in part of a sample.

Legend: N tokens, T token types.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emo_jax.tokenizer.base import Tokenizer

_SEEN = 4  # preceding tokens that a decoder must see: it may drop a first space
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TokenTexts(NamedTuple):
    """The text of each token in place: a document's texts together are the document.

    Attributes:
      texts: the different texts.
      index_N: index into `texts`, int32. A token that ends within a character has an empty text;
        the one that completes it has the character.
    """

    texts: list[str]
    index_N: np.ndarray


def token_texts(documents: Sequence[np.ndarray], tokenizer: Tokenizer | None) -> TokenTexts:
    """Returns the texts of some documents' tokens, or their ids if there is no tokenizer."""
    numbers: dict[str, int] = {}
    index: list[int] = []
    for ids_n in documents:
        shown = map(str, ids_n) if tokenizer is None else _texts(ids_n.tolist(), tokenizer)
        index += [numbers.setdefault(text, len(numbers)) for text in shown]
    return TokenTexts(list(numbers), np.array(index, np.int32))


def _texts(ids: list[int], tokenizer: Tokenizer) -> list[str]:
    """Returns one text per id: what it adds to the text of the ids before it."""
    out: list[str] = []
    begin, done = 0, 0  # ids[done:] are not shown yet
    for end in range(1, len(ids) + 1):
        before = tokenizer.decode(ids[begin:done], skip_special=False)
        text = tokenizer.decode(ids[begin:end], skip_special=False)
        if text.endswith(_UNFINISHED) and end < len(ids) and end - done < _SEEN:
            out.append("")
            continue
        out.append(text[len(before) :])
        begin, done = max(0, end - _SEEN), end
    return out


def standing_out(
    inside: np.ndarray, everywhere: np.ndarray, most: int = 12, least: int = 3
) -> list[tuple[int, float]]:
    """Returns token types that are more frequent in part of a sample: [(type, lift), …].

    Ordered by the excess over the expected count, which favours neither words that are everywhere
    nor words that occur twice; `lift` is the observed over the expected count.

    Args:
      inside: counts (T,) in the part.
      everywhere: counts (T,) in the whole sample.
      least: minimum occurrences in the part.
    """
    total, part = everywhere.sum(), inside.sum()
    if not total or not part:
        return []
    expected = everywhere * (part / total)
    # Log-likelihood ratio of each type's count, taken as a Poisson variable (Dunning 1993).
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = np.where(expected > 0, inside / expected, 0.0)
        gain = np.where((inside >= least) & (lift > 1), inside * np.log(lift), 0.0)
    order = np.argsort(-gain, kind="stable")[:most]
    return [(int(t), float(lift[t])) for t in order if gain[t] > 0]

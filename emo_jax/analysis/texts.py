"""What each token of a document shows, and which token types stand out in a part of a sample.

Legend: N tokens, T token types.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emo_jax.data.tokenizer_base import Tokenizer

_SEEN = 4  # tokens of before that a decoder needs to see: it may drop a first space
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TokenTexts(NamedTuple):
    """The text of each token in its place: texts of a document together are the document.

    Attributes:
      texts: different ones.
      index_N: into `texts`, int32. A token that ends within a character shows nothing; the one that
        completes it shows the character.
    """

    texts: list[str]
    index_N: np.ndarray


def token_texts(documents: Sequence[np.ndarray], tokenizer: Tokenizer | None) -> TokenTexts:
    """Texts of the tokens of some documents; their ids where there is no tokenizer."""
    numbers: dict[str, int] = {}
    index: list[int] = []
    for ids_n in documents:
        shown = map(str, ids_n) if tokenizer is None else _texts(ids_n.tolist(), tokenizer)
        index += [numbers.setdefault(text, len(numbers)) for text in shown]
    return TokenTexts(list(numbers), np.array(index, np.int32))


def _texts(ids: list[int], tokenizer: Tokenizer) -> list[str]:
    """One for each id, by what it adds to the text of the ids before it."""
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
    """Token types that a part of a sample has more often than the whole: [(type, lift), …].

    Ordered by how many more there are than expected, which neither a word that is everywhere nor
    one that is there twice leads; `lift` is found over expected.

    Args:
      inside: counts (T,) in the part.
      everywhere: counts (T,) in all.
      least: occurrences in the part.
    """
    total, part = everywhere.sum(), inside.sum()
    if not total or not part:
        return []
    expected = everywhere * (part / total)
    # Log-likelihood ratio of each type's count, as of a Poisson variable (Dunning 1993).
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = np.where(expected > 0, inside / expected, 0.0)
        gain = np.where((inside >= least) & (lift > 1), inside * np.log(lift), 0.0)
    order = np.argsort(-gain, kind="stable")[:most]
    return [(int(t), float(lift[t])) for t in order if gain[t] > 0]

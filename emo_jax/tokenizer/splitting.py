r"""How byte-level BPE splits text into words, and where a long text can be cut.

The library takes about 100 bytes for each character of a text that it encodes at once. The ids of
a text are those of its words one after the other, so a cut between two words changes nothing if
each side splits as it does in the whole. That holds behind a letter and before a space or a line
feed, for the patterns below: none matches a letter with white space behind it, so a word ends
there; none looks behind, so what follows splits by itself; and `\s+(?!\S)` looks ahead from white
space, behind which the letter still is. NFC changes nothing across a space either.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT2_LONG = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGITS = "digits"  # each digit, then as GPT2

PART = 1 << 18  # characters, about
_PLACE = re.compile(r"[^\W\d_](?=[ \n])")


def pattern_of(fields: Mapping[str, Any]) -> str:
    """Returns the pattern of words of byte-level BPE; "" if text is split in another way.

    Args:
      fields: the content of a tokenizer.json.
    """
    before = fields.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before] if before else [])
    *cuts, last = steps or [{}]
    if last.get("type") != "ByteLevel":
        return ""
    uses_regex, kinds = last.get("use_regex", True), [cut.get("type") for cut in cuts]
    if not cuts and uses_regex:
        return GPT2
    if kinds == ["Digits"] and cuts[0].get("individual_digits") and uses_regex:
        return DIGITS
    if kinds == ["Split"] and not uses_regex and _covers(cuts[0]):
        found = cuts[0]["pattern"].get("Regex", "")
        return GPT2 if found == _GPT2_LONG else found
    return ""


def _covers(cut: Mapping[str, Any]) -> bool:
    """Whether a `Split` keeps its pattern's matches, which cover the whole text."""
    behavior, invert = cut.get("behavior"), bool(cut.get("invert"))
    return (behavior, invert) in (("Isolated", False), ("Removed", True))


def can_be_cut(fields: Mapping[str, Any]) -> bool:
    """Whether `parts` of a text have the ids of the whole, one after the other.

    Args:
      fields: the content of a tokenizer.json that the library has loaded.
    """
    model, normalizer = fields["model"], fields.get("normalizer")
    before = fields.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    return (
        pattern_of(fields) in (CL100K, QWEN2, GPT2, DIGITS)
        and not any(step.get("add_prefix_space") for step in steps)
        and (normalizer is None or normalizer == {"type": "NFC"})
        and model.get("type", "BPE") == "BPE"
        and not any(
            model.get(name)
            for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
        )
        and not any(_takes_in(token) for token in fields.get("added_tokens") or ())
    )


def _takes_in(token: Mapping[str, Any]) -> bool:
    """Whether an added token is found across white space; special ones are not looked for."""
    wide = any(token.get(name) for name in ("lstrip", "rstrip", "single_word"))
    return not token.get("special") and (wide or any(c.isspace() for c in token["content"]))


def parts(text: str) -> Iterator[str]:
    """Yields a text in parts of about `PART` characters; longer ones where it has no place."""
    start = 0
    while len(text) - start > 2 * PART:
        place = _place(text, start + PART)
        if place is None:
            break
        yield text[start:place]
        start = place
    yield text[start:]


def _place(text: str, after: int) -> int | None:
    for found in _PLACE.finditer(text, after):
        # Letters of old, which Python and the library agree on; NFC makes marks of some.
        letter = found[0]
        if unicodedata.ucd_3_2_0.category(letter)[0] == "L" and unicodedata.is_normalized(
            "NFC", letter
        ):
            return found.end()
    return None

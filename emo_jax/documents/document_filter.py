"""Selects documents of a corpus by length and language.

A document's split and position follow from its own id, so leaving some out does not move the others
(except in corpora so small that a split had to be filled, see `prepare.assign_splits`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emo_jax.errors import UsageError


@dataclass(frozen=True)
class DocumentFilter:
    """Criteria that a document must all pass. Bounds are inclusive; None means no bound.

    Attributes:
      min_chars: bound on the length of the text; likewise `max_chars`.
      min_tokens: bound on the length of the document without its end; likewise `max_tokens`.
      language_field: field of the record that holds the language; dots reach into objects.
      languages: languages to keep, compared case-insensitively; empty keeps all.
    """

    min_chars: int | None = None
    max_chars: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    language_field: str = "language"
    languages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, low, high in (
            ("chars", self.min_chars, self.max_chars),
            ("tokens", self.min_tokens, self.max_tokens),
        ):
            for side, bound in (("min", low), ("max", high)):
                if bound is not None and bound < 0:
                    raise UsageError(f"--{side}-{what} {bound}: must be at least 0")
            if low is not None and high is not None and low > high:
                raise UsageError(
                    f"--min-{what} {low}: is above --max-{what} {high}; no document can pass both"
                )

    def against_text(self, text: str, language: Any) -> str | None:
        """Returns the filter that rejects a text, as the user typed it; None if the text passes."""
        if self.languages:
            found = best_language(language)
            if found is None:
                return f"--language: no {self.language_field!r}"
            if found.lower() not in {name.lower() for name in self.languages}:
                return "--language " + ",".join(sorted(self.languages))
        return _outside(len(text), self.min_chars, self.max_chars, "chars")

    def against_tokens(self, count: int) -> str | None:
        """Returns the filter that rejects a document of `count` tokens; None if it passes."""
        return _outside(count, self.min_tokens, self.max_tokens, "tokens")

    def settings(self) -> dict[str, Any]:
        """Returns the filters that are set; empty if none is."""
        names = ("min_chars", "max_chars", "min_tokens", "max_tokens")
        found: dict[str, Any] = {
            name: getattr(self, name) for name in names if getattr(self, name) is not None
        }
        if self.languages:
            found["language_field"] = self.language_field
            found["languages"] = sorted(self.languages)
        return found


def _outside(size: int, low: int | None, high: int | None, what: str) -> str | None:
    if low is not None and size < low:
        return f"--min-{what} {low}"
    if high is not None and size > high:
        return f"--max-{what} {high}"
    return None


def best_language(value: Any) -> str | None:
    """Returns a document's language from the forms that corpora use; None if it is unknown.

    A string is taken as is. From a mapping of languages to scores (or a list of such pairs), the
    language with the highest score is taken, and the alphabetically first among equals. From a list
    of strings, the first is taken: such lists start with the main language.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, Mapping):
        return _best(list(value.items()))
    if isinstance(value, Sequence) and value:
        if all(isinstance(v, Sequence) and not isinstance(v, str) and len(v) == 2 for v in value):
            return _best([(v[0], v[1]) for v in value])
        return best_language(value[0]) if isinstance(value[0], str | bytes) else None
    return None


def _best(scores: list[tuple[Any, Any]]) -> str | None:
    known = [
        (-score, name)
        for name, score in scores
        if isinstance(name, str) and isinstance(score, int | float) and score == score
    ]
    return min(known)[1] if known else None

"""Texts of requests as ids: the harness's rule of where a continuation begins."""

from collections.abc import Sequence

from emo_jax.tokenizer.base import Tokenizer


class Encoder:
    """Encodes prompts and continuations as the harness's `hf` model does.

    Attributes:
      tokenizer: ready.
      prefix_id: the id before a text that has no prompt: what documents begin with, or end with.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        first = tokenizer.first_id
        self.prefix_id = tokenizer.eos_id if first is None else first

    def encode(self, texts: Sequence[str], special: bool | None = None) -> list[list[int]]:
        """The ids of texts.

        Args:
          special: False leaves out what documents begin with; None also where a text spells it.
        """
        encoded = [ids.tolist() for ids in self.tokenizer.encode_batch(list(texts))]
        first = self.tokenizer.first_id
        if first is None or special is False:
            return encoded
        spelt = self.tokenizer.decode([first], skip_special=False)
        return [
            ids if special is None and text.startswith(spelt) else [first, *ids]
            for text, ids in zip(texts, encoded, strict=True)
        ]

    def once(self, texts: Sequence[str], special: bool | None = None) -> dict[str, list[int]]:
        """The ids of each different text."""
        unique = list(dict.fromkeys(texts))
        return dict(zip(unique, self.encode(unique, special), strict=True))

    def pairs(self, given: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Ids of prompts and of what is predicted after them.

        Spaces at the end of a prompt belong to the continuation, whose ids are those of the whole
        text beyond as many as the prompt has by itself: where the two merge into one token, that
        token is not predicted.
        """
        moved = [_space_moved(*pair) for pair in given]
        contexts = self.once([context for context, _ in moved if context])
        wholes = self.once([a + b for a, b in moved if a])
        alone = self.once([b for a, b in moved if not a], False)
        encoded = []
        for context, continuation in moved:
            if context:
                prompt = contexts[context]
                ids = wholes[context + continuation][len(prompt) :]
            else:
                ids = alone[continuation]
                prompt = [self.prefix_id]
                if ids[:1] == prompt:
                    prompt, ids = ids[:1], ids[1:]
            encoded.append((prompt, ids))
        return encoded


def _space_moved(context: str, continuation: str) -> tuple[str, str]:
    """The pair with the spaces at the prompt's end before the continuation."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation

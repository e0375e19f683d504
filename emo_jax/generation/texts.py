"""Text generation: tokenizing prompts, batching, ending texts, and decoding tokens."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from emo_jax.config import Config
from emo_jax.errors import UsageError
from emo_jax.generation.decode import Generator, Row, Speed
from emo_jax.generation.sampling import Sampling
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params
from emo_jax.tokenizer.load import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """How texts are generated.

    Attributes:
      max_tokens: maximum number of tokens per text.
      stop: a text ends before whichever of these strings begins first in it; another that is
        complete earlier does not end it, unless the first stays incomplete.
      seed: determines the samples, together with the prompt and how often it occurred before.
      batch_size: maximum number of prompts at once.
    """

    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    seed: int = 0
    batch_size: int = 16


@dataclass(frozen=True)
class Text:
    """The text that follows a prompt.

    Attributes:
      ended: "eos" (end of the document), "stop" (a stop string), "max_tokens" or "window".
    """

    prompt: str
    text: str
    ended: str
    prompt_tokens: int
    new_tokens: int


class TextGenerator:
    """Continues texts with one model.

    Args:
      generator: of this model and tokenizer, with what it has compiled; None: a new one.

    Raises:
      UsageError: an invalid setting.
    """

    def __init__(
        self,
        config: Config,
        params: Params,
        tokenizer: Tokenizer,
        settings: TextSettings,
        *,
        generator: Generator | None = None,
    ):
        if not all(settings.stop):
            raise UsageError("--stop '': an empty string is in every text; leave it out")
        self._tokenizer, self._settings = tokenizer, settings
        self.generator = generator or Generator(ModelFunctions(config), params, tokenizer.eos_id)
        self.generator.sampling = settings.sampling
        self.generator.reseed(settings.seed)

    @property
    def speed(self) -> Speed:
        """Speed over everything generated so far."""
        return self.generator.speed

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Ids of each prompt, see `encode_prompts`."""
        return encode_prompts(self._tokenizer, self.generator.window, prompts)

    def texts(
        self, prompts: Sequence[str], *, on_text: Callable[[str], None] | None = None
    ) -> Iterator[Text]:
        """Yields the text after each prompt, in order; batches are generated on demand.

        Args:
          prompts: the prompts.
          on_text: called with the parts of the first prompt's text as they arrive.
        """
        encoded = self.encode(prompts)
        size = max(1, min(self._settings.batch_size, len(prompts)))
        seen: Counter[tuple[int, ...]] = Counter()
        numbers = []
        for prompt_ids in map(tuple, encoded):
            numbers.append(seen[prompt_ids])
            seen[prompt_ids] += 1
        for first in range(0, len(prompts), size):
            ids = encoded[first : first + size]
            watched = [_Watched(self._tokenizer, prompt, self._settings.stop) for prompt in ids]
            tell = None if first else on_text

            def watch(made: list[list[int]], watched=watched, tell=tell) -> list[bool]:
                for one, tokens in zip(watched, made, strict=True):
                    one.look(tokens)
                if tell is not None:
                    tell(watched[0].fresh())
                return [one.stopped for one in watched]

            needed = bool(self._settings.stop) or tell is not None
            rows = self.generator.generate(
                ids,
                self._settings.max_tokens,
                rows=size,
                numbers=numbers[first : first + size],
                watch=watch if needed else None,
            )
            batch = prompts[first : first + size]
            for prompt, one, row in zip(batch, watched, rows, strict=True):
                one.look(row.tokens, last=True)
                if tell is not None and one is watched[0]:
                    tell(one.fresh(last=True))
                yield one.text_of(prompt, row)


def encode_prompts(tokenizer: Tokenizer, window: int, prompts: Sequence[str]) -> list[list[int]]:
    """Ids of each prompt; an empty prompt becomes the token after which a document begins.

    Prompts begin with the token that began the training documents, if any.

    Raises:
      UsageError: a prompt leaves no room in the window.
    """
    room = window - 1
    begin = [] if tokenizer.first_id is None else [tokenizer.first_id]
    encoded = [[*begin, *ids.tolist()] for ids in tokenizer.encode_batch(list(prompts))]
    for number, ids in enumerate(encoded, 1):
        if len(ids) > room:
            raise UsageError(
                f"prompt {number}: {len(ids)} tokens, the model's window of {window} allows"
                f" {room}; give a shorter one"
            )
    return [ids or [tokenizer.eos_id] for ids in encoded]


class _Watched:
    """The text of one row as it grows, cut before a stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], stop: tuple[str, ...]):
        self._tokenizer, self._prompt, self._stop = tokenizer, prompt, stop
        self._before = tokenizer.decode(prompt)
        self._seen, self._told = 0, 0
        self.text, self.stopped = "", False

    def _decode(self, tokens: list[int]) -> str:
        """Decodes tokens after the prompt, since a text's first token may lose its space."""
        whole = self._tokenizer.decode([*self._prompt, *tokens])
        if whole.startswith(self._before):
            return whole[len(self._before) :]
        return self._tokenizer.decode(tokens)

    def look(self, tokens: list[int], *, last: bool = False) -> None:
        """Updates the text from all tokens so far; nothing after a stop string is kept.

        Args:
          tokens: all new tokens of the row so far.
          last: there are no more tokens, so a partial stop string does not count.
        """
        if self.stopped or (len(tokens) == self._seen and not last):
            return
        text = self._decode(tokens)
        if _first(text, self._stop) is not None:
            # Keep the tokens up to the one that decided it, however many were made at once.
            for seen in range(self._seen + 1, len(tokens) + 1):
                self._stop_at(seen, self._decode(tokens[:seen]), decided=False)
                if self.stopped:
                    return
            if last:
                self._stop_at(len(tokens), text, decided=True)
                return
        self._seen, self.text = len(tokens), text

    def _stop_at(self, seen: int, text: str, *, decided: bool) -> None:
        """Ends the text before the first stop string, once none can begin before it."""
        end = _first(text, self._stop)
        if end is not None and (decided or self._settled(text) >= end):
            self._seen, self.text, self.stopped = seen, text[:end], True

    def _settled(self, text: str) -> int:
        """Number of characters in which no stop string, even a partial one, can still begin."""
        text = text.rstrip("\ufffd")
        return len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)

    def fresh(self, *, last: bool = False) -> str:
        """New text that may be shown: no partial character and no start of a stop string."""
        text = self.text
        if not last and not self.stopped:
            text = text[: self._settled(text)]
        new, self._told = text[self._told :], max(self._told, len(text))
        return new

    def text_of(self, prompt: str, row: Row) -> Text:
        """The result."""
        ended = "stop" if self.stopped else row.ended
        prompt_tokens = len(self._prompt) if prompt else 0
        return Text(prompt, self.text, ended, prompt_tokens, self._seen)


def _first(text: str, stop: Sequence[str]) -> int | None:
    """Index at which the first stop string begins; None if there is none."""
    return min((place for place in map(text.find, stop) if place >= 0), default=None)


def _overlap(text: str, stop: str) -> int:
    """Number of characters at the end of a text that begin a stop string."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)

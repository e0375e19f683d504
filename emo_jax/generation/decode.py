"""Token generation without a pool: prompts in one pass, then one token per row and step.

Both run on the device; the host checks the result every few tokens. Lengths are rounded up to
powers of two, so that few programs are compiled; compilation is not part of the timing.

Legend: B rows, S tokens of the padded prompts, T places in the cache, C tokens per stretch.
"""

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emo_jax.config import seeds
from emo_jax.generation.cache import Cache, append, inference_params, prefill
from emo_jax.generation.sampling import Sampling, sample
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params

MIN_PLACES = 16  # the smallest number of tokens for which a program is compiled
STRETCH = 64  # tokens per row made on the device before the host checks
SHORT_STRETCH = 8  # the same if the host may end a row, or shows the text


@dataclass
class Speed:
    """Work and time; tokens exclude padding, and seconds exclude compilation."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    new_tokens: int = 0  # excluding the first of each row, which comes with its prompt
    new_seconds: float = 0.0
    compile_seconds: float = 0.0


class Row(NamedTuple):
    """The tokens generated for one prompt."""

    tokens: list[int]  # without the end-of-document token
    ended: str  # "eos", "stop", "max_tokens" or "window"


class _Open(NamedTuple):
    """Rows in progress, on the device."""

    cache: Cache
    last_B: jax.Array  # int32, sampled but not yet in the cache
    active_B: jax.Array  # bool


# Called with each row's tokens so far; returns which rows end here.
Watch = Callable[[list[list[int]]], Sequence[bool]]


def padded_length(tokens: int, window: int) -> int:
    """A length rounded up to a power of two, at most the window."""
    return min(max(MIN_PLACES, 1 << (int(tokens) - 1).bit_length()), window)


@dataclass
class Generator:
    """Generates tokens with one model and one way of sampling.

    Args:
      model: a model on one device (no mesh).
      params: parameters as trained; they are cast to the compute dtype once.
      eos_id: id that ends a document, and thus a row.
      keep_LR: bool, the routed experts that are used in each layer; None: all. It may be changed
        between calls.
    """

    model: ModelFunctions
    params: Params
    eos_id: int
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    speed: Speed = field(default_factory=Speed)
    keep_LR: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.window: int = self.model.config.data.seq_len
        self.params = inference_params(self.model.config, self.params)
        self.reseed(self.seed)
        self._programs: dict[tuple, Any] = {}

    def reseed(self, seed: int) -> None:
        """Draws what a generator of this seed would; nothing is compiled again."""
        self.seed, self._key = seed, seeds.key(seed)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        *,
        rows: int | None = None,
        numbers: Sequence[int] | None = None,
        watch: Watch | None = None,
    ) -> list[Row]:
        """Continues every prompt, all in one batch.

        The same prompt, number and seed give the same tokens whatever else is in the batch, except
        for rounding: programs for other shapes may add in a different order, which can decide
        between two tokens that are equally likely to the last bits.

        Args:
          prompts: each of 1..window-1 tokens; an end-of-document token begins a new document.
          max_tokens: limit per row; a row also ends at the window and at the end of its document.
          rows: B, if more than the prompts, so that a smaller last batch needs no other program.
          numbers: one per prompt; equal prompts with different numbers get different samples. 0 if
            not given.
          watch: called every few tokens with each row's tokens so far.
        """
        for prompt in prompts:
            if not 0 < len(prompt) < self.window:
                raise ValueError(f"prompt of {len(prompt)} tokens, not in 1..{self.window - 1}")
        if max_tokens < 1 or not prompts:
            return [Row([], "max_tokens") for _ in prompts]
        B = max(rows or 0, len(prompts))
        length_B, limit_B = np.ones(B, np.int32), np.zeros(B, np.int32)
        length_B[: len(prompts)] = [len(prompt) for prompt in prompts]
        limit_B[: len(prompts)] = [min(len(p) + max_tokens, self.window) for p in prompts]
        tokens_BS = np.zeros((B, padded_length(length_B.max(), self.window)), np.int32)
        for tokens_S, prompt in zip(tokens_BS, prompts, strict=False):
            tokens_S[: len(prompt)] = prompt

        made: list[list[int]] = [[] for _ in prompts]
        ended = [""] * len(prompts)

        def take(new_BC: np.ndarray) -> int:
            """Adds new tokens (-1 in finished rows) and returns their number."""
            count = 0
            for row, tokens in enumerate(new_BC[: len(prompts)]):
                for token in tokens[tokens >= 0].tolist():
                    count += 1
                    if token == self.eos_id:
                        ended[row] = "eos"
                    else:
                        made[row].append(token)
                if not ended[row] and len(made[row]) >= limit_B[row] - length_B[row]:
                    ended[row] = "max_tokens" if len(made[row]) == max_tokens else "window"
            return count

        keys_B = self._keys(prompts, numbers or [0] * len(prompts), B)
        opened, first_B = self._begin(tokens_BS, length_B, limit_B, keys_B)
        take(first_B[:, None])
        stretch = STRETCH if watch is None else SHORT_STRETCH
        while True:
            if watch is not None:
                for row, ends in enumerate(watch(made)):
                    if ends and not ended[row]:
                        ended[row] = "stop"
                over = [bool(why) for why in ended] + [True] * (B - len(prompts))
                opened = opened._replace(active_B=opened.active_B & ~jnp.asarray(over))
            if all(ended):
                break
            opened, new_BC, seconds = self._go_on(opened, limit_B, keys_B, stretch)
            self.speed.new_seconds += seconds
            self.speed.new_tokens += take(new_BC)
        return [Row(tokens, why) for tokens, why in zip(made, ended, strict=True)]

    def _keys(self, prompts: Sequence[Sequence[int]], numbers: Sequence[int], B: int) -> jax.Array:
        """A key for each row: rows that shared one would get correlated samples."""
        told_Bn = np.zeros((B, 2), np.uint32)
        for told_n, prompt, number in zip(told_Bn, prompts, numbers, strict=False):
            told_n[:] = zlib.crc32(np.asarray(prompt, "<i4").tobytes()), number
        fold = jax.vmap(jax.random.fold_in)
        keys_B = jnp.broadcast_to(self._key, (B,))
        return fold(fold(keys_B, told_Bn[:, 0]), told_Bn[:, 1])

    def _program(self, name: tuple, function: Callable, *args: Any, donate: tuple = ()) -> Any:
        if name not in self._programs:
            begin = time.perf_counter()
            jitted = jax.jit(function, donate_argnums=donate)
            self._programs[name] = jitted.lower(*args).compile()
            self.speed.compile_seconds += time.perf_counter() - begin
        return self._programs[name]

    def _begin(
        self,
        tokens_BS: np.ndarray,
        length_B: np.ndarray,
        limit_B: np.ndarray,
        keys_B: jax.Array,
    ) -> tuple[_Open, np.ndarray]:
        places = padded_length(limit_B.max(), self.window)
        args = (self.params, tokens_BS, length_B, limit_B, keys_B, self.keep_LR)
        name = ("prefill", self.sampling, tokens_BS.shape, places, self.keep_LR is None)
        program = self._program(name, partial(self._prefill, places=places), *args)
        begin = time.perf_counter()
        opened = jax.block_until_ready(program(*args))
        self.speed.prompt_seconds += time.perf_counter() - begin
        self.speed.prompt_tokens += int(length_B[limit_B > 0].sum())
        return opened, np.where(limit_B > 0, np.asarray(opened.last_B), -1)

    def _prefill(self, params, tokens_BS, length_B, limit_B, keys_B, keep_LR, *, places) -> _Open:
        cache, logits_BV = prefill(
            *(self.model, params, tokens_BS, length_B),
            eos_id=self.eos_id,
            places=places,
            keep_LR=keep_LR,
        )
        last_B = sample(logits_BV, self.sampling, keys_B, length_B)
        return _Open(cache, last_B, (last_B != self.eos_id) & (length_B + 1 < limit_B))

    def _go_on(
        self, opened: _Open, limit_B: np.ndarray, keys_B: jax.Array, steps: int
    ) -> tuple[_Open, np.ndarray, float]:
        args = (opened, self.params, limit_B, keys_B, np.int32(steps), self.keep_LR)
        cached = opened.cache.entries.keys.shape
        name = ("decode", self.sampling, cached, self.keep_LR is None)
        program = self._program(name, self._decode, *args, donate=(0,))
        begin = time.perf_counter()
        opened, new_BC = program(*args)
        new_BC = np.asarray(new_BC)
        return opened, new_BC, time.perf_counter() - begin

    def _decode(self, opened, params, limit_B, keys_B, steps, keep_LR) -> tuple[_Open, jax.Array]:
        """Up to `steps` more tokens for every active row."""

        def wanted(carry):
            i, opened, _ = carry
            return (i < steps) & opened.active_B.any()

        def one_token(carry):
            i, (cache, last_B, active_B), new_BC = carry
            fed_B = jnp.where(active_B, last_B, -1)
            cache, logits_BV = append(self.model, params, fed_B, cache, keep_LR=keep_LR)
            last_B = sample(logits_BV, self.sampling, keys_B, cache.length_B)
            new_BC = new_BC.at[:, i].set(jnp.where(active_B, last_B, -1))
            active_B &= (last_B != self.eos_id) & (cache.length_B + 1 < limit_B)
            return i + 1, _Open(cache, last_B, active_B), new_BC

        new_BC = jnp.full((limit_B.shape[0], STRETCH), -1, jnp.int32)
        _, opened, new_BC = jax.lax.while_loop(wanted, one_token, (0, opened, new_BC))
        return opened, new_BC


def continue_tokens(
    model: ModelFunctions,
    params: Params,
    prompt: Sequence[int],
    *,
    num_tokens: int,
    eos_id: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[int]:
    """Up to `num_tokens` ids after the prompt; ends before `eos_id` and at the window.

    Args:
      model: a model on one device (no mesh).
      params: its parameters.
      prompt: ids of the prompt.
      num_tokens: maximum number of new tokens.
      eos_id: id that ends a document.
      temperature: 0 takes the likeliest token.
      seed: determines the samples.
    """
    generator = Generator(model, params, eos_id, Sampling(temperature=temperature), seed)
    return generator.generate([prompt], num_tokens)[0].tokens

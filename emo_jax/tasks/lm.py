"""The harness's `LM` for our models: what lm-evaluation-harness drives.

Imported only where lm_eval is installed, see `harness.py`. Its numbers are those of the harness's
own `hf` model on the exported folder: the same ids, the same truncation, the same stops.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from emo_jax.config import Config
from emo_jax.errors import DataError, UsageError, clipped
from emo_jax.generation.cache import inference_params
from emo_jax.generation.decode import Generator
from emo_jax.generation.sampling import Sampling
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params
from emo_jax.selection.variants import within_documents
from emo_jax.tasks.encoding import Encoder
from emo_jax.tasks.likelihoods import Likelihoods, place
from emo_jax.tasks.rows import Request, cut_left
from emo_jax.tokenizer.base import Tokenizer

MAX_NEW_TOKENS = 256  # where a task does not say; that of the harness's hf model
_ROWS = 32  # texts generated at once
_KNOWN = {"do_sample", "temperature", "top_p", "top_k"}  # of the harness's generation_kwargs


class EmoLM(TemplateLM):
    """A model for the harness, without a pool.

    Attributes:
      keep_LR: bool, the routed experts that are used in each layer; None: all. Results follow it.
      cut: prompts that were truncated from the left, until it is cleared.

    Args:
      config: config of the model.
      params: its parameters, on the host.
      tokenizer: its tokenizer, ready.
      mesh: where log-likelihoods are computed; texts are generated on the first device.
      progress: called with lines about the progress.
    """

    def __init__(
        self,
        config: Config,
        params: Params,
        tokenizer: Tokenizer,
        mesh: Mesh,
        *,
        progress: Callable[[str], None] = lambda _: None,
    ):
        super().__init__()
        self._config, self._tokenizer, self._say = within_documents(config), tokenizer, progress
        self.encoder = Encoder(tokenizer)
        self._host_params = params
        self.model = ModelFunctions(self._config, mesh)
        # Cast once, and not for every request.
        cast = inference_params(self._config, params)
        self.params = place(cast, self.model.param_shardings())
        self._likelihoods = Likelihoods(self.model, tokenizer.pad_id)
        self._generator: Generator | None = None
        self.keep_LR: np.ndarray | None = None
        self.cut: set[str] = set()
        self._lengths: dict[str, int] = {}

    # --- ids -------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The id that ends a document."""
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The id before a text that has no prompt: what documents begin with, or end with."""
        return self.encoder.prefix_id

    @property
    def pad_id(self) -> int:
        """The id of padding."""
        return self._tokenizer.pad_id

    @property
    def max_length(self) -> int:
        """The window."""
        return self._config.data.seq_len

    @property
    def max_gen_toks(self) -> int:
        """New tokens, where a task does not say."""
        return MAX_NEW_TOKENS

    @property
    def tokenizer_name(self) -> str:
        """For the harness's caches."""
        return self._tokenizer.fingerprint

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """The ids of a text; with what documents begin with, unless that is switched off."""
        return self.encoder.encode([string], add_special_tokens)[0]

    # --- log-likelihoods -------------------------------------------------------------------------

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """What the harness's own does, for all requests at once."""
        pairs = self.encoder.pairs([request.args for request in requests])
        for request, (prompt, _) in zip(requests, pairs, strict=True):
            self._lengths[request.args[0]] = len(prompt)
        return self._loglikelihood_tokens(
            [(request.args, *pair) for request, pair in zip(requests, pairs, strict=True)]
        )

    def joined(self, prompt: str, continuation: str) -> list[int]:
        """The ids that `loglikelihood` reads for a pair, with those that it predicts."""
        ((before, ids),) = self.encoder.pairs([(prompt, continuation)])
        return [*before, *ids]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        made = [self._cut_left(texts, Request(prompt, ids)) for texts, prompt, ids in requests]
        found = self._scored(made)
        for (texts, _, _), answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def _scored(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        total = sum(len(r.prompt) + len(r.continuation) for r in requests)
        keep_LR = self.keep_LR
        found = self._likelihoods.of(
            self.params,
            requests,
            keep_LMR=None if keep_LR is None else keep_LR[:, None],
            progress=lambda n: self._say(
                f"{len(requests):,} requests of {total:,} tokens, {n:,} tokens read"
            ),
        )
        return [(answer.nats, answer.greedy) for answer in found]

    def _cut_left(self, texts: tuple[str, str], request: Request) -> Request:
        if not request.continuation:
            raise DataError(
                f"{clipped(repr(texts[1]))} after {clipped(repr(texts[0][-40:]))}: no tokens to"
                " predict; it is empty, or merges with the end of the prompt"
            )
        if len(request.continuation) > self.max_length:
            raise DataError(
                f"{clipped(repr(texts[1]))}: {len(request.continuation)} tokens to predict are more"
                f" than the model's window of {self.max_length}; shorten it"
            )
        short = cut_left(request, self.max_length)
        if short is not request:
            self.cut.add(texts[0])
        return short

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of whole texts, in windows that overlap by one token."""
        made, owners = [], []
        encoded = self.encoder.once([text for (text,) in (r.args for r in requests)])
        for number, request in enumerate(requests):
            windows = utils.get_rolling_token_windows(
                encoded[request.args[0]], self.prefix_token_id, self.max_length, 1
            )
            for prompt, ids in map(utils.make_disjoint_window, windows):
                made.append(Request(prompt, ids))
                owners.append(number)
        totals = np.zeros(len(requests))
        np.add.at(totals, owners, [nats for nats, _ in self._scored(made)])
        for request, nats in zip(requests, totals.tolist(), strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, nats)
        return totals.tolist()

    def length_of(self, prompt: str) -> int:
        """Number of tokens of a prompt."""
        if prompt not in self._lengths:
            self._lengths[prompt] = len(self.tok_encode(prompt))
        return self._lengths[prompt]

    # --- texts -----------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text after each prompt, up to the first stop; prompts are truncated from the left."""
        encoded = self.encoder.once([request.args[0] for request in requests])
        alike: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            alike[repr(sorted(request.args[1].items()))].append(number)
        texts = [""] * len(requests)
        for numbers in alike.values():
            numbers.sort(key=lambda n: -len(encoded[requests[n].args[0]]))
            asked = requests[numbers[0]]
            settings = self._settings(asked.args[1], asked.task_name or "a task")
            for first in range(0, len(numbers), _ROWS):
                some = numbers[first : first + _ROWS]
                self._say(f"{first:,} of {len(numbers):,} texts generated")
                prompts = [(text, encoded[text]) for text in (requests[n].args[0] for n in some)]
                made = self._generate(prompts, *settings, rows=min(_ROWS, len(numbers)))
                for n, text in zip(some, made, strict=True):
                    texts[n] = text
                    self.cache_hook.add_partial("generate_until", requests[n].args, text)
        return texts

    def _settings(self, given: dict[str, Any], task: str) -> tuple[list[str], int, Sampling]:
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(given, self.max_gen_toks))
        eos = self._tokenizer.decode([self._tokenizer.eos_id], skip_special=False)
        stops = [stop for stop in handle_stop_sequences(kwargs.pop("until", None), eos) if stop]
        most = kwargs.pop("max_gen_toks")
        if unknown := set(kwargs) - _KNOWN:
            raise UsageError(
                f"{task}: generation_kwargs {', '.join(sorted(unknown))} are not supported; must be"
                f" until, max_gen_toks, {', '.join(sorted(_KNOWN))}"
            )
        if most >= self.max_length:
            raise UsageError(
                f"{task}: max_gen_toks {most} leaves no room for a prompt in the model's window of"
                f" {self.max_length}; set generation_kwargs.max_gen_toks in the task"
            )
        sampling = Sampling()
        if kwargs.get("do_sample"):
            sampling = Sampling(
                float(kwargs.get("temperature", 1.0)),
                int(kwargs.get("top_k", 0)),
                float(kwargs.get("top_p", 1.0)),
            )
        return stops, most, sampling

    def _generate(
        self,
        prompts: Sequence[tuple[str, list[int]]],
        stops: list[str],
        most: int,
        sampling: Sampling,
        rows: int,
    ) -> list[str]:
        room = self.max_length - most
        self.cut |= {text for text, ids in prompts if len(ids) > room}
        kept = [ids[-room:] or [self.prefix_token_id] for _, ids in prompts]
        decode = self._tokenizer.decode

        def watch(made: list[list[int]]) -> list[bool]:
            texts = map(decode, made)
            return [any(stop in text for stop in stops) for text in texts]

        if self._generator is None:
            alone = self.model.mesh is not None and self.model.mesh.size == 1
            params = self.params if alone else self._host_params
            self._generator = Generator(ModelFunctions(self._config), params, self.eot_token_id)
        self._generator.sampling, self._generator.keep_LR = sampling, self.keep_LR
        made = self._generator.generate(kept, most, rows=rows, watch=watch)
        texts = [decode(row.tokens) for row in made]
        return [
            min((text.split(stop)[0] for stop in stops), key=len, default=text) for text in texts
        ]

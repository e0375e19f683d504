"""A model in memory, to be used from Python: `emo_jax.load`, `emo_jax.evaluate`."""

import dataclasses
import functools
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from emo_jax.checkpoint.manifest import versions
from emo_jax.config import Config
from emo_jax.data.domain_groups import MOST_DOMAINS
from emo_jax.errors import UsageError
from emo_jax.evals import report
from emo_jax.evals.by_domain import (
    DomainLosses,
    EvalSettings,
    check_ways,
    domain_losses,
    eval_mesh,
    open_split,
)
from emo_jax.evals.keep import DEFAULT_METHOD
from emo_jax.evals.text_loss import TextLosses
from emo_jax.files.progress import Progress
from emo_jax.generation.decode import Generator
from emo_jax.generation.sampling import Sampling
from emo_jax.generation.texts import Text, TextGenerator, TextSettings
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import count_parameters
from emo_jax.saved.load import LoadedModel, load_model
from emo_jax.selection.budgets import keep_items, parse_keep
from emo_jax.selection.variants import undropped, within_documents

if TYPE_CHECKING:
    from rich.table import Table


class Model(LoadedModel):
    """A model in memory; it can also be given where a path of a model is taken.

    `generate` and `loss` keep what they compile, and a copy of the parameters on the devices, until
    the model is dropped.

    Attributes:
      config: the checked config of its run (`emo_jax.Config`).
      params: nested dict of float32 host arrays, named as in `emo_jax.model.params.model_leaves`.
      tokenizer: None if the folder has none.
      step: the checkpoint's step; None for a Hugging Face folder.
      path: the path as given to `load`.
    """

    def __fspath__(self) -> str:
        """The path of what was loaded, with its step."""
        return str(self.folder) if self.step is None else f"{self.folder}@{self.step}"

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        stop: str | Sequence[str] = (),
        seed: int = 0,
        batch_size: int = 16,
    ) -> list[Text]:
        """Continues prompts, without a pool, on one device; programs are kept between calls.

        Args:
          prompts: a text, or several; an empty one begins a document.
          max_tokens: of each text, at most.
          temperature: 0 takes the likeliest token.
          top_p: draw from the fewest likeliest tokens that have this probability together.
          top_k: draw from so many likeliest tokens; None: from all.
          stop: a text ends before the one of these that begins first in it.
          seed: of what is drawn.
          batch_size: prompts at once, at most.

        Returns:
          A `Text` for each prompt: the `text`, why it `ended` ("eos", "stop", "max_tokens" or
          "window"), and the numbers of tokens of prompt and text. A list of one for a single
          prompt.

        Raises:
          UsageError: the model has no tokenizer, a prompt fills the window, or a setting is
            impossible.
        """
        settings = TextSettings(
            max_tokens=max_tokens,
            sampling=Sampling(temperature, top_k or 0, top_p),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            seed=seed,
            batch_size=batch_size,
        )
        given = [prompts] if isinstance(prompts, str) else list(prompts)
        return list(self.text_generator(settings).texts(given))

    def text_generator(self, settings: TextSettings) -> TextGenerator:
        """What `generate` uses; its `texts` can be watched as they grow."""
        tokenizer = self.need_tokenizer()
        return TextGenerator(
            self.config, self.params, tokenizer, settings, generator=self._generator
        )

    def loss(self, texts: str | Sequence[str]) -> np.ndarray:
        """The mean loss of each text in nats per token, without a pool.

        Each text is a document of its own, with the tokens that begin and end a document in
        training; every token but the first is predicted. A text longer than the window is read in
        windows that share one token.

        Args:
          texts: a text, or several.

        Returns:
          (n,) float64, (1,) for a single text; NaN for a text without a token to predict.

        Raises:
          UsageError: the model has no tokenizer.
        """
        tokenizer = self.need_tokenizer()
        given = [texts] if isinstance(texts, str) else list(texts)
        nats, counts = self._losses.sums(tokenizer.documents(given))
        with np.errstate(invalid="ignore"):
            return nats / counts

    @functools.cached_property
    def _generator(self) -> Generator:
        return Generator(ModelFunctions(self.config), self.params, self.need_tokenizer().eos_id)

    @functools.cached_property
    def _losses(self) -> TextLosses:
        config = undropped(within_documents(self.config))
        model = ModelFunctions(config, eval_mesh(config))
        params = jax.device_put(self.params, model.param_shardings())
        return TextLosses(model, params, self.need_tokenizer().pad_id)

    def __repr__(self) -> str:
        total, active = count_parameters(self.config)
        moe, model = self.config.moe, self.config.model
        kind = "dense" if moe is None else f"{moe.num_experts} experts, {moe.top_k} a token"
        step = "" if self.step is None else f", step {self.step:,}"
        return (
            f"<Model {self.name!r} of {self.path}{step}: {total:,} parameters ({active:,} a token),"
            f" {model.num_layers} layers, {kind}, window {self.config.data.seq_len:,}>"
        )


def load(path: str | os.PathLike[str], *, trust: bool = False) -> Model:
    """Loads a model into memory.

    Args:
      path: a run's `WORKDIR` (its newest good checkpoint), `WORKDIR@STEP`, or a Hugging Face folder
        of layout "qwen2_moe", "llama" or "emo".
      trust: allow a tokenizer that is code named by a file: any code that this Python can import.

    Raises:
      UsageError: `path` is neither a workdir nor a Hugging Face folder.
      CheckpointError: no good checkpoint in the workdir, or none of that step.
      HfFormatError: a Hugging Face folder of another architecture, or incomplete.
    """
    loaded = load_model(os.fspath(path), trust=trust)
    return Model(**{f.name: getattr(loaded, f.name) for f in dataclasses.fields(loaded)})


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Losses of a model on a split of a store.

    Attributes:
      losses: by domain and way of running the model; see `DomainLosses`.
      about: model, data, split and versions, as `emo eval --json` writes them.
      title: the table's title.
      config: the model's.
    """

    losses: DomainLosses
    about: dict[str, Any]
    title: str
    config: Config

    def table(self) -> "Table":
        """For a terminal or a notebook (`rich.print`)."""
        return report.to_table(self.losses, self.config, self.title)

    def to_json(self) -> dict[str, Any]:
        """All figures; null where nothing was measured, and for a loss that is not finite."""
        return self.about | report.to_json(self.losses)

    def __repr__(self) -> str:
        losses = self.losses
        ways = ", ".join(f"{way} {losses.overall(way)[0]:.4f}" for way in losses.ce_sum_CM)
        return f"<Evaluation: {self.title}: {ways}>"


def evaluate(
    model: str | os.PathLike[str] | LoadedModel,
    data: str | os.PathLike[str],
    *,
    split: str = "test",
    windows: int = 1024,
    pool: int | Sequence[int] = (),
    keep: int | str | Sequence[int | str] = (),
    method: str = DEFAULT_METHOD,
    allow_fewer: bool = False,
    max_domains: int = MOST_DOMAINS,
    trust: bool = False,
    quiet: bool = True,
) -> Evaluation:
    """Measures the loss and bits per byte of each domain of a store.

    Losses are in nats per token and without a pool: a loss with a pool looks at the whole document,
    its future too.

    Args:
      model: a `Model`, or its path.
      data: a token store, or .npy token files.
      split: "test", "select" or "train".
      windows: the most windows of a split to measure, spread evenly over it.
      pool: also measure with pools of this many routed experts; one size or several.
      keep: also measure with only this many experts, the shared ones included, chosen for each
        domain on the split "select": counts (16) or shares ("25%"), one or several.
      method: how they are chosen: "layerwise", "global", "easy_ep" or "random".
      allow_fewer: allow `keep` below the number of experts that a token uses.
      max_domains: the largest domains are listed by name, all others as one.
      trust: allow tokenizers that are code named by a file.
      quiet: show no progress.

    Raises:
      UsageError: no such model, store or split, tokens of another tokenizer, or a pool or keep that
        the model cannot have.
    """
    loaded = model if isinstance(model, LoadedModel) else load_model(os.fspath(model), trust=trust)
    config, data = loaded.config, os.fspath(data)
    moe = config.moe
    keeps = keep_items(keep)
    if moe is None and keeps:
        raise UsageError(f"--keep {keeps[0]}: {config.name} is dense, it has no experts")
    settings = EvalSettings(
        split=split,
        windows=windows,
        pools=tuple(pool) if isinstance(pool, Iterable) else (pool,),
        keeps=tuple(parse_keep(k, moe, allow_fewer=allow_fewer) for k in keeps) if moe else (),
        method=method,
        allow_fewer=allow_fewer,
    )
    check_ways(config, settings)
    chosen = open_split(data, config, split, loaded.tokenizer, max_domains=max_domains, trust=trust)
    if chosen.note and not quiet:
        print(f"emo: {data}: {chosen.note} (--max-domains)", file=sys.stderr, flush=True)
    mesh = eval_mesh(config)
    with Progress("eval", enabled=not quiet) as shown:
        losses = domain_losses(
            config, loaded.params, chosen, settings, mesh=mesh, progress=shown.show
        )
    step = "" if loaded.step is None else f", step {loaded.step}"
    title = (
        f"{loaded.name}{step}: {split} loss, nats a token ({losses.windows:,} of"
        f" {losses.windows_there:,} windows of {config.data.seq_len:,} tokens)"
    )
    about = {
        "model": {"name": loaded.name, "path": loaded.path, "step": loaded.step},
        "data": {"path": data, "fingerprint": chosen.fingerprint},
        "split": split,
        "keep_method": method if settings.keeps else None,
        "window_tokens": config.data.seq_len,
        "attention": config.model.attention,
        "compute_dtype": config.model.compute_dtype,
        "devices": mesh.size,
        "platform": mesh.devices.flat[0].platform,
        "versions": versions(),
    }
    return Evaluation(losses, about, title, config)

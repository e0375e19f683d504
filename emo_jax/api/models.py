"""A model in memory, for use from Python: `emo_jax.load`, `evaluate`, `evaluate_suite`."""

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
from emo_jax.evals.suite import Suite
from emo_jax.evals.text_loss import TextLosses
from emo_jax.files.progress import Progress
from emo_jax.generation.decode import Generator
from emo_jax.generation.sampling import Sampling
from emo_jax.generation.texts import Text, TextGenerator, TextSettings
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import count_parameters
from emo_jax.saved.load import LoadedModel, load_model
from emo_jax.selection.budgets import keep_items, parse_budgets, per_layer_of
from emo_jax.selection.variants import within_documents

if TYPE_CHECKING:
    from rich.table import Table


class Model(LoadedModel):
    """A model in memory; functions that take the path of a model also accept it.

    All of them except `evaluate` read the model from its path again. `generate` and `loss` keep
    their compiled programs, and a copy of the parameters on the devices, as long as the model
    exists.

    Attributes:
      config: checked config of the model's run (`emo_jax.Config`).
      params: nested dict of float32 host arrays, named as in `emo_jax.model.params.model_leaves`.
      tokenizer: None if the folder has none.
      step: step of the checkpoint; None for a Hugging Face folder.
      path: the path given to `load`.
    """

    def __fspath__(self) -> str:
        """The path that was loaded, with its step."""
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
        """Continues prompts, without a pool, on one device.

        Args:
          prompts: one prompt or several; an empty one starts a document.
          max_tokens: maximum number of new tokens per prompt.
          temperature: divisor of the logits; 0: always take the likeliest token.
          top_p: sample from the fewest likeliest tokens with at least this total probability;
            1: from all.
          top_k: sample from this many of the likeliest tokens; None: from all.
          stop: one string or several; a text ends before whichever begins first in it.
          seed: seed for sampling.
          batch_size: maximum number of prompts processed at once.

        Returns:
          One `Text` per prompt, in order: the `text`, why it `ended` ("eos", "stop", "max_tokens"
          or "window"), and the numbers of tokens in the prompt and in the text. A single prompt
          gives a list of one.

        Raises:
          UsageError: the model has no tokenizer that it can use, a prompt fills the window, or a
            setting is invalid.
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
        """The generator that `generate` uses; its `texts` can report a text as it grows."""
        tokenizer = self.need_tokenizer()
        return TextGenerator(
            self.config, self.params, tokenizer, settings, generator=self._generator
        )

    def loss(self, texts: str | Sequence[str]) -> np.ndarray:
        """Computes the mean loss of each text in nats per token, without a pool.

        Each text is a document by itself, with the tokens that begin and end a document in
        training; every token but the first is predicted. A text longer than the window is read in
        windows that overlap by one token.

        Args:
          texts: one text or several.

        Returns:
          (n,) float64, or (1,) for a single text; NaN for a text without a token to predict.

        Raises:
          UsageError: the model has no tokenizer that it can use.
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
        config = within_documents(self.config)
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
        in layout "qwen2_moe", "mixtral", "llama" or "emo".
      trust: allow a tokenizer whose file names code to import and call; that may be any code that
        this Python can import.

    Raises:
      UsageError: `path` does not exist, or is neither a workdir nor a Hugging Face folder.
      CheckpointError: the workdir has no good checkpoint, or none of that step.
      HfFormatError: the Hugging Face folder has an unsupported architecture or is incomplete.
      DataError: the tokenizer is damaged.
    """
    loaded = load_model(os.fspath(path), trust=trust)
    return Model(**{f.name: getattr(loaded, f.name) for f in dataclasses.fields(loaded)})


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Losses of a model on one split of a store.

    Attributes:
      losses: losses by domain and by way of running the model; see `DomainLosses`.
      about: model, data, split and versions, as written by `emo eval --json`.
      title: title of the table.
      config: config of the model.
    """

    losses: DomainLosses
    about: dict[str, Any]
    title: str
    config: Config

    def table(self) -> "Table":
        """The losses as a table for a terminal or a notebook (`rich.print`)."""
        return report.to_table(self.losses, self.config, self.title)

    def to_json(self) -> dict[str, Any]:
        """All figures; None for what was not measured and for a loss that is not finite."""
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
    keep_per_layer: str | Sequence[int | str] = (),
    method: str = DEFAULT_METHOD,
    allow_fewer: bool = False,
    as_trained: bool = False,
    max_domains: int = MOST_DOMAINS,
    trust: bool = False,
    quiet: bool = True,
) -> Evaluation:
    """Measures the loss and the bits per byte of each domain of a store.

    Losses are in nats per token. Unless `pool` requests one, there is no pool: a pool depends on
    the whole document, including later tokens.

    Args:
      model: a `Model`, or a path as in `load`.
      data: a token store, or .npy token files.
      split: "test", "select" or "train".
      windows: maximum number of windows of a split to use, spread evenly over it.
      pool: also measure with pools of this many routed experts; one size or several.
      keep: also measure with only this many experts per layer, shared ones included, which are
        chosen for each domain on the split "select"; a count (16), a share ("25%"), or several.
      keep_per_layer: instead of `keep`, one count for each layer; or, with `keep`, how what that
        gives in all is spread over the layers: "increasing", "decreasing", "mass" or "greedy", see
        `emo_jax.selection.schedules`.
      method: how the experts are chosen, see `select`.
      allow_fewer: allow `keep` to be below the number of experts that a token uses.
      as_trained: also measure with the capacity of experts, and the pools by label, that acted in
        training; the jitter does not.
      max_domains: number of domains, the largest, that are listed by name; all others are merged
        into one.
      trust: allow tokenizers whose files name code to import, see `load`.
      quiet: show no progress.

    Returns:
      The losses; they print as a table and convert to JSON.

    Raises:
      UsageError: no such model, store or split; the store was made with another tokenizer; or the
        model does not allow this `pool`, `keep` or `method`.
      CheckpointError, HfFormatError: the model cannot be read, see `load`.
      DataError: the store or a tokenizer is damaged.
    """
    per_layer_of(keep_per_layer)  # refuses what no model has
    loaded = model if isinstance(model, LoadedModel) else load_model(os.fspath(model), trust=trust)
    config, data = loaded.config, os.fspath(data)
    moe = config.moe
    for option, given in (("--keep", keep), ("--keep-per-layer", keep_per_layer)):
        if moe is None and (items := keep_items(given)):
            raise UsageError(f"{option} {items[0]}: {config.name} is dense, it has no experts")
    keeps = (
        parse_budgets(keep, keep_per_layer, config, allow_fewer=allow_fewer)
        if moe is not None
        else ()
    )
    settings = EvalSettings(
        split=split,
        windows=windows,
        pools=tuple(pool) if isinstance(pool, Iterable) else (pool,),
        keeps=keeps,
        method=method,
        allow_fewer=allow_fewer,
        as_trained=as_trained,
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
    title = (
        f"{_called(loaded)}: {split} loss, nats a token ({losses.windows:,} of"
        f" {losses.windows_there:,} windows of {config.data.seq_len:,} tokens)"
    )
    about = {
        "model": {"name": loaded.name, "path": loaded.path, "step": loaded.step},
        "data": {"path": data, "fingerprint": chosen.fingerprint},
        "split": split,
        "keep_method": method if keeps else None,
        "keep_schedule": keeps[0].schedule if keeps else None,
        "window_tokens": config.data.seq_len,
        "attention": config.model.attention,
        "compute_dtype": config.model.compute_dtype,
        "devices": mesh.size,
        "platform": mesh.devices.flat[0].platform,
        "versions": versions(),
    }
    return Evaluation(losses, about, title, config)


def evaluate_suite(
    model: str | os.PathLike[str] | LoadedModel,
    data: Sequence[str | os.PathLike[str]],
    *,
    split: str = "test",
    max_domains: int = MOST_DOMAINS,
    trust: bool = False,
    quiet: bool = True,
    **settings: Any,
) -> Suite:
    """Measures the bits per byte of several stores, each by itself and all together.

    Args:
      model: a `Model`, or a path as in `load`.
      data: token stores made with one tokenizer; a store is called by the last part of its path, or
        by the whole path where two end the same.
      split, max_domains, trust, quiet: see `evaluate`.
      **settings: other arguments of `evaluate`.

    Returns:
      The losses of each store, with their micro and macro means; they print as a table and convert
      to JSON.

    Raises:
      UsageError: see `evaluate`; or a store is given twice, has another tokenizer, or has none that
        is known, so that its bytes cannot be counted.
      CheckpointError, HfFormatError, DataError: see `evaluate`.
    """
    loaded = model if isinstance(model, LoadedModel) else load_model(os.fspath(model), trust=trust)
    paths = [os.fspath(path) for path in data]
    if not paths:
        raise UsageError("--data: names no store; give one or more")
    _check_suite(loaded, paths, split, max_domains, trust)
    ends = [os.path.basename(path.rstrip("/")) for path in paths]
    names = ends if len(set(ends)) == len(ends) else paths
    options: dict[str, Any] = {"split": split, "max_domains": max_domains, "trust": trust}
    found = {}
    for name, path in zip(names, paths, strict=True):
        if not quiet:
            print(f"emo: {path}", file=sys.stderr, flush=True)
        found[name] = evaluate(loaded, path, quiet=quiet, **options, **settings)
    first = next(iter(found.values()))
    about = first.about | {"data": {name: one.about["data"] for name, one in found.items()}}
    title = f"{_called(loaded)}: {split} bits a byte"
    return Suite({name: one.losses for name, one in found.items()}, about, title, loaded.config)


def _check_suite(
    loaded: LoadedModel, paths: Sequence[str], split: str, max_domains: int, trust: bool
) -> None:
    """Refuses stores that cannot be put together before any is measured."""
    first = ""
    for n, path in enumerate(paths):
        if path in paths[:n]:
            raise UsageError(f"--data {path}: is given twice; give each store once")
        chosen = open_split(
            path, loaded.config, split, loaded.tokenizer, max_domains=max_domains, trust=trust
        )
        if chosen.tokenizer is None:
            raise UsageError(
                f"{path}: its tokenizer is not known, so its bytes of text cannot be counted; give"
                " a token store (emo prepare), or evaluate it alone"
            )
        if (print_ := chosen.tokenizer.fingerprint) != (first := first or print_):
            raise UsageError(
                f"{path}: its tokenizer is not that of {paths[0]} ({print_[:12]} is not"
                f" {first[:12]}); prepare both with the model's tokenizer"
            )


def _called(loaded: LoadedModel) -> str:
    return loaded.name + ("" if loaded.step is None else f", step {loaded.step}")

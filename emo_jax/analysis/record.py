"""`emo activations`: turns a model and a store into a folder of activations."""

import os
import sys
from typing import Any

import jax

from emo_jax.analysis.activations import Activations, model_facts, record
from emo_jax.analysis.sample import SampleSettings, sample_of
from emo_jax.batch import Batch
from emo_jax.data.store import TokenStore
from emo_jax.data.windows import Windows
from emo_jax.errors import UsageError
from emo_jax.evals.by_domain import Pass, check_source, eval_mesh
from emo_jax.files.atomic import refuse_existing
from emo_jax.files.progress import Progress
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params
from emo_jax.saved.load import ModelOnDisk, load_model
from emo_jax.selection.variants import within_documents


class Opened:
    """A model on the devices, and the store to run it on.

    Attributes:
      config: config that the model is run with here.
      facts: facts about the model as it was trained.
    """

    def __init__(self, path: str, store: TokenStore):
        loaded = load_model(path)
        check_model(loaded, store)
        self.name, self.store = loaded.name, store
        self.facts = model_facts(loaded.config, loaded.name, loaded.path, loaded.step)
        self.config = within_documents(loaded.config)
        self.model = ModelFunctions(self.config, eval_mesh(self.config))
        self.params: Params = jax.device_put(loaded.params, self.model.param_shardings())

    def windows(self, split: str, most: int) -> list[Batch]:
        """Returns some windows of a split, on the devices."""
        assert self.model.mesh is not None
        windows = Windows(self.store, self.config.data.seq_len, split=split)
        return list(Pass(windows, most, self.model.mesh).batches(lambda _: None, split))


def grouped(store: TokenStore, most: int) -> TokenStore:
    """Returns the store with few domains; prints a note if it has more."""
    few = store.grouped(most)
    if few.groups is not None:
        print(f"emo: {store.path}: {few.groups.note} (--max-domains)", file=sys.stderr, flush=True)
    return few


def check_model(model: ModelOnDisk, store: TokenStore) -> None:
    """Raises UsageError for a model without experts, or with another tokenizer than the store's."""
    check_source(store.path, store, model.config, model.tokenizer)
    if model.config.moe is None:
        raise UsageError(f"{model.path}: {model.name} is dense, it has no experts to look at")


def activations(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    split: str = "test",
    tokens: int = 200_000,
    max_length: int = 512,
    min_length: int = 32,
    seed: int = 0,
    max_domains: int = 100,
    quiet: bool = True,
) -> Activations:
    """Records the router's output in every layer, for every token of a sample of a store.

    The model runs without a pool and with attention within documents. Models with the same
    tokenizer see the same tokens if the store and the other arguments are the same.

    Args:
      model: `WORKDIR`, `WORKDIR@STEP`, or a Hugging Face folder.
      data: a token store.
      output: folder to create; `Activations.open` opens it again.
      split: split of the store to sample.
      tokens: maximum number of tokens in the sample, spread evenly over the domains.
      max_length: number of tokens used from the start of each document.
      min_length: number of tokens below which a document is skipped.
      seed: seed for the choice of documents.
      max_domains: number of domains, the largest, that keep their names; all others are merged into
        one.
      quiet: show no progress.

    Returns:
      Router probabilities (N,L,R) and picks (N,L,K), which are read on request, and the tokens (N,)
      and documents they belong to; N tokens, L layers, R routed experts, K picks per token.

    Raises:
      UsageError: `output` already exists; no such model, store or split; the model is dense; the
        store was made with another tokenizer; or no document is long enough.
      CheckpointError, HfFormatError: the model cannot be read, see `emo_jax.load`.
      DataError: the store is damaged, or a router probability is not finite.
    """
    refuse_existing(output)
    model = os.fspath(model)
    settings = SampleSettings(
        split=split,
        tokens=tokens,
        max_length=max_length,
        min_length=min_length,
        seed=seed,
        max_domains=max_domains,
    )
    store = grouped(TokenStore.open(data), max_domains)
    with Progress("activations", enabled=not quiet) as shown:
        shown.show(f"reading {model}")
        opened = Opened(model, store)
        sample = sample_of(store, settings)
        return record(sample=sample, output=output, **recording(opened, shown))


def recording(opened: Opened, shown: Progress) -> dict[str, Any]:
    """Returns the arguments of `record` and `record_into`, except for the sample and the output."""
    return {
        "model": opened.model,
        "params": opened.params,
        "about": opened.facts,
        "pad_id": opened.store.pad_id,
        "progress": lambda line: shown.show(f"{opened.name}: {line}"),
    }

"""`emo activations`: turns a model and a store into a folder of activations."""

import sys
from pathlib import Path
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
from emo_jax.selection.variants import undropped, within_documents


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
        self.config = undropped(within_documents(loaded.config))
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


def write_activations(
    model: str, data: str, output: str | Path, settings: SampleSettings, *, quiet: bool = True
) -> Activations:
    """Records a model's router output on a sample of a store.

    Raises:
      UsageError: nothing is written.
    """
    refuse_existing(output)
    store = grouped(TokenStore.open(data), settings.max_domains)
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

"""`emo activations` and `emo cluster`: models and a store in, folders and a table out."""

import dataclasses
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emo_jax.analysis.activations import (
    Activations,
    Sample,
    model_facts,
    record,
    same_documents,
    sample_documents,
)
from emo_jax.analysis.cluster import (
    Scores,
    document_means,
    group_documents,
    group_tokens,
    groups_of,
    numbers,
)
from emo_jax.batch import Batch
from emo_jax.data.domain_groups import MOST_DOMAINS
from emo_jax.data.store import TokenStore
from emo_jax.data.windows import Windows
from emo_jax.errors import UsageError
from emo_jax.evals.by_domain import Pass, check_source, eval_mesh
from emo_jax.files.atomic import refuse_existing, refuse_unmakeable
from emo_jax.files.json_files import dumps
from emo_jax.files.partial import partial_folder
from emo_jax.files.progress import Progress
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params
from emo_jax.saved.load import ModelOnDisk, load_model
from emo_jax.selection.variants import undropped, within_documents


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """What documents are looked at.

    Attributes:
      tokens: of all documents, evenly over the domains.
      max_length, min_length: tokens of a document.
      max_domains: by name, the largest; all others are one.
    """

    split: str = "test"
    tokens: int = 200_000
    max_length: int = 512
    min_length: int = 32
    seed: int = 0
    max_domains: int = MOST_DOMAINS


class Opened:
    """A model on the devices, and the store it is shown.

    Attributes:
      config: of the model as it is looked at.
      facts: of the model as it was trained.
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
        """Some of a split, on the devices."""
        assert self.model.mesh is not None
        windows = Windows(self.store, self.config.data.seq_len, split=split)
        return list(Pass(windows, most, self.model.mesh).batches(lambda _: None, split))


def grouped(store: TokenStore, most: int) -> TokenStore:
    """The store with few domains; says so where it has more."""
    few = store.grouped(most)
    if few.groups is not None:
        print(f"emo: {store.path}: {few.groups.note} (--max-domains)", file=sys.stderr, flush=True)
    return few


def check_model(model: ModelOnDisk, store: TokenStore) -> None:
    """Raises UsageError for a model without experts, or of another tokenizer than the store's."""
    check_source(store.path, store, model.config, model.tokenizer)
    if model.config.moe is None:
        raise UsageError(f"{model.path}: {model.name} is dense, it has no experts to look at")


def write_activations(
    model: str, data: str, output: str | Path, settings: SampleSettings, *, quiet: bool = True
) -> Activations:
    """Records what a model's router says of a sample of a store.

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


class Row(NamedTuple):
    """Clusters of one model: of tokens or documents, by one layer or by all."""

    folder: str
    model: str
    of: str
    layer: int | None
    clusters: int
    components: int
    scores: Scores

    def to_json(self) -> dict[str, Any]:
        """Its fields; null where a score cannot be told."""
        return self._asdict() | {"scores": numbers(self.scores)}


def cluster_table(
    folders: Sequence[str],
    count: int,
    *,
    layer: int | None = None,
    per_layer: bool = False,
    seed: int = 0,
    output: str | None = None,
) -> list[Row]:
    """Clusters the tokens and documents of folders of `emo activations`, and prints a table.

    Args:
      output: folder to make: `clusters.json` has the table and every group, and an .npy file for
        each line of the table the group of each row.

    Raises:
      UsageError: a layer that is not there, or more clusters than tokens.
    """
    if output is not None:
        refuse_unmakeable("--output", output)
    opened = [Activations.open(folder) for folder in folders]
    rows, figures, groups = [], [], {}
    with Progress("cluster") as shown:
        for n, found in enumerate(opened):
            means_DLR = document_means(found)
            layers = [layer, *(range(found.num_layers) if per_layer else ())]
            for at, of in itertools.product(layers, ("tokens", "documents")):
                shown.show(f"{folders[n]}: {of}, {_layer_name(at)}")
                made, scores = (
                    group_tokens(found, count, layer=at, seed=seed)
                    if of == "tokens"
                    else group_documents(found, means_DLR, count, layer=at, seed=seed)
                )
                name = found.about.get("name", found.folder.name)
                rows.append(Row(folders[n], name, of, at, made.number, made.components, scores))
                file = f"{n}-{of}-{_layer_name(at)}.npy"
                groups[file] = made.ids_N
                about = groups_of(found, made, of == "documents")
                figures.append(rows[-1].to_json() | {"groups": about, "file": file})
    alike = all(same_documents(opened[0], other) for other in opened[1:])
    _print_table(rows, alike)
    if output is not None:
        target = Path(output).resolve()
        with partial_folder(target, "partial") as unfinished:
            for file, ids_N in groups.items():
                np.save(unfinished / file, ids_N)
            samples = [found.sample for found in opened]
            text = dumps({"samples": samples, "same_documents": alike, "rows": figures})
            (unfinished / "clusters.json").write_text(text + "\n", encoding="utf-8")
            os.rename(unfinished, target)
    return rows


def _print_table(rows: Sequence[Row], alike: bool) -> None:
    caption = _CAPTION if alike else f"{_CAPTION}. The folders hold different documents"
    table = Table(title="clusters by experts used", caption=caption, box=box.SIMPLE_HEAD)
    for column in ("folder", "of", "layer", "clusters", "components", *SCORE_NAMES.values()):
        table.add_column(
            column, justify="right" if column not in ("folder", "of") else "left", overflow="fold"
        )
    for row in rows:
        cells = [f"{getattr(row.scores, name):.3f}".replace("nan", "–") for name in SCORE_NAMES]
        counts = [str(row.clusters), str(row.components)]
        table.add_row(escape(row.folder), row.of, _layer_name(row.layer), *counts, *cells)
    width = None if sys.stdout.isatty() else _WIDTH  # in a file no line is broken
    Console(highlight=False, width=width).print(table)


SCORE_NAMES = {
    "nmi": "NMI domains",
    "purity": "purity",
    "silhouette": "silhouette",
    "token_entropy": "type bits",
    "token_nmi": "NMI types",
}


_CAPTION = (
    "NMI: normalised mutual information, with the domains (topics) and with the token types"
    " (words); purity: share of rows that are of their group's most frequent domain; type bits:"
    " entropy of the token types in a group"
)
_WIDTH = 120


def _layer_name(layer: int | None) -> str:
    return "all" if layer is None else str(layer)


def sample_of(store: TokenStore, settings: SampleSettings) -> Sample:
    """The documents that settings ask for."""
    return sample_documents(
        store,
        settings.split,
        tokens=settings.tokens,
        max_length=settings.max_length,
        min_length=settings.min_length,
        seed=settings.seed,
    )


def recording(opened: Opened, shown: Progress) -> dict[str, Any]:
    """What `record` and `record_into` want of an opened model, but for the sample and the place."""
    return {
        "model": opened.model,
        "params": opened.params,
        "about": opened.facts,
        "pad_id": opened.store.pad_id,
        "progress": lambda line: shown.show(f"{opened.name}: {line}"),
    }

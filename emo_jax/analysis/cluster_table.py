"""`emo cluster`: turns folders of `emo activations` into a table."""

import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emo_jax.analysis.activations import Activations, same_documents
from emo_jax.analysis.cluster import (
    Scores,
    document_means,
    group_documents,
    group_tokens,
    groups_of,
    numbers,
)
from emo_jax.files.atomic import refuse_unmakeable
from emo_jax.files.json_files import dumps
from emo_jax.files.partial import partial_folder
from emo_jax.files.progress import Progress


class Row(NamedTuple):
    """Clusters of one model's tokens or documents, by one layer or by all."""

    folder: str
    model: str
    of: str
    layer: int | None
    clusters: int
    components: int
    scores: Scores

    def to_json(self) -> dict[str, Any]:
        """Returns its fields, with null for a score that is undefined."""
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
      output: folder to create, with the table and every cluster in `clusters.json`, and for each
        line of the table an .npy file with the cluster of each row.

    Raises:
      UsageError: a layer that does not exist, or more clusters than tokens.
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
    width = None if sys.stdout.isatty() else _WIDTH  # lines are not wrapped in a file
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

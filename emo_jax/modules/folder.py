"""The folder of a module: a Hugging Face folder with `selection.json`.

Legend: L layers, R routed experts.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.config import Config
from emo_jax.errors import UsageError
from emo_jax.hf.card import Card
from emo_jax.hf.export import export_leaves
from emo_jax.hf.tensors import LeafSource
from emo_jax.modules.assemble import pruned
from emo_jax.saved.load import OpenedModel, open_model
from emo_jax.saved.selection_file import Selection, selection_beside, selection_files


def write_selected(
    source: LeafSource,
    config: Config,
    kept_LR: np.ndarray,
    output: str | os.PathLike[str],
    selection: Selection,
    **options: Any,
) -> tuple[Path, Config]:
    """Writes a pruned model with its `selection.json`; returns the folder and the model's config.

    Args:
      source: parameters of the whole model.
      config: its config.
      kept_LR: bool, the experts to keep.
      output: Hugging Face folder to create; it is complete or does not appear.
      selection: content of `selection.json`.
      **options: options for `export_leaves`.
    """
    leaves, smaller = pruned(source, config, kept_LR)
    return write_module(leaves, smaller, output, selection, **options), smaller


def write_module(
    source: LeafSource,
    config: Config,
    output: str | os.PathLike[str],
    selection: Selection,
    **options: Any,
) -> Path:
    """`export_leaves` with `selection.json`, to which the digest of the experts is added."""
    facts = {
        "selected from": selection.parent.get("name", ""),
        "method": selection.about.get("method", ""),
        "routed experts kept in each layer": " ".join(str(len(k)) for k in selection.kept),
    }
    return export_leaves(
        source,
        config,
        output,
        card=Card(facts=facts),
        files=selection_files(selection, source, config),
        **options,
    )


def open_with_experts(path: str | os.PathLike[str]) -> OpenedModel:
    """Like `open_model`, but raises UsageError for a dense model."""
    opened = open_model(os.fspath(path))
    if opened.config.moe is None:
        raise UsageError(f"{path}: {opened.config.name} is dense, it has no experts")
    return opened


def selection_of(model: OpenedModel) -> Selection | None:
    """The selection of a model, if it is a module. That of a run has no digest."""
    of_folder = model.source if model.step is None else None
    return selection_beside(model.folder, model.config, of_folder)

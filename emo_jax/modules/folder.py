"""The folder of a module: a Hugging Face folder with `selection.json`.

Legend: L layers, R routed experts.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.config import Config, moe_of
from emo_jax.errors import UsageError
from emo_jax.hf.card import Card
from emo_jax.hf.export import export_leaves
from emo_jax.hf.tensors import LeafSource
from emo_jax.modules.assemble import pruned
from emo_jax.saved.load import OpenedModel, open_model
from emo_jax.saved.selection_file import (
    Selection,
    fingerprint,
    selection_beside,
    selection_files,
)


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


def selection_from(
    opened: OpenedModel,
    kept_LR: np.ndarray,
    about: Mapping[str, Any],
    *,
    scores_LR: np.ndarray | None = None,
    parent_fingerprint: str | None = None,
) -> Selection:
    """What `selection.json` says of a part of a model.

    Args:
      opened: the whole model.
      kept_LR: bool, the experts that the part has.
      about: how they were chosen.
      scores_LR: what decided; None: nothing did.
      parent_fingerprint: of the whole model, if it is known; None: it is computed.
    """
    moe = moe_of(opened.config)
    scores = () if scores_LR is None else tuple(tuple(row) for row in scores_LR.tolist())
    return Selection(
        parent={"name": opened.name, "path": opened.path, "step": opened.step},
        parent_fingerprint=parent_fingerprint or fingerprint(opened.source, opened.config),
        num_routed=moe.num_routed_experts,
        top_k=moe.top_k,
        tokenizer=opened.tokenizer.fingerprint if opened.tokenizer else "",
        kept=tuple(tuple(np.flatnonzero(row).tolist()) for row in kept_LR),
        about=dict(about),
        scores=scores,
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

"""A model with fewer experts: chosen, and written as a Hugging Face folder.

Legend: L layers, R routed experts.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emo_jax.config import Config
from emo_jax.hf.card import Card
from emo_jax.hf.export import export_leaves
from emo_jax.hf.tensors import LeafSource
from emo_jax.model.transformer import ModelFunctions, Params
from emo_jax.modularity.assemble import Assembled, Part, smaller_config
from emo_jax.modularity.selection import Selection, selection_files
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.selection.examples import Examples, pack
from emo_jax.selection.scores import Choice, choose_experts

BATCH_TOKENS = 8192  # of a batch on one device, about


def choose_by_examples(
    model: ModelFunctions,
    params: Params,
    examples: Examples,
    routed_L: Sequence[int],
    *,
    method: str,
    pad_id: int,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Choice:
    """`choose_experts` for documents.

    Args:
      model: on a mesh; of a config `within_documents`, so that each sees itself only.
      params: on the devices, as `ModelFunctions.param_shardings` says.
    """
    mesh, S = model.mesh, model.config.data.seq_len
    assert mesh is not None
    windows = max(1, min(BATCH_TOKENS, examples.tokens // mesh.size) // S)
    rows = 2 ** (windows.bit_length() - 1)  # a device; few sizes, as each is compiled
    where = mesh_lib.windows_sharding(mesh)
    batches = [
        jax.tree.map(lambda a: jax.device_put(a, where), batch)
        for batch in pack(examples.documents, S, rows * mesh.size, pad_id)
    ]
    return choose_experts(
        method, model, params, batches, routed_L, num_domains=1, seed=seed, progress=progress
    )


def within_documents(config: Config) -> Config:
    """The same model with attention within documents: a part of it serves one at a time."""
    if config.model.attention == "document":
        return config
    model = dataclasses.replace(config.model, attention="document")
    return dataclasses.replace(config, model=model)


def undropped(config: Config) -> Config:
    """The same model where no token is dropped: those of one domain go to few devices."""
    if config.moe is None or not config.moe.receive_factor:
        return config
    return dataclasses.replace(config, moe=dataclasses.replace(config.moe, receive_factor=0.0))


def pruned(source: LeafSource, config: Config, kept_LR: np.ndarray) -> tuple[Assembled, Config]:
    """A model with some of the routed experts, and its config.

    Nothing is scaled anew: the softmax over fewer logits is that of a pool of this size (SPEC 7.3).

    Args:
      kept_LR: bool.
    """
    places = [[[Part(0, int(e))] for e in np.flatnonzero(kept_R)] for kept_R in kept_LR]
    smaller = smaller_config(config, [len(p) for p in places])
    return Assembled([source], smaller, places), smaller


def write_selected(
    source: LeafSource,
    config: Config,
    kept_LR: np.ndarray,
    output: str | Path,
    selection: Selection,
    **options: Any,
) -> tuple[Path, Config]:
    """The Hugging Face folder of a pruned model, with `selection.json`, whole or not at all.

    Args:
      options: of `export_leaves`.
    """
    leaves, smaller = pruned(source, config, kept_LR)
    return write_module(leaves, smaller, output, selection, **options), smaller


def write_module(
    source: LeafSource, config: Config, output: str | Path, selection: Selection, **options: Any
) -> Path:
    """`export_leaves` with `selection.json`, which gets the digest of the experts."""
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

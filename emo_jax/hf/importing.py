"""A Hugging Face folder → parameters and config. Nothing is guessed: every name is checked."""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emo_jax.config import Config
from emo_jax.errors import HfFormatError
from emo_jax.files.inside import check_own_files
from emo_jax.files.trees import unflatten
from emo_jax.hf import tokenizer_files
from emo_jax.hf.fields import read_fields
from emo_jax.hf.fused import DOWN, GATE_UP, apart
from emo_jax.hf.hf_config import from_hf, load_json, vocab_rows, vocab_size
from emo_jax.hf.layouts import Layout, layout_named
from emo_jax.hf.mixtral import BLOCK
from emo_jax.hf.sources import FolderSource
from emo_jax.hf.tensors import HfTensor
from emo_jax.hf.weights import (
    MAX_TENSORS,
    StoredTensor,
    check_dtype,
    check_names,
    read_file_headers,
    read_headers,
)

EMBEDDING = "model.embed_tokens.weight"  # the same name in every layout
# What is copied out of a folder, or pushed, besides its config.json and its weights.
OTHER_FILES = (
    *tokenizer_files.FILES,
    *("generation_config.json", "selection.json", "README.md"),
)


def open_folder(folder: str | os.PathLike[str]) -> tuple[FolderSource, Config, Layout]:
    """A folder's parameters, readable block by block, their config, and their layout.

    Args:
      folder: folder with config.json and model.safetensors (or shards and their index).

    Returns:
      The parameters, config and layout. The config is the run's own if emo_jax wrote the folder;
      otherwise its training fields are minimal. Parameters that a layout does not store are zero:
      the vocabulary's padding rows and, in `qwen2_moe`, the router columns of the shared experts
      (which no loss ever reaches).

    Raises:
      HfFormatError: another architecture; a missing or broken file; names, shapes or dtypes that
        are not the layout's.
    """
    folder = Path(folder)
    layout, hf, headers = read_folder(folder)
    where = folder / "config.json"
    config = from_hf(hf, layout, where, name=folder.resolve().name)
    _check_counts(headers, hf, where)
    if layout.fused_experts:
        headers = apart(headers, config, layout)
    tensors = layout.tensors(config, biases=has_biases(layout, hf))
    source = _open(headers, config, tensors, layout.name, folder)
    return source, config, layout


def read_folder(folder: Path) -> tuple[Layout, dict[str, Any], dict[str, StoredTensor]]:
    """What a folder states about itself: its layout, the fields of `read_fields`, its tensors.

    Raises:
      HfFormatError: see `open_folder`; names and shapes of tensors are not checked.
    """
    check_own_files(folder, OTHER_FILES, error=HfFormatError)
    layout, hf = read_fields(_load_config(folder), folder / "config.json")
    headers = read_headers(folder)
    table = headers[EMBEDDING].shape if EMBEDDING in headers else ()
    if table:
        hf["vocab_size"] = vocab_size(hf, table[0])
    return layout, hf, headers


def has_biases(layout: Layout, hf: Mapping[str, Any]) -> bool:
    """Whether query, key and value of a folder have biases, given the fields of `read_fields`."""
    return bool(layout.bias_field and hf[layout.bias_field])


def _load_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").exists() and (folder / "adapter_config.json").exists():
        raise HfFormatError(
            f"{folder}: a PEFT adapter alone, not a model; merge it into its model and save that:"
            " merge_and_unload().save_pretrained(FOLDER)"
        )
    return load_json(folder / "config.json")


def import_model(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], Config]:
    """Reads a folder into memory: a nested dict of float32 NumPy arrays, and their config.

    Memory: the parameters once, plus a slice. See `open_folder`.
    """
    source, config, _ = open_folder(folder)
    return _read_tree(source), config


def import_tensors(
    path: str | os.PathLike[str], config: Config, *, layout: str = "emo"
) -> dict[str, Any]:
    """Reads one safetensors file with a layout's names (e.g. gradients) as a parameter-like tree.

    Raises:
      HfFormatError: names, shapes or dtypes are not the layout's for `config`.
    """
    path = Path(path)
    tensors = layout_named(layout).tensors(config)
    return _read_tree(_open(read_file_headers(path), config, tensors, layout, path))


def _read_tree(source: FolderSource) -> dict[str, Any]:
    return unflatten({leaf: source.read_whole(leaf) for leaf in source.shapes})


_NAME = re.compile(rf"model\.layers\.(\d{{1,9}})\.(?:(?:mlp|{BLOCK})\.experts\.(\d{{1,9}})\.)?")


def _check_counts(headers: dict[str, StoredTensor], hf: dict[str, Any], where: Path) -> None:
    """Rejects counts in config.json that the files do not have, before anything depends on them."""
    layers, experts, fused = set(), set(), 0
    for name, stored in headers.items():
        if found := _NAME.match(name):
            layers.add(found[1])
            experts.add(found[2] or "0")
            if name.endswith((GATE_UP, DOWN)):
                fused = max([fused, *stored.shape[:1]])
    counts = ("num_local_experts", "n_routed_experts", "num_experts")
    field = next((name for name in counts if name in hf), "num_experts")
    there = {"num_hidden_layers": len(layers), field: max(len(experts), fused)}
    wanted = {name: hf.get(name, 0) for name in there}
    wanted[field] = max([wanted[field], *(hf.get("num_experts_per_layer") or [])])
    for name, count in wanted.items():
        if count > there[name]:
            raise HfFormatError(
                f"{where}: {name} = {count}, but the tensors are of {there[name]}; copy the folder"
                " again, or mend its config.json"
            )
    if math.prod(wanted.values()) > MAX_TENSORS:
        raise HfFormatError(
            f"{where}: {' × '.join(f'{name} = {n}' for name, n in wanted.items())} are more experts"
            f" than any model of ours has ({MAX_TENSORS}); mend the file"
        )


def _open(
    headers: dict[str, StoredTensor],
    config: Config,
    tensors: list[HfTensor],
    layout: str,
    where: Path,
) -> FolderSource:
    _check(headers, tensors, layout, where)
    source = FolderSource(headers, tensors, config)
    source.check_constants()
    return source


def _check(
    headers: dict[str, StoredTensor], tensors: list[HfTensor], layout: str, where: Path
) -> None:
    """Checks names, then shapes and dtypes, before anything is allocated."""
    check_names(headers, (tensor.name for tensor in tensors), where, layout)
    for tensor in tensors:
        stored = headers[tensor.name]
        rows = vocab_rows(tensor.shape[0]) if tensor.is_vocab else tensor.shape[:1]
        if stored.shape not in [(n, *tensor.shape[1:]) for n in rows]:
            raise HfFormatError(
                f"{stored.file}: {tensor.name} has shape {stored.shape}, but the config says "
                f"{tensor.shape}; copy the folder again, or mend its config.json"
            )
        check_dtype(tensor.name, stored)

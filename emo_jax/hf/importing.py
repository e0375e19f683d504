"""A Hugging Face folder → parameters and config. Nothing is guessed: every name is asserted."""

from pathlib import Path
from typing import Any

from emo_jax.config import Config
from emo_jax.errors import HfFormatError
from emo_jax.hf.hf_config import from_hf, has_biases, layout_of, load_json, vocab_rows, vocab_size
from emo_jax.hf.layouts import Layout, layout_named
from emo_jax.hf.sources import FolderSource
from emo_jax.hf.tensors import HfTensor
from emo_jax.hf.tree import unflatten
from emo_jax.hf.weights import (
    READABLE_DTYPES,
    StoredTensor,
    check_names,
    read_file_headers,
    read_headers,
)

EMBEDDING = "model.embed_tokens.weight"  # the same name in every layout


def open_folder(folder: str | Path) -> tuple[FolderSource, Config, Layout]:
    """A folder's parameters, to be read block by block, their config, and the layout they are in.

    Args:
      folder: with config.json and model.safetensors (or shards and their index).

    Returns:
      The config is the run's own if emo_jax wrote the folder, else with the least training
      fields. Numbers that a layout does not hold are zero: those of the vocabulary's padding, and
      in `qwen2_moe` of the router for the shared experts (no loss ever reaches those).

    Raises:
      HfFormatError: another architecture; a missing or broken file; names, shapes or dtypes that
        are not the layout's.
    """
    folder = Path(folder)
    where = folder / "config.json"
    hf = load_json(where)
    layout = layout_of(hf, where)
    headers = read_headers(folder)
    table = headers[EMBEDDING].shape if EMBEDDING in headers else ()
    if table and isinstance(hf.get("vocab_size"), int):
        hf["vocab_size"] = vocab_size(hf, table[0])
    config = from_hf(hf, layout, where, name=folder.resolve().name)
    tensors = layout.tensors(config, biases=has_biases(hf, layout))
    source = _open(headers, config, tensors, layout.name, folder)
    return source, config, layout


def import_model(folder: str | Path) -> tuple[dict[str, Any], Config]:
    """Reads a folder into memory: a nested dict of float32 NumPy arrays, and their config.

    Memory: the parameters once, and a slice. See `open_folder`.
    """
    source, config, _ = open_folder(folder)
    return _read_tree(source), config


def import_tensors(path: str | Path, config: Config, *, layout: str = "emo") -> dict[str, Any]:
    """One safetensors file with a layout's names (gradients, say) as a tree like the parameters.

    Raises:
      HfFormatError: names, shapes or dtypes are not the layout's for `config`.
    """
    path = Path(path)
    tensors = layout_named(layout).tensors(config)
    return _read_tree(_open(read_file_headers(path), config, tensors, layout, path))


def _read_tree(source: FolderSource) -> dict[str, Any]:
    return unflatten({leaf: source.read_whole(leaf) for leaf in source.shapes})


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
    """Names, then shapes and dtypes, before anything is allocated."""
    check_names(headers, (tensor.name for tensor in tensors), where, layout)
    for tensor in tensors:
        stored = headers[tensor.name]
        rows = vocab_rows(tensor.shape[0]) if tensor.is_vocab else tensor.shape[:1]
        if stored.shape not in [(n, *tensor.shape[1:]) for n in rows]:
            raise HfFormatError(
                f"{stored.file}: {tensor.name} has shape {stored.shape}, but the config says "
                f"{tensor.shape}; copy the folder again, or mend its config.json"
            )
        if stored.dtype not in READABLE_DTYPES:
            raise HfFormatError(
                f"{stored.file}: {tensor.name} is {stored.dtype}, must be one of "
                f"{', '.join(READABLE_DTYPES)}; convert the folder to one of them"
            )

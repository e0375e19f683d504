"""Parameters and config → a Hugging Face folder, complete or not at all."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from emo_jax.config import Config, portable
from emo_jax.errors import EmoError, HfFormatError, UsageError, one_line
from emo_jax.files.atomic import refuse_existing
from emo_jax.files.inside import check_own_files
from emo_jax.files.partial import partial_folder, remove_left_over
from emo_jax.files.trees import flatten
from emo_jax.hf import tokenizer_files
from emo_jax.hf.card import Card, model_card
from emo_jax.hf.hf_config import SPECIAL_IDS, ids_for_others, to_hf
from emo_jax.hf.layouts import Layout, layout_for
from emo_jax.hf.sources import TreeSource
from emo_jax.hf.tensors import HfTensor, LeafSource
from emo_jax.hf.weights import (
    INDEX,
    check_names,
    plan_shards,
    read_headers,
    write_index,
    write_shards,
)
from emo_jax.model.params import check_shapes

MAX_SHARD_BYTES = 4_000_000_000
_PARTIAL = "partial"
FILES = (INDEX, "config.json", "generation_config.json", "README.md")  # besides the weights
_LOG = logging.getLogger(__name__)


def export_model(
    params: Mapping[str, Any], config: Config, output: str | os.PathLike[str], **options: Any
) -> Path:
    """`export_leaves` for parameters in memory: a nested dict of NumPy or JAX arrays.

    JAX arrays may be sharded over the devices of this process.
    """
    return export_leaves(TreeSource(flatten(params)), config, output, **options)


def export_leaves(
    source: LeafSource,
    config: Config,
    output: str | os.PathLike[str],
    *,
    layout: str | None = None,
    tokenizer_dir: str | os.PathLike[str] | None = None,
    adds_bos: bool | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
    bos_token_id: int | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    card: Card | None = None,
    files: Mapping[str, str] = MappingProxyType({}),
    on_bytes: Callable[[int], None] = lambda n: None,
) -> Path:
    """Writes `output`, which contains a complete model or does not appear.

    Memory: a few slices of a leaf in addition to the source.

    Args:
      source: the parameters, with the shapes of `config`.
      config: config of the run; stored in config.json, so that an import restores it, except for
        what `portable` drops.
      output: a new or empty folder.
      layout: `qwen2_moe`, `mixtral` or `llama` (read by transformers without remote code), or
        `emo` (the names of the released checkpoints); None: see `layout_for`.
      tokenizer_dir: folder with tokenizer.json, which is rewritten as `tokenizer_files` describes.
      adds_bos: whether the training documents began with the tokenizer's beginning-of-document
        token; None: as the folder states.
      eos_token_id: written to config.json and generation_config.json; None: the tokenizer's.
      pad_token_id: likewise.
      bos_token_id: likewise, but the tokenizer's only if documents began with it.
      max_shard_bytes: maximum size of a safetensors file (unless a single tensor is larger).
      card: what the model card states about the training.
      files: additional text files of the folder, by name.
      on_bytes: called with the size of every piece of the weights that was written.

    Returns:
      The path of the folder.

    Raises:
      UsageError: `output` already exists, the layout is for other models, or parameters, config
        and tokenizer do not belong together.
      DataError: `tokenizer_dir` has no tokenizer, or one that cannot end a document.
      EmoError: the folder cannot be written.
    """
    config = portable(config)
    output, chosen = Path(output), layout_for(config, layout)
    check_shapes(source.shapes, config)
    refuse_existing(output)
    ids = dict(zip(SPECIAL_IDS, (bos_token_id, eos_token_id, pad_token_id), strict=True))
    tokenizer = None
    if tokenizer_dir is not None:
        check_own_files(tokenizer_dir, tokenizer_files.FILES, error=UsageError)
        tokenizer = tokenizer_files.load(Path(tokenizer_dir), eos_id=eos_token_id)
        tokenizer_files.check(tokenizer, Path(tokenizer_dir), config.model.vocab_size)
        if adds_bos is not None:
            tokenizer.adds_bos = adds_bos and tokenizer.bos_id is not None
        tokenizer = tokenizer.for_others()
        ids = ids_for_others(tokenizer) | {n: i for n, i in ids.items() if i is not None}
    tensors = chosen.tensors(config)
    shards = plan_shards(tensors, max_shard_bytes)

    target = output.resolve()  # a link stays a link
    for note in remove_left_over(
        target, [_PARTIAL], [*shards, *FILES, *files, *tokenizer_files.FILES]
    ):
        _LOG.warning("%s", note)
    try:
        with partial_folder(target, _PARTIAL) as unfinished:
            write_shards(unfinished, shards, source, on_bytes)
            write_index(unfinished, shards)
            _write_json(unfinished / "config.json", to_hf(chosen, config, special_ids=ids))
            _write_json(
                unfinished / "generation_config.json",
                {name: i for name, i in ids.items() if i is not None},
            )
            if tokenizer is not None and tokenizer_dir is not None:
                tokenizer_files.write(
                    tokenizer, Path(tokenizer_dir), unfinished, model_max_length=config.data.seq_len
                )
            card_text = model_card(config, chosen, card)
            (unfinished / "README.md").write_text(card_text, encoding="utf-8")
            for name, text in files.items():
                (unfinished / name).write_text(text, encoding="utf-8")
            _check_written(unfinished, tensors, chosen)
            os.rename(unfinished, target)
    except OSError as error:
        raise EmoError(
            f"{output}: cannot be written: {one_line(error)}; mend that and export again"
        ) from error
    return output


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_written(folder: Path, tensors: list[HfTensor], layout: Layout) -> None:
    """Checks that safetensors reads exactly the layout's names and shapes from the files."""
    found = read_headers(folder)
    check_names(found, (tensor.name for tensor in tensors), folder, layout.name)
    for tensor in tensors:
        if found[tensor.name].shape != tensor.shape:
            raise HfFormatError(
                f"{folder}: {tensor.name} was written with shape {found[tensor.name].shape}, the "
                f"layout says {tensor.shape}; this is a fault in emo_jax, please report it"
            )
